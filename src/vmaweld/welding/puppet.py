# SPDX-License-Identifier: GPL-2.0-or-later
"""One stopped thread of another process, made to work for us: single system calls, then whole batches.

Whatever it is made to do ends in code that puts its registers back (`way_back`), so that it goes on where it was even
if the welder is gone. At each point where the welder may die, the thread is on its way through that code or has its
own registers. Nothing is written to its stack.
"""

import contextlib
import errno
import signal
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from vmaweld.kernel import ptrace, syscalls, x86_64
from vmaweld.kernel.errors import ProcessGone
from vmaweld.snapshot import Row
from vmaweld.welding import machine_code as mc
from vmaweld.welding import trampoline, way_back
from vmaweld.welding.errors import Busy, HalfDone, Refused
from vmaweld.welding.standstill import Standstill

_FAULTS: Final = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
_NO_SYSCALL: Final = (1 << 64) - 1
_ALL_SIGNALS: Final = (1 << 64) - 1
_USER_CS: Final = 0x33
_RESTARTS: Final = (-512, -513, -514)  # ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND
_RESTART_BLOCK: Final = -516
_LOOK_AFTER: Final = 0.05
"""Seconds after which a look is taken why a single system call has not come back yet."""


class Puppet:
    """A thread of the process that `still` holds, ready to work.

    rows: the process's VMAs. rseq: the thread's registration for restartable sequences.
    Raises Refused where no thread will do. `restore` before the standstill ends.
    """

    def __init__(self, still: Standstill, rows: Sequence[Row]) -> None:
        self.pid = still.pid
        self._still = still
        self._gap = trampoline.gap(self.pid, rows)
        self.tid = self._choose()
        self._own = ptrace.registers(self.tid)
        self._mask = ptrace.signal_mask(self.tid)
        self.rseq: ptrace.Rseq | None = None
        self._leave_rseq()
        self._resume = resumed(self._own)
        self._laid = self._gap.left
        self._current = False
        self._at_work = False
        self.late = False
        """A batch had ended by itself before it was fetched, and the thread has run since: what was known is stale."""

    # Choosing

    def _choose(self) -> int:
        """The first thread (the main one, if it lives) that runs 64-bit code of the process's own."""
        why = "no thread could be stopped"
        for tid in sorted(self._still.threads, key=lambda tid: (tid != self.pid, tid)):
            if ptrace.registers(tid).cs != _USER_CS:
                why = "it runs 32-bit code: only 64-bit processes can be welded"
            elif ptrace.dispatches_syscalls(tid):
                # To switch that off would not do: were the tracer killed, it would stay off.
                why = "Syscall User Dispatch (Wine, Proton) would turn the system calls of each thread into signals"
            elif not _is_kernel_worker(self.pid, tid):
                return tid
        raise Refused(f"process {self.pid} cannot be welded: {why}")

    def _leave_rseq(self) -> None:
        """A restartable sequence in which the thread stopped begins anew, as after any preemption.

        The kernel does it by the instruction pointer when the thread goes on; but then ours will be in its place.
        """
        self.rseq = ptrace.rseq(self.tid)
        if self.rseq is None:
            return
        sequence = int.from_bytes(syscalls.read_memory(self.pid, self.rseq.area + 8, 8), "little")
        if not sequence:
            return
        words = syscalls.read_memory(self.pid, sequence, 32)
        start, length, abort = (int.from_bytes(words[at : at + 8], "little") for at in (8, 16, 24))
        if start <= self._own.rip < start + length:
            self._own.rip = abort
            self._own.orig_rax = _NO_SYSCALL

    # Single calls

    def call(self, number: int, *arguments: int) -> int:
        """Make the thread do one system call; what it returns, or ``-errno``."""
        self._prepare()
        regs = self._working(self._gap.address)
        regs.rax = number
        names = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
        for name, value in zip(names, (*arguments, *(0,) * (6 - len(arguments))), strict=True):
            setattr(regs, name, value & _ALL_SIGNALS)
        self._take(regs)
        for _entry_and_exit in range(2):
            ptrace.proceed_to_syscall(self.tid)
            self._await("syscall", ptrace.proceed_to_syscall)
        result = ptrace.registers(self.tid).result
        # Stop it again before it executes another instruction; from such a stop a system call can be resumed.
        ptrace.interrupt(self.tid)
        ptrace.proceed(self.tid)
        self._await("stop", ptrace.proceed)
        return result

    @property
    def text(self) -> int:
        """The address of the workshop's name in the process, zero terminated, for the next call."""
        self._prepare()
        return self._gap.address + trampoline.TEXT_AT

    def saved(self) -> bytes:
        """What `way_back` needs to bring this thread back."""
        return way_back.saved(self._resume, self._mask)

    def _prepare(self) -> None:
        if self._current:
            return
        self._laid = True
        try:
            trampoline.write(self.tid, self._gap.address, self._resume, self._mask)
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise
            raise Refused(f"process {self.pid} cannot be welded: its text cannot be written to ({error})") from None
        self._current = True

    def _working(self, place: int) -> ptrace.Registers:
        """Registers to work with at `place`."""
        regs = self._own.copy()
        regs.rip, regs.orig_rax, regs.eflags = place, _NO_SYSCALL, way_back.working_flags(self._own)
        return regs

    def _take(self, regs: ptrace.Registers) -> None:
        # In this order: with signals blocked and its own registers the thread must never be left alone.
        ptrace.set_registers(self.tid, regs)
        ptrace.set_signal_mask(self.tid, _ALL_SIGNALS)
        self._at_work = True

    def _await(self, kind: str, go_on: Callable[[int], None]) -> None:
        while True:
            event = ptrace.wait(self.tid, _LOOK_AFTER)
            if event is None:
                self._still.check_frozen(self.tid)
                continue
            if event.kind == kind:
                return
            self._meanwhile(event)
            go_on(self.tid)

    def _meanwhile(self, event: ptrace.Event) -> None:
        """Note what happened to a thread at work that was not asked for; the thread is to be sent on its way again.

        That may be a stop: one that was stopped as a whole, by SIGSTOP, stops a second time for our own interrupt.
        """
        if event.kind == "gone":
            raise ProcessGone(f"process {self.pid} has ended during the weld")
        if event.kind == "signal":
            if event.signal in _FAULTS:
                raise HalfDone(f"thread {self.tid} got signal {event.signal} at work: run the weld again to repair it")
            self._still.stop_signal(self.tid, event.signal)  # all others are blocked, so it is SIGSTOP

    # Batches

    def run(self, code: int, header: int, state: "State") -> None:
        """Go through the batch whose header is there, and stop again."""
        if self.late:
            raise Busy(f"process {self.pid} has run during the standstill, where nobody fetched its thread in time")
        regs = self._working(code + mc.EXCURSION)
        regs.rbx = header
        self._take(regs)
        ptrace.proceed(self.tid)
        while state.read() < mc.FINISHED:
            state.sleep()
            event = ptrace.wait(self.tid, 0)
            if event is not None:
                self._meanwhile(event)
                ptrace.proceed(self.tid)
        ptrace.interrupt(self.tid)
        while True:
            event = ptrace.wait(self.tid)
            assert event is not None
            if event.kind == "stop":
                break
            if event.kind == "signal" and state.read() == mc.LEFT:
                ptrace.proceed(self.tid, event.signal)
            else:
                self._meanwhile(event)
                ptrace.proceed(self.tid)
        regs = ptrace.registers(self.tid)
        if not code <= regs.rip < code + mc.CODE_SIZE:
            # We came late, and it has gone back by itself: it goes on from where it is now.
            self._own, self._mask = regs, ptrace.signal_mask(self.tid)
            self._leave_rseq()
            self._resume = resumed(self._own)
            self._current = False
            self._at_work = False
            self.late = True

    def restore(self) -> None:
        """Give the thread back what is its own; safe to call twice, and when the process is gone."""
        with contextlib.suppress(OSError):
            if self._at_work:
                # In this order: until it has its registers, something leads it back to them.
                ptrace.set_signal_mask(self.tid, self._mask)
                ptrace.set_registers(self.tid, self._own)
            if self._laid:
                trampoline.erase(self.tid, self._gap.address)
        self._at_work = self._laid = self._current = False


class State(Protocol):
    """The STATE word of a journal."""

    def read(self) -> int:
        """Its value now."""
        ...

    def sleep(self) -> None:
        """Until the batch ends, or for a moment."""
        ...


def resumed(regs: ptrace.Registers) -> ptrace.Registers:
    """The registers with which a thread stopped in a system call goes on without the kernel's help.

    The kernel would choose between EINTR and beginning anew once it knows whether a handler runs; this begins anew.
    """
    found = regs.copy()
    if regs.in_syscall:
        if regs.result in _RESTARTS:
            found.rax = regs.orig_rax
            found.rip -= 2
        elif regs.result == _RESTART_BLOCK:
            found.rax = x86_64.NR_RESTART_SYSCALL
            found.rip -= 2
    found.orig_rax = _NO_SYSCALL
    return found


def _is_kernel_worker(pid: int, tid: int) -> bool:
    """An io_uring worker: a thread of the process that never runs its code."""
    try:
        with open(f"/proc/{pid}/task/{tid}/comm", "rb") as file:
            return file.read().startswith(b"iou-")
    except OSError:
        return True
