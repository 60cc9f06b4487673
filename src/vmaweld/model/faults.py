"""Touching memory: read and write faults, stack growth, and the kernel touching it on request (``mm/gup.c``)."""

from __future__ import annotations

import errno

from vmaweld.abi import (
    EXECUTE_ONLY_PKEY,
    VM_ACCESS_FLAGS,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_IO,
    VM_LOCKONFAULT,
    VM_PFNMAP,
    VM_PKEY_MASK,
    VM_PKEY_SHIFT,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    page_align_down,
    page_align_up,
)
from vmaweld.model.address_space import AddressSpace
from vmaweld.model.errors import LinuxError
from vmaweld.model.vma import VMA


def accessible(vma: VMA, *, write: bool) -> bool:
    """May the program touch `vma`? x86 cannot map pages that are writable or executable and yet unreadable.

    With protection keys it can: memory that is only executable has one that forbids reading.
    """
    if write:
        return bool(vma.flags & VM_WRITE)
    return bool(vma.flags & VM_ACCESS_FLAGS) and not execute_only(vma)


def execute_only(vma: VMA) -> bool:
    """True if a protection key keeps `vma` from being read (``vma_is_pkey_exec_only``)."""
    return (
        vma.space.machine.pkeys
        and vma.flags & VM_ACCESS_FLAGS == VM_EXEC
        and (vma.flags & VM_PKEY_MASK) >> VM_PKEY_SHIFT == EXECUTE_ONLY_PKEY
    )


def touch(space: AddressSpace, addr: int, length: int, *, write: bool) -> int:
    """Read or write every page of ``[addr, addr + length)``, in order. Returns 0.

    Raises EFAULT at the first page that may not be
    touched; what lies before it has been.
    """
    start = page_align_down(addr)
    end = page_align_up(addr + length)
    while start < end:
        vma = space.vmas.find(start)
        if vma is None:
            raise LinuxError(errno.EFAULT, f"nothing is mapped at {start:#x}")
        if start < vma.start:
            if not vma.flags & VM_GROWSDOWN:
                raise LinuxError(errno.EFAULT, f"nothing is mapped at {start:#x}")
            try:
                space.grow_down(vma, start)
            except LinuxError as error:
                raise LinuxError(errno.EFAULT, error.why) from None
        if not accessible(vma, write=write):
            raise LinuxError(errno.EFAULT, f"{start:#x} is not {'writable' if write else 'readable'}")
        stop = min(space.file_end(vma), end)
        if stop <= start:
            raise LinuxError(errno.EFAULT, f"{start:#x} lies past the end of its file")
        if write:
            space.write_pages(vma, start, stop)
        else:
            space.read_pages(vma, start, stop)
        start = stop
    return 0


def populate(space: AddressSpace, start: int, end: int, *, ignore_errors: bool) -> None:
    """``__mm_populate``: touch what mlock and MAP_POPULATE promise. Raises ENOMEM for memory without access."""
    vma = space.vmas.find(start) if start < end else None
    while vma is not None and vma.start < end:
        if vma.flags & VM_LOCKONFAULT:
            if space.machine.policy.onfault_checks_access and not ignore_errors and not accessible(vma, write=False):
                raise LinuxError(errno.ENOMEM, f"{vma.start:#x} allows no access")
        elif not vma.flags & (VM_IO | VM_PFNMAP):
            if vma.flags & (VM_WRITE | VM_SHARED) == VM_WRITE:
                space.write_pages(vma, max(vma.start, start), min(vma.end, end))
            elif not accessible(vma, write=False) and not ignore_errors:
                raise LinuxError(errno.ENOMEM, f"{vma.start:#x} allows no access")
            elif accessible(vma, write=False):
                space.read_pages(vma, max(vma.start, start), min(vma.end, end))
            if space.file_end(vma) < min(vma.end, end) and not ignore_errors:
                raise LinuxError(errno.ENOMEM, f"{vma.start:#x} reaches past the end of its file")
        vma = vma.next


def populate_advice(space: AddressSpace, start: int, end: int, *, write: bool) -> int:
    """MADV_POPULATE_READ and _WRITE (5.14). Returns 0. Raises ENOMEM at a hole, EINVAL where access is forbidden."""
    while start < end:
        vma = space.vmas.find(start)
        if vma is None or vma.start > start:
            raise LinuxError(errno.ENOMEM, f"nothing is mapped at {start:#x}")
        if vma.flags & (VM_IO | VM_PFNMAP) or not vma.flags & (VM_WRITE if write else VM_READ):
            raise LinuxError(errno.EINVAL, f"{start:#x} is not {'writable' if write else 'readable'}")
        stop = min(space.file_end(vma), end)
        if stop <= start:
            raise LinuxError(errno.EFAULT, f"{start:#x} lies past the end of its file")
        if write:
            space.write_pages(vma, start, stop)
        else:
            space.read_pages(vma, start, stop)
        start = stop
    return 0
