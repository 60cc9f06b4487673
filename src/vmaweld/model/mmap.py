"""mmap, munmap, brk and their kin (``mm/mmap.c``, ``mm/vma.c``)."""

from __future__ import annotations

import contextlib
import errno
from typing import Final

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
    VM_ACCESS_FLAGS,
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
    VM_READ,
    VM_SHARED,
    VM_SPECIAL,
    VM_WIPEONFORK,
    VM_WRITE,
    page_align_down,
    page_align_up,
)
from vmaweld.events import READ_ONLY_FILE
from vmaweld.model.address_space import AddressSpace
from vmaweld.model.errors import LinuxError
from vmaweld.model.faults import populate
from vmaweld.model.merge import MergeState
from vmaweld.model.vma import VMA
from vmaweld.policy import Policy

_MAY_ALL: Final = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
_SHARED_FILE: Final = "/dev/zero (deleted)#"
"""What a shared anonymous mapping maps: a shmem file of its own, so that no two of them merge."""


def mmap(
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
    """mmap(2). Returns the address.

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

    vm_flags = (prot & 7) | _MAY_ALL | space.def_flags
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
        next_first = space.machine.policy.mmap_asks_next_first
        m = MergeState(
            address, end, vm_flags, pgoff, file, "", 0, "", None, prev, None, next, None, next_first=next_first
        )
        merged = space.merge(m)
        if merged is not None:
            return merged
    vma = VMA(space, address, end, vm_flags, pgoff, file, "", 0, "", close)
    if vm_flags & VM_LOCKED and vm_flags & VM_SPECIAL:
        vma.flags &= ~VM_LOCKED_MASK
    vmas.insert(vma)
    return vma


def munmap(space: AddressSpace, addr: int, length: int) -> int:
    """munmap(2). Returns 0. Raises EINVAL, ENOMEM, EPERM."""
    if addr & (PAGE_SIZE - 1) or addr > TASK_SIZE or length > TASK_SIZE - addr:
        raise LinuxError(errno.EINVAL, f"{addr:#x} + {length:#x} is not a range of user pages")
    end = addr + page_align_up(length)
    if end == addr:
        raise LinuxError(errno.EINVAL, "munmap of length 0")
    space.unmap(addr, end)
    return 0


def brk(space: AddressSpace, addr: int) -> int:
    """brk(2). Returns the break afterwards, which is the old one where the call failed."""
    if not space.start_brk or addr < space.start_brk:
        return space.brk
    new = page_align_up(addr)
    old = page_align_up(space.brk)
    if new == old:
        space.brk = addr
        return addr
    if addr <= space.brk:
        try:
            space.unmap(new, old)
        except LinuxError:
            return space.brk
        space.brk = addr
        return addr
    above = space.vmas.find(old)
    if above is not None and new + PAGE_SIZE > space.start_gap(above):
        return space.brk
    if new > TASK_SIZE or space.vmas.count > space.machine.max_map_count:
        return space.brk
    _grow_brk(space, old, new)
    space.brk = addr
    if space.def_flags & VM_LOCKED:
        populate(space, old, new, ignore_errors=True)
    return addr


def _grow_brk(space: AddressSpace, start: int, end: int) -> None:
    """``do_brk_flags``: extend the heap, or begin a new VMA."""
    flags = VM_READ | VM_WRITE | _MAY_ALL | VM_ACCOUNT | space.def_flags
    prev = space.vmas.find_prev(start)
    next = space.vmas.find(start)
    only_prev = not space.machine.policy.brk_merges_next
    if (prev is not None and prev.end == start) or (next is not None and not only_prev):
        m = MergeState(
            start, end, flags, start >> PAGE_SHIFT, "", "", 0, "", None, prev, None, next, None, only_prev=only_prev
        )
        if space.merge(m) is not None:
            return
    space.vmas.insert(VMA(space, start, end, flags, start >> PAGE_SHIFT))


def shmat(space: AddressSpace, addr: int, length: int, prot: int, remap: bool, segment: str, *, placed: int = 0) -> int:
    """shmat(2): attach the `segment` of `length` bytes. Returns the address. Raises EINVAL, ENOMEM.

    remap: SHM_REMAP, replace what is mapped at `addr`; without, that is an error (``do_shmat``).
    """
    if addr & (PAGE_SIZE - 1):
        raise LinuxError(errno.EINVAL, f"the address {addr:#x} is not page aligned")
    if not addr and remap:
        raise LinuxError(errno.EINVAL, "SHM_REMAP needs an address")
    if addr and not remap and space.vmas.intersection(addr, addr + length) is not None:
        raise LinuxError(errno.EINVAL, f"something is mapped in {addr:#x}-{addr + length:#x}")
    flags = MAP_SHARED | (MAP_FIXED if addr else 0)
    writable = bool(prot & PROT_WRITE)
    space.machine.last_file += 1  # every attachment opens the segment anew, and so merges with no other
    file = f"{segment}@{space.machine.last_file}"
    space.machine.file_pages[file] = page_align_up(length) >> PAGE_SHIFT
    return mmap(space, addr, length, prot, flags, file, placed=placed, close=True, writable=writable)


def shmdt(space: AddressSpace, addr: int) -> int:
    """shmdt(2): unmap the first piece of the segment attached at `addr`, and those after it within its size.

    Returns 0. Raises EINVAL.
    """
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


def remap_file_pages(space: AddressSpace, addr: int, length: int, pgoff: int) -> int:
    """remap_file_pages(2), which since 4.0 is an mmap of the same file over itself. Returns 0. Raises EINVAL, ENOMEM.

    The range may span VMAs of the same file and flags without a hole; what they had by advice is lost.
    """
    start = page_align_down(addr)
    size = page_align_down(length)
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
    mmap(space, start, size, vma.flags & VM_ACCESS_FLAGS, flags, vma.file, pgoff, close=vma.close)
    return 0
