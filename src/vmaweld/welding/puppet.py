"""One stopped thread of another process, made to work for us: single system calls, then whole batches.

Whatever it is made to do ends in code that puts its registers back, so that it goes on where it was even if the
welder is gone: a single call returns into a signal frame (`signal_frame`), a batch ends in the batch machine's own
way back. At each point where the welder may die, the thread has one of the two before it, or its own registers.
"""

import contextlib
import ctypes
import mmap
import os
import signal
import struct
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from vmaweld import abi
from vmaweld.kernel import ptrace, syscalls
from vmaweld.kernel.errors import ProcessGone
from vmaweld.snapshot import Row
from vmaweld.welding import machine_code as mc
from vmaweld.welding import signal_frame
from vmaweld.welding.errors import HalfDone, Refused
from vmaweld.welding.local import NAME
from vmaweld.welding.program import Outcome, Program
from vmaweld.welding.standstill import Standstill

AREA: Final = 16 << 20
"""Bytes of address space for code and journal in the other process; pages are used as far as entries need them."""
MOST_ENTRIES: Final = (AREA - mc.CODE_SIZE - mc.HEADER_SIZE) // mc.ENTRY_SIZE

_SYSCALL_RET: Final = b"\x0f\x05\xc3"
_SIGRETURNS: Final = (
    b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05",  # mov rax, 15; syscall
    b"\xb8\x0f\x00\x00\x00\x0f\x05",  # mov eax, 15; syscall
)
_FAULTS: Final = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
_NO_SYSCALL: Final = (1 << 64) - 1
_ALL_SIGNALS: Final = (1 << 64) - 1
_USER_CS: Final = 0x33
_FLAGS: Final = 0x202  # interrupts on, nothing else: no single step, no direction
_RESTART_SYSCALL: Final = 219
_RESTARTS: Final = (-512, -513, -514)  # ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND
_RESTART_BLOCK: Final = -516
_NR_MEMFD_CREATE: Final = 319
_NR_FUTEX: Final = 202
_NR_CLOSE: Final = 3
_MFD_CLOEXEC: Final = 1
_TRAP_FLAG: Final = 0x100
_TEXT: Final = 64
_TICK_NS: Final = 2_000_000
_LOOK_AFTER: Final = 0.05
"""Seconds after which a look is taken why a single system call has not come back yet."""
_CHUNK: Final = 4 << 20


class Puppet:
    """A thread of the process that `still` holds, ready to work.

    rows: the process's VMAs. rseq: the thread's registration for restartable sequences.
    Raises Refused where no thread will do. `restore` before the standstill ends.
    """

    def __init__(self, still: Standstill, rows: Sequence[Row]) -> None:
        self.pid = still.pid
        self._still = still
        self._rows = rows
        self._call_at, self._restorer = _gadgets(self.pid, rows)
        self.tid = self._choose()
        self._own = ptrace.registers(self.tid)
        self._mask = ptrace.signal_mask(self.tid)
        self.rseq: ptrace.Rseq | None = None
        self._leave_rseq()
        self._resume = resumed(self._own)
        self._frame, self._covered = 0, b""
        self._at_work = False

    # Choosing

    def _choose(self) -> int:
        """The first thread (the main one, if it lives) that runs 64-bit code and has room on its stack."""
        why = "no thread could be stopped"
        for tid in sorted(self._still.threads, key=lambda tid: (tid != self.pid, tid)):
            regs = ptrace.registers(tid)
            if regs.cs != _USER_CS:
                why = "it runs 32-bit code: only 64-bit processes can be welded"
                continue
            if _is_kernel_worker(self.pid, tid):
                continue
            room = 16 << 10
            row = next((row for row in self._rows if row.start <= regs.rsp < row.end), None)
            if row is None or not row.flags & abi.VM_WRITE or regs.rsp - row.start < room:
                why = "no thread has room on its stack for a frame of a few KiB"
                continue
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
        self._prepare_frame()
        regs = self._own.copy()
        regs.rax, regs.orig_rax, regs.eflags = number, _NO_SYSCALL, _FLAGS
        regs.rip, regs.rsp = self._call_at, self._frame
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

    def place(self, text: bytes) -> int:
        """Put up to 64 bytes where the process can read them; returns the address."""
        self._prepare_frame()
        at = self._own.rsp - signal_frame.RED_ZONE - _TEXT
        syscalls.write_memory(self.pid, at, text.ljust(_TEXT, b"\0"))
        return at

    def _prepare_frame(self) -> None:
        if self._covered:
            return
        bottom = self._own.rsp - signal_frame.RED_ZONE
        state = ptrace.extended_state(self.tid)
        resume = resumed(self._own, by_sigreturn=True)
        self._frame, data = signal_frame.build(bottom - _TEXT, resume, self._mask, state, self._restorer)
        self._covered = syscalls.read_memory(self.pid, self._frame, bottom - self._frame)
        syscalls.write_memory(self.pid, self._frame, data)

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

    def header(self, first_entry: int) -> bytes:
        """The header for a batch of this thread's."""
        regs = self._resume
        values = {name: getattr(regs, name.lower()) for name in mc.REGISTERS[:-1]}
        values["FLAGS"] = regs.eflags & ~_TRAP_FLAG
        return mc.header(first_entry, own_signals=self._mask, registers=values)

    def run(self, code: int, header: int, state: "State") -> None:
        """Go through the batch whose header is there, and stop again."""
        regs = self._own.copy()
        regs.rip, regs.rbx = code + mc.EXCURSION, header
        regs.rsp = (self._own.rsp - signal_frame.RED_ZONE - _TEXT) & -64
        regs.orig_rax, regs.eflags = _NO_SYSCALL, _FLAGS
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
            self._covered = b""
            self._at_work = False

    def restore(self) -> None:
        """Give the thread back what is its own; safe to call twice, and when the process is gone."""
        with contextlib.suppress(OSError):
            if self._at_work:
                # In this order: until it has its registers, something leads it back to them.
                ptrace.set_signal_mask(self.tid, self._mask)
                ptrace.set_registers(self.tid, self._own)
            if self._covered:
                syscalls.write_memory(self.pid, self._frame, self._covered)
        self._at_work = False
        self._covered = b""


class State(Protocol):
    """The STATE word of a journal."""

    def read(self) -> int:
        """Its value now."""
        ...

    def sleep(self) -> None:
        """Until the batch ends, or for a moment."""
        ...


class SharedState:
    """The STATE word of a journal that both processes map."""

    def __init__(self, area: mmap.mmap) -> None:
        self._word = ctypes.c_uint32.from_buffer(area, mc.CODE_SIZE + mc.HEADER["STATE"])

    def read(self) -> int:
        """Its value now."""
        return self._word.value

    def sleep(self) -> None:
        """Until the batch ends, or for a moment."""
        for value in (mc.READY, mc.RUNNING):
            address, patience = ctypes.addressof(self._word), struct.pack("<qq", 0, _TICK_NS)
            buffer = ctypes.create_string_buffer(patience, 16)
            syscalls.raw(_NR_FUTEX, address, 0, value, ctypes.addressof(buffer), 0, 0)


class Workshop:
    """Code and journal inside another process, kept from one standstill to the next.

    They lie in a memfd that both processes map: entries go in and results come out without a copy by ptrace, and
    its name in /proc/PID/maps tells a later welder that something was left.
    """

    def __init__(self) -> None:
        self.address = 0
        self._fd = -1
        self._map: mmap.mmap | None = None
        self._state: SharedState | None = None

    def set_up(self, puppet: Puppet) -> None:
        """Map it in the puppet's process. Raises Refused; then nothing stays behind there."""
        name_at = puppet.place(NAME.encode() + b"\0")
        theirs = _refuse_errors(puppet.call(_NR_MEMFD_CREATE, name_at, _MFD_CLOEXEC), "memfd_create")
        try:
            self._fd = os.open(f"/proc/{puppet.pid}/fd/{theirs}", os.O_RDWR | os.O_CLOEXEC)
            os.ftruncate(self._fd, AREA)
            os.pwrite(self._fd, mc.CODE, 0)
            prot = abi.PROT_READ | abi.PROT_WRITE
            self.address = _refuse_errors(
                puppet.call(syscalls.NR_MMAP, 0, AREA, prot, abi.MAP_SHARED, theirs, 0), "mmap"
            )
            prot, flags = abi.PROT_READ | abi.PROT_EXEC, abi.MAP_SHARED | abi.MAP_FIXED
            _refuse_errors(
                puppet.call(syscalls.NR_MMAP, self.address, mc.CODE_SIZE, prot, flags, theirs, 0),
                "mmap of executable memory",
            )
            self._map = mmap.mmap(self._fd, AREA)
            self._state = SharedState(self._map)
        except BaseException:
            self.take_down(puppet)
            raise
        finally:
            puppet.call(_NR_CLOSE, theirs)

    def take_down(self, puppet: Puppet) -> None:
        """Unmap it."""
        if self.address:
            puppet.call(syscalls.NR_MUNMAP, self.address, AREA)
        self.forget()

    def forget(self) -> None:
        """Let go of our side only (the process is gone, or it stays for a later welder)."""
        self.address = 0
        self._state = None
        if self._map is not None:
            with contextlib.suppress(BufferError):  # an exception on its way still holds the state word
                self._map.close()
            self._map = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def run(self, puppet: Puppet, program: Program) -> tuple[tuple[str, int], list[Outcome]]:
        """Run `program`, which must be finished, by that thread; returns `Program.outcomes`."""
        assert self._map is not None
        assert self._state is not None
        header = self.address + mc.CODE_SIZE
        entries = program.place(header)
        data = puppet.header(header + mc.HEADER_SIZE) + entries
        self._map[mc.CODE_SIZE : mc.CODE_SIZE + len(data)] = data
        puppet.run(self.address, header, self._state)
        at = mc.CODE_SIZE + mc.HEADER_SIZE
        return program.outcomes(self._map[at : at + len(entries)])


def resumed(regs: ptrace.Registers, *, by_sigreturn: bool = False) -> ptrace.Registers:
    """The registers with which a thread stopped in a system call goes on without the kernel's help.

    The kernel would choose between EINTR and beginning anew once it knows whether a handler runs; this begins anew.
    by_sigreturn: the thread gets its registers from rt_sigreturn(2). That makes the kernel forget where the time of a
    nanosleep, poll or futex had got to (``restore_sigcontext()`` in arch/x86/kernel/signal_64.c), and
    restart_syscall(2) would answer EINTR. So these begin anew too, with their whole time. One that restart_syscall has
    taken up before does not tell its own number any more, so it still ends with EINTR.
    """
    found = regs.copy()
    if regs.in_syscall:
        if regs.result in _RESTARTS or (by_sigreturn and regs.result == _RESTART_BLOCK):
            found.rax = regs.orig_rax
            found.rip -= 2
        elif regs.result == _RESTART_BLOCK:
            found.rax = _RESTART_SYSCALL
            found.rip -= 2
    found.orig_rax = _NO_SYSCALL
    return found


def _refuse_errors(result: int, call: str) -> int:
    if -4096 < result < 0:
        raise Refused(f"the process may not do what a weld needs: {call}: {os.strerror(-result)}")
    return result


def _is_kernel_worker(pid: int, tid: int) -> bool:
    """An io_uring worker: a thread of the process that never runs its code."""
    try:
        with open(f"/proc/{pid}/task/{tid}/comm", "rb") as file:
            return file.read().startswith(b"iou-")
    except OSError:
        return True


def _gadgets(pid: int, rows: Sequence[Row]) -> tuple[int, int]:
    """Addresses of ``syscall; ret`` and of code that calls rt_sigreturn, in what the process has mapped anyway."""
    call_at = restorer = 0
    likely = sorted(
        (row for row in rows if row.flags & abi.VM_EXEC and row.flags & abi.VM_READ and (row.file or row.name)),
        key=lambda row: (row.name != "[vdso]", "/libc" not in row.file and "/ld-" not in row.file, row.size),
    )
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for row in likely:
            for start in range(row.start, row.end, _CHUNK):
                try:
                    data = os.pread(fd, min(_CHUNK + 16, row.end - start), start)
                except OSError:
                    break
                if not call_at and (at := data.find(_SYSCALL_RET)) >= 0:
                    call_at = start + at
                for code in _SIGRETURNS:
                    if not restorer and (at := data.find(code)) >= 0:
                        restorer = start + at
                if call_at and restorer:
                    return call_at, restorer
    finally:
        os.close(fd)
    raise Refused(f"process {pid} has no code that a weld can borrow to make a system call")
