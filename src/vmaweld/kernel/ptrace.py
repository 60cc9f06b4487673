# SPDX-License-Identifier: GPL-2.0-or-later
"""ptrace(2) for x86-64, typed and thin: stopping threads, their registers, signal masks and memory.

All calls for a tracee must come from the thread that seized it. Every function raises OSError with errno (ESRCH: the
thread is gone, or does not stand still); `wait` returns what happened instead.
Requests and structures: ``include/uapi/linux/ptrace.h``, ``arch/x86/include/uapi/asm/ptrace.h``.
"""

import contextlib
import ctypes
import os
import signal
import struct
import time
from typing import Final, NamedTuple

from vmaweld.kernel import syscalls, x86_64

_POKEDATA: Final = 5
_CONT: Final = 7
_GETREGS: Final = 12
_SETREGS: Final = 13
_DETACH: Final = 17
_SYSCALL: Final = 24
_SEIZE: Final = 0x4206
_INTERRUPT: Final = 0x4207
_GETSIGMASK: Final = 0x420A
_SETSIGMASK: Final = 0x420B
_SECCOMP_GET_FILTER: Final = 0x420C
_GET_RSEQ_CONFIGURATION: Final = 0x420F
_GET_SYSCALL_USER_DISPATCH_CONFIG: Final = 0x4211

O_TRACESYSGOOD: Final = 1
EVENT_STOP: Final = 128
SYSCALL_STOP: Final = signal.SIGTRAP | 0x80

_WALL: Final = 0x4000_0000
_KCMP_VM: Final = 1
_U64: Final = (1 << 64) - 1


class Registers(ctypes.Structure):
    """``struct user_regs_struct``. orig_rax is all ones where the thread is in no system call."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
            *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
        )
    ]
    r15: int
    r14: int
    r13: int
    r12: int
    rbp: int
    rbx: int
    r11: int
    r10: int
    r9: int
    r8: int
    rax: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    orig_rax: int
    rip: int
    cs: int
    eflags: int
    rsp: int
    ss: int
    fs_base: int
    gs_base: int

    def copy(self) -> "Registers":
        """A copy."""
        return Registers.from_buffer_copy(self)

    @property
    def result(self) -> int:
        """What a system call returns: rax as a signed number."""
        return self.rax - (1 << 64) if self.rax >> 63 else self.rax

    @property
    def in_syscall(self) -> bool:
        """The thread stopped on its way out of a system call."""
        return self.orig_rax != _U64


class Event(NamedTuple):
    """What `wait` saw. kind: "stop" (PTRACE_EVENT_STOP), "signal", "syscall", "event", "gone".

    signal: of a signal-delivery-stop the signal; of a stop SIGTRAP, or the signal that stopped the process (a group
    stop); of "gone" the signal that ended it, or 0.
    """

    kind: str
    signal: int


def _ptrace(request: int, tid: int, address: int, data: int, name: str) -> int:
    return syscalls.check(syscalls.raw(x86_64.NR_PTRACE, request, tid, address, data), f"ptrace({name}, {tid})")


def seize(tid: int, options: int = 0) -> None:
    """PTRACE_SEIZE: trace without stopping."""
    _ptrace(_SEIZE, tid, 0, options, "SEIZE")


def interrupt(tid: int) -> None:
    """PTRACE_INTERRUPT: stop it, with EVENT_STOP."""
    _ptrace(_INTERRUPT, tid, 0, 0, "INTERRUPT")


def proceed(tid: int, number: int = 0) -> None:
    """PTRACE_CONT, delivering signal `number` where it stopped to deliver one."""
    _ptrace(_CONT, tid, 0, number, "CONT")


def proceed_to_syscall(tid: int) -> None:
    """PTRACE_SYSCALL: go on to the next entry to or exit from a system call."""
    _ptrace(_SYSCALL, tid, 0, 0, "SYSCALL")


def detach(tid: int, number: int = 0) -> None:
    """PTRACE_DETACH: let it go, delivering signal `number` where it stopped to deliver one."""
    _ptrace(_DETACH, tid, 0, number, "DETACH")


def registers(tid: int) -> Registers:
    """PTRACE_GETREGS."""
    found = Registers()
    _ptrace(_GETREGS, tid, 0, ctypes.addressof(found), "GETREGS")
    return found


def set_registers(tid: int, values: Registers) -> None:
    """PTRACE_SETREGS."""
    _ptrace(_SETREGS, tid, 0, ctypes.addressof(values), "SETREGS")


def signal_mask(tid: int) -> int:
    """The thread's blocked signals, a bit each (bit 0 is signal 1)."""
    buffer = ctypes.c_uint64()
    _ptrace(_GETSIGMASK, tid, 8, ctypes.addressof(buffer), "GETSIGMASK")
    return buffer.value


def set_signal_mask(tid: int, mask: int) -> None:
    """Set the thread's blocked signals."""
    buffer = ctypes.c_uint64(mask)
    _ptrace(_SETSIGMASK, tid, 8, ctypes.addressof(buffer), "SETSIGMASK")


def poke(tid: int, address: int, data: bytes) -> None:
    """PTRACE_POKEDATA: write `data`, a multiple of 8 bytes, even where the process itself may not write.

    A private file page becomes the process's own copy by it (FOLL_FORCE in ``ptrace_access_vm``, ``kernel/ptrace.c``).
    """
    for at, (word,) in enumerate(struct.iter_unpack("<Q", data)):
        _ptrace(_POKEDATA, tid, address + 8 * at, word, "POKEDATA")


class Rseq(NamedTuple):
    """A thread's registration for restartable sequences: its ``struct rseq``, the size of that, the signature."""

    area: int
    size: int
    signature: int


def rseq(tid: int) -> Rseq | None:
    """The registration of `tid`; None where it has none, or before Linux 5.13, which does not tell."""
    buffer = ctypes.create_string_buffer(24)
    try:
        _ptrace(_GET_RSEQ_CONFIGURATION, tid, 24, ctypes.addressof(buffer), "GET_RSEQ_CONFIGURATION")
    except OSError:
        return None
    found = Rseq(*struct.unpack("<QIIxxxxxxxx", buffer.raw))
    return found if found.area else None


def dispatches_syscalls(tid: int) -> bool:
    """Whether system calls of `tid` may come back to it as SIGSYS (Syscall User Dispatch).

    False before Linux 6.4 too, which does not tell.
    """
    buffer = ctypes.create_string_buffer(32)  # struct ptrace_sud_config: mode, selector, offset, len
    try:
        _ptrace(
            _GET_SYSCALL_USER_DISPATCH_CONFIG, tid, 32, ctypes.addressof(buffer), "GET_SYSCALL_USER_DISPATCH_CONFIG"
        )
    except OSError:
        return False
    return buffer.raw[:8] != bytes(8)


def seccomp_filter(tid: int, index: int) -> bytes:
    """The seccomp filter number `index` (0 is the newest) as classic BPF, 8 bytes an instruction.

    Raises OSError: ENOENT past the last one; EACCES without CAP_SYS_ADMIN; EIO where the kernel cannot tell.
    """
    length = _ptrace(_SECCOMP_GET_FILTER, tid, index, 0, "SECCOMP_GET_FILTER")
    buffer = ctypes.create_string_buffer(length * 8)
    _ptrace(_SECCOMP_GET_FILTER, tid, index, ctypes.addressof(buffer), "SECCOMP_GET_FILTER")
    return buffer.raw


def wait(tid: int, timeout: float | None = None) -> Event | None:
    """Wait until something happens to `tid`; None after `timeout` seconds (0: only look).

    An end is told, but left to `reap` or, of a child, to whoever waits for it.
    """
    end = None if timeout is None else time.monotonic() + timeout
    pause = 20e-6
    while True:
        try:
            seen = os.waitid(os.P_PID, tid, os.WEXITED | os.WSTOPPED | os.WNOWAIT | os.WNOHANG | _WALL)
        except ChildProcessError:
            return Event("gone", 0)
        if seen is not None:
            if seen.si_code in (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED):
                return Event("gone", 0 if seen.si_code == os.CLD_EXITED else seen.si_status)
            return _event(os.waitpid(tid, _WALL)[1])
        # The end of a main thread is told when its tracer has reaped all the others: who waits for it alone, waits
        # for ever.
        if _has_ended(tid):
            return Event("gone", 0)
        if end is not None and time.monotonic() >= end:
            return None
        time.sleep(pause)
        pause = min(pause * 2, 1e-3)


def _has_ended(tid: int) -> bool:
    try:
        with open(f"/proc/{tid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True


def reap(tid: int) -> None:
    """Take note of the end of `tid`, so that the process's parent may: until then it waits for its tracer."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(tid, os.WNOHANG | _WALL)


def _event(status: int) -> Event:
    number = os.WSTOPSIG(status)
    event = status >> 16
    if event == EVENT_STOP:
        return Event("stop", number)
    if event:
        return Event("event", event)
    return Event("syscall", number) if number == SYSCALL_STOP else Event("signal", number)


def shares_memory(pid: int, other: int) -> bool:
    """Whether two processes have one address space (kcmp(2)); False where the kernel will not tell."""
    return syscalls.raw(x86_64.NR_KCMP, pid, other, _KCMP_VM, 0, 0) == 0
