# SPDX-License-Identifier: GPL-2.0-or-later
"""Page faults as events: neighbouring faults of one kind become one.

Consecutive faults of one kind (write, read) on neighbouring pages become one event, as long as nothing else happens in
that address space.
"""

from vmaweld import events
from vmaweld.events import Event
from vmaweld.trace.assembly.outlet import Outlet


class Faults:
    """The faults of one address space that are being gathered: a run of writes, a run of reads."""

    __slots__ = ("_outlet", "_reads", "_writes")

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._writes: Event | None = None
        self._reads: Event | None = None

    def touch(self, op: str, pid: int, addr: int, length: int, time: int) -> None:
        """A fault, or some in a row. op: WRITE or READ."""
        run = self._writes if op == events.WRITE else self._reads
        if run is not None:
            end = run.addr + run.length
            if run.pid == pid and run.addr <= addr + length and addr <= end:
                if addr + length > end:
                    run.length = addr + length - run.addr
                if addr < run.addr:
                    run.length += run.addr - addr
                    run.addr = addr
                return
            self._outlet.send(run)
        run = Event(op, pid, addr=addr, length=length, time=time)
        if op == events.WRITE:
            self._writes = run
        else:
            self._reads = run

    def settle(self) -> None:
        """Give out what has been gathered: something else happens now."""
        if self._writes is None and self._reads is None:
            return
        runs = [run for run in (self._writes, self._reads) if run is not None]
        self._writes = self._reads = None
        if len(runs) == 2 and runs[1].time < runs[0].time:
            runs.reverse()
        for run in runs:
            self._outlet.send(run)
