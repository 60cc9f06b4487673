# SPDX-License-Identifier: GPL-2.0-or-later
"""Merging VMAs for real, in this process and in others, through userfaultfd.

`weld` and `mremap` work on the caller's own memory and are also to be had as ``vmaweld.weld`` and
``vmaweld.mremap``; `remote.weld` works on another process.
"""

from vmaweld.welding.errors import HalfDone, Refused, WeldError
from vmaweld.welding.local import mremap, weld
from vmaweld.welding.report import Report

__all__ = ["HalfDone", "Refused", "Report", "WeldError", "mremap", "weld"]
