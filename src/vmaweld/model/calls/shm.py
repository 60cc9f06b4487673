# SPDX-License-Identifier: GPL-2.0-or-later
"""System V shared memory: segments are attached and detached (``ipc/shm.c``)."""

from __future__ import annotations

import contextlib
import errno
from typing import Final

from vmaweld import events
from vmaweld.abi import MAP_FIXED, MAP_SHARED, PAGE_SHIFT, PAGE_SIZE, PROT_WRITE, TASK_SIZE, page_align_up
from vmaweld.events import Event
from vmaweld.model.address_space import AddressSpace, Call
from vmaweld.model.calls.mmap import do_mmap, placed
from vmaweld.model.errors import LinuxError


class _Shmat(Call):
    """shmat(2): attach the segment `Event.file`. Returns the address. Raises EINVAL, ENOMEM.

    MAP_FIXED stands for SHM_REMAP, which replaces what is mapped there. Without it that is an error (``do_shmat``).
    """

    def perform(self, space: AddressSpace, event: Event) -> int:
        addr = event.addr
        length = event.length
        remap = event.flags & MAP_FIXED
        if addr & (PAGE_SIZE - 1):
            raise LinuxError(errno.EINVAL, f"the address {addr:#x} is not page aligned")
        if not addr and remap:
            raise LinuxError(errno.EINVAL, "SHM_REMAP needs an address")
        if addr and not remap and space.vmas.intersection(addr, addr + length) is not None:
            raise LinuxError(errno.EINVAL, f"something is mapped in {addr:#x}-{addr + length:#x}")
        flags = MAP_SHARED | (MAP_FIXED if addr else 0)
        writable = bool(event.prot & PROT_WRITE)
        space.machine.last_file += 1  # every attachment opens the segment anew, and so merges with no other
        file = f"{event.file}@{space.machine.last_file}"
        space.machine.file_pages[file] = page_align_up(length) >> PAGE_SHIFT
        return do_mmap(
            space, addr, length, event.prot, flags, file, placed=placed(event, length), close=True, writable=writable
        )


class _Shmdt(Call):
    """shmdt(2): unmap the first piece of the segment attached at `addr`, and those after it within its size.

    Returns 0. Raises EINVAL.
    """

    def perform(self, space: AddressSpace, event: Event) -> int:
        addr = event.addr
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


CALLS: Final[dict[str, Call]] = {
    events.SHMAT: _Shmat(),
    events.SHMDT: _Shmdt(),
}
