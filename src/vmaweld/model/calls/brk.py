# SPDX-License-Identifier: GPL-2.0-or-later
"""brk: the heap grows and shrinks (``mm/mmap.c``)."""

from __future__ import annotations

from typing import Final

from vmaweld import events
from vmaweld.abi import (
    PAGE_SHIFT,
    PAGE_SIZE,
    TASK_SIZE,
    VM_ACCOUNT,
    VM_LOCKED,
    VM_READ,
    VM_WRITE,
    page_align_up,
)
from vmaweld.events import Event
from vmaweld.model.address_space import AddressSpace, Call
from vmaweld.model.calls.mmap import MAY_ALL
from vmaweld.model.errors import LinuxError
from vmaweld.model.faults import populate
from vmaweld.model.merge import MergeState
from vmaweld.model.vma import VMA


class _Brk(Call):
    """brk(2). Returns the break afterwards, which is the old one where the call failed.

    A recording may begin after the program's exec. Its first answer then tells where the heap begins.
    """

    def perform(self, space: AddressSpace, event: Event) -> int:
        if not space.start_brk and event.result is not None and event.result > 0:
            heap = space.vmas.find(event.result - 1)
            known = heap is not None and heap.name == "[heap]" and heap.start < event.result
            space.start_brk = heap.start if known and heap is not None else event.result
            space.brk = event.result
            return event.result
        addr = event.addr
        if not space.start_brk or addr < space.start_brk:
            return space.brk
        new = page_align_up(addr)
        old = page_align_up(space.brk)
        if new == old:
            space.brk = addr
            return addr
        if addr <= space.brk:
            try:
                space.unmap(new, old)
            except LinuxError:
                return space.brk
            space.brk = addr
            return addr
        above = space.vmas.find(old)
        if above is not None and new + PAGE_SIZE > space.start_gap(above):
            return space.brk
        if new > TASK_SIZE or space.vmas.count > space.machine.max_map_count:
            return space.brk
        _grow_brk(space, old, new)
        space.brk = addr
        if space.def_flags & VM_LOCKED:
            populate(space, old, new, ignore_errors=True)
        return addr


def _grow_brk(space: AddressSpace, start: int, end: int) -> None:
    """``do_brk_flags``: extend the heap, or begin a new VMA."""
    flags = VM_READ | VM_WRITE | MAY_ALL | VM_ACCOUNT | space.def_flags
    prev = space.vmas.find_prev(start)
    next = space.vmas.find(start)
    only_prev = not space.machine.policy.brk_merges_next
    if (prev is not None and prev.end == start) or (next is not None and not only_prev):
        m = MergeState.mapped(start, end, flags, start >> PAGE_SHIFT, prev, next)
        m.only_prev = only_prev
        if space.merge(m) is not None:
            return
    space.vmas.insert(VMA(space.pages, start, end, flags, start >> PAGE_SHIFT))


CALLS: Final[dict[str, Call]] = {
    events.BRK: _Brk(),
}
