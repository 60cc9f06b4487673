"""Welding the memory of another process: every thread stops, one of them works, all go on."""

import errno
import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final

from vmaweld import abi
from vmaweld.kernel import pagemap, procfs
from vmaweld.kernel.errors import ProcessGone
from vmaweld.kernel.pagemap import Pagemap
from vmaweld.kernel.ptrace import Rseq
from vmaweld.snapshot import Row, Snapshot
from vmaweld.welding import plan, residue, seccomp, source, support
from vmaweld.welding.errors import HalfDone, Refused
from vmaweld.welding.folding import Folded, fold
from vmaweld.welding.pace import Pace
from vmaweld.welding.program import Outcome, Program
from vmaweld.welding.puppet import MOST_ENTRIES, Puppet, Workshop
from vmaweld.welding.report import Report
from vmaweld.welding.standstill import REST, Standstill, while_still

_CHUNK: Final = 4 << 20
_ZEROES: Final = bytes(abi.PAGE_SIZE)


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
    snapshot = source.take(pid)
    with Pagemap(pid) as pages:
        made = plan.make(snapshot, pages, _limits(pid, options))
    support.check_memory(pid, made, unshare=options.unshare, verify=options.verify)
    return snapshot, made


def _limits(
    pid: int, options: Options, failed: Mapping[int, str] | None = None, avoid: Mapping[int, str] | None = None
) -> plan.Limits:
    relock = support.relock_reason(pid)
    wanted = (options.low, options.high, options.min_gain, options.unshare)
    return plan.Limits(*wanted, relock, failed or {}, avoid or {}, support.zero_stays())


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
        self.report = Report(pid)
        self._program = program
        self._failed: dict[int, str] = {}
        self._workshop = Workshop()
        self._pace = Pace()
        self._quick = True
        self._may_rseq = True
        self._source = source.Source(pid)
        self._prepared: tuple[Snapshot, plan.Plan] | None = None

    def work(self, progress: Callable[[Report], None] | None) -> Report:
        try:
            with self._source:
                return self._work(progress)
        except ProcessLookupError:
            raise ProcessGone(f"process {self.pid} has ended during the weld") from None

    def _work(self, progress: Callable[[Report], None] | None) -> Report:
        report = self.report
        snapshot, made = self._prepare()
        self._begin(snapshot, made)
        report.vmas_after = report.vmas_before
        if not made.candidates and not self._is_residue(snapshot.rows):
            return report
        try:
            more = True
            while more:
                with _undisturbed(), source.no_collections():
                    more = self._standstill(self._slice)
                if progress is not None:
                    progress(report)
                if more:
                    time.sleep(REST * report.pauses[-1])
                    self._prepare()
        except BaseException:
            if self._workshop.address:
                with _undisturbed():
                    self._standstill(self._leave)
            raise
        return report

    def _prepare(self) -> tuple[Snapshot, plan.Plan]:
        """Look and plan while the process runs; if nothing has changed when it stands still, that is already done."""
        snapshot = self._source.take()
        with Pagemap(self.pid) as pages:
            made = plan.make(snapshot, pages, _limits(self.pid, self.options, self._failed), quick=self._quick)
        support.check_memory(self.pid, made, unshare=self.options.unshare, verify=self.options.verify)
        self._prepared = snapshot, made
        return snapshot, made

    def _plan(self, snapshot: Snapshot, pages: Pagemap, limits: plan.Limits) -> plan.Plan:
        prepared, self._prepared = self._prepared, None
        again = limits.unshare or limits.avoid or limits.zero_stays
        if prepared is not None and prepared[0] is snapshot and not again:
            made = prepared[1]
            # Pages may have come since, which matters only where they are counted on: a VMA that had no anon_vma has
            # none still, or the snapshot would differ; but what is mlocked may have got a hole.
            if not any(candidate.rows[0].flags & abi.VM_LOCKED_MASK for candidate in made.candidates):
                return made
        return plan.make(snapshot, pages, limits, quick=self._quick)

    def _begin(self, snapshot: Snapshot, made: plan.Plan) -> None:
        self.report.vmas_before = len(snapshot.rows)
        self.report.seams = made.all_seams
        self.report.left = made.left

    def _is_residue(self, rows: Sequence[Row]) -> bool:
        return bool(residue.mapped(rows) or residue.descriptors(self.pid))

    def _standstill(self, work: Callable[[Standstill], bool]) -> bool:
        def noted(still: Standstill) -> bool:
            try:
                return work(still)
            except ProcessLookupError:
                self._workshop.forget()
                still.check_frozen()
                raise ProcessGone(f"process {self.pid} has ended during the weld") from None
            finally:
                still.release()
                self.report.pauses.append(time.monotonic() - still.began)

        return while_still(self.pid, noted, self.options.max_pause)

    def _slice(self, still: Standstill) -> bool:
        """Weld what there is, or as much as fits into the pause; whether something is left over."""
        first = not self._workshop.address
        snapshot = self._source.take()
        if first:
            support.check_headroom(len(snapshot.rows))
            support.check_io_uring(self.pid)
            residue.let_finish(still, residue.mapped(snapshot.rows))
        puppet = Puppet(still, snapshot.rows)
        more = False
        try:
            if first:
                self._may_rseq = seccomp.check(self.pid, puppet.tid)
                if self._is_residue(snapshot.rows):
                    self.report.repaired = residue.clear(puppet, residue.mapped(snapshot.rows))
                    snapshot = self._source.take()
            more = self._fold(still, puppet, snapshot, first)
        except (ProcessGone, HalfDone):
            self._workshop.forget()  # there is nothing left to unmap, or it is what a repair needs
            raise
        finally:
            if not more:
                self._workshop.take_down(puppet)
            puppet.restore()
        self.report.vmas_after = _count(self.pid) - (2 if self._workshop.address else 0)
        return more

    def _leave(self, still: Standstill) -> bool:
        puppet = Puppet(still, procfs.read_maps(self.pid).rows)
        try:
            self._workshop.take_down(puppet)
        finally:
            puppet.restore()
        return False

    def _fold(self, still: Standstill, puppet: Puppet, snapshot: Snapshot, first: bool) -> bool:
        report, options = self.report, self.options
        avoid = {}
        if puppet.rseq is not None and not self._may_rseq:
            avoid[puppet.rseq.area] = "the thread area of the thread that does the work, and seccomp forbids rseq"
        limits = _limits(self.pid, options, self._failed, avoid)
        with Pagemap(self.pid) as pages:
            made = self._plan(snapshot, pages, limits)
            if first:
                self._begin(snapshot, made)
            report.left = made.left
            candidates, more = made.candidates, False
            if options.max_pause is not None:
                # A slice works at least as long as it took to prepare it, or the whole would take for ever.
                spent = time.monotonic() - still.began
                candidates, more = self._pace.share(candidates, max(options.max_pause - spent, spent))
            if not candidates:
                return False
            if first:
                self._workshop.set_up(puppet)
            before = _digest(self.pid, pages, candidates, puppet.rseq) if options.verify else b""
            began = time.monotonic()
            folded = self._run(puppet, snapshot, candidates, retry=False)
            if folded.again:
                self._quick = False
                snapshot = self._source.take()
                found, made = made.all_seams, plan.make(snapshot, pages, limits)
                report.closed += found - folded.closed - made.all_seams  # the kernel may have merged more in passing
                part = made.candidates
                if options.max_pause is not None:
                    part, more = self._pace.share(part, max(options.max_pause, spent))
                folded = self._run(puppet, snapshot, part, retry=True)
            self._pace.learn(time.monotonic() - began)
            if options.verify and _digest(self.pid, pages, candidates, puppet.rseq) != before:
                raise HalfDone("the contents differ after the weld, which must never happen: please report it")
        self._failed.update(folded.failed)
        report.copied += sum(candidate.shared for candidate in candidates) if options.unshare else 0
        report.left = [*made.left, *folded.left()]
        # What the process itself opens meanwhile is not to be chased for ever.
        return more and report.closed <= 2 * report.seams + 16

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
            plan.Room(snapshot.rows),
            run,
            low=self.options.low,
            retry=retry,
            program=program,
            most_entries=MOST_ENTRIES,
        )
        self.report.add(folded)
        return folded


def _count(pid: int) -> int:
    """VMAs of `pid`."""
    lines = procfs.read_file(pid, "maps")
    return lines.count(b"\n") - lines.count(b" [vsyscall]\n")


def _digest(pid: int, pages: Pagemap, candidates: Sequence[plan.Candidate], rseq: Rseq | None) -> bytes:
    """A hash of all pages of `candidates` that hold more than zeroes, and of where they lie.

    Holes, zero pages and pages full of zeroes are one and the same here: when the kernel has to split a huge page, it
    gives those of its pages that hold only zeroes back (6.12). Left out is what the kernel itself writes whenever the
    thread that does the work comes to another processor: its ``struct rseq``.
    """
    found = hashlib.blake2b()
    kernels = range(rseq.area, rseq.area + rseq.size) if rseq is not None else range(0)
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for candidate in candidates:
            for start, end, kind in pages.runs(candidate.rows[0].start, candidate.rows[-1].end):
                if kind & pagemap.ZERO:
                    continue
                for chunk in range(start, end, _CHUNK):
                    data = bytearray(_read(fd, min(_CHUNK, end - chunk), chunk))
                    low, high = max(kernels.start, chunk), min(kernels.stop, chunk + len(data))
                    if low < high:
                        data[low - chunk : high - chunk] = bytes(high - low)
                    _add_pages(found, chunk, memoryview(data))
    finally:
        os.close(fd)
    return found.digest()


def _read(fd: int, length: int, address: int) -> bytes:
    data = b""
    while len(data) < length:
        at = address + len(data)
        try:
            piece = os.pread(fd, length - len(data), at)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise Refused(
                f"--verify cannot read the memory at {at:x}, which has no read access: this kernel does not let even "
                "a tracer (proc_mem.force_override, Linux 6.12): weld without --verify, or leave it out with --range"
            ) from None
        if not piece:  # the process has been killed
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        data += piece
    return data


def _add_pages(found: hashlib.blake2b, address: int, data: memoryview) -> None:
    for at in range(0, len(data), abi.PAGE_SIZE):
        page = data[at : at + abi.PAGE_SIZE]
        if page != _ZEROES:
            found.update(b"%d;" % (address + at))
            found.update(page)


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
