# SPDX-License-Identifier: GPL-2.0-or-later
"""The BPF iterator over VMAs: its program, its records, the types of the running kernel, and what reads through it."""
