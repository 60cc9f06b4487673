# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine in Python: address spaces, VMAs, anon_vmas, pages and the merge. Pure."""
