# SPDX-License-Identifier: GPL-2.0-or-later
"""Anonymous names: prctl(PR_SET_VMA_ANON_NAME) (``mm/madvise.c``)."""

from __future__ import annotations

import errno
from typing import Final

from vmaweld import events
from vmaweld.abi import PAGE_SIZE, page_align_up
from vmaweld.events import Event
from vmaweld.model.address_space import AddressSpace, Call
from vmaweld.model.calls.madvise import parts, update
from vmaweld.model.errors import LinuxError

_ANON_SHMEM: Final = ("/dev/zero (deleted)", "/memfd:")
"""What `vma_is_anon_shmem` says yes to: files of tmpfs without a link when they were mapped."""


class _SetName(Call):
    """prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME): "" takes the name away. Returns 0. Raises EINVAL, ENOMEM, EBADF."""

    def perform(self, space: AddressSpace, event: Event) -> int:
        if not (space.machine.policy.anon_names and space.machine.anon_names):
            raise LinuxError(errno.EINVAL, "this kernel has no anonymous names")
        addr = event.addr
        name = event.file
        if addr & (PAGE_SIZE - 1):
            raise LinuxError(errno.EINVAL, f"the address {addr:#x} is not page aligned")
        end = addr + page_align_up(event.length)
        if end == addr:
            return 0
        for vma, start, stop in parts(space, addr, end):
            if vma.file and not (space.machine.policy.names_shared_anon and vma.file.startswith(_ANON_SHMEM)):
                raise LinuxError(errno.EBADF, "only anonymous memory can be named")
            update(space, vma, start, stop, vma.flags, name)
        return 0


CALLS: Final[dict[str, Call]] = {
    events.SET_NAME: _SetName(),
}
