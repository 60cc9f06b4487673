"""brk: the heap grows and shrinks (``mm/mmap.c``)."""

from __future__ import annotations

from typing import Final

from vmaweld.abi import (
    PAGE_SHIFT,
    PAGE_SIZE,
    TASK_SIZE,
    VM_ACCOUNT,
    VM_LOCKED,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYWRITE,
    VM_READ,
    VM_WRITE,
    page_align_up,
)
from vmaweld.model.address_space import AddressSpace
from vmaweld.model.errors import LinuxError
from vmaweld.model.faults import populate
from vmaweld.model.merge import MergeState
from vmaweld.model.vma import VMA

_MAY_ALL: Final = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC


def brk(space: AddressSpace, addr: int) -> int:
    """brk(2). Returns the break afterwards, which is the old one where the call failed."""
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
    flags = VM_READ | VM_WRITE | _MAY_ALL | VM_ACCOUNT | space.def_flags
    prev = space.vmas.find_prev(start)
    next = space.vmas.find(start)
    only_prev = not space.machine.policy.brk_merges_next
    if (prev is not None and prev.end == start) or (next is not None and not only_prev):
        m = MergeState(
            start, end, flags, start >> PAGE_SHIFT, "", "", 0, "", None, prev, None, next, None, only_prev=only_prev
        )
        if space.merge(m) is not None:
            return
    space.vmas.insert(VMA(space, start, end, flags, start >> PAGE_SHIFT))
