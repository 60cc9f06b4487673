# SPDX-License-Identifier: GPL-2.0-or-later
"""userfaultfd: which VMAs are registered (``fs/userfaultfd.c``, ``mm/userfaultfd.c``), and UFFDIO_MOVE."""

from __future__ import annotations

import errno
from typing import Final

from vmaweld import events
from vmaweld.abi import (
    PAGE_SIZE,
    TASK_SIZE,
    UFFDIO_REGISTER_MODE_MINOR,
    UFFDIO_REGISTER_MODE_MISSING,
    UFFDIO_REGISTER_MODE_WP,
    VM_ACCESS_FLAGS,
    VM_DROPPABLE,
    VM_HUGETLB,
    VM_LOCKED,
    VM_MAYWRITE,
    VM_PKEY_MASK,
    VM_SHARED,
    VM_UFFD_ANY,
    VM_UFFD_MINOR,
    VM_UFFD_MISSING,
    VM_UFFD_WP,
    VM_WRITE,
)
from vmaweld.events import Event
from vmaweld.model.address_space import AddressSpace, Call
from vmaweld.model.errors import LinuxError
from vmaweld.model.vma import VMA

_MODES = (
    (UFFDIO_REGISTER_MODE_MISSING, VM_UFFD_MISSING),
    (UFFDIO_REGISTER_MODE_WP, VM_UFFD_WP),
    (UFFDIO_REGISTER_MODE_MINOR, VM_UFFD_MINOR),
)


def _checked(addr: int, length: int) -> int:
    """``validate_range``: the end of the range. Raises EINVAL."""
    if addr & (PAGE_SIZE - 1) or length & (PAGE_SIZE - 1) or not length:
        raise LinuxError(errno.EINVAL, "userfaultfd ranges are whole pages")
    if addr < 65536 or addr >= TASK_SIZE or length > TASK_SIZE - addr:
        raise LinuxError(errno.EINVAL, "the range lies outside user space")
    return addr + length


def _can_userfault(space: AddressSpace, vma: VMA, flags: int) -> bool:
    """``vma_can_userfault``: anonymous, shmem or hugetlb memory; write protection of shmem since 5.19."""
    if vma.flags & VM_DROPPABLE:
        return False
    shmem = vma.file.startswith(("/dev/zero", "/memfd:", "/dev/shm/")) and not vma.close
    if flags & VM_UFFD_MINOR and not (shmem or vma.flags & VM_HUGETLB):
        return False
    if not vma.anonymous and flags & VM_UFFD_WP and not space.machine.policy.shared_uffd_wp:
        return False
    return vma.anonymous or shmem or bool(vma.flags & VM_HUGETLB)


def _mapped(space: AddressSpace, addr: int, length: int) -> tuple[VMA, int]:
    """The first VMA of a range, and where the range ends. Raises EINVAL where nothing is mapped in it."""
    end = _checked(addr, length)
    first = space.vmas.find(addr)
    if first is None or first.start >= end:
        raise LinuxError(errno.EINVAL, f"nothing is mapped at {addr:#x}")
    return first, end


class _UffdRegister(Call):
    """UFFDIO_REGISTER. Returns 0. Raises EINVAL, EPERM, EBUSY, ENOMEM."""

    def perform(self, space: AddressSpace, event: Event) -> int:
        addr = event.addr
        mode = event.flags
        context = event.new_addr
        add = 0
        for bit, flag in _MODES:
            if mode & bit:
                add |= flag
        if not mode or mode & ~7:
            raise LinuxError(errno.EINVAL, f"userfaultfd mode {mode:#x}")
        first, end = _mapped(space, addr, event.length)
        vma: VMA | None = first
        while vma is not None and vma.start < end:
            if not _can_userfault(space, vma, add):
                raise LinuxError(errno.EINVAL, f"the mapping at {vma.start:#x} cannot have a userfaultfd")
            if not vma.flags & VM_MAYWRITE:
                raise LinuxError(errno.EPERM, f"the mapping at {vma.start:#x} may not be written")
            if vma.uffd and vma.uffd != context:
                raise LinuxError(errno.EBUSY, f"the mapping at {vma.start:#x} has another userfaultfd")
            vma = vma.next
        vma = first
        while vma is not None and vma.start < end:
            if vma.uffd != context or vma.flags & add != add:
                flags = (vma.flags & ~VM_UFFD_ANY) | add
                vma = space.modify(vma, max(vma.start, addr), min(vma.end, end), flags, uffd=context)
            vma = vma.next
        return 0


class _UffdUnregister(Call):
    """UFFDIO_UNREGISTER. Returns 0. Raises EINVAL, ENOMEM."""

    def perform(self, space: AddressSpace, event: Event) -> int:
        addr = event.addr
        context = event.new_addr  # the userfaultfd asked; until 6.16 any would do
        first, end = _mapped(space, addr, event.length)
        vma: VMA | None = first
        while vma is not None and vma.start < end:
            if vma.uffd and vma.uffd != context and space.machine.policy.uffd_unregister_own:
                raise LinuxError(errno.EINVAL, f"the mapping at {vma.start:#x} has another userfaultfd")
            if not _can_userfault(space, vma, vma.flags & VM_UFFD_ANY):
                raise LinuxError(errno.EINVAL, f"the mapping at {vma.start:#x} cannot have a userfaultfd")
            vma = vma.next
        vma = first
        while vma is not None and vma.start < end:
            if vma.uffd:
                vma = space.modify(vma, max(vma.start, addr), min(vma.end, end), vma.flags & ~VM_UFFD_ANY, uffd=0)
            vma = vma.next
        return 0


class _UffdClose(Call):
    """close(2) of a userfaultfd: every VMA that has it leaves it (``userfaultfd_release``). Returns 0."""

    def perform(self, space: AddressSpace, event: Event) -> int:
        context = event.new_addr
        vma = space.vmas.first
        while vma is not None:
            if vma.uffd == context:
                vma = space.modify(vma, vma.start, vma.end, vma.flags & ~VM_UFFD_ANY, uffd=0)
            vma = vma.next
        return 0


class _UffdMove(Call):
    """UFFDIO_MOVE with ALLOW_SRC_HOLES (6.8): pages of the source become the target VMA's. Returns 0.

    The userfaultfd asked is the one that the target is registered with. Raises EINVAL (ranges or VMAs that do not
    fit), ENOENT (no VMA), EEXIST (the target is populated), EBUSY (a page is not exclusive); what lies before the page
    at fault has moved. A target that is there has an anon_vma afterwards, whatever came of it.
    """

    def perform(self, space: AddressSpace, event: Event) -> int:
        if not space.machine.policy.uffd_move:
            raise LinuxError(errno.EINVAL, "this kernel has no UFFDIO_MOVE")
        source = event.addr
        target = event.new_addr
        length = event.length
        end = _checked(source, length)
        _checked(target, length)
        dst = space.vmas.find(target)
        if dst is None or dst.start > target:
            raise LinuxError(errno.ENOENT, f"nothing is mapped at {target:#x}")
        owner = dst.anon_vma if dst.flags & VM_SHARED else space.prepare_anon_vma(dst)
        src = space.vmas.find(source)
        if src is None or src.start > source:
            raise LinuxError(errno.ENOENT, f"nothing is mapped at {source:#x}")
        if (src.flags | dst.flags) & VM_SHARED or end > src.end or target + length > dst.end:
            raise LinuxError(errno.EINVAL, "each range must lie in one private VMA")
        if not dst.uffd:
            raise LinuxError(errno.EINVAL, f"no userfaultfd has {target:#x}")
        if (src.flags ^ dst.flags) & (VM_ACCESS_FLAGS | VM_PKEY_MASK | VM_LOCKED):
            raise LinuxError(errno.EINVAL, "the VMAs differ in access or mlock")
        if not src.flags & VM_WRITE or not src.anonymous or not dst.anonymous:
            raise LinuxError(errno.EINVAL, "both sides must be writable anonymous memory")
        pages = space.pages
        position = source
        while position < end:
            to = target + position - source
            if pages.runs(to, to + PAGE_SIZE):
                raise LinuxError(errno.EEXIST, f"{to:#x} is populated")
            for run in pages.runs(position, position + PAGE_SIZE):
                if run.shared is not None:
                    raise LinuxError(errno.EBUSY, f"the page at {position:#x} is not exclusive")
                change = dst.pgoff_at(to) - src.pgoff_at(position)
                pages.move(position, position + PAGE_SIZE, to, change, run.anon_vma, owner)
            position += PAGE_SIZE
        return 0


CALLS: Final[dict[str, Call]] = {
    events.UFFD_REGISTER: _UffdRegister(),
    events.UFFD_UNREGISTER: _UffdUnregister(),
    events.UFFD_CLOSE: _UffdClose(),
    events.UFFD_MOVE: _UffdMove(),
}
