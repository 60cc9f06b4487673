# SPDX-License-Identifier: GPL-2.0-or-later
"""Sacrificial processes that perform events for real."""
