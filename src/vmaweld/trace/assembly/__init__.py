# SPDX-License-Identifier: GPL-2.0-or-later
"""From what a recorder observes to events in the order in which they took effect."""
