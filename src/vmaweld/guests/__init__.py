# SPDX-License-Identifier: GPL-2.0-or-later
"""Other kernels: fetched from the archives of distributions, booted in QEMU, run in."""
