"""System: processes on one machine under one policy; events in, results and snapshots out."""

from __future__ import annotations

import errno

from vmaweld import events as ev
from vmaweld.abi import (
    CLONE_VM,
    DEFAULT_MAX_MAP_COUNT,
    MAP_FIXED,
    MMAP_MIN_ADDR,
    PAGE_SHIFT,
    PAGE_SIZE,
    TASK_SIZE,
    VM_ACCOUNT,
    VM_DONTCOPY,
    VM_LOCKED_MASK,
    VM_UFFD_ANY,
    VM_WIPEONFORK,
)
from vmaweld.events import Event
from vmaweld.model.address_space import DEFAULT_MMAP_BASE, AddressSpace, Machine
from vmaweld.model.anon_vma import AnonVma
from vmaweld.model.calls import (
    brk,
    madvise,
    mbind,
    mlock,
    mmap,
    mprotect,
    mremap,
    mseal,
    remap_file_pages,
    shm,
    userfaultfd,
)
from vmaweld.model.errors import LinuxError
from vmaweld.model.faults import touch
from vmaweld.model.pages import PageRun
from vmaweld.model.tracepoints import Tracepoints
from vmaweld.model.vma import VMA
from vmaweld.policy import Policy
from vmaweld.snapshot import Row, Snapshot


class System:
    """The machine in Python.

    policy: the kernel's rules.      trace: where merge records go; None costs nothing.
    max_map_count, min_address: ``vm.max_map_count``, ``vm.mmap_min_addr``.
    stack_limit: RLIMIT_STACK, bytes.      pkeys: the processor has protection keys.
    thp, total_pages: when huge pages are made, and what memory there is (`Machine`).
    anon_names, overcommit_never: how the kernel is configured (CONFIG_ANON_VMA_NAME, ``vm.overcommit_memory=2``).

    >>> from vmaweld.policy import parse_policy
    >>> system = System(parse_policy("linux-5.17"))
    >>> _ = system.add_process(1)
    >>> hex(system.apply(Event("mmap", 1, addr=0x100000, length=8192, prot=3, flags=0x32)))
    '0x100000'
    >>> system.snapshot(1).rows
    [100000-102000 rw-p pgoff=0x100 av=-]
    """

    __slots__ = ("machine", "processes", "sequence")

    def __init__(
        self,
        policy: Policy,
        *,
        trace: Tracepoints | None = None,
        max_map_count: int = DEFAULT_MAX_MAP_COUNT,
        min_address: int = MMAP_MIN_ADDR,
        mmap_base: int = DEFAULT_MMAP_BASE,
        anon_names: bool = True,
        overcommit_never: bool = False,
        stack_limit: int = 8 << 20,
        pkeys: bool = False,
        thp: str = "madvise",
        total_pages: int = 0,
    ) -> None:
        self.machine: Machine = Machine(
            policy,
            trace,
            max_map_count,
            min_address,
            mmap_base,
            anon_names,
            overcommit_never,
            stack_limit,
            pkeys,
            thp,
            total_pages,
        )
        self.processes: dict[int, AddressSpace] = {}
        self.sequence: int = 0

    def add_process(self, pid: int) -> AddressSpace:
        """A process `pid` with an empty address space of its own."""
        space = AddressSpace(self.machine)
        self.processes[pid] = space
        return space

    def space(self, pid: int) -> AddressSpace:
        """The address space of `pid`; one that nobody has announced begins empty."""
        space = self.processes.get(pid)
        return space if space is not None else self.add_process(pid)

    def apply(self, event: Event) -> int:
        """Let `event` happen. Returns what the call returns; raises LinuxError where Linux would fail it.

        A failed call has changed just what Linux would have changed.
        """
        trace = self.machine.trace
        if trace is not None:
            trace.sequence = self.sequence
            trace.pid = event.pid
            trace.call = event.op
        self.sequence += 1
        space = self.processes.get(event.pid)
        return self._perform(space if space is not None else self.add_process(event.pid), event)

    def _perform(self, space: AddressSpace, event: Event) -> int:
        op = event.op
        addr = event.addr
        length = event.length
        if op == ev.WRITE:
            return touch(space, addr, length, write=True)
        if op == ev.READ:
            return touch(space, addr, length, write=False)
        if op == ev.MMAP:
            return mmap.mmap(
                space, addr, length, event.prot, event.flags, event.file, event.pgoff, placed=_placed(event, length)
            )
        if op == ev.MUNMAP:
            return mmap.munmap(space, addr, length)
        if op == ev.MPROTECT:
            return mprotect.mprotect(space, addr, length, event.prot, event.flags - 1)
        if op == ev.MREMAP:
            return mremap.mremap(
                space,
                addr,
                length,
                event.new_length,
                event.flags,
                event.new_addr,
                placed=_placed(event, event.new_length),
            )
        if op == ev.BRK:
            return self._brk(space, event)
        if op == ev.MADVISE:
            return madvise.madvise(space, addr, length, event.flags)
        if op == ev.FORK:
            return self._fork(event)
        if op == ev.EXEC:
            return self._exec(event)
        if op == ev.PLACE:
            return self._place(space, event)
        if op == ev.EXIT:
            return self._exit(event.pid)
        if op == ev.MLOCK:
            return mlock.mlock(space, addr, length, event.flags)
        if op == ev.MUNLOCK:
            return mlock.munlock(space, addr, length)
        if op == ev.MLOCKALL:
            return mlock.mlockall(space, event.flags)
        if op == ev.MUNLOCKALL:
            return mlock.munlockall(space)
        if op == ev.SET_NAME:
            return madvise.set_name(space, addr, length, event.file)
        if op == ev.MBIND:
            return mbind.mbind(space, addr, length, event.file)
        if op == ev.SHMAT:
            return shm.shmat(
                space,
                addr,
                length,
                event.prot,
                bool(event.flags & MAP_FIXED),
                event.file,
                placed=_placed(event, length),
            )
        if op == ev.SHMDT:
            return shm.shmdt(space, addr)
        if op == ev.REMAP_FILE_PAGES:
            return remap_file_pages.remap_file_pages(space, addr, length, event.pgoff)
        if op == ev.MSEAL:
            return mseal.mseal(space, addr, length)
        if op == ev.UFFD_REGISTER:
            return userfaultfd.register(space, addr, length, event.flags, event.new_addr)
        if op == ev.UFFD_UNREGISTER:
            return userfaultfd.unregister(space, addr, length, event.new_addr)
        if op == ev.UFFD_CLOSE:
            return userfaultfd.close(space, event.new_addr)
        if op == ev.UFFD_MOVE:
            return userfaultfd.move(space, addr, length, event.new_addr)
        raise ValueError(f"no event is called {op!r}")

    def _brk(self, space: AddressSpace, event: Event) -> int:
        if not space.start_brk and event.result is not None and event.result > 0:
            # The first answer of a program whose exec was not seen in full: where its heap begins.
            heap = space.vmas.find(event.result - 1)
            known = heap is not None and heap.name == "[heap]" and heap.start < event.result
            space.start_brk = heap.start if known and heap is not None else event.result
            space.brk = event.result
            return event.result
        return brk.brk(space, event.addr)

    def _fork(self, event: Event) -> int:
        parent = self.space(event.pid)
        if event.child == event.pid:
            raise LinuxError(errno.EINVAL, f"process {event.pid} cannot be its own child")
        self._leave(event.child)  # one of that number must have ended unseen
        if event.flags & CLONE_VM:
            parent.users += 1
            self.processes[event.child] = parent
            return event.child
        limit = self.machine.total_pages
        if limit and any(vma.flags & VM_ACCOUNT and vma.pages > limit for vma in parent.vmas):
            raise LinuxError(errno.ENOMEM, "the child would commit more in one mapping than there is memory")
        child = AddressSpace(self.machine)
        child.start_brk = parent.start_brk
        child.brk = parent.brk
        for vma in parent.vmas:
            if vma.flags & VM_DONTCOPY:
                continue
            # A child neither inherits mlock nor, without UFFD_FEATURE_EVENT_FORK, the userfaultfd.
            flags = vma.flags & ~(VM_LOCKED_MASK | VM_UFFD_ANY)
            parent.fork_vma(vma, child, flags, wipe=bool(vma.flags & VM_WIPEONFORK))
        self.processes[event.child] = child
        return event.child

    def _leave(self, pid: int) -> None:
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

    def _exec(self, event: Event) -> int:
        self._leave(event.pid)
        self.add_process(event.pid)
        return 0

    def _exit(self, pid: int) -> int:
        self._leave(pid)
        return 0

    def _place(self, space: AddressSpace, event: Event) -> int:
        """A mapping that the kernel makes itself, or that was there before the recording: no question of merging.

        Raises EINVAL for what no kernel maps, such as half a page: a damaged or invented recording.
        """
        end = event.addr + event.length
        if (event.addr | end) & (PAGE_SIZE - 1) or not event.addr < end <= TASK_SIZE:
            raise LinuxError(errno.EINVAL, f"{event.addr:#x} + {event.length:#x} is not a range of user pages")
        if space.vmas.intersection(event.addr, end) is not None:
            space.unmap(event.addr, end)
        name = event.file if event.file.startswith("[") else ""
        vma = VMA(space, event.addr, end, event.flags, event.pgoff, "" if name else event.file, "", 0, name)
        space.vmas.insert(vma)
        if name == "[heap]":
            space.start_brk = event.addr
            space.brk = end
        return event.addr

    def snapshot(self, pid: int) -> Snapshot:
        """The rows of `pid`. Raises KeyError for a process that is not there."""
        rows = [
            Row(
                vma.start,
                vma.end,
                vma.flags,
                pgoff=vma.pgoff,
                anon_vma=vma.anon_vma.number if vma.anon_vma is not None else 0,
                file=vma.file.rpartition("@")[0] if vma.close else vma.file,
                name=vma.name,
                mempolicy=vma.mempolicy,
                uffd=vma.uffd,
                chain=len(vma.chain),
            )
            for vma in self.processes[pid].vmas
        ]
        return Snapshot(pid, rows, source="model", flags_exact=True, hidden=True)

    def check(self) -> None:
        """Verify every invariant of every address space, anon_vma and page. Raises AssertionError.

        The one that matters most: a reverse map walk from any mapped anonymous page finds every place that maps it,
        and for an exclusive page exactly one. O(everything).
        """
        spaces = list(dict.fromkeys(self.processes.values()))
        anon_vmas: dict[AnonVma, None] = {}
        active: dict[AnonVma, int] = {}
        for space in spaces:
            space.check()
            for vma in space.vmas:
                for linked in vma.chain:
                    anon_vmas[linked] = None
                if vma.anon_vma is not None:
                    active[vma.anon_vma] = active.get(vma.anon_vma, 0) + 1
        children: dict[AnonVma, int] = {}
        for anon_vma in anon_vmas:
            assert anon_vma.root.root is anon_vma.root
            assert anon_vma.num_active_vmas == active.get(anon_vma, 0), f"{anon_vma!r} miscounts its VMAs"
            for vma in anon_vma.vmas:
                assert anon_vma in vma.chain, f"{anon_vma!r} has {vma!r}, which is not linked"
                assert vma.space in spaces, f"{anon_vma!r} has a VMA of a dead process"
            children[anon_vma.parent] = children.get(anon_vma.parent, 0) + 1
        for anon_vma in anon_vmas:
            assert anon_vma.num_children == children.get(anon_vma, 0), f"{anon_vma!r} miscounts its children"
        self._check_rmap(spaces)

    def _check_rmap(self, spaces: list[AddressSpace]) -> None:
        """Every run found by the walk from its own pages, as often as its mapcount says."""
        for space in spaces:
            for run in space.pages.all_runs():
                if run.shared is None:
                    for index in (run.index, run.index_end - 1):
                        found = self._walk(run, index)
                        assert found == 1, f"page {index:#x} of {run!r} is exclusive and found {found} times"
                    continue
                for first, last, count in run.shared.steps(run.index, run.index_end):
                    assert count > 0, f"{run!r} is mapped with mapcount 0"
                    for index in (first, last - 1):
                        found = self._walk(run, index)
                        assert found == count, f"page {index:#x} of {run!r}: mapcount {count}, found {found}"

    def _walk(self, run: PageRun, index: int) -> int:
        """How many places a reverse map walk of the page `index` of `run` finds (``rmap_walk_anon``).

        A place counts if that very page is mapped there: offsets may repeat within an anon_vma, since mremap keeps
        them while it grows the copy.
        """
        found = 0
        for vma in run.anon_vma.vmas:
            if not vma.pgoff <= index < vma.pgoff + vma.pages:
                continue
            address = vma.address_of(index)
            for there in vma.space.pages.runs(address, address + 1):
                same = there is run if run.shared is None else there.shared is run.shared
                linear = there.index + ((address - there.start) >> PAGE_SHIFT) == index
                if same and linear and there.anon_vma is run.anon_vma:
                    found += 1
        return found


def _placed(event: Event, length: int) -> int:
    """The address where a recording saw the kernel put `length` bytes.

    0 where there was none, the call failed, or no kernel can have answered so (a damaged or invented recording).
    """
    result = event.result
    if result is None or result <= 0 or result & (PAGE_SIZE - 1) or result > TASK_SIZE - length:
        return 0
    return result


def result_of(system: System, event: Event) -> int:
    """`event`'s result as a system call returns it: ``-errno`` in place of an exception."""
    try:
        return system.apply(event)
    except LinuxError as error:
        return -error.errno
