# SPDX-License-Identifier: GPL-2.0-or-later
"""What faults ask: may a VMA be touched; and the kernel touching memory on request (``mm/gup.c``)."""

from __future__ import annotations

import errno

from vmaweld.abi import (
    EXECUTE_ONLY_PKEY,
    VM_ACCESS_FLAGS,
    VM_EXEC,
    VM_IO,
    VM_LOCKONFAULT,
    VM_PFNMAP,
    VM_PKEY_MASK,
    VM_PKEY_SHIFT,
    VM_SHARED,
    VM_WRITE,
)
from vmaweld.model.address_space import AddressSpace
from vmaweld.model.errors import LinuxError
from vmaweld.model.vma import VMA


def accessible(space: AddressSpace, vma: VMA, *, write: bool) -> bool:
    """May the program touch `vma`? x86 cannot map pages that are writable or executable and yet unreadable.

    With protection keys it can: memory that is only executable has one that forbids reading.
    """
    if write:
        return bool(vma.flags & VM_WRITE)
    return bool(vma.flags & VM_ACCESS_FLAGS) and not execute_only(space, vma)


def execute_only(space: AddressSpace, vma: VMA) -> bool:
    """True if a protection key keeps `vma` from being read (``vma_is_pkey_exec_only``)."""
    return (
        space.machine.pkeys
        and vma.flags & VM_ACCESS_FLAGS == VM_EXEC
        and (vma.flags & VM_PKEY_MASK) >> VM_PKEY_SHIFT == EXECUTE_ONLY_PKEY
    )


def populate(space: AddressSpace, start: int, end: int, *, ignore_errors: bool) -> None:
    """``__mm_populate``: touch what mlock and MAP_POPULATE promise. Raises ENOMEM for memory without access."""
    vma = space.vmas.find(start) if start < end else None
    while vma is not None and vma.start < end:
        if vma.flags & VM_LOCKONFAULT:
            if (
                space.machine.policy.onfault_checks_access
                and not ignore_errors
                and not accessible(space, vma, write=False)
            ):
                raise LinuxError(errno.ENOMEM, f"{vma.start:#x} allows no access")
        elif not vma.flags & (VM_IO | VM_PFNMAP):
            if vma.flags & (VM_WRITE | VM_SHARED) == VM_WRITE:
                space.write_pages(vma, max(vma.start, start), min(vma.end, end))
            elif not accessible(space, vma, write=False) and not ignore_errors:
                raise LinuxError(errno.ENOMEM, f"{vma.start:#x} allows no access")
            elif accessible(space, vma, write=False):
                space.read_pages(vma, max(vma.start, start), min(vma.end, end))
            if space.file_end(vma) < min(vma.end, end) and not ignore_errors:
                raise LinuxError(errno.ENOMEM, f"{vma.start:#x} reaches past the end of its file")
        vma = vma.next
