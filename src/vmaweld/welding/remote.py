# SPDX-License-Identifier: GPL-2.0-or-later
"""Welding the memory of another process: every thread stops, one of them works, all go on."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final

from vmaweld import abi
from vmaweld.kernel import procfs, syscalls
from vmaweld.kernel.errors import KernelError, ProcessGone
from vmaweld.kernel.pagemap import Pagemap
from vmaweld.snapshot import Row, Snapshot
from vmaweld.welding import contents, plan, residue, seccomp, source, support, trampoline, workshop
from vmaweld.welding.alone import Alone
from vmaweld.welding.errors import Busy, HalfDone, WeldError
from vmaweld.welding.folding import Folded, fold
from vmaweld.welding.pace import Pace
from vmaweld.welding.program import Outcome, Program
from vmaweld.welding.puppet import Puppet
from vmaweld.welding.report import Report
from vmaweld.welding.standstill import REST, Standstill, while_still
from vmaweld.welding.workshop import MOST_ENTRIES, Workshop

_PATIENCE: Final = 5.0
"""Seconds that a weld under way waits for somebody else who traces the process or welds in it."""
_BUSY: Final = 0.02
_MORE_PAGES: Final = 1024
_MOST_IDLE: Final = 4
"""Slices in a row that move nothing before the weld ends."""


@dataclass(frozen=True)
class Options:
    """What is wanted.

    low, high: weld only inside that range. min_gain: leave runs with fewer open seams.
    unshare: make shared pages the process's own first. max_pause: seconds that a standstill may last at most, about;
    None: all in one. verify: compare the contents before and after, inside the standstill.
    """

    low: int = 0
    high: int = abi.TASK_SIZE
    min_gain: int = 1
    unshare: bool = False
    max_pause: float | None = None
    verify: bool = False


def survey(pid: int, options: Options) -> tuple[Snapshot, plan.Plan]:
    """What a weld of `pid` would do now, nothing stopped for it. Raises Refused, NotPermitted, ProcessGone."""
    support.check_other(pid)
    Alone(pid).check()
    snapshot = source.take(pid)
    with Pagemap(pid) as pages:
        made = plan.make(snapshot, pages, _limits(pid, options), closely=True)
    support.check_memory(pid, made, unshare=options.unshare, verify=options.verify)
    return snapshot, made


def _limits(
    pid: int,
    options: Options,
    failed: Mapping[int, str] | None = None,
    avoid: Mapping[int, str] | None = None,
    filters: seccomp.Filters = seccomp.NONE,
) -> plan.Limits:
    relock = support.relock_reason(pid)
    wanted = (options.low, options.high, options.min_gain, options.unshare)
    return plan.Limits(*wanted, relock, failed or {}, avoid or {}, support.zero_stays(), filters.why_left)


def weld(
    pid: int,
    options: Options | None = None,
    *,
    progress: Callable[[Report], None] | None = None,
    program: Callable[[], Program] = Program,
) -> Report:
    """Close the open seams of process `pid`.

    progress: called after each standstill. program: makes the empty program of a batch.
    Raises Refused, NotPermitted or ProcessGone, nothing having changed (in sliced work: nothing since the last slice);
    HalfDone as told there. A KeyboardInterrupt waits until the process runs again.
    """
    support.check_other(pid)
    return _Weld(pid, options or Options(), program).work(progress)


class _Weld:
    def __init__(self, pid: int, options: Options, program: Callable[[], Program]) -> None:
        self.pid = pid
        self.options = options
        self.report = Report(pid, max_pause=options.max_pause)
        self._program = program
        self._failed: dict[int, str] = {}
        self._workshop = Workshop()
        self._pace = Pace(verify=options.verify)
        self._quick = True
        self._avoid: dict[int, str] = {}
        self._filters = seccomp.NONE
        self._idle = 0
        self._pages = 0
        self._residue = False
        self._alone = Alone(pid)
        self._source = source.Source(pid)
        self._process = -1
        self._prepared: tuple[Snapshot, plan.Plan] | None = None
        self._room: plan.Room | None = None
        self._named: tuple[Snapshot, Sequence[Row]] | None = None

    def work(self, progress: Callable[[Report], None] | None) -> Report:
        try:
            with self._source, self._workshop:
                self._process = syscalls.pidfd_open(self.pid)
                return self._work(progress)
        except ProcessLookupError:
            raise ProcessGone(f"process {self.pid} has ended during the weld") from None
        finally:
            if self._process >= 0:
                os.close(self._process)

    def _work(self, progress: Callable[[Report], None] | None) -> Report:
        report = self.report
        snapshot, made = self._prepare()
        workshop.refuse_if_taken(self.pid, self._workshops(snapshot))
        self._begin(snapshot, made)
        report.vmas_after = report.vmas_before
        self._residue = self._is_residue(self._workshops(snapshot))
        if not made.candidates and not self._residue:
            return report
        try:
            more = True
            while more:
                more = self._next()
                if progress is not None:
                    progress(report)
                if more:
                    time.sleep(REST * report.pauses[-1])
                    self._prepare()
        except BaseException:
            self._leave_in_order()
            raise
        try:
            report.vmas_after = _count(self.pid)
        except ProcessGone:  # it has ended since
            report.vmas_after = report.vmas_before - report.closed
        return report

    def _next(self) -> bool:
        """One slice; whether something is left over. While somebody else is at work, a weld under way waits."""
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                with _undisturbed(), source.no_collections():
                    return self._standstill(self._slice)
            except Busy:
                if not self._workshop.address or time.monotonic() > end:
                    raise
            time.sleep(_BUSY)

    def _leave_in_order(self) -> None:
        """Take away what is ours, if it can be proved to be; the lock is given back in any case."""
        if not self._workshop.address:
            return
        try:
            with _undisturbed():
                self._standstill(self._leave)
        except (WeldError, KernelError):
            self._workshop.forget()  # a later weld clears it away

    def _prepare(self) -> tuple[Snapshot, plan.Plan]:
        """Look and plan while the process runs; if nothing has changed when it stands still, that is already done."""
        self._alone.check()
        snapshot = self._source.take()
        limits = _limits(self.pid, self.options, self._failed, self._avoid, self._filters)
        with Pagemap(self.pid) as pages:
            made = plan.make(snapshot, pages, limits, quick=self._quick)
        support.check_memory(self.pid, made, unshare=self.options.unshare, verify=self.options.verify)
        self._prepared = snapshot, made
        self._find_room(snapshot)
        self._workshops(snapshot)
        return snapshot, made

    def _find_room(self, snapshot: Snapshot) -> plan.Room:
        """Where groups move through: once found, it is good while nothing has been mapped there."""
        if self._room is None or not self._room.is_free(snapshot.rows):
            self._room = plan.Room(snapshot.rows)
        return self._room

    def _workshops(self, snapshot: Snapshot) -> Sequence[Row]:
        """The rows of `snapshot` that may be somebody's workshop, found once."""
        if self._named is None or self._named[0] is not snapshot:
            self._named = snapshot, workshop.named(snapshot.rows)
        return self._named[1]

    def _begin(self, snapshot: Snapshot, made: plan.Plan) -> None:
        self.report.vmas_before = len(snapshot.rows)
        self.report.seams = made.all_seams
        self.report.left = made.left
        self._pages = made.pages

    def _is_residue(self, rows: Sequence[Row]) -> bool:
        return bool(residue.mapped(self.pid, rows) or residue.descriptors(self.pid))

    def _standstill(self, work: Callable[[Standstill], bool]) -> bool:
        def noted(still: Standstill) -> bool:
            try:
                if select.select([self._process], [], [], 0)[0]:
                    raise ProcessLookupError  # it has ended, and the number may be another's by now
                return work(still)
            except ProcessLookupError:
                self._workshop.forget()
                still.check_frozen()
                raise ProcessGone(f"process {self.pid} has ended during the weld") from None
            finally:
                still.release()
                pause = time.monotonic() - still.began
                self.report.pauses.append(pause)
                self._pace.paused(pause)

        return while_still(self.pid, noted, self.options.max_pause)

    def _slice(self, still: Standstill) -> bool:
        """Weld what there is, or as much as fits into the pause; whether something is left over."""
        first = not self._workshop.address
        self._alone.check()
        # In a short pause there is no time to look at all VMAs of a large process; what is then known of pages is
        # looked at again where it matters (`_choose`).
        snapshot = self._source.take() if self.options.max_pause is None else self._source.again()
        self._prove(snapshot)
        workshop.refuse_if_taken(self.pid, self._workshops(snapshot), self._workshop.address)
        if first:
            support.check_headroom(len(snapshot.rows))
            support.check_io_uring(self.pid)
            residue.let_finish(still, self._workshops(snapshot), trampoline.gap(self.pid, snapshot.rows))
        puppet = Puppet(still, snapshot.rows)
        # Another thread may be at work now, or this one have got another filter since the last slice.
        self._filters = seccomp.check(self.pid, puppet.tid, self._filters)
        more = False
        try:
            if first and self._residue:
                self._residue = False
                self.report.repaired = residue.clear(puppet, residue.mapped(self.pid, self._workshops(snapshot)))
                snapshot = self._source.take()
                more = self.options.max_pause is not None  # what to weld now is planned before the next slice
            if not more:
                more = self._fold(still, puppet, snapshot, first)
        except (ProcessGone, HalfDone):
            self._workshop.forget()  # there is nothing left to unmap, or it is what a repair needs
            raise
        finally:
            if not more:
                self._workshop.take_down(puppet)
            puppet.restore()
        return more

    def _prove(self, snapshot: Snapshot) -> None:
        """The process has run since the workshop was mapped: go on only if it is still there."""
        if self._workshop.address and not self._workshop.is_there(self.pid, snapshot.rows):
            self._workshop.forget()
            raise ProcessGone(
                f"process {self.pid} has executed another program during the weld, or unmapped what the weld had "
                "mapped there: what was closed until then stays closed, nothing else was touched"
            )

    def _leave(self, still: Standstill) -> bool:
        snapshot = self._source.take()
        self._prove(snapshot)
        puppet = Puppet(still, snapshot.rows)
        try:
            if seccomp.allows_leaving(self.pid, puppet.tid):
                self._workshop.take_down(puppet)
            else:
                self._workshop.forget()
        finally:
            puppet.restore()
        return False

    def _fold(self, still: Standstill, puppet: Puppet, snapshot: Snapshot, first: bool) -> bool:
        report, options = self.report, self.options
        if puppet.rseq is not None and self._filters.forbids_rseq():
            self._avoid = {
                puppet.rseq.area: "the thread area of the thread that does the work, and seccomp forbids rseq"
            }
        limits = _limits(self.pid, options, self._failed, self._avoid, self._filters)
        with Pagemap(self.pid) as pages:
            candidates, more = self._choose(still, snapshot, pages, limits, first)
            if not candidates:
                return more and self._goes_on(0)
            if first:
                self._workshop.set_up(puppet)
            began = time.monotonic()
            before = self._digest(pages, candidates, puppet)
            folded = self._run(puppet, snapshot, candidates, retry=not self._quick)
            if folded.again:
                self._quick = False
                if options.max_pause is not None:
                    more = True  # a closer look takes time: it is planned before the next slice
                else:
                    snapshot = self._source.take()
                    found, made = report.seams, plan.make(snapshot, pages, limits)
                    # The kernel may have merged more in passing.
                    report.closed += found - folded.closed - made.all_seams
                    report.left = made.left
                    folded = self._run(puppet, snapshot, made.candidates, retry=True)
            if not puppet.late and self._digest(pages, candidates, puppet) != before:
                raise HalfDone("the contents differ after the weld, which must never happen: please report it")
            self._pace.learn(time.monotonic() - began)
        self._failed.update(folded.failed)
        report.copied += sum(candidate.shared for candidate in candidates) if options.unshare else 0
        report.left = [*report.left, *folded.left()]
        return more and self._goes_on(folded.closed + folded.pages)

    def _choose(
        self, still: Standstill, snapshot: Snapshot, pages: Pagemap, limits: plan.Limits, first: bool
    ) -> tuple[Sequence[plan.Candidate], bool]:
        """(what to weld in this standstill, whether something is left over).

        What was planned while the process ran is good if nothing has changed since. Pages may have come even so, which
        matters only where they are counted on: what is mlocked may have got a hole, and what had no anon_vma pages.
        (Where the whole is welded at once, a VMA that had none has none still, or the snapshot would differ.)
        """
        assert self._prepared is not None
        prepared, made = self._prepared
        anew = bool(prepared is not snapshot or limits.unshare or limits.avoid or limits.zero_stays)
        guarded = plan.guarded(made, limits)
        if self.options.max_pause is None:
            if anew or guarded or any(map(_locked, made.candidates)):
                made = plan.make(snapshot, pages, limits, quick=self._quick)
            if first:
                self._begin(snapshot, made)
            self.report.left = made.left
            return made.candidates, False
        if guarded:
            return [], True  # what a filter forbids is known now, and planned for before the next slice
        budget = self._pace.budget(self.options.max_pause, time.monotonic() - still.began)
        self.report.left = made.left
        chosen, more = self._pace.share(made.candidates, budget)
        if chosen and (anew or any(_locked(one) or _empty(one) for one in chosen)):
            # The last row may be but the front of a VMA, and a plan takes whole ones only.
            last = made.candidates[len(chosen) - 1].rows[len(chosen[-1].rows) - 1]
            part = limits._replace(low=max(limits.low, chosen[0].rows[0].start), high=min(limits.high, last.end))
            made = plan.make(snapshot.between(part.low, part.high), pages, part, quick=self._quick)
            chosen, cut = self._pace.share(made.candidates, budget)
            more = more or cut
        return chosen, more

    def _goes_on(self, done: int) -> bool:
        """Whether another slice is worth it: what the process itself opens meanwhile is not to be chased for ever.

        Twice what there was at the beginning is enough, in seams as in pages. Pages are counted too, since a part of
        a large VMA that has moved may be opened anew before its seam is closed.
        """
        self._idle = 0 if done else self._idle + 1
        report = self.report
        return (
            self._idle < _MOST_IDLE
            and report.closed <= 2 * report.seams + 16
            and report.pages <= 2 * self._pages + _MORE_PAGES
        )

    def _digest(self, pages: Pagemap, candidates: Sequence[plan.Candidate], puppet: Puppet) -> bytes:
        if not self.options.verify:
            return b""
        return contents.digest(self.pid, pages, candidates, self.options.low, puppet.rseq)

    def _run(self, puppet: Puppet, snapshot: Snapshot, candidates: Sequence[plan.Candidate], *, retry: bool) -> Folded:
        def run(program: Program) -> tuple[tuple[str, int], list[Outcome]]:
            return self._workshop.run(puppet, program)

        registration = puppet.rseq
        if registration is not None and not any(
            candidate.rows[0].start <= registration.area < candidate.rows[-1].end for candidate in candidates
        ):
            registration = None

        def program() -> Program:
            work = self._program()
            if registration is not None:
                work.leave_rseq(registration)
            return work

        folded = fold(
            candidates,
            self._find_room(snapshot),
            run,
            low=self.options.low,
            retry=retry,
            program=program,
            most_entries=MOST_ENTRIES,
        )
        self.report.add(folded)
        return folded


def _locked(candidate: plan.Candidate) -> bool:
    return bool(candidate.rows[0].flags & abi.VM_LOCKED_MASK)


def _empty(candidate: plan.Candidate) -> bool:
    """It has VMAs without an anon_vma, and so without pages of their own: a weld may drop what is mapped there."""
    return not all(row.anon_vma for row in candidate.rows)


def _count(pid: int) -> int:
    """VMAs of `pid`."""
    lines = procfs.read_file(pid, "maps")
    return lines.count(b"\n") - lines.count(b" [vsyscall]\n")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold back SIGINT, SIGTERM and SIGHUP while threads of another process stand still; then let the last one come."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            os.kill(os.getpid(), came[-1])
