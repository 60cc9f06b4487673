# SPDX-License-Identifier: GPL-2.0-or-later
"""madvise: what a program tells of its memory (``mm/madvise.c``)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final

from vmaweld import events
from vmaweld.abi import (
    HUGE_PAGE_SIZE,
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_REMOVE,
    MADV_SEQUENTIAL,
    MADV_UNMERGEABLE,
    MADV_WILLNEED,
    MADV_WIPEONFORK,
    PAGE_SIZE,
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_DONTEXPAND,
    VM_DROPPABLE,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_IO,
    VM_LOCKED,
    VM_MAYBE_GUARD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_MERGEABLE,
    VM_MIXEDMAP,
    VM_NOHUGEPAGE,
    VM_PFNMAP,
    VM_RAND_READ,
    VM_READ,
    VM_SEALED,
    VM_SEQ_READ,
    VM_SHARED,
    VM_SPECIAL,
    VM_WIPEONFORK,
    VM_WRITE,
    page_align_up,
)
from vmaweld.events import Event
from vmaweld.model.address_space import AddressSpace, Call
from vmaweld.model.errors import LinuxError
from vmaweld.model.vma import VMA

_CLEAR_AND_SET: Final[dict[int, tuple[int, int]]] = {
    MADV_NORMAL: (VM_RAND_READ | VM_SEQ_READ, 0),
    MADV_SEQUENTIAL: (VM_RAND_READ, VM_SEQ_READ),
    MADV_RANDOM: (VM_SEQ_READ, VM_RAND_READ),
    MADV_DONTFORK: (0, VM_DONTCOPY),
    MADV_DOFORK: (VM_DONTCOPY, 0),
    MADV_WIPEONFORK: (0, VM_WIPEONFORK),
    MADV_KEEPONFORK: (VM_WIPEONFORK, 0),
    MADV_DONTDUMP: (0, VM_DONTDUMP),
    MADV_DODUMP: (VM_DONTDUMP, 0),
    MADV_MERGEABLE: (0, VM_MERGEABLE),
    MADV_UNMERGEABLE: (VM_MERGEABLE, 0),
    MADV_HUGEPAGE: (VM_NOHUGEPAGE, VM_HUGEPAGE),
    MADV_NOHUGEPAGE: (VM_HUGEPAGE, VM_NOHUGEPAGE),
}
"""What each advice that is kept in the VMA clears and sets."""

_NOT_FOR_KSM: Final = (
    VM_SHARED | VM_MAYSHARE | VM_PFNMAP | VM_IO | VM_DONTEXPAND | VM_HUGETLB | VM_MIXEDMAP | VM_DROPPABLE
)
_DISCARDS: Final = (
    MADV_FREE,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_REMOVE,
    MADV_DONTFORK,
    MADV_WIPEONFORK,
    MADV_GUARD_INSTALL,
)


def _known(space: AddressSpace, advice: int) -> bool:
    policy = space.machine.policy
    if advice in (MADV_POPULATE_READ, MADV_POPULATE_WRITE):
        return policy.madv_populate
    if advice == MADV_DONTNEED_LOCKED:
        return policy.madv_dontneed_locked
    if advice == MADV_COLLAPSE:
        return policy.madv_collapse
    if advice in (MADV_GUARD_INSTALL, MADV_GUARD_REMOVE):
        return policy.madv_guard
    return advice in _CLEAR_AND_SET or advice in (
        MADV_WILLNEED,
        MADV_DONTNEED,
        MADV_FREE,
        MADV_REMOVE,
        MADV_COLD,
        MADV_PAGEOUT,
    )


class _Madvise(Call):
    """madvise(2). Returns 0. Raises EINVAL, ENOMEM, EACCES, EAGAIN, EPERM.

    A hole in the range is ENOMEM after all the rest has been advised; any other failure stops at its VMA.
    """

    def perform(self, space: AddressSpace, event: Event) -> int:
        addr = event.addr
        advice = event.flags
        if not _known(space, advice):
            raise LinuxError(errno.EINVAL, f"unknown advice {advice}")
        if addr & (PAGE_SIZE - 1):
            raise LinuxError(errno.EINVAL, f"the address {addr:#x} is not page aligned")
        end = addr + page_align_up(event.length)
        if end >= 1 << 64:
            raise LinuxError(errno.EINVAL, "the range wraps around")
        if end == addr:
            return 0
        if advice in (MADV_POPULATE_READ, MADV_POPULATE_WRITE) and space.machine.policy.populate_stops_at_hole:
            _populate(space, addr, end, write=advice == MADV_POPULATE_WRITE)
            return 0
        for vma, start, stop in parts(space, addr, end):
            _advise(space, vma, start, stop, advice)
        return 0


def parts(space: AddressSpace, start: int, end: int) -> Iterator[tuple[VMA, int, int]]:
    """``madvise_walk_vmas``: each VMA of ``[start, end)``, with what of the range lies in it.

    Whoever walks may change that VMA meanwhile. Raises ENOMEM for a hole, after all the rest has been walked.
    """
    hole = False
    while start < end:
        vma = space.vmas.find(start)
        if vma is None:
            raise LinuxError(errno.ENOMEM, f"nothing is mapped at {start:#x}")
        if start < vma.start:
            hole = True
            start = vma.start
            if start >= end:
                break
        stop = min(vma.end, end)
        yield vma, start, stop
        start = stop
    if hole:
        raise LinuxError(errno.ENOMEM, "part of the range is not mapped")


def _advise(space: AddressSpace, vma: VMA, start: int, end: int, advice: int) -> None:
    """``madvise_vma_behavior``: one VMA's part of the range."""
    flags = vma.flags
    if flags & VM_SEALED and advice in _DISCARDS and vma.anonymous and not flags & VM_WRITE:
        raise LinuxError(errno.EPERM, f"the mapping at {vma.start:#x} is sealed")
    change = _CLEAR_AND_SET.get(advice)
    if change is None:
        _act(space, vma, start, end, advice)
        return
    if advice in (MADV_DOFORK, MADV_DODUMP) and flags & VM_SPECIAL:
        raise LinuxError(errno.EINVAL, "not for a special mapping")
    if advice == MADV_WIPEONFORK and (vma.file or flags & VM_SHARED):
        raise LinuxError(errno.EINVAL, "only for anonymous private memory")
    if advice in (MADV_KEEPONFORK, MADV_DODUMP) and flags & VM_DROPPABLE:
        raise LinuxError(errno.EINVAL, "not for droppable memory")
    if advice in (MADV_MERGEABLE, MADV_UNMERGEABLE) and flags & _NOT_FOR_KSM:
        return
    if advice in (MADV_HUGEPAGE, MADV_NOHUGEPAGE) and flags & (VM_SPECIAL | VM_HUGETLB) and advice == MADV_HUGEPAGE:
        raise LinuxError(errno.EINVAL, "huge pages are not for this mapping")
    update(space, vma, start, end, (flags & ~change[0]) | change[1], vma.name)


def update(space: AddressSpace, vma: VMA, start: int, end: int, flags: int, name: str) -> None:
    """``madvise_update_vma``. A split at the limit is EAGAIN to whoever advises or names."""
    if flags == vma.flags and name == vma.name:
        return
    try:
        space.modify(vma, start, end, flags, name=name)
    except LinuxError as error:
        raise LinuxError(errno.EAGAIN if space.machine.policy.madvise_eagain else errno.ENOMEM, error.why) from None


def _act(space: AddressSpace, vma: VMA, start: int, end: int, advice: int) -> None:
    """Advice that does something now and changes no flag."""
    flags = vma.flags
    if advice in (MADV_DONTNEED, MADV_DONTNEED_LOCKED):
        if flags & (VM_PFNMAP | (VM_LOCKED if advice == MADV_DONTNEED else 0)):
            raise LinuxError(errno.EINVAL, f"the memory at {start:#x} is locked")
        space.pages.drop(start, end)
    elif advice in (MADV_POPULATE_READ, MADV_POPULATE_WRITE):
        _populate(space, start, end, write=advice == MADV_POPULATE_WRITE)
    elif advice == MADV_FREE:  # the pages stay mapped until memory is short
        if flags & (VM_PFNMAP | VM_LOCKED) or not vma.anonymous:
            raise LinuxError(errno.EINVAL, "only for unlocked anonymous memory")
    elif advice in (MADV_COLD, MADV_PAGEOUT):
        if flags & (VM_LOCKED | VM_PFNMAP | VM_HUGETLB):
            raise LinuxError(errno.EINVAL, f"the memory at {start:#x} is locked")
    elif advice == MADV_COLLAPSE:
        _collapse(space, vma, start, end)
    elif advice == MADV_REMOVE:
        if flags & VM_LOCKED or not vma.file:
            raise LinuxError(errno.EINVAL, "only for unlocked file mappings")
        needed = VM_SHARED | (VM_WRITE if space.machine.policy.remove_needs_write else VM_MAYWRITE)
        if flags & needed != needed:
            raise LinuxError(errno.EACCES, "only for shared mappings that may be written")
    elif advice in (MADV_GUARD_INSTALL, MADV_GUARD_REMOVE):
        install = advice == MADV_GUARD_INSTALL
        writable_only = not space.machine.policy.guard_any_mapping
        if flags & (VM_SPECIAL | VM_HUGETLB | (VM_LOCKED if install else 0)) or (
            writable_only and (not vma.anonymous or not flags & VM_MAYWRITE)
        ):
            raise LinuxError(errno.EINVAL, "guard pages are not for this mapping")
        if not install:
            return
        if space.machine.policy.guard_flag:
            vma.flags |= VM_MAYBE_GUARD
        if vma.anonymous or space.machine.policy.guard_needs_anon_vma:
            space.prepare_anon_vma(vma)  # so that fork copies the page tables, markers included
        space.pages.drop(start, end)


def _populate(space: AddressSpace, start: int, end: int, *, write: bool) -> None:
    """MADV_POPULATE_READ and _WRITE (5.14). Raises ENOMEM at a hole, EINVAL where access is forbidden."""
    while start < end:
        vma = space.vmas.find(start)
        if vma is None or vma.start > start:
            raise LinuxError(errno.ENOMEM, f"nothing is mapped at {start:#x}")
        if vma.flags & (VM_IO | VM_PFNMAP) or not vma.flags & (VM_WRITE if write else VM_READ):
            raise LinuxError(errno.EINVAL, f"{start:#x} is not {'writable' if write else 'readable'}")
        start = space.touch_pages(vma, start, end, write=write)


def _collapse(space: AddressSpace, vma: VMA, start: int, end: int) -> None:
    """``madvise_collapse``: each 2 MiB that hold a page become one huge page, exclusive and without holes.

    Raises EINVAL where a huge page cannot be, or there is nothing to make one of. Of file mappings only the size counts
    here: their pages are not kept.
    """
    last = (vma.end - HUGE_PAGE_SIZE) & -HUGE_PAGE_SIZE
    if last < vma.start or vma.flags & (VM_SPECIAL | VM_HUGETLB):
        raise LinuxError(errno.EINVAL, f"no huge page fits the mapping at {vma.start:#x}")
    if not vma.anonymous:
        return
    empty = False
    for block in range((start + HUGE_PAGE_SIZE - 1) & -HUGE_PAGE_SIZE, end & -HUGE_PAGE_SIZE, HUGE_PAGE_SIZE):
        if space.pages.populated(block, block + HUGE_PAGE_SIZE):
            space.write_pages(vma, block, block + HUGE_PAGE_SIZE)
        else:
            empty = True
    if empty:
        raise LinuxError(errno.EINVAL, "there are no pages to make a huge one of")


CALLS: Final[dict[str, Call]] = {
    events.MADVISE: _Madvise(),
}
