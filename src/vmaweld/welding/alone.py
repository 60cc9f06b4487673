# SPDX-License-Identifier: GPL-2.0-or-later
"""The proof that no other process has the memory of the one that is welded: it would go on while that stands still."""

import os
from typing import Final

from vmaweld.kernel import procfs, ptrace
from vmaweld.kernel.errors import ProcessGone
from vmaweld.welding.errors import Refused

_FEW: Final = 512
"""Numbers that are asked one by one. Where more were given out since, those of all processes are read."""


class Alone:
    """Whether process `pid` has its memory to itself, asked again and again.

    A process gets the memory of another when it begins (vfork, CLONE_VM), and never later. So all processes are looked
    at once, and then those alone that have begun since: in a standstill there is no time for more.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._last = 0

    def check(self) -> None:
        """Raises Refused where another process has the memory too, ProcessGone where `pid` has ended."""
        last = _last_number()  # read first: what begins meanwhile has a higher one, and is looked at the next time
        few = 0 < self._last <= last <= self._last + _FEW
        for other in range(self._last + 1, last + 1) if few else procfs.pids():
            if other != self.pid and ptrace.shares_memory(self.pid, other):
                self._refuse(other)
        self._last = last

    def _refuse(self, other: int) -> None:
        if os.path.exists(f"/proc/{self.pid}/task/{other}"):
            return  # a thread of its own
        if not procfs.read_file(self.pid, "auxv"):  # it has no memory any more, just as kernel threads
            raise ProcessGone(f"process {self.pid} has ended")
        raise Refused(f"process {other} has the same memory as process {self.pid} (vfork or CLONE_VM) and would go on")


def _last_number() -> int:
    """The number that the last process or thread got. The kernel counts upwards, and begins again at the limit."""
    with open("/proc/loadavg", encoding="ascii") as file:
        return int(file.read().split()[-1])
