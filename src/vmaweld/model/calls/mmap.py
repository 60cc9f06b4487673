# SPDX-License-Identifier: GPL-2.0-or-later
"""mmap and munmap (``mm/mmap.c``, ``mm/vma.c``)."""

from __future__ import annotations

import errno
from typing import Final

from vmaweld import events
from vmaweld.abi import (
    EXECUTE_ONLY_PKEY,
    HUGE_PAGE_SIZE,
    MAP_ANONYMOUS,
    MAP_DROPPABLE,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_HUGETLB,
    MAP_LOCKED,
    MAP_NONBLOCK,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_STACK,
    MAP_SYNC,
    MAP_TYPE,
    PAGE_SHIFT,
    PAGE_SIZE,
    PROT_EXEC,
    PROT_WRITE,
    TASK_SIZE,
    VM_ACCOUNT,
    VM_DONTDUMP,
    VM_DROPPABLE,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    VM_PKEY_SHIFT,
    VM_SHARED,
    VM_SPECIAL,
    VM_WIPEONFORK,
    VM_WRITE,
    page_align_down,
    page_align_up,
)
from vmaweld.events import READ_ONLY_FILE, Event
from vmaweld.model.address_space import AddressSpace, Call
from vmaweld.model.errors import LinuxError
from vmaweld.model.faults import populate
from vmaweld.model.merge import MergeState
from vmaweld.model.vma import VMA
from vmaweld.policy import Policy

MAY_ALL: Final = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
_SHARED_FILE: Final = "/dev/zero (deleted)#"
"""What a shared anonymous mapping maps: a shmem file of its own, so that no two of them merge."""


class _Mmap(Call):
    """mmap(2). Returns the address. Raises what `do_mmap` raises."""

    def perform(self, space: AddressSpace, event: Event) -> int:
        length = event.length
        return do_mmap(
            space, event.addr, length, event.prot, event.flags, event.file, event.pgoff, placed=placed(event, length)
        )


def placed(event: Event, length: int) -> int:
    """The address where a recording saw the kernel put `length` bytes.

    0 where there was none, the call failed, or no kernel can have answered so (a damaged or invented recording).
    """
    result = event.result
    if result is None or result <= 0 or result & (PAGE_SIZE - 1) or result > TASK_SIZE - length:
        return 0
    return result


def do_mmap(
    space: AddressSpace,
    addr: int,
    length: int,
    prot: int,
    flags: int,
    file: str = "",
    pgoff: int = 0,
    *,
    placed: int = 0,
    close: bool = False,
    writable: bool = True,
) -> int:
    """``do_mmap``: map `length` bytes. Returns the address.

    file: identity of the open file; "" needs MAP_ANONYMOUS.      pgoff: offset in pages.
    placed: where a recording saw the kernel place the mapping; used where the call leaves the choice to the kernel.
    close: the file's mappings have a close operation (System V segments).
    writable: the file is open for writing; a shared mapping of another may never become writable.
    Raises EINVAL, ENOMEM, EEXIST, EOVERFLOW, EOPNOTSUPP, EPERM.
    """
    if not length:
        raise LinuxError(errno.EINVAL, "mmap of length 0")
    if flags & MAP_FIXED_NOREPLACE:
        flags |= MAP_FIXED
    if not flags & MAP_FIXED:
        addr = page_align_down(addr)
        if addr and addr < space.machine.min_address:
            addr = page_align_up(space.machine.min_address)
    length = page_align_up(length)
    if length > TASK_SIZE:
        raise LinuxError(errno.ENOMEM, f"length {length:#x} is larger than the address space")
    if space.vmas.count > space.machine.max_map_count:
        raise LinuxError(errno.ENOMEM, f"{space.vmas.count} VMAs exceed vm.max_map_count")

    vm_flags = (prot & 7) | MAY_ALL | space.def_flags
    if prot == PROT_EXEC and space.machine.pkeys:
        vm_flags |= EXECUTE_ONLY_PKEY << VM_PKEY_SHIFT
    if flags & MAP_GROWSDOWN:
        vm_flags |= VM_GROWSDOWN
    if flags & MAP_LOCKED:
        vm_flags |= VM_LOCKED
    if flags & MAP_STACK:
        vm_flags |= VM_NOHUGEPAGE if space.machine.policy.map_stack_no_huge_pages else 0
    shared_anonymous = not file and flags & MAP_TYPE in (MAP_SHARED, MAP_SHARED_VALIDATE)
    address = _place(space, addr, length, flags, bool(file) or bool(shared_anonymous), placed)
    if flags & MAP_FIXED_NOREPLACE and space.vmas.intersection(address, address + length) is not None:
        raise LinuxError(errno.EEXIST, f"something is mapped in {address:#x}-{address + length:#x}")

    vm_flags, file, pgoff, close = _mapping_kind(space, vm_flags, address, flags, file, pgoff, close)
    if file and vm_flags & VM_SHARED and not writable:
        if prot & PROT_WRITE:
            raise LinuxError(errno.EACCES, "the file is not open for writing")
        vm_flags &= ~(VM_MAYWRITE | VM_SHARED)
    vm_flags |= VM_HUGETLB if flags & MAP_HUGETLB else 0
    if flags & MAP_NORESERVE and not space.machine.overcommit_never:
        vm_flags |= VM_NORESERVE

    if shared_anonymous:
        space.machine.file_pages[file] = length >> PAGE_SHIFT
    _map_region(space, address, length, vm_flags, file, pgoff, close=close)
    if vm_flags & VM_LOCKED or flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE:
        populate(space, address, address + length, ignore_errors=True)
    return address


def _takes_huge_pages(policy: Policy, length: int) -> bool:
    """Whether anonymous memory of that length is placed for huge pages."""
    if not policy.thp_aligned_mmap or length < HUGE_PAGE_SIZE:
        return False
    return not policy.thp_aligns_multiples or not length % HUGE_PAGE_SIZE


def _place(space: AddressSpace, addr: int, length: int, flags: int, shmem_or_file: bool, placed: int) -> int:
    """``get_unmapped_area``: where the mapping goes. Raises EINVAL, ENOMEM."""
    if flags & MAP_FIXED:
        if addr > TASK_SIZE - length:
            raise LinuxError(errno.ENOMEM, f"{addr:#x} + {length:#x} lies beyond user space")
        if addr & (PAGE_SIZE - 1):
            raise LinuxError(errno.EINVAL, f"the fixed address {addr:#x} is not page aligned")
        if addr < space.machine.min_address:
            raise LinuxError(errno.EPERM, f"{addr:#x} lies below vm.mmap_min_addr")
        return addr
    if placed:
        return placed
    if addr and space.fits(addr, length):
        return addr
    if not shmem_or_file and _takes_huge_pages(space.machine.policy, length):
        # thp_get_unmapped_area: a gap with 2 MiB to spare, and in it the lowest aligned place, or the next above.
        try:
            address = space.find_free(length + HUGE_PAGE_SIZE)
        except LinuxError:
            return space.find_free(length)
        return address // HUGE_PAGE_SIZE * HUGE_PAGE_SIZE + HUGE_PAGE_SIZE
    return space.find_free(length)


def _mapping_kind(
    space: AddressSpace, vm_flags: int, address: int, flags: int, file: str, pgoff: int, close: bool
) -> tuple[int, str, int, bool]:
    """The second half of ``do_mmap``: flags, file and offset by MAP_TYPE. Raises EINVAL, EOPNOTSUPP."""
    kind = flags & MAP_TYPE
    if file:
        if kind == MAP_SHARED_VALIDATE and flags & MAP_SYNC:
            raise LinuxError(errno.EOPNOTSUPP, "MAP_SYNC needs a DAX file")
        if kind in (MAP_SHARED, MAP_SHARED_VALIDATE):
            vm_flags |= VM_SHARED | VM_MAYSHARE
            if flags & READ_ONLY_FILE:
                if vm_flags & VM_WRITE:
                    raise LinuxError(errno.EACCES, "the file is not open for writing")
                vm_flags &= ~(VM_SHARED | VM_MAYWRITE)
        elif kind != MAP_PRIVATE:
            raise LinuxError(errno.EINVAL, f"mmap type {kind} of a file")
        if vm_flags & VM_GROWSDOWN:
            raise LinuxError(errno.EINVAL, "a file mapping cannot grow down")
        return vm_flags, file, pgoff, close
    if not flags & MAP_ANONYMOUS:
        raise LinuxError(errno.EBADF, "neither a file nor MAP_ANONYMOUS")
    if kind == MAP_SHARED:
        if vm_flags & VM_GROWSDOWN:
            raise LinuxError(errno.EINVAL, "a shared mapping cannot grow down")
        space.machine.last_file += 1
        return vm_flags | VM_SHARED | VM_MAYSHARE, f"{_SHARED_FILE}{space.machine.last_file}", 0, False
    if kind == MAP_DROPPABLE and space.machine.policy.droppable:
        if flags & (MAP_LOCKED | MAP_HUGETLB) or vm_flags & VM_GROWSDOWN:
            raise LinuxError(errno.EINVAL, "droppable memory cannot be locked, huge or a stack")
        vm_flags |= VM_DROPPABLE | VM_NORESERVE | VM_WIPEONFORK | VM_DONTDUMP
    elif kind != MAP_PRIVATE:
        raise LinuxError(errno.EINVAL, f"mmap type {kind} of anonymous memory")
    return vm_flags, "", address >> PAGE_SHIFT, False


def _map_region(
    space: AddressSpace, address: int, length: int, vm_flags: int, file: str, pgoff: int, *, close: bool = False
) -> VMA:
    """``mmap_region``: unmap what is there, merge with the neighbours or make a new VMA."""
    end = address + length
    vmas = space.vmas
    next = vmas.find(address)
    if next is not None and next.start < end:
        space.unmap(address, end)
        next = vmas.find(address)
    prev = vmas.find_prev(address) if next is None else next.prev
    if vm_flags & (VM_WRITE | VM_SHARED | VM_NORESERVE | VM_HUGETLB) == VM_WRITE:
        vm_flags |= VM_ACCOUNT
    if prev is not None or next is not None:
        # A shared anonymous mapping asks before it has its file, and so meets no equal.
        m = MergeState.mapped(address, end, vm_flags, pgoff, prev, next)
        m.file = file
        m.next_first = space.machine.policy.mmap_asks_next_first
        merged = space.merge(m)
        if merged is not None:
            return merged
    vma = VMA(space.pages, address, end, vm_flags, pgoff, file, "", 0, "", close)
    if vm_flags & VM_LOCKED and vm_flags & VM_SPECIAL:
        vma.flags &= ~VM_LOCKED_MASK
    vmas.insert(vma)
    return vma


class _Munmap(Call):
    """munmap(2). Returns 0. Raises EINVAL, ENOMEM, EPERM."""

    def perform(self, space: AddressSpace, event: Event) -> int:
        addr = event.addr
        length = event.length
        if addr & (PAGE_SIZE - 1) or addr > TASK_SIZE or length > TASK_SIZE - addr:
            raise LinuxError(errno.EINVAL, f"{addr:#x} + {length:#x} is not a range of user pages")
        end = addr + page_align_up(length)
        if end == addr:
            raise LinuxError(errno.EINVAL, "munmap of length 0")
        space.unmap(addr, end)
        return 0


CALLS: Final[dict[str, Call]] = {
    events.MMAP: _Mmap(),
    events.MUNMAP: _Munmap(),
}
