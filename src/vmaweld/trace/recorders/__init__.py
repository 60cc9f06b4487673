# SPDX-License-Identifier: GPL-2.0-or-later
"""Recorders: each observes a command in its own way and makes the same events of it."""
