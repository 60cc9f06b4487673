# SPDX-License-Identifier: GPL-2.0-or-later
"""One program on both machines: the model and the kernel, compared after every event."""

from typing import Final

from vmaweld import events as ev
from vmaweld.abi import VM_MAYSHARE
from vmaweld.events import Event
from vmaweld.executor.executor import Executor
from vmaweld.executor.process import ExecutorError
from vmaweld.model.system import System, result_of
from vmaweld.policy import Policy
from vmaweld.snapshot import Snapshot
from vmaweld.verify.compare import difference, names_of_anon_vmas

_FENCE: Final = 1 << 40
"""Bytes of the mappings that stand for what the executor fills up: more than any machine's memory."""


class Difference:
    """Where model and kernel part.

    program: the events up to and with the one after which they differ.     what: the difference, in words.
    model, real: both snapshots of the process after it; None where the results already differ or a process died.
    """

    def __init__(
        self, program: list[Event], what: str, model: Snapshot | None = None, real: Snapshot | None = None
    ) -> None:
        self.program = program
        self.what = what
        self.model = model
        self.real = real


class Bench:
    """A kernel to run programs on, and how a model of it is made.

    policy: the rules to hold against the kernel.     anon_names: it has CONFIG_ANON_VMA_NAME.
    pkeys, thp, total_pages: as in `System`.
    """

    def __init__(
        self, executor: Executor, policy: Policy, *, brk: int, anon_names: bool, pkeys: bool, thp: str, total_pages: int
    ) -> None:
        self.executor = executor
        self.policy = policy
        self.brk = brk
        self.anon_names = anon_names
        self.pkeys = pkeys
        self.thp = thp
        self.total_pages = total_pages

    def new_system(self) -> System:
        """The model as the executor's processes begin: empty, placing mappings downwards from the arena's end."""
        system = System(
            self.policy,
            mmap_base=self.executor.high,
            min_address=self.executor.low,
            anon_names=self.anon_names,
            pkeys=self.pkeys,
            thp=self.thp,
            total_pages=self.total_pages,
        )
        self.begin(system, 1)
        return system

    def begin(self, system: System, pid: int) -> None:
        """An empty process `pid`; its heap begins in the arena where the executor's does."""
        space = system.add_process(pid)
        # The executor fills all that lies outside the arena; its nearest neighbours matter.
        low, high = self.executor.low, self.executor.high
        for start, end in ((low - _FENCE, low), (high, high + _FENCE)):
            system.apply(Event(ev.PLACE, pid, addr=start, length=end - start, flags=VM_MAYSHARE, file="fence"))
        if self.executor.can_brk:
            space.start_brk = self.brk
            space.brk = self.brk

    def arena(self, system: System, pid: int) -> Snapshot:
        """What the model holds in the arena: all but the fences."""
        snapshot = system.snapshot(pid)
        snapshot.rows = snapshot.rows[1:-1]
        return snapshot

    def check(self, program: list[Event]) -> Difference | None:
        """Run `program`; the first difference, or None. The executor is left without processes.

        Raises ExecutorError only where the executor itself is gone.
        """
        try:
            self.executor.start(1)
            results, shown = self.executor.run_watched(program)
            found = self._compare(program, results, shown)
        except ExecutorError as error:
            found = Difference(program, str(error))
        self.executor.reset()
        return found

    def _compare(self, program: list[Event], results: list[int], shown: list[Snapshot]) -> Difference | None:
        system = self.new_system()
        for number, event in enumerate(program):
            ours = result_of(system, event)
            theirs = results[number]
            if ours != theirs:
                what = f"{event!r} returns {ev.result_text(ours)} in the model, {ev.result_text(theirs)} in the kernel"
                return Difference(program[: number + 1], what)
            if event.op == ev.FORK and ours < 0:
                return None  # the child's events mean nothing
            if event.op == ev.EXIT:
                continue
            model = self.arena(system, event.pid)
            what_differs = difference(model, shown[number])
            if what_differs is not None:
                return Difference(program[: number + 1], what_differs, model, shown[number])
        pairs = [(self.arena(system, pid), self.executor.snapshot(pid)) for pid in self.executor.pids]
        for model, real in pairs:
            what_differs = difference(model, real)
            if what_differs is not None:
                return Difference(program, f"process {model.pid}: {what_differs}", model, real)
        across = names_of_anon_vmas(pairs)
        return Difference(program, across) if across is not None else None
