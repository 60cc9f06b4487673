# SPDX-License-Identifier: GPL-2.0-or-later
"""Mappings that no system call of the program's made: the segments of its file, its stack, what was there before."""

from __future__ import annotations

import errno
from typing import Final

from vmaweld import events
from vmaweld.abi import PAGE_SIZE, TASK_SIZE
from vmaweld.events import Event
from vmaweld.model.address_space import AddressSpace, Call
from vmaweld.model.errors import LinuxError
from vmaweld.model.vma import VMA


class _Place(Call):
    """Map what the kernel maps itself, or what was there before the recording: no question of merging.

    Returns the address. Raises EINVAL for what no kernel maps, such as half a page: a damaged or invented recording.
    """

    def perform(self, space: AddressSpace, event: Event) -> int:
        end = event.addr + event.length
        if (event.addr | end) & (PAGE_SIZE - 1) or not event.addr < end <= TASK_SIZE:
            raise LinuxError(errno.EINVAL, f"{event.addr:#x} + {event.length:#x} is not a range of user pages")
        if space.vmas.intersection(event.addr, end) is not None:
            space.unmap(event.addr, end)
        name = event.file if event.file.startswith("[") else ""
        vma = VMA(space.pages, event.addr, end, event.flags, event.pgoff, "" if name else event.file, "", 0, name)
        space.vmas.insert(vma)
        if name == "[heap]":
            space.start_brk = event.addr
            space.brk = end
        return event.addr


CALLS: Final[dict[str, Call]] = {
    events.PLACE: _Place(),
}
