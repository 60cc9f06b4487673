"""Calls that change VMAs over a range: mprotect, the mlock family, mbind, mseal (``mm/mprotect.c`` and kin)."""

from __future__ import annotations

import contextlib
import errno
from typing import Final

from vmaweld.abi import (
    EXECUTE_ONLY_PKEY,
    MCL_CURRENT,
    MCL_FUTURE,
    MCL_ONFAULT,
    MLOCK_ONFAULT,
    PAGE_SIZE,
    PROT_GROWSDOWN,
    PROT_GROWSUP,
    PROT_SEM,
    TASK_SIZE,
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_DROPPABLE,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_LOCKONFAULT,
    VM_NORESERVE,
    VM_PKEY_MASK,
    VM_PKEY_SHIFT,
    VM_SEALED,
    VM_SHARED,
    VM_SPECIAL,
    VM_WRITE,
    page_align_down,
    page_align_up,
)
from vmaweld.model.address_space import AddressSpace
from vmaweld.model.errors import LinuxError
from vmaweld.model.faults import execute_only, populate
from vmaweld.model.vma import VMA

_GROWS: Final = PROT_GROWSDOWN | PROT_GROWSUP
_KNOWN_PROTECTION: Final = VM_ACCESS_FLAGS | PROT_SEM
_NOT_TO_ACCOUNT: Final = VM_ACCOUNT | VM_WRITE | VM_HUGETLB | VM_SHARED | VM_NORESERVE
"""A VMA with one of these is accounted for already, or never is (``accountable_mapping``)."""


def mprotect(space: AddressSpace, addr: int, length: int, prot: int, pkey: int = -1) -> int:
    """mprotect(2), pkey_mprotect(2) with `pkey` >= 0. Returns 0. Raises EINVAL, ENOMEM, EACCES, EPERM.

    A failure leaves what lies before it changed, as Linux does.
    """
    grows = prot & _GROWS
    prot -= grows
    if grows == _GROWS:
        raise LinuxError(errno.EINVAL, "PROT_GROWSDOWN and PROT_GROWSUP exclude each other")
    if addr & (PAGE_SIZE - 1):
        raise LinuxError(errno.EINVAL, f"the address {addr:#x} is not page aligned")
    if not length:
        return 0
    start = addr
    end = start + page_align_up(length)
    if end <= start or end > 1 << 64:
        raise LinuxError(errno.ENOMEM, "the range wraps around")
    if prot & ~_KNOWN_PROTECTION:
        raise LinuxError(errno.EINVAL, f"unknown protection {prot:#x}")
    vma = space.vmas.find(start)
    if vma is None or vma.start >= end:
        raise LinuxError(errno.ENOMEM, f"nothing is mapped at {start:#x}")
    if grows == PROT_GROWSDOWN:
        start = vma.start
        if not vma.flags & VM_GROWSDOWN:
            raise LinuxError(errno.EINVAL, f"the mapping at {start:#x} does not grow down")
    elif vma.start > start:
        raise LinuxError(errno.ENOMEM, f"nothing is mapped at {start:#x}")
    elif grows == PROT_GROWSUP:
        raise LinuxError(errno.EINVAL, "nothing grows up on this processor")

    access = prot & VM_ACCESS_FLAGS
    while True:
        flags = (vma.flags & ~VM_ACCESS_FLAGS) | access
        if pkey >= 0:
            flags = (flags & ~VM_PKEY_MASK) | pkey << VM_PKEY_SHIFT
        elif space.machine.pkeys:  # arch_override_mprotect_pkey
            if prot == VM_EXEC:
                flags = (flags & ~VM_PKEY_MASK) | EXECUTE_ONLY_PKEY << VM_PKEY_SHIFT
            elif execute_only(vma):
                flags &= ~VM_PKEY_MASK
        if (flags & ~(flags >> 4)) & VM_ACCESS_FLAGS:
            raise LinuxError(errno.EACCES, f"the mapping at {vma.start:#x} may not have this protection")
        vma = _protect(space, vma, start, min(vma.end, end), flags)
        start = vma.end
        if start >= end:
            return 0
        following = vma.next
        if following is None or following.start > start:
            raise LinuxError(errno.ENOMEM, f"nothing is mapped at {start:#x}")
        vma = following


def _protect(space: AddressSpace, vma: VMA, start: int, end: int, flags: int) -> VMA:
    """``mprotect_fixup``."""
    old = vma.flags
    if old & VM_SEALED:
        raise LinuxError(errno.EPERM, f"the mapping at {vma.start:#x} is sealed")
    if flags == old:
        return vma
    if flags & VM_WRITE:
        if not old & _NOT_TO_ACCOUNT:
            flags |= VM_ACCOUNT
    elif old & VM_ACCOUNT and vma.anon_vma is None and space.machine.policy.unaccount_unfaulted and vma.anonymous:
        flags &= ~VM_ACCOUNT
    vma = space.modify(vma, start, end, flags)
    if old & VM_LOCKED and flags & VM_WRITE and not old & (VM_WRITE | VM_SHARED):
        populate(space, start, end, ignore_errors=True)
    return vma


def mlock(space: AddressSpace, addr: int, length: int, flags: int = 0) -> int:
    """mlock(2), mlock2(2). Returns 0. Raises EINVAL, ENOMEM. The caller is taken to have CAP_IPC_LOCK."""
    if flags & ~MLOCK_ONFAULT:
        raise LinuxError(errno.EINVAL, f"unknown mlock flags {flags:#x}")
    start, end = _lock_range(addr, length)
    _lock(space, start, end, VM_LOCKED_MASK if flags & MLOCK_ONFAULT else VM_LOCKED)
    populate(space, start, end, ignore_errors=False)
    return 0


def munlock(space: AddressSpace, addr: int, length: int) -> int:
    """munlock(2). Returns 0. Raises EINVAL, ENOMEM."""
    start, end = _lock_range(addr, length)
    _lock(space, start, end, 0)
    return 0


def _lock_range(addr: int, length: int) -> tuple[int, int]:
    start = page_align_down(addr)
    end = start + page_align_up(length + (addr - start))
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


def mlockall(space: AddressSpace, flags: int) -> int:
    """mlockall(2). Returns 0. Raises EINVAL."""
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


def munlockall(space: AddressSpace) -> int:
    """munlockall(2). Returns 0."""
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


def mbind(space: AddressSpace, addr: int, length: int, mempolicy: str) -> int:
    """mbind(2): `mempolicy` as text, "" for the default. Returns 0. Raises EINVAL, EFAULT, ENOMEM."""
    if addr & (PAGE_SIZE - 1):
        raise LinuxError(errno.EINVAL, f"the address {addr:#x} is not page aligned")
    start = addr
    end = start + page_align_up(length)
    if end < start:
        raise LinuxError(errno.EINVAL, "the range wraps around")
    if end == start:
        return 0
    vma = space.vmas.find(start)
    if vma is None or vma.start >= end:
        raise LinuxError(errno.EFAULT, f"nothing is mapped at {start:#x}")
    if mempolicy:  # a hole is an error for every policy but the default
        position = start
        walk: VMA | None = vma
        while position < end:
            if walk is None or walk.start > position:
                raise LinuxError(errno.EFAULT, f"nothing is mapped at {position:#x}")
            position = walk.end
            walk = walk.next
    current: VMA | None = vma
    while current is not None and current.start < end:
        if current.mempolicy != mempolicy:
            current = space.modify(
                current, max(current.start, start), min(current.end, end), current.flags, mempolicy=mempolicy
            )
        current = current.next
    return 0


def mseal(space: AddressSpace, addr: int, length: int) -> int:
    """mseal(2), since 6.10. Returns 0. Raises ENOSYS, EINVAL, ENOMEM."""
    if not space.machine.policy.mseal:
        raise LinuxError(errno.ENOSYS, "this kernel has no mseal")
    if addr & (PAGE_SIZE - 1):
        raise LinuxError(errno.EINVAL, f"the address {addr:#x} is not page aligned")
    end = addr + page_align_up(length)
    if end == addr:
        return 0
    position = addr
    vma = space.vmas.find(addr)
    while position < end:
        if vma is None or vma.start > position:
            raise LinuxError(errno.ENOMEM, f"nothing is mapped at {position:#x}")
        position = vma.end
        vma = vma.next
    vma = space.vmas.find(addr)
    while vma is not None and vma.start < end:
        if not vma.flags & VM_SEALED:
            vma = space.modify(vma, max(vma.start, addr), min(vma.end, end), vma.flags | VM_SEALED)
        vma = vma.next
    return 0
