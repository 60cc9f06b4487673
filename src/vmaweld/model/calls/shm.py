"""System V shared memory: segments are attached and detached (``ipc/shm.c``)."""

from __future__ import annotations

import contextlib
import errno

from vmaweld.abi import MAP_FIXED, MAP_SHARED, PAGE_SHIFT, PAGE_SIZE, PROT_WRITE, TASK_SIZE, page_align_up
from vmaweld.model.address_space import AddressSpace
from vmaweld.model.calls.mmap import mmap
from vmaweld.model.errors import LinuxError


def shmat(space: AddressSpace, addr: int, length: int, prot: int, remap: bool, segment: str, *, placed: int = 0) -> int:
    """shmat(2): attach the `segment` of `length` bytes. Returns the address. Raises EINVAL, ENOMEM.

    remap: SHM_REMAP, replace what is mapped at `addr`; without, that is an error (``do_shmat``).
    """
    if addr & (PAGE_SIZE - 1):
        raise LinuxError(errno.EINVAL, f"the address {addr:#x} is not page aligned")
    if not addr and remap:
        raise LinuxError(errno.EINVAL, "SHM_REMAP needs an address")
    if addr and not remap and space.vmas.intersection(addr, addr + length) is not None:
        raise LinuxError(errno.EINVAL, f"something is mapped in {addr:#x}-{addr + length:#x}")
    flags = MAP_SHARED | (MAP_FIXED if addr else 0)
    writable = bool(prot & PROT_WRITE)
    space.machine.last_file += 1  # every attachment opens the segment anew, and so merges with no other
    file = f"{segment}@{space.machine.last_file}"
    space.machine.file_pages[file] = page_align_up(length) >> PAGE_SHIFT
    return mmap(space, addr, length, prot, flags, file, placed=placed, close=True, writable=writable)


def shmdt(space: AddressSpace, addr: int) -> int:
    """shmdt(2): unmap the first piece of the segment attached at `addr`, and those after it within its size.

    Returns 0. Raises EINVAL.
    """
    vma = space.vmas.find(addr)
    file = ""
    size = TASK_SIZE
    while vma is not None and (not file or vma.end - addr <= size):
        following = vma.next
        if vma.close and (not file or vma.file == file) and vma.start - addr == vma.pgoff << PAGE_SHIFT:
            file = vma.file
            size = space.machine.file_pages.get(file, TASK_SIZE) << PAGE_SHIFT
            with contextlib.suppress(LinuxError):  # a sealed piece stays, and nobody is told
                space.unmap(vma.start, vma.end)
        vma = following
    if not file:
        raise LinuxError(errno.EINVAL, f"no segment is attached at {addr:#x}")
    return 0
