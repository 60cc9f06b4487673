# SPDX-License-Identifier: GPL-2.0-or-later
"""mseal: mappings that nobody may change any more (``mm/mseal.c``, since 6.10)."""

from __future__ import annotations

import errno
from typing import Final

from vmaweld import events
from vmaweld.abi import PAGE_SIZE, VM_SEALED, page_align_up
from vmaweld.events import Event
from vmaweld.model.address_space import AddressSpace, Call
from vmaweld.model.errors import LinuxError


class _Mseal(Call):
    """mseal(2), since 6.10. Returns 0. Raises ENOSYS, EINVAL, ENOMEM."""

    def perform(self, space: AddressSpace, event: Event) -> int:
        if not space.machine.policy.mseal:
            raise LinuxError(errno.ENOSYS, "this kernel has no mseal")
        addr = event.addr
        if addr & (PAGE_SIZE - 1):
            raise LinuxError(errno.EINVAL, f"the address {addr:#x} is not page aligned")
        end = addr + page_align_up(event.length)
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


CALLS: Final[dict[str, Call]] = {
    events.MSEAL: _Mseal(),
}
