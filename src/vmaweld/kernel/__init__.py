# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine that is running: procfs, BPF snapshots, system calls, guests."""
