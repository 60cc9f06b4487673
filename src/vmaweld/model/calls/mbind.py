# SPDX-License-Identifier: GPL-2.0-or-later
"""mbind: the memory policy of a range (``mm/mempolicy.c``)."""

from __future__ import annotations

import errno
from typing import Final

from vmaweld import events
from vmaweld.abi import PAGE_SIZE, page_align_up
from vmaweld.events import Event
from vmaweld.model.address_space import AddressSpace, Call
from vmaweld.model.errors import LinuxError
from vmaweld.model.vma import VMA


class _Mbind(Call):
    """mbind(2): the policy is `Event.file` as text, "" for the default. Returns 0. Raises EINVAL, EFAULT, ENOMEM."""

    def perform(self, space: AddressSpace, event: Event) -> int:
        start = event.addr
        mempolicy = event.file
        if start & (PAGE_SIZE - 1):
            raise LinuxError(errno.EINVAL, f"the address {start:#x} is not page aligned")
        end = start + page_align_up(event.length)
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


CALLS: Final[dict[str, Call]] = {
    events.MBIND: _Mbind(),
}
