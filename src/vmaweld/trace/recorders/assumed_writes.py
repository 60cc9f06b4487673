# SPDX-License-Identifier: GPL-2.0-or-later
"""Page faults for recorders that do not see them: what a process may write, it writes at once."""

from collections.abc import Callable

from vmaweld import abi, events
from vmaweld.abi import page_align_up
from vmaweld.events import Event


class AssumeWrites:
    """Hands events on; behind each that makes private memory writable, a write to all of it.

    mmap and mprotect with PROT_WRITE, brk and mremap that grow. Where the range holds shared or read-only memory too,
    the machine that replays it knows, and a write there does nothing to an anon_vma.
    """

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._breaks: dict[int, int] = {}

    def __call__(self, event: Event) -> None:
        """Take one event."""
        op, result, pid, time = event.op, event.result, event.pid, event.time
        self._emit(event)
        if op == events.FORK:
            if pid in self._breaks:
                self._breaks[event.child] = self._breaks[pid]
        elif op in (events.EXEC, events.EXIT):
            self._breaks.pop(pid, None)
        elif op == events.PLACE:
            if event.flags & (abi.VM_WRITE | abi.VM_SHARED | abi.VM_MAYSHARE) == abi.VM_WRITE:
                self._write(pid, time, event.addr, event.length)
        elif op == events.BRK and result is not None:
            before = self._breaks.get(pid, result)
            self._breaks[pid] = result
            if result > before:
                self._write(pid, time, page_align_up(before), page_align_up(result) - page_align_up(before))
        elif result is None or result < 0:
            return
        elif op == events.MMAP:
            if event.prot & abi.PROT_WRITE and event.flags & abi.MAP_TYPE == abi.MAP_PRIVATE:
                self._write(pid, time, result, page_align_up(event.length))
        elif op == events.MPROTECT:
            if event.prot & abi.PROT_WRITE:
                self._write(pid, time, event.addr, page_align_up(event.length))
        elif op == events.MREMAP and event.new_length > event.length:
            old = page_align_up(event.length)
            self._write(pid, time, result + old, page_align_up(event.new_length) - old)

    def _write(self, pid: int, time: int, addr: int, length: int) -> None:
        if length > 0:
            self._emit(Event(events.WRITE, pid, addr=addr, length=length, time=time))
