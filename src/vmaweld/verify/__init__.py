# SPDX-License-Identifier: GPL-2.0-or-later
"""The model held against a kernel, on programs at random."""
