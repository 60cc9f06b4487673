# SPDX-License-Identifier: GPL-2.0-or-later
"""mremap: shrink, grow, move (``mm/mremap.c``, ``copy_vma`` of ``mm/vma.c``), and patch 2 of the series."""

from __future__ import annotations

import errno
from typing import Final

from vmaweld import events
from vmaweld.abi import (
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE_SHIFT,
    PAGE_SIZE,
    TASK_SIZE,
    VM_ACCOUNT,
    VM_DONTEXPAND,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_MAYSHARE,
    VM_PFNMAP,
    VM_SEALED,
    VM_SHARED,
    VM_UFFD_ANY,
    page_align_up,
)
from vmaweld.events import Event
from vmaweld.model.address_space import AddressSpace, Call
from vmaweld.model.anon_vma import clone_chain, unlink_chain, why_shared
from vmaweld.model.calls.mmap import placed
from vmaweld.model.errors import LinuxError
from vmaweld.model.faults import populate
from vmaweld.model.merge import MergeState
from vmaweld.model.vma import VMA

_KNOWN_FLAGS: Final = MREMAP_FIXED | MREMAP_MAYMOVE | MREMAP_DONTUNMAP
_NAMES_TARGET: Final = MREMAP_FIXED | MREMAP_DONTUNMAP


class _Mremap(Call):
    """mremap(2). Returns the address of the mapping afterwards. Raises EINVAL, EFAULT, ENOMEM, EPERM.

    Where the call leaves the new address to the kernel, it is the one that a recording saw.
    """

    def perform(self, space: AddressSpace, event: Event) -> int:
        policy = space.machine.policy
        addr = event.addr
        flags = event.flags
        new_addr = event.new_addr
        moved_to = placed(event, event.new_length)
        if flags & ~_KNOWN_FLAGS:
            raise LinuxError(errno.EINVAL, f"unknown mremap flags {flags:#x}")
        if addr & (PAGE_SIZE - 1):
            raise LinuxError(errno.EINVAL, f"the address {addr:#x} is not page aligned")
        implies_new = flags & _NAMES_TARGET
        if implies_new and not flags & MREMAP_MAYMOVE:
            raise LinuxError(errno.EINVAL, "MREMAP_FIXED and MREMAP_DONTUNMAP need MREMAP_MAYMOVE")
        old_length = page_align_up(event.length)
        new_length = page_align_up(event.new_length)
        if flags & MREMAP_DONTUNMAP:
            exactly = not policy.mremap_checks_first  # then not even within one page
            if old_length != new_length or (exactly and event.length != event.new_length):
                raise LinuxError(errno.EINVAL, "MREMAP_DONTUNMAP cannot resize")
        if not new_length:
            raise LinuxError(errno.EINVAL, "mremap to length 0")
        if policy.mremap_checks_first:
            if new_length > TASK_SIZE:
                raise LinuxError(errno.EINVAL, "the new length is larger than the address space")
            if implies_new:
                _check_target(addr, old_length, new_length, new_addr)
        if policy.mremap_headroom_exact:
            needed = 5 if flags & MREMAP_DONTUNMAP else 4
            if space.vmas.count + needed > space.machine.max_map_count:
                raise LinuxError(errno.ENOMEM, "the move might exceed vm.max_map_count")

        if policy.mremap_moves_many and flags & MREMAP_FIXED and old_length == new_length:
            return _move_many(space, addr, old_length, flags, new_addr)

        vma = space.vmas.find(addr)
        found = vma is not None and vma.start <= addr
        if not found and policy.mremap_needs_vma:
            raise LinuxError(errno.EFAULT, f"nothing is mapped at {addr:#x}")
        if implies_new:
            return _remap_to(space, addr, old_length, new_length, flags, new_addr, moved_to)
        if found and vma is not None and vma.flags & VM_SEALED:
            raise LinuxError(errno.EPERM, f"the mapping at {vma.start:#x} is sealed")
        if old_length >= new_length:
            if old_length > new_length:
                space.unmap(addr + new_length, addr + old_length)
            return addr
        if not found or vma is None:
            raise LinuxError(errno.EFAULT, f"nothing is mapped at {addr:#x}")
        _check_resize(space, vma, addr, old_length, new_length, flags)
        if vma.end - addr == old_length and _expandable(space, vma, new_length - old_length):
            locked = vma.flags & VM_LOCKED
            _grow_in_place(space, vma, new_length - old_length)
            if locked:
                populate(space, addr + old_length, addr + new_length, ignore_errors=True)
            return addr
        if not flags & MREMAP_MAYMOVE:
            raise LinuxError(errno.ENOMEM, f"no room to grow at {addr + old_length:#x}")
        moved_to = _beside(addr, old_length, new_length, moved_to)
        if moved_to and space.unmap(moved_to, moved_to + new_length):
            vma = _source(space, addr, old_length, new_length, flags)
        return _move(space, vma, addr, old_length, new_length, moved_to or space.find_free(new_length), flags)


def _beside(addr: int, old_length: int, new_length: int, moved_to: int) -> int:
    """`moved_to`, 0 where it lies in the range that moves: no kernel has answered so (a damaged or invented recording).

    What the model still has elsewhere in the target was unmapped unseen, and has to go.
    """
    return 0 if moved_to < addr + old_length and addr < moved_to + new_length else moved_to


def _check_target(addr: int, old_length: int, new_length: int, new_addr: int) -> None:
    if new_addr & (PAGE_SIZE - 1):
        raise LinuxError(errno.EINVAL, f"the new address {new_addr:#x} is not page aligned")
    if new_length > TASK_SIZE or new_addr > TASK_SIZE - new_length:
        raise LinuxError(errno.EINVAL, f"{new_addr:#x} + {new_length:#x} lies beyond user space")
    if addr + old_length > new_addr and new_addr + new_length > addr:
        raise LinuxError(errno.EINVAL, "old and new range overlap")


def _source(space: AddressSpace, addr: int, old_length: int, new_length: int, flags: int) -> VMA:
    """The VMA to move, which may be moved and resized so."""
    vma = space.vmas.find(addr)
    if vma is None or vma.start > addr:
        raise LinuxError(errno.EFAULT, f"nothing is mapped at {addr:#x}")
    if vma.flags & VM_SEALED:
        raise LinuxError(errno.EPERM, f"the mapping at {vma.start:#x} is sealed")
    _check_resize(space, vma, addr, old_length, new_length, flags)
    return vma


def _check_resize(space: AddressSpace, vma: VMA, addr: int, old_length: int, new_length: int, flags: int) -> None:
    """``vma_to_resize``, ``check_prep_vma``."""
    if not old_length and not vma.flags & (VM_SHARED | VM_MAYSHARE):
        raise LinuxError(errno.EINVAL, "only shared memory can be duplicated with old size 0")
    if flags & MREMAP_DONTUNMAP:
        if vma.flags & (VM_DONTEXPAND | VM_PFNMAP):
            raise LinuxError(errno.EINVAL, "MREMAP_DONTUNMAP of a special mapping")
        if not space.machine.policy.dontunmap_any and not vma.anonymous:
            raise LinuxError(errno.EINVAL, "MREMAP_DONTUNMAP needs private anonymous memory")
    if old_length > vma.end - addr:
        raise LinuxError(errno.EFAULT, f"the range reaches past its VMA at {vma.end:#x}")
    if new_length != old_length and vma.flags & (VM_DONTEXPAND | VM_PFNMAP):
        raise LinuxError(errno.EFAULT, "a special mapping cannot be resized")


def _remap_to(
    space: AddressSpace, addr: int, old_length: int, new_length: int, flags: int, new_addr: int, moved_to: int
) -> int:
    """``mremap_to``: MREMAP_FIXED unmaps the target, MREMAP_DONTUNMAP leaves the source behind."""
    policy = space.machine.policy
    if not policy.mremap_checks_first:
        _check_target(addr, old_length, new_length, new_addr)
    if not policy.mremap_headroom_exact and space.vmas.count + 2 >= space.machine.max_map_count - 3:
        raise LinuxError(errno.ENOMEM, "the move might exceed vm.max_map_count")
    vma: VMA | None = None
    if policy.mremap_checks_first:  # check_prep_vma, before anything is unmapped
        vma = _source(space, addr, min(old_length, new_length), new_length, flags)
    if flags & MREMAP_FIXED and space.unmap(new_addr, new_addr + new_length):
        vma = None
    if old_length > new_length:
        space.unmap(addr + new_length, addr + old_length)
        old_length = new_length
        vma = None
    if vma is None:  # not looked for yet, or perhaps another object since something was unmapped
        vma = _source(space, addr, old_length, new_length, flags)
    target = new_addr
    if flags & MREMAP_FIXED:
        if target < space.machine.min_address:
            raise LinuxError(errno.EPERM, f"{target:#x} lies below vm.mmap_min_addr")
    elif moved_to and (moved_to := _beside(addr, old_length, new_length, moved_to)):
        target = moved_to
        if space.unmap(target, target + new_length):
            vma = _source(space, addr, old_length, new_length, flags)
    elif not target or not space.fits(target, new_length):
        target = space.find_free(new_length)
    return _move(space, vma, addr, old_length, new_length, target, flags)


def _move_many(space: AddressSpace, addr: int, length: int, flags: int, new_addr: int) -> int:
    """``remap_move`` (6.17): every VMA of the range moves, the gaps between them kept."""
    end = addr + length
    vma = space.vmas.find(addr)
    if vma is not None and vma.start <= addr and end <= vma.end:  # only one after all
        return _remap_to(space, addr, length, length, flags, new_addr, 0)
    position = addr
    moved = False
    change = new_addr - addr
    while position < end:
        vma = space.vmas.find(position)
        if vma is None or vma.start >= end:
            break
        if not moved and addr < vma.start:
            raise LinuxError(errno.EFAULT, f"nothing is mapped at {addr:#x}")
        start = max(vma.start, addr)
        stop = min(vma.end, end)
        # vma_multi_allowed: neither userfaultfds nor files that place their own mappings, as segments do.
        if (vma.flags & VM_UFFD_ANY or vma.close) and (moved or vma.end < end):
            raise LinuxError(errno.EFAULT, "memory with a userfaultfd, or a segment, moves one VMA at a time")
        _remap_to(space, start, stop - start, stop - start, flags, start + change, 0)
        moved = True
        position = stop
    if not moved:
        raise LinuxError(errno.EFAULT, f"nothing is mapped at {addr:#x}")
    return new_addr


def _expandable(space: AddressSpace, vma: VMA, delta: int) -> bool:
    """``vma_expandable``."""
    end = vma.end + delta
    return end <= TASK_SIZE and (vma.next is None or vma.next.start >= end)


def _grow_in_place(space: AddressSpace, vma: VMA, delta: int) -> None:
    """Extend `vma` upwards; since 6.1 through the merge, which may join it with the VMA it then touches."""
    if not space.machine.policy.merge_after_grow:
        vma.end += delta
        return
    m = MergeState.grown(vma, vma.end + delta)
    if space.merge(m) is None:
        if vma.close and space.machine.policy.close_never_merges:  # 6.1.11 extends such a VMA without asking
            vma.end += delta
            return
        raise LinuxError(errno.ENOMEM, f"the VMA at {vma.start:#x} cannot be extended")


def _move(space: AddressSpace, vma: VMA, addr: int, old_length: int, new_length: int, target: int, flags: int) -> int:
    """``move_vma``: a copy of the VMA at `target`, the pages moved, the source unmapped."""
    policy = space.machine.policy
    if not policy.mremap_headroom_exact and space.vmas.count >= space.machine.max_map_count - 3:
        raise LinuxError(errno.ENOMEM, "the move might exceed vm.max_map_count")
    dontunmap = bool(flags & MREMAP_DONTUNMAP)
    if dontunmap and vma.flags & VM_LOCKED and policy.dontunmap_splits_locked:
        if vma.start != addr:
            space.checked_split(vma, addr, new_below=True)
        if vma.end != addr + old_length:
            space.checked_split(vma, addr + old_length, new_below=False)
    locked = vma.flags & VM_LOCKED
    old_pgoff = vma.pgoff_at(addr)
    owner = vma.anon_vma
    new, source, pgoff = _copy(space, vma, addr, old_length, target, new_length, keep_source=dontunmap)
    moved_owner = new.anon_vma if owner is not None and new.anon_vma is not owner else None
    space.pages.move(addr, addr + old_length, target, pgoff - old_pgoff if owner is not None else 0, owner, moved_owner)
    if new.uffd:  # without UFFD_FEATURE_EVENT_REMAP the target leaves the userfaultfd
        new.uffd = 0
        new.flags &= ~VM_UFFD_ANY
    if dontunmap:
        source.flags &= ~VM_LOCKED_MASK
        if policy.dontunmap_unaccounts:
            source.flags &= ~VM_ACCOUNT
        inside = source.start < addr and addr + old_length < source.end
        above = source.next
        if policy.dontunmap_accounts_next and inside and source is not new and source.flags & VM_ACCOUNT and above:
            above.flags |= VM_ACCOUNT
        if policy.dontunmap_unlinks and source.start == addr and source.end == addr + old_length:
            unlink_chain(source)
            if source.anonymous and policy.dontunmap_resets_pgoff:
                source.pgoff = source.start >> PAGE_SHIFT
    elif source.start == addr and source.end == addr + old_length:
        space.remove(source)
    elif old_length:
        # VM_ACCOUNT is hidden meanwhile, so that the reservation moves along; it is back on what remains.
        space.unmap(addr, addr + old_length)
    if locked and new_length > old_length:
        populate(space, target + old_length, target + new_length, ignore_errors=True)
    return target


def _copy(
    space: AddressSpace, vma: VMA, addr: int, old_length: int, target: int, length: int, *, keep_source: bool
) -> tuple[VMA, VMA, int]:
    """``copy_vma``: make or extend a VMA at `target` to take `vma`'s range.

    Returns the VMA at the target, the VMA that now holds the source, and the page offset of `target` there.

    A VMA that was never faulted takes the page offset of its new address. Patch 2: one that was does too, where none
    of its pages is shared; then it may, like the other, merge with its own source.
    """
    policy = space.machine.policy
    pgoff = vma.pgoff_at(addr)
    relocatable = False
    shared = ""
    if vma.anonymous:
        if vma.anon_vma is None:
            relocatable = True
        elif policy.update_pgoff:
            shared = why_shared(vma.anon_vma)
            if not shared and space.pages.any_mapped_elsewhere(addr, addr + old_length):
                shared = "a page is mapped elsewhere"
            relocatable = not shared
        if relocatable:
            pgoff = target >> PAGE_SHIFT
    next = space.vmas.find(target)
    prev = next.prev if next is not None else space.vmas.find_prev(target)
    if relocatable and keep_source and policy.dontunmap_keeps_two:  # MREMAP_DONTUNMAP: source and target must stay two
        beside = target == vma.end or target + length == vma.start
        if prev is vma or (beside and policy.dontunmap_skips_merge):
            prev = None
        if next is vma or (beside and policy.dontunmap_skips_merge):
            next = None
    if vma.uffd and policy.uffd_moves_apart:
        prev = next = None
    m = MergeState.moved(vma, target, target + length, pgoff, prev, next)
    m.updated = relocatable and vma.anon_vma is not None
    m.shared = shared
    merged = space.merge(m)
    if merged is not None:
        source = merged if merged.start <= addr < merged.end else vma
        return merged, source, merged.pgoff_at(target)
    new = vma.duplicate(space.pages)
    new.start = target
    new.end = target + length
    new.pgoff = pgoff
    clone_chain(new, vma)
    space.vmas.insert(new)
    return new, vma, pgoff


CALLS: Final[dict[str, Call]] = {
    events.MREMAP: _Mremap(),
}
