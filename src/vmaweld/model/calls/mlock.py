# SPDX-License-Identifier: GPL-2.0-or-later
"""mlock and its kin: memory that stays (``mm/mlock.c``)."""

from __future__ import annotations

import contextlib
import errno
from typing import Final

from vmaweld import events
from vmaweld.abi import (
    MCL_CURRENT,
    MCL_FUTURE,
    MCL_ONFAULT,
    MLOCK_ONFAULT,
    TASK_SIZE,
    VM_DROPPABLE,
    VM_HUGETLB,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_LOCKONFAULT,
    VM_SPECIAL,
    page_align_down,
    page_align_up,
)
from vmaweld.events import Event
from vmaweld.model.address_space import AddressSpace, Call
from vmaweld.model.errors import LinuxError
from vmaweld.model.faults import populate
from vmaweld.model.vma import VMA


class _Mlock(Call):
    """mlock(2), mlock2(2). Returns 0. Raises EINVAL, ENOMEM. The caller is taken to have CAP_IPC_LOCK."""

    def perform(self, space: AddressSpace, event: Event) -> int:
        flags = event.flags
        if flags & ~MLOCK_ONFAULT:
            raise LinuxError(errno.EINVAL, f"unknown mlock flags {flags:#x}")
        start, end = _lock_range(event)
        _lock(space, start, end, VM_LOCKED_MASK if flags & MLOCK_ONFAULT else VM_LOCKED)
        populate(space, start, end, ignore_errors=False)
        return 0


class _Munlock(Call):
    """munlock(2). Returns 0. Raises EINVAL, ENOMEM."""

    def perform(self, space: AddressSpace, event: Event) -> int:
        start, end = _lock_range(event)
        _lock(space, start, end, 0)
        return 0


def _lock_range(event: Event) -> tuple[int, int]:
    start = page_align_down(event.addr)
    end = start + page_align_up(event.length + (event.addr - start))
    if end < start or end > 1 << 64:
        raise LinuxError(errno.EINVAL, "the range wraps around")
    return start, end


def _lock(space: AddressSpace, start: int, end: int, add: int) -> None:
    """``apply_vma_lock_flags``."""
    if start == end:
        return
    vma = space.vmas.find(start)
    while True:
        if vma is None or vma.start > start:
            raise LinuxError(errno.ENOMEM, f"nothing is mapped at {start:#x}")
        vma = _lock_vma(space, vma, start, min(vma.end, end), add)
        start = vma.end
        if start >= end:
            return
        vma = vma.next


def _lock_vma(space: AddressSpace, vma: VMA, start: int, end: int, add: int) -> VMA:
    """``mlock_fixup``: special mappings and huge pages are passed over in silence."""
    flags = (vma.flags & ~VM_LOCKED_MASK) | add
    if flags == vma.flags or vma.flags & (VM_SPECIAL | VM_HUGETLB | VM_DROPPABLE) or vma.name == "[vdso]":
        return vma
    return space.modify(vma, start, end, flags)


class _Mlockall(Call):
    """mlockall(2). Returns 0. Raises EINVAL."""

    def perform(self, space: AddressSpace, event: Event) -> int:
        flags = event.flags
        if not flags or flags & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) or flags == MCL_ONFAULT:
            raise LinuxError(errno.EINVAL, f"mlockall flags {flags:#x}")
        lock = VM_LOCKED | (VM_LOCKONFAULT if flags & MCL_ONFAULT else 0)
        space.def_flags &= ~VM_LOCKED_MASK
        if flags & MCL_FUTURE:
            space.def_flags |= lock
        if flags & MCL_CURRENT:
            _lock_all(space, lock)
            populate(space, 0, TASK_SIZE, ignore_errors=True)
        return 0


class _Munlockall(Call):
    """munlockall(2). Returns 0."""

    def perform(self, space: AddressSpace, event: Event) -> int:
        space.def_flags &= ~VM_LOCKED_MASK
        _lock_all(space, 0)
        return 0


def _lock_all(space: AddressSpace, add: int) -> None:
    """``apply_mlockall_flags``, which ignores every error."""
    vma = space.vmas.first
    while vma is not None:
        with contextlib.suppress(LinuxError):
            vma = _lock_vma(space, vma, vma.start, vma.end, add)
        vma = vma.next


CALLS: Final[dict[str, Call]] = {
    events.MLOCK: _Mlock(),
    events.MUNLOCK: _Munlock(),
    events.MLOCKALL: _Mlockall(),
    events.MUNLOCKALL: _Munlockall(),
}
