# SPDX-License-Identifier: GPL-2.0-or-later
"""fork, exec and exit: how address spaces begin and end (``kernel/fork.c``, ``mm/mmap.c``)."""

from __future__ import annotations

import errno
from typing import Final

from vmaweld import events
from vmaweld.abi import CLONE_VM, VM_ACCOUNT, VM_DONTCOPY, VM_LOCKED_MASK, VM_UFFD_ANY, VM_WIPEONFORK
from vmaweld.events import Event
from vmaweld.model.address_space import AddressSpace, Call
from vmaweld.model.anon_vma import fork_chain
from vmaweld.model.errors import LinuxError
from vmaweld.model.vma import VMA


class _Fork(Call):
    """fork(2), clone(2), where `space` is the parent's (``dup_mmap``). Returns the child. Raises EINVAL, ENOMEM."""

    def perform(self, space: AddressSpace, event: Event) -> int:
        machine = space.machine
        if event.child == event.pid:
            raise LinuxError(errno.EINVAL, f"process {event.pid} cannot be its own child")
        machine.leave(event.child)  # one of that number must have ended unseen
        if event.flags & CLONE_VM:
            space.users += 1
            machine.processes[event.child] = space
            return event.child
        limit = machine.total_pages
        if limit and any(vma.flags & VM_ACCOUNT and vma.pages > limit for vma in space.vmas):
            raise LinuxError(errno.ENOMEM, "the child would commit more in one mapping than there is memory")
        child = AddressSpace(machine)
        child.start_brk = space.start_brk
        child.brk = space.brk
        for vma in space.vmas:
            if not vma.flags & VM_DONTCOPY:
                _copy(vma, space, child)
        machine.processes[event.child] = child
        return event.child


def _copy(vma: VMA, parent: AddressSpace, child: AddressSpace) -> None:
    """One turn of ``dup_mmap``. With VM_WIPEONFORK the child's VMA has neither pages nor an anon_vma."""
    new = vma.duplicate(child.pages)
    # A child neither inherits mlock nor, without UFFD_FEATURE_EVENT_FORK, the userfaultfd.
    new.flags &= ~(VM_LOCKED_MASK | VM_UFFD_ANY)
    new.uffd = 0
    child.vmas.insert(new)
    if vma.flags & VM_WIPEONFORK or vma.anon_vma is None:
        return
    machine = parent.machine
    if fork_chain(new, vma, machine.last_anon_vma + 1, by_degree=machine.policy.fork_reuses_by_degree):
        machine.last_anon_vma += 1
    parent.pages.fork_into(child.pages, vma.start, vma.end)


class _Exec(Call):
    """execve(2): an empty address space in place of the old one. Returns 0."""

    def perform(self, space: AddressSpace, event: Event) -> int:
        space.machine.leave(event.pid)
        space.machine.add_process(event.pid)
        return 0


class _Exit(Call):
    """exit_group(2). Returns 0."""

    def perform(self, space: AddressSpace, event: Event) -> int:
        space.machine.leave(event.pid)
        return 0


CALLS: Final[dict[str, Call]] = {
    events.FORK: _Fork(),
    events.EXEC: _Exec(),
    events.EXIT: _Exit(),
}
