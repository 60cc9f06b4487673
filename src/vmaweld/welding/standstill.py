"""Stopping every thread of a process, and letting them go as if nothing had happened."""

import contextlib
import errno
import os
import time
from types import TracebackType
from typing import Final

from vmaweld.kernel import procfs, ptrace
from vmaweld.kernel.errors import KernelError, NotPermitted, ProcessGone
from vmaweld.welding.errors import Busy, Refused, WeldError

TIMEOUT: Final = 5.0
"""Seconds that a thread may take to stop. Only one that sleeps uninterruptibly takes longer than microseconds."""

ERESTARTNOHAND: Final = 514
_EINTR: Final = 4

_WAITS: Final[dict[int, str]] = {
    45: "recvfrom",
    47: "recvmsg",
    65: "semop",
    128: "rt_sigtimedwait",
    208: "io_getevents",
    220: "semtimedop",
    232: "epoll_wait",
    281: "epoll_pwait",
    288: "accept4",
    299: "recvmmsg",
    43: "accept",
    426: "io_uring_enter",
    441: "epoll_pwait2",
}
"""System calls that answer EINTR to a mere stop, where others begin again by themselves (signal(7))."""
_EPOLL: Final = (232, 281)


class Waits:
    """Since when threads sit in a wait with a time limit, over several standstills of one weld.

    A wait that a stop interrupts begins anew with its whole time; were it stopped again and again, it would never
    end. So once its time has passed since it was first seen, it ends.
    """

    def __init__(self) -> None:
        self._since: dict[int, tuple[tuple[int, ...], float]] = {}

    def over(self, tid: int, regs: ptrace.Registers) -> bool:
        """Whether the epoll wait in which `tid` stopped has had its time."""
        limit = regs.r10 & 0xFFFF_FFFF
        key = (regs.rip, regs.rsp, regs.rdi, regs.rsi, regs.rdx, limit)
        now = time.monotonic()
        known, since = self._since.setdefault(tid, (key, now))
        if known != key:
            self._since[tid] = (key, now)
            return False
        return limit < 1 << 31 and (now - since) * 1000 >= limit


class Standstill:
    """All threads of `pid`, stopped. Use it in a `with`.

    threads: their ids. began: when the first was stopped (time.monotonic()).
    Raises ProcessGone, NotPermitted, Refused; then no thread stays stopped.
    """

    def __init__(self, pid: int, waits: Waits | None = None) -> None:
        self.pid = pid
        self.threads: list[int] = []
        self._waits = waits or Waits()
        self._pending: set[int] = set()
        self._stop_again = 0
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
            try:
                tids = [int(name) for name in os.listdir(f"/proc/{self.pid}/task")]
            except OSError:
                raise ProcessGone(f"process {self.pid} has ended") from None
            new = [tid for tid in tids if tid not in known]
            if not new:
                break
            known.update(new)
            seized = [tid for tid in new if self._seize(tid)]
            for tid in seized:
                self._await_stop(tid)
        if not self.threads:
            raise ProcessGone(f"process {self.pid} has ended")

    def _seize(self, tid: int) -> bool:
        try:
            ptrace.seize(tid, ptrace.O_TRACESYSGOOD)
        except OSError as error:
            if error.errno == errno.ESRCH or _is_dead(self.pid, tid):
                return False
            raise _why_not_seized(self.pid, tid, error) from None
        self._pending.add(tid)
        ptrace.interrupt(tid)
        return True

    def _await_stop(self, tid: int) -> None:
        """Wait for the stop. Signals that come first are delivered: their handlers run after the standstill."""
        end = time.monotonic() + TIMEOUT
        while True:
            event = ptrace.wait(tid, max(end - time.monotonic(), 0))
            if event is None:
                raise Refused(
                    f"thread {tid} does not stop: it sleeps uninterruptibly (in vfork, or waiting for a device); "
                    "try again later"
                )
            if event.kind == "gone":
                self._pending.discard(tid)
                self._bury(tid)
                return
            if event.kind == "stop":
                break
            ptrace.proceed(tid, event.signal if event.kind == "signal" else 0)
        self._pending.discard(tid)
        self.threads.append(tid)
        self._keep_waiting(tid)

    def _keep_waiting(self, tid: int) -> None:
        # The kernel itself decides what becomes of ERESTARTNOHAND: EINTR if a handler runs, else the call anew.
        regs = ptrace.registers(tid)
        if regs.result != -_EINTR or regs.orig_rax not in _WAITS:
            return
        if regs.orig_rax in _EPOLL and self._waits.over(tid, regs):
            regs.rax = 0
            regs.orig_rax = (1 << 64) - 1
        else:
            regs.rax = (1 << 64) - ERESTARTNOHAND
        ptrace.set_registers(tid, regs)

    def hold(self, number: int) -> None:
        """A stop signal came while a thread worked: the process gets it when the standstill is over."""
        self._stop_again = number

    def release(self) -> None:
        """Let every thread go; safe to call twice."""
        for tid in self.threads:
            self._let_go(tid)
        self.threads = []
        for tid in self._pending:  # seized, but it has not stopped
            event = ptrace.wait(tid, 0.2)
            if event is not None:
                self._let_go(tid, event.signal if event.kind == "signal" else 0)
        self._pending = set()
        if self._stop_again:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, self._stop_again)
            self._stop_again = 0

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
    tracer = int(status.get(b"TracerPid", b"0"))
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
