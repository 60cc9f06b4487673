# SPDX-License-Identifier: GPL-2.0-or-later
"""remap_file_pages: since 4.0 an mmap of the same file over itself (``mm/mmap.c``)."""

from __future__ import annotations

import errno
from typing import Final

from vmaweld import events
from vmaweld.abi import MAP_FIXED, MAP_LOCKED, MAP_SHARED, VM_ACCESS_FLAGS, VM_LOCKED, VM_SHARED, page_align_down
from vmaweld.events import Event
from vmaweld.model.address_space import AddressSpace, Call
from vmaweld.model.calls.mmap import do_mmap
from vmaweld.model.errors import LinuxError


class _RemapFilePages(Call):
    """remap_file_pages(2), which since 4.0 is an mmap of the same file over itself. Returns 0. Raises EINVAL, ENOMEM.

    The range may span VMAs of the same file and flags without a hole; what they had by advice is lost.
    """

    def perform(self, space: AddressSpace, event: Event) -> int:
        start = page_align_down(event.addr)
        size = page_align_down(event.length)
        vma = space.vmas.find(start)
        if size == 0 or vma is None or vma.start > start or not vma.flags & VM_SHARED or not vma.file:
            raise LinuxError(errno.EINVAL, f"{start:#x} is not in a shared file mapping")
        last = vma
        while last.end < start + size:
            following = last.next
            if (
                following is None
                or following.start != last.end
                or following.file != vma.file
                or following.flags != vma.flags
            ):
                raise LinuxError(errno.EINVAL, "the range reaches past the mappings of one file")
            last = following
        flags = MAP_SHARED | MAP_FIXED | (MAP_LOCKED if vma.flags & VM_LOCKED else 0)
        do_mmap(space, start, size, vma.flags & VM_ACCESS_FLAGS, flags, vma.file, event.pgoff, close=vma.close)
        return 0


CALLS: Final[dict[str, Call]] = {
    events.REMAP_FILE_PAGES: _RemapFilePages(),
}
