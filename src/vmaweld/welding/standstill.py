# SPDX-License-Identifier: GPL-2.0-or-later
"""Stopping every thread of a process, and letting them go as if nothing had happened."""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, TypeVar

from vmaweld.kernel import freezer, procfs, ptrace
from vmaweld.kernel.errors import KernelError, NotPermitted, ProcessGone
from vmaweld.welding import interrupted
from vmaweld.welding.errors import Busy, Refused, WeldError

PATIENCE: Final = 0.5
"""Seconds that all threads may take to stop where no shorter pause is asked for.

A thread that runs or sleeps stops within microseconds. Only one that sleeps uninterruptibly takes longer. It waits
for a disk, mostly for milliseconds, or for what may never come. Half a second covers a slow disk, and is shorter than
the time limits that programs set for each other.
"""
_TO_RUN: Final = 0.05
"""Seconds of processor time that a thread gets beyond that if it does not sleep.

It is on its way to the stop, and on a busy machine may have to wait for a processor: so its own time counts. Some do
not get there: see `_look_first`.
"""
_STARVED: Final = 5.0
"""Seconds that a thread may wait for a processor."""
_TRIES: Final = 10
"""Short pauses are tried as often, so that a thread which reads from a disk is met at another moment."""
_SEIZES: Final = 3
REST: Final = 4
"""Between two standstills the process runs at least that many times as long as it stood still."""


_T = TypeVar("_T")


class _Stuck(Refused):
    """A thread does not stop."""


def while_still(pid: int, work: Callable[["Standstill"], _T], max_pause: float | None = None) -> _T:
    """Call `work` while all threads of `pid` stand still, and return its result.

    max_pause: seconds that the threads may take to stop; None: `PATIENCE`.
    Raises ProcessGone, NotPermitted, Refused, and what `work` raises; no thread stays stopped.

    It happens in a thread of its own, since ptrace binds a tracee to the thread that traces it. A tracee that has been
    told to stop and has not stopped cannot be let go. But when its tracer ends, the kernel does that: `exit_ptrace()`.
    """
    result: list[_T] = []
    failure: list[BaseException] = []

    def hold() -> None:
        try:
            with Standstill(pid, max_pause) as still:
                result.append(work(still))
        except BaseException as error:
            failure.append(error)

    for left in reversed(range(1 if max_pause is None else _TRIES)):
        _to_the_end(threading.Thread(target=hold, name="vmaweld standstill", daemon=True))
        if not (failure and isinstance(failure[0], _Stuck) and left):
            break
        failure.clear()
        time.sleep(max(REST * (max_pause or 0.0), 0.01))
    if failure:
        raise failure[0]
    return result[0]


def _to_the_end(thread: threading.Thread) -> None:
    """Run `thread` until the kernel has done with it; an exception that a signal raises here waits until then."""
    late: BaseException | None = None
    thread.start()
    while thread.is_alive() or os.path.exists(f"/proc/self/task/{thread.native_id}"):
        try:
            thread.join()
            time.sleep(1e-5)
        except BaseException as error:
            late = error
    if late is not None:
        raise late


class Standstill:
    """All threads of `pid`, stopped. Use it in a `with`.

    threads: their ids. began: when the first was stopped (time.monotonic()).
    max_pause: seconds that they may take to stop; None: `PATIENCE`.
    Raises ProcessGone, NotPermitted, Refused; then no thread stays stopped. One that did not stop stays traced until
    the calling thread ends: `while_still` sees to that.
    """

    def __init__(self, pid: int, max_pause: float | None = None) -> None:
        self.pid = pid
        self.threads: list[int] = []
        self._patience = min(max_pause or PATIENCE, PATIENCE)
        self._pending: set[int] = set()
        self._waiting: set[int] = set()
        _look_first(pid)
        # A process that has just slept is not put behind the threads that it wakes. On a busy machine that shortens
        # the standstill by milliseconds.
        time.sleep(1e-3)
        self.began = time.monotonic()
        try:
            self._stop_all()
        except BaseException:
            self.release()
            raise

    def _stop_all(self) -> None:
        # A thread that has not stopped yet may start others: done when a look at all of them finds no new one.
        known: set[int] = set()
        while True:
            new = [tid for tid in _tids(self.pid) if tid not in known]
            if not new:
                break
            known.update(new)
            # All are traced before the first is stopped, the main thread last, and it is let go first. A signal that
            # the process ignores is dropped when it is sent, unless the thread that it is sent to is traced: for one
            # sent to the process that is the main thread (sig_ignored() in kernel/signal.c). Were that one traced, and
            # another thread not, or not any more, the signal would end the wait of the other in vain.
            seized = [tid for tid in sorted(new, key=lambda tid: tid == self.pid) if self._seize(tid)]
            for tid in seized:
                _interrupt(tid)
            for tid in seized:
                self._await_stop(tid)
        if not self.threads:
            raise ProcessGone(f"process {self.pid} has ended")

    def _seize(self, tid: int) -> bool:
        for attempt in range(_SEIZES):
            try:
                ptrace.seize(tid, ptrace.O_TRACESYSGOOD)
            except OSError as error:
                if error.errno == errno.ESRCH or _is_dead(self.pid, tid):
                    return False
                why = _why_not_seized(self.pid, tid, error)
                # Who traced it when it was refused may have let go before we could ask who it is.
                if isinstance(why, Busy) or attempt == _SEIZES - 1:
                    raise why from None
                continue
            break
        self._pending.add(tid)
        return True

    def _await_stop(self, tid: int) -> None:
        """Wait for the stop. Signals that come first are delivered: their handlers run after the standstill."""
        while True:
            event = ptrace.wait(tid, max(self.began + self._patience - time.monotonic(), 0)) or self._await_busy(tid)
            if event is None:
                raise _Stuck(_why_stuck(self.pid, tid))
            if event.kind == "gone":
                self._pending.discard(tid)
                self._bury(tid)
                return
            if interrupted.go_on(self.pid, tid):
                self._waiting.add(tid)
            if event.kind == "stop":
                break
            ptrace.proceed(tid, event.signal if event.kind == "signal" else 0)
        self._pending.discard(tid)
        self.threads.append(tid)

    def _await_busy(self, tid: int) -> ptrace.Event | None:
        """Wait for a thread that is late though it does not sleep; None where it does, or has used up its time."""
        most = _processor_time(self.pid, tid) + _TO_RUN
        while _state(self.pid, tid) != "D" and _processor_time(self.pid, tid) < most:
            if event := ptrace.wait(tid, 2e-3):
                return event
            if time.monotonic() > self.began + _STARVED:
                break
        return None

    def stop_signal(self, tid: int, number: int) -> None:
        """Deliver stop signal `number` to `tid`, which has stopped for it while it works; it stands still again.

        So the kernel knows of the group stop, counts the threads that stand still already as stopped, stops all when
        they are let go, and forgets it again where SIGCONT comes first (prepare_signal() in kernel/signal.c). To hold
        the signal back and to send it later would let it overtake a SIGCONT.
        """
        _interrupt(tid)
        ptrace.proceed(tid, number)
        event = ptrace.wait(tid)
        assert event is not None
        if event.kind == "gone":
            raise ProcessGone(f"process {self.pid} has ended during the weld")

    def check_frozen(self, tid: int | None = None) -> None:
        """Raises Refused where the process has been frozen meanwhile, so that `tid` does not do what it was told.

        `tid` then stands still, or goes on by itself once the process is thawed.
        """
        place = freezer.frozen(self.pid)
        if place:
            if tid is not None:
                _interrupt(tid)
                ptrace.wait(tid, 0.1)
            raise Refused(_frozen(self.pid, place))

    def release(self) -> None:
        """Let every thread go; safe to call twice."""
        # Those last whose wait a signal in vain would end, see _stop_all().
        for tid in sorted(self.threads, key=lambda tid: (tid != self.pid, tid in self._waiting)):
            self._let_go(tid)
        self.threads = []
        for tid in self._pending:  # seized, but it has not stopped
            event = ptrace.wait(tid, 1e-3)
            if event is not None and event.kind != "gone":
                interrupted.go_on(self.pid, tid)
            if event is not None:
                self._let_go(tid, event.signal if event.kind == "signal" else 0)
        self._pending = set()

    def _let_go(self, tid: int, number: int = 0) -> None:
        try:
            ptrace.detach(tid, number)
        except ProcessLookupError:  # killed meanwhile
            ptrace.wait(tid, 0.2)
            self._bury(tid)

    def _bury(self, tid: int) -> None:
        """A thread has ended: until its tracer notes it, nobody can; but a child's end is for whoever waits for it."""
        if tid != self.pid or not self._is_child():
            ptrace.reap(tid)

    def _is_child(self) -> bool:
        try:
            return procfs.status(self.pid).ppid == os.getpid()
        except KernelError:
            return False

    def __enter__(self) -> "Standstill":
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.release()


def _interrupt(tid: int) -> None:
    """Tell it to stop; one that has ended meanwhile is noticed when it is waited for."""
    with contextlib.suppress(OSError):
        ptrace.interrupt(tid)


def _tids(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        raise ProcessGone(f"process {pid} has ended") from None


def _look_first(pid: int) -> None:
    """Refuse what would not stop before anybody has to wait for it.

    A thread that sleeps uninterruptibly gets `PATIENCE` seconds to wake up, while all others run.
    """
    place = freezer.frozen(pid)
    if place:
        raise Refused(_frozen(pid, place))
    end = time.monotonic() + PATIENCE
    for tid in _tids(pid):
        while _state(pid, tid) == "D":
            if time.monotonic() > end:
                raise _Stuck(_why_stuck(pid, tid))
            time.sleep(1e-3)
        # A system call that waits in handle_userfault() cannot be interrupted. If it is told to stop, it goes round the
        # fault again and again, and eats a processor until the fault is served (fault_signal_pending(), 6.18).
        if _wchan(pid, tid) == "handle_userfault" and not _syscall(pid, tid).startswith("-1"):
            raise _Stuck(_why_stuck(pid, tid))


def _frozen(pid: int, place: str) -> str:
    return f"process {pid} is frozen, by the cgroup {place} (docker pause, systemctl freeze): thaw it and try again"


def _task_file(pid: int, tid: int, name: str) -> str:
    try:
        return procfs.read_file(pid, f"task/{tid}/{name}").decode(errors="replace").strip()
    except (OSError, KernelError):
        return ""


def _state(pid: int, tid: int) -> str:
    """The letter of its state, "" where it has ended."""
    return _task_file(pid, tid, "stat").rpartition(")")[2].strip()[:1]


def _processor_time(pid: int, tid: int) -> float:
    """Seconds that it has run (clock ticks where the kernel has no schedstat)."""
    exact = _task_file(pid, tid, "schedstat").split()
    if exact:
        return int(exact[0]) * 1e-9
    fields = _task_file(pid, tid, "stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def _wchan(pid: int, tid: int) -> str:
    """The kernel function in which it sleeps, "0" where it does not, or where the kernel does not tell."""
    return _task_file(pid, tid, "wchan")


def _syscall(pid: int, tid: int) -> str:
    """The number and the arguments of the system call that it is in, or "running", or "-1" and more for none."""
    return _task_file(pid, tid, "syscall")


def _why_stuck(pid: int, tid: int) -> str:
    place = freezer.frozen(pid)
    if place:
        return _frozen(pid, place)
    found = _wchan(pid, tid)
    where = f"in the kernel's {found}()" if found not in ("", "0") else "in the kernel"
    number = _syscall(pid, tid).split()[:1]
    if number and number[0].isdigit():
        where += f", system call {number[0]}"
    return (
        f"thread {tid} of process {pid} does not stop: it waits uninterruptibly {where} (for a device, a page, or a "
        "child of vfork); try again later"
    )


def _is_dead(pid: int, tid: int) -> bool:
    """The thread has ended though /proc still lists it (a main thread that the others outlived)."""
    try:
        return procfs.read_file(pid, f"task/{tid}/stat").rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (OSError, ProcessGone):
        return True


def _why_not_seized(pid: int, tid: int, error: OSError) -> WeldError | NotPermitted:
    status = dict(
        line.split(b":\t", 1) for line in procfs.read_file(pid, f"task/{tid}/status").splitlines() if b":\t" in line
    )
    tracer = _process(int(status.get(b"TracerPid", b"0")))
    if tracer:
        return Busy(
            f"process {pid} is already traced, by process {tracer} (a debugger, strace, another weld?): end that first"
        )
    if error.errno != errno.EPERM:
        return Refused(f"thread {tid} of process {pid} cannot be traced: {os.strerror(error.errno or 0)}")
    hint = "run as its owner, or as root (CAP_SYS_PTRACE)"
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope", encoding="ascii") as file:
            scope = int(file.read())
    except OSError:
        scope = 0
    if scope and os.geteuid():
        hint = f"kernel.yama.ptrace_scope is {scope}: run as root (CAP_SYS_PTRACE)"
    if scope == 3:
        hint = "kernel.yama.ptrace_scope is 3, which forbids it to everyone until the next boot"
    return NotPermitted(f"not permitted to trace process {pid}: {hint}")


def _process(tid: int) -> int:
    """The process of that thread: TracerPid names the thread that traces."""
    for line in _task_file(tid, tid, "status").splitlines():
        if line.startswith("Tgid:"):
            return int(line.split()[1])
    return tid
