# SPDX-License-Identifier: GPL-2.0-or-later
"""The recorders that there are."""

from typing import Final

from vmaweld.trace.recorders.perf import PerfRecorder
from vmaweld.trace.recorders.protocol import Recorder
from vmaweld.trace.recorders.strace import StraceRecorder

RECORDERS: Final[dict[str, type[Recorder]]] = {each.name: each for each in (PerfRecorder, StraceRecorder)}
"""By name, the best first."""
