# SPDX-License-Identifier: GPL-2.0-or-later
"""System: processes on one machine under one policy; events in, results and snapshots out."""

from __future__ import annotations

from vmaweld.abi import DEFAULT_MAX_MAP_COUNT, MMAP_MIN_ADDR, PAGE_SHIFT
from vmaweld.events import Event
from vmaweld.model.address_space import DEFAULT_MMAP_BASE, AddressSpace, Call, Machine
from vmaweld.model.anon_vma import AnonVma
from vmaweld.model.calls import CALLS
from vmaweld.model.errors import LinuxError
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

    __slots__ = ("_calls", "machine", "processes", "sequence")

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
        self.processes: dict[int, AddressSpace] = self.machine.processes
        self.sequence: int = 0
        self._calls: dict[str, Call] = CALLS

    def add_process(self, pid: int) -> AddressSpace:
        """A process `pid` with an empty address space of its own."""
        return self.machine.add_process(pid)

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
        call = self._calls.get(event.op)
        if call is None:
            raise ValueError(f"no event is called {event.op!r}")
        return call.perform(space if space is not None else self.add_process(event.pid), event)

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
        tables = [space.pages for space in spaces]
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
            for linked_vma in anon_vma.vmas:
                assert isinstance(linked_vma, VMA)
                assert anon_vma in linked_vma.chain, f"{anon_vma!r} has {linked_vma!r}, which is not linked"
                assert linked_vma.page_table in tables, f"{anon_vma!r} has a VMA of a dead process"
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
            assert isinstance(vma, VMA)
            if not vma.pgoff <= index < vma.pgoff + vma.pages:
                continue
            address = vma.address_of(index)
            for there in vma.page_table.runs(address, address + 1):
                same = there is run if run.shared is None else there.shared is run.shared
                linear = there.index + ((address - there.start) >> PAGE_SHIFT) == index
                if same and linear and there.anon_vma is run.anon_vma:
                    found += 1
        return found


def result_of(system: System, event: Event) -> int:
    """`event`'s result as a system call returns it: ``-errno`` in place of an exception."""
    try:
        return system.apply(event)
    except LinuxError as error:
        return -error.errno
