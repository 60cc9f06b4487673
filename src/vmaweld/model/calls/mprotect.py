# SPDX-License-Identifier: GPL-2.0-or-later
"""mprotect and pkey_mprotect: the access to a range (``mm/mprotect.c``)."""

from __future__ import annotations

import errno
from typing import Final

from vmaweld import events
from vmaweld.abi import (
    EXECUTE_ONLY_PKEY,
    PAGE_SIZE,
    PROT_GROWSDOWN,
    PROT_GROWSUP,
    PROT_SEM,
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_LOCKED,
    VM_NORESERVE,
    VM_PKEY_MASK,
    VM_PKEY_SHIFT,
    VM_SEALED,
    VM_SHARED,
    VM_WRITE,
    page_align_up,
)
from vmaweld.events import Event
from vmaweld.model.address_space import AddressSpace, Call
from vmaweld.model.errors import LinuxError
from vmaweld.model.faults import execute_only, populate
from vmaweld.model.vma import VMA

_GROWS: Final = PROT_GROWSDOWN | PROT_GROWSUP
_KNOWN_PROTECTION: Final = VM_ACCESS_FLAGS | PROT_SEM
_NOT_TO_ACCOUNT: Final = VM_ACCOUNT | VM_WRITE | VM_HUGETLB | VM_SHARED | VM_NORESERVE
"""A VMA with one of these is accounted for already, or never is (``accountable_mapping``)."""


class _Mprotect(Call):
    """mprotect(2) and pkey_mprotect(2). Returns 0. Raises EINVAL, ENOMEM, EACCES, EPERM.

    A failure leaves what lies before it changed, as Linux does.
    """

    def perform(self, space: AddressSpace, event: Event) -> int:
        start = event.addr
        grows = event.prot & _GROWS
        prot = event.prot - grows
        pkey = event.flags - 1  # below 0: none was given
        if grows == _GROWS:
            raise LinuxError(errno.EINVAL, "PROT_GROWSDOWN and PROT_GROWSUP exclude each other")
        if start & (PAGE_SIZE - 1):
            raise LinuxError(errno.EINVAL, f"the address {start:#x} is not page aligned")
        if not event.length:
            return 0
        end = start + page_align_up(event.length)
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
                elif execute_only(space, vma):
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


CALLS: Final[dict[str, Call]] = {
    events.MPROTECT: _Mprotect(),
}
