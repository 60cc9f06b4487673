# SPDX-License-Identifier: GPL-2.0-or-later
"""Touching memory: read and write faults, and the stack that grows by them (``mm/memory.c``)."""

from __future__ import annotations

import errno
from typing import Final

from vmaweld import events
from vmaweld.abi import VM_GROWSDOWN, page_align_down, page_align_up
from vmaweld.events import Event
from vmaweld.model.address_space import AddressSpace, Call
from vmaweld.model.errors import LinuxError
from vmaweld.model.faults import accessible


class _Read(Call):
    """Read every page of the range. Returns 0. Raises what `_touch` raises."""

    def perform(self, space: AddressSpace, event: Event) -> int:
        _touch(space, event, write=False)
        return 0


class _Write(Call):
    """Write to every page of the range. Returns 0. Raises what `_touch` raises."""

    def perform(self, space: AddressSpace, event: Event) -> int:
        _touch(space, event, write=True)
        return 0


def _touch(space: AddressSpace, event: Event, *, write: bool) -> None:
    """Read or write every page of the range, in order.

    Raises EFAULT at the first page that may not be touched. What lies before it has been touched then.
    """
    start = page_align_down(event.addr)
    end = page_align_up(event.addr + event.length)
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
        if not accessible(space, vma, write=write):
            raise LinuxError(errno.EFAULT, f"{start:#x} is not {'writable' if write else 'readable'}")
        start = space.touch_pages(vma, start, end, write=write)


CALLS: Final[dict[str, Call]] = {
    events.READ: _Read(),
    events.WRITE: _Write(),
}
