# SPDX-License-Identifier: GPL-2.0-or-later
"""Replaying traces under policies, and saying what came of it."""
