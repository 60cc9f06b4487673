# SPDX-License-Identifier: GPL-2.0-or-later
"""AddressSpace: the VMAs and anonymous pages of one process, and the steps that every call is made of."""

from __future__ import annotations

import errno
from typing import Final

from vmaweld.abi import (
    HUGE_PAGE_SIZE,
    PAGE_SHIFT,
    PAGE_SIZE,
    STACK_GUARD_GAP,
    TASK_SIZE,
    VM_GROWSDOWN,
    VM_HUGEPAGE,
    VM_NOHUGEPAGE,
    VM_SEALED,
    VM_SHARED,
)
from vmaweld.events import Event
from vmaweld.model.anon_vma import AnonVma, clone_chain, unlink_chain
from vmaweld.model.errors import LinuxError
from vmaweld.model.merge import MergeState, apply_merge, decide
from vmaweld.model.pages import PageTable
from vmaweld.model.tracepoints import Tracepoints
from vmaweld.model.vma import VMA
from vmaweld.model.vma_tree import VmaTree
from vmaweld.policy import Policy

DEFAULT_MMAP_BASE: Final = 0x7FFF_F7FF_F000
"""Where mmap without an address begins to look downwards: a stack and its gap below TASK_SIZE, no randomness."""


class Machine:
    """What is common to all processes: the policy, the limits and the counters that number things.

    policy: the kernel's rules.     trace: collects merge records, or None.
    max_map_count: ``vm.max_map_count``.      overcommit_never: ``vm.overcommit_memory`` is 2.
    anon_names: the kernel has CONFIG_ANON_VMA_NAME.     stack_limit: RLIMIT_STACK in bytes.
    thp: transparent huge pages are "always", on "madvise" or "never" made.
    total_pages: memory and swap; no single mapping of a fork may commit more (0: no limit).
    pkeys: the processor has protection keys, so memory that is only executable gets one that forbids reading.
    file_pages: sizes, in pages, of the files whose size matters: shared anonymous memory and segments.
    processes: the address space of each process by its pid; some may share one (CLONE_VM).
    """

    __slots__ = (
        "anon_names",
        "file_pages",
        "last_anon_vma",
        "last_file",
        "max_map_count",
        "min_address",
        "mmap_base",
        "overcommit_never",
        "pkeys",
        "policy",
        "processes",
        "stack_limit",
        "thp",
        "total_pages",
        "trace",
    )

    def __init__(
        self,
        policy: Policy,
        trace: Tracepoints | None,
        max_map_count: int,
        min_address: int,
        mmap_base: int,
        anon_names: bool,
        overcommit_never: bool,
        stack_limit: int,
        pkeys: bool,
        thp: str,
        total_pages: int,
    ) -> None:
        self.policy: Policy = policy
        self.trace: Tracepoints | None = trace
        self.max_map_count: int = max_map_count
        self.min_address: int = min_address
        self.mmap_base: int = mmap_base
        self.anon_names: bool = anon_names
        self.overcommit_never: bool = overcommit_never
        self.stack_limit: int = stack_limit
        self.pkeys: bool = pkeys
        self.thp: str = thp
        self.total_pages: int = total_pages
        self.last_anon_vma: int = 0
        self.last_file: int = 0
        self.file_pages: dict[str, int] = {}
        self.processes: dict[int, AddressSpace] = {}

    def add_process(self, pid: int) -> AddressSpace:
        """A process `pid` with an empty address space of its own."""
        space = AddressSpace(self)
        self.processes[pid] = space
        return space

    def leave(self, pid: int) -> None:
        """`pid` gives up its address space; the last user's is torn down (``exit_mmap``)."""
        space = self.processes.pop(pid, None)
        if space is None:
            return
        space.users -= 1
        if space.users:
            return
        vma = space.vmas.first
        while vma is not None:
            following = vma.next
            space.remove(vma)
            vma = following


class AddressSpace:
    """One ``mm_struct``.

    vmas: the VMAs.     pages: the anonymous pages.     users: processes that share it (CLONE_VM).
    def_flags: what mlockall(MCL_FUTURE) adds to every new VMA.
    start_brk, brk: the heap's fixed lower and current upper end, 0 while unknown.
    """

    __slots__ = ("brk", "def_flags", "machine", "pages", "start_brk", "users", "vmas")

    def __init__(self, machine: Machine) -> None:
        self.machine: Machine = machine
        self.vmas: VmaTree = VmaTree()
        self.pages: PageTable = PageTable()
        self.users: int = 1
        self.def_flags: int = 0
        self.start_brk: int = 0
        self.brk: int = 0

    # VMAs: make, split, merge, remove ---------------------------------------------------------------

    def split(self, vma: VMA, address: int, *, new_below: bool) -> VMA:
        """Split `vma` at `address`; both halves keep anon_vma and links (``__split_vma``). Returns the new half.

        new_below: the new object is the lower half. Where the limit matters the caller has checked it.
        """
        new = vma.duplicate(self.pages)
        lower_pages = (address - vma.start) >> PAGE_SHIFT
        if new_below:
            new.end = address
            self.vmas.set_start(vma, address)
            vma.pgoff += lower_pages
        else:
            new.start = address
            new.pgoff += lower_pages
            vma.end = address
        if vma.anon_vma is not None:
            clone_chain(new, vma)
        self.vmas.insert(new)
        return new

    def checked_split(self, vma: VMA, address: int, *, new_below: bool) -> VMA:
        """`split` for a caller that must respect max_map_count (``split_vma``). Raises ENOMEM."""
        if self.vmas.count >= self.machine.max_map_count:
            raise LinuxError(errno.ENOMEM, f"splitting a VMA at {address:#x} would exceed vm.max_map_count")
        return self.split(vma, address, new_below=new_below)

    def merge(self, m: MergeState) -> VMA | None:
        """Decide `m`, tell the tracepoint, and if it merges apply it. Returns the VMA that holds the range, or None."""
        case = decide(m, self.machine.policy)
        trace = self.machine.trace
        if trace is not None:
            trace.merge(m)
        return apply_merge(m, self.vmas, self.pages) if case else None

    def modify(
        self,
        vma: VMA,
        start: int,
        end: int,
        flags: int,
        *,
        name: str | None = None,
        mempolicy: str | None = None,
        uffd: int = -1,
    ) -> VMA:
        """Change attributes of ``[start, end)`` of `vma`, merging with neighbours or splitting (``vma_modify``).

        None and -1 leave an attribute as it is. Returns the VMA that now holds the range; it may be larger.
        Raises ENOMEM where a split would exceed max_map_count (a first split that succeeded stays).
        """
        if start == vma.start or end == vma.end:
            m = MergeState.changed(vma, start, end, flags)
            if name is not None:
                m.name = name
            if mempolicy is not None:
                m.mempolicy = mempolicy
            if uffd >= 0:
                m.uffd = uffd
            merged = self.merge(m)
            if merged is not None:
                merged.flags = flags | (merged.flags & self.machine.policy.ignored_flags)
                return merged
        if vma.start < start:
            self.checked_split(vma, start, new_below=True)
        if vma.end > end:
            self.checked_split(vma, end, new_below=False)
        vma.flags = flags
        if name is not None:
            vma.name = name
        if mempolicy is not None:
            vma.mempolicy = mempolicy
        if uffd >= 0:
            vma.uffd = uffd
        return vma

    def remove(self, vma: VMA) -> None:
        """Unmap all of `vma`."""
        if vma.anon_vma is not None:  # without one it has no anonymous pages either
            self.pages.drop(vma.start, vma.end)
            unlink_chain(vma)
        self.vmas.remove(vma)

    def unmap(self, start: int, end: int) -> bool:
        """Unmap ``[start, end)``, page aligned and not empty (``do_vmi_align_munmap``).

        Returns False if nothing was mapped there, and so nothing changed.
        Raises ENOMEM if the hole would cut one VMA in two at the limit, EPERM for a sealed VMA (6.10).
        """
        vma = self.vmas.find(start)
        if vma is None or vma.start >= end:
            return False
        if start > vma.start:
            # Only a VMA cut in two raises the count; the kernel lets it rise for a moment otherwise.
            if end < vma.end and self.vmas.count >= self.machine.max_map_count:
                raise LinuxError(errno.ENOMEM, f"a hole at {start:#x} would exceed vm.max_map_count")
            if vma.flags & VM_SEALED:
                raise LinuxError(errno.EPERM, f"the mapping at {start:#x} is sealed")
            self.split(vma, start, new_below=True)
        first = vma
        last: VMA | None = vma
        while last is not None and last.start < end:
            if last.flags & VM_SEALED:
                raise LinuxError(errno.EPERM, f"the mapping at {last.start:#x} is sealed")
            if last.end > end:
                self.split(last, end, new_below=False)
            last = last.next
        current: VMA | None = first
        while current is not None and current.start < end:
            following = current.next
            self.remove(current)
            current = following
        return True

    # anon_vmas and pages ----------------------------------------------------------------------------

    def prepare_anon_vma(self, vma: VMA) -> AnonVma:
        """Give `vma` an anon_vma if it has none: a neighbour's where it fits, else a new one.

        ``__anon_vma_prepare``
        """
        if vma.anon_vma is not None:
            return vma.anon_vma
        anon_vma = self._mergeable_anon_vma(vma)
        if anon_vma is None:
            self.machine.last_anon_vma += 1
            anon_vma = AnonVma(self.machine.last_anon_vma)
        anon_vma.vmas[vma] = None
        anon_vma.num_active_vmas += 1
        vma.anon_vma = anon_vma
        vma.chain = (anon_vma,)
        return anon_vma

    def _mergeable_anon_vma(self, vma: VMA) -> AnonVma | None:
        """``find_mergeable_anon_vma``: the next neighbour's first, then the previous one's."""
        neighbour = vma.next
        if neighbour is not None and len(neighbour.chain) == 1 and self._anon_vma_fits(vma, neighbour):
            return neighbour.anon_vma
        neighbour = vma.prev
        if neighbour is not None and len(neighbour.chain) == 1 and self._anon_vma_fits(neighbour, vma):
            return neighbour.anon_vma
        return None

    def _anon_vma_fits(self, lower: VMA, upper: VMA) -> bool:
        """``anon_vma_compatible``: they could become one if mprotect made their access bits equal."""
        return (
            lower.end == upper.start
            and lower.mempolicy == upper.mempolicy
            and lower.file == upper.file
            and not (lower.flags ^ upper.flags) & ~(7 | self.machine.policy.ignored_flags)
            and upper.pgoff == lower.pgoff + ((upper.start - lower.start) >> PAGE_SHIFT)
        )

    def write_pages(self, vma: VMA, start: int, end: int) -> None:
        """Write to every page of ``[start, end)`` of `vma`. Shared mappings have no anonymous pages."""
        if vma.flags & VM_SHARED:
            return
        anon_vma = self.prepare_anon_vma(vma)
        self.pages.write(start, end, anon_vma, vma.pgoff_at(start))

    def read_pages(self, vma: VMA, start: int, end: int) -> None:
        """Read every page of ``[start, end)`` of `vma`, which maps zero pages and leaves no trace, but for one.

        A fault that may take a huge page prepares the anon_vma before it asks whether it is a read
        (``do_huge_pmd_anonymous_page``): so does one in 2 MiB that lie wholly in the VMA and hold nothing yet.
        """
        thp = self.machine.thp
        if vma.anon_vma is not None or not vma.anonymous or thp == "never" or vma.flags & VM_NOHUGEPAGE:
            return
        if thp == "madvise" and not vma.flags & VM_HUGEPAGE:
            return
        block = max(start & -HUGE_PAGE_SIZE, (vma.start + HUGE_PAGE_SIZE - 1) & -HUGE_PAGE_SIZE)
        if block < end and block + HUGE_PAGE_SIZE <= vma.end:
            self.prepare_anon_vma(vma)

    def touch_pages(self, vma: VMA, start: int, end: int, *, write: bool) -> int:
        """Read or write what of ``[start, end)`` lies in `vma` and has pages of its file behind it; where that ends.

        Raises EFAULT where nothing does.
        """
        stop = min(self.file_end(vma), end)
        if stop <= start:
            raise LinuxError(errno.EFAULT, f"{start:#x} lies past the end of its file")
        if write:
            self.write_pages(vma, start, stop)
        else:
            self.read_pages(vma, start, stop)
        return stop

    def file_end(self, vma: VMA) -> int:
        """The address in `vma` past which its file has no pages (touching is SIGBUS); its end if none is known."""
        pages = self.machine.file_pages.get(vma.file, -1) if vma.file else -1
        if pages < 0:
            return vma.end
        return min(max(vma.address_of(pages), vma.start), vma.end)

    # addresses --------------------------------------------------------------------------------------

    def start_gap(self, vma: VMA) -> int:
        """The lowest address that must stay free below `vma` (``vm_start_gap``): a stack keeps a gap."""
        if vma.flags & VM_GROWSDOWN:
            return max(vma.start - STACK_GUARD_GAP, 0)
        return vma.start

    def fits(self, address: int, length: int) -> bool:
        """True if a hint may be honoured: the range is free, in user space and not in a stack's gap."""
        if address < self.machine.min_address or length > TASK_SIZE or address > TASK_SIZE - length:
            return False
        vma = self.vmas.find(address)
        return vma is None or address + length <= self.start_gap(vma)

    def find_free(self, length: int) -> int:
        """The highest free range of `length` bytes below mmap_base (``unmapped_area_topdown``). Raises ENOMEM.

        O(VMAs) in the worst case: meant for programs whose addresses nobody recorded.
        """
        high = self.machine.mmap_base
        above = self.vmas.find(high - 1)
        while True:
            below = self.vmas.find_prev(high - 1) if above is None else above.prev
            end = high if above is None else min(high, above.start)
            if above is not None and self.machine.policy.stack_gap_stays:
                end = min(end, self.start_gap(above))
            floor = max(below.end if below is not None else 0, self.machine.min_address)
            if end - length >= floor:
                # Only the VMA right above the gap is asked how far it must stay away.
                limit = end if above is None else self.start_gap(above)
                if limit >= end:
                    return end - length
                high = limit
                above = self.vmas.find(high - 1)
            elif below is not None:
                above = below
            else:
                raise LinuxError(errno.ENOMEM, f"no free range of {length} bytes")

    def grow_down(self, vma: VMA, address: int) -> None:
        """Extend the stack `vma` down to the page of `address` (``expand_downwards``). Raises EFAULT or ENOMEM."""
        address &= ~(PAGE_SIZE - 1)
        if address < self.machine.min_address:
            raise LinuxError(errno.EPERM, "a stack cannot grow below vm.mmap_min_addr")
        prev = vma.prev
        if (
            prev is not None
            and not prev.flags & VM_GROWSDOWN
            and prev.flags & 7
            and address - prev.end < STACK_GUARD_GAP
        ):
            raise LinuxError(errno.ENOMEM, f"the stack at {vma.start:#x} has no room to grow")
        self.prepare_anon_vma(vma)
        if vma.end - address > self.machine.stack_limit:
            raise LinuxError(errno.ENOMEM, f"the stack at {vma.start:#x} would exceed its limit")
        pages = (vma.start - address) >> PAGE_SHIFT
        if pages > vma.pgoff:
            raise LinuxError(errno.ENOMEM, "the stack's page offset cannot go below zero")
        vma.pgoff -= pages
        self.vmas.set_start(vma, address)

    def check(self) -> None:
        """Raise AssertionError unless the space is consistent by itself; `System.check` adds what spans processes."""
        self.vmas.check()
        self.pages.check()
        for vma in self.vmas:
            assert vma.page_table is self.pages
            assert not vma.start % PAGE_SIZE
            assert not vma.end % PAGE_SIZE
            assert (vma.anon_vma is None) == (not vma.chain)
            if vma.anon_vma is not None:
                assert vma.anon_vma in vma.chain
                for linked in vma.chain:
                    assert vma in linked.vmas
                    assert linked.root is vma.anon_vma.root
        for run in self.pages.all_runs():
            address = run.start
            holder = self.vmas.find(address)
            while address < run.end:  # a run may reach over a border that mprotect made
                assert holder is not None, f"{run!r} lies outside every VMA"
                assert holder.start <= address, f"{run!r} lies outside every VMA"
                index = run.index + ((address - run.start) >> PAGE_SHIFT)
                assert holder.pgoff_at(address) == index, f"{run!r} is not where {holder!r} would map it"
                assert run.anon_vma in holder.chain, f"no walk from {run!r} finds {holder!r}"
                address = holder.end
                holder = holder.next


class Call:
    """What performs one kind of event. A class, since mypyc calls a method faster than a function out of a table."""

    def perform(self, space: AddressSpace, event: Event) -> int:
        """Let `event` happen in the address space of its process.

        Returns what the system call returns. Raises LinuxError where Linux would fail it; what the call has changed
        until then stays changed, just as in Linux.
        """
        raise NotImplementedError
