# SPDX-License-Identifier: GPL-2.0-or-later
"""What becomes of a system call that a standstill has interrupted.

The kernel begins most calls anew by itself. It answers EINTR for some even where no handler ran, only a tracer's stop
(signal(7)). Those are told here to begin anew too: with ERESTARTNOHAND, by which the kernel itself decides at the last
moment; it answers EINTR if a handler runs, and begins anew if none does.

A call with a time limit begins anew with its whole time. One that is stopped again and again would never end, whoever
stops it: each weld is another process. So the call itself carries the moment at which it was first stopped, in the
upper half of orig_rax. The kernel takes the number of a call from the lower half only (``movslq`` in
``entry_SYSCALL_64``, since 5.14). It keeps all of it in the thread's saved registers as long as the call lasts, and
overwrites it with the result. Neither the program nor its next call ever sees it, so a moment found there belongs to
this call. Once its time has passed since then, the call ends as the kernel ends it at its time limit.
"""

import errno
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from vmaweld.kernel import ptrace, syscalls, x86_64

_ERESTARTNOHAND: Final = 514
_NO_SYSCALL: Final = (1 << 64) - 1
_U32: Final = (1 << 32) - 1
_PERIOD_MS: Final = (1 << 31) - 1  # so that orig_rax stays positive
_SO_RCVTIMEO: Final = 20
_SO_SNDTIMEO: Final = 21
_EXT_ARG: Final = 8  # IORING_ENTER_EXT_ARG
_ABS_TIMER: Final = 32  # IORING_ENTER_ABS_TIMER, 6.12


class _Limit(NamedTuple):
    """How long a call may wait, in seconds, and what it returns when it has waited so long."""

    seconds: float
    result: int


_Call = Callable[[int, ptrace.Registers], _Limit]
"""The time limit of a call in a process, read from its registers, or from what they point at."""
_FOREVER: Final = _Limit(float("inf"), 0)


def _forever(_pid: int, _regs: ptrace.Registers) -> _Limit:
    return _FOREVER


def _milliseconds(_pid: int, regs: ptrace.Registers) -> _Limit:
    """An epoll_wait: its fourth argument, an int; below zero there is no limit."""
    limit = regs.r10 & _U32
    return _Limit(limit / 1e3, 0) if limit < 1 << 31 else _FOREVER


def _timespec(register: str, result: int, unit: float = 1e-9) -> _Call:
    """A ``struct timespec`` at the address in that register, or (unit: 1e-6) a ``struct timeval``."""

    def limit(pid: int, regs: ptrace.Registers) -> _Limit:
        return _time_at(pid, getattr(regs, register), result, unit)

    return limit


def _time_at(pid: int, address: int, result: int, unit: float = 1e-9) -> _Limit:
    data = _read(pid, address, 16)
    if len(data) < 16:
        return _FOREVER
    seconds, fraction = struct.unpack("<qq", data)
    return _Limit(seconds + fraction * unit, result)


def _read(pid: int, address: int, length: int) -> bytes:
    try:
        return syscalls.read_memory(pid, address, length) if address else b""
    except OSError:
        return b""


def _ring(pid: int, regs: ptrace.Registers) -> _Limit:
    """io_uring_enter: a ``struct io_uring_getevents_arg`` holds the address of a timespec."""
    if not regs.r10 & _EXT_ARG or regs.r10 & _ABS_TIMER:
        return _FOREVER
    return _time_at(pid, int.from_bytes(_read(pid, regs.r8, 24)[16:], "little"), -errno.ETIME)


def _socket(option: int, result: int, unix_result: int) -> _Call:
    """A time limit of the socket whose descriptor is the first argument. Nothing else waits with one in such a call.

    unix_result: what the call returns on a Unix socket.
    """

    def limit(pid: int, regs: ptrace.Registers) -> _Limit:
        number = regs.rdi & _U32
        try:
            if not os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:"):
                return _FOREVER
            process = os.pidfd_open(pid)
            try:
                own = syscalls.check(syscalls.raw(x86_64.NR_PIDFD_GETFD, process, number), "pidfd_getfd")
            finally:
                os.close(process)
            with socket.socket(fileno=own) as copy:
                seconds, micros = struct.unpack("<qq", copy.getsockopt(socket.SOL_SOCKET, option, 16))
                found = unix_result if copy.family == socket.AF_UNIX else result
        except OSError:
            return _FOREVER
        return _Limit(seconds + micros * 1e-6, found) if seconds or micros else _FOREVER

    return limit


_RECEIVE: Final = _socket(_SO_RCVTIMEO, -errno.EAGAIN, -errno.EAGAIN)
_SEND: Final = _socket(_SO_SNDTIMEO, -errno.EAGAIN, -errno.EAGAIN)
_CALLS: Final[dict[int, _Call]] = {
    # A socket with a time limit: sock_intr_errno() in include/net/sock.h. Also the files of some drivers.
    x86_64.NR_READ: _RECEIVE,
    x86_64.NR_READV: _RECEIVE,
    x86_64.NR_PREADV2: _RECEIVE,
    x86_64.NR_RECVFROM: _RECEIVE,
    x86_64.NR_RECVMSG: _RECEIVE,
    x86_64.NR_RECVMMSG: _RECEIVE,
    x86_64.NR_ACCEPT: _RECEIVE,
    x86_64.NR_ACCEPT4: _RECEIVE,
    x86_64.NR_SPLICE: _RECEIVE,
    x86_64.NR_WRITE: _SEND,
    x86_64.NR_WRITEV: _SEND,
    x86_64.NR_PWRITEV2: _SEND,
    x86_64.NR_SENDTO: _SEND,
    x86_64.NR_SENDMSG: _SEND,
    x86_64.NR_SENDMMSG: _SEND,
    x86_64.NR_SENDFILE: _SEND,
    x86_64.NR_CONNECT: _socket(_SO_SNDTIMEO, -errno.EINPROGRESS, -errno.EAGAIN),
    x86_64.NR_EPOLL_WAIT: _milliseconds,  # ep_poll() in fs/eventpoll.c
    x86_64.NR_EPOLL_PWAIT: _milliseconds,
    x86_64.NR_EPOLL_PWAIT2: _timespec("r10", 0),
    x86_64.NR_SEMOP: _forever,  # __do_semtimedop() in ipc/sem.c
    x86_64.NR_SEMTIMEDOP: _timespec("r10", -errno.EAGAIN),
    x86_64.NR_RT_SIGTIMEDWAIT: _timespec("rdx", -errno.EAGAIN),  # do_sigtimedwait() in kernel/signal.c
    x86_64.NR_IO_GETEVENTS: _timespec("r8", 0),  # fs/aio.c
    x86_64.NR_IO_PGETEVENTS: _timespec("r8", 0),
    x86_64.NR_IO_URING_ENTER: _ring,  # io_cqring_wait() in io_uring/io_uring.c
    # Only where the time that is left cannot be written back: poll_select_finish() in fs/select.c.
    x86_64.NR_SELECT: _timespec("r8", 0, 1e-6),
    x86_64.NR_PSELECT6: _timespec("r8", 0),
    x86_64.NR_PPOLL: _timespec("rdx", 0),
}
"""Calls that answer EINTR to a mere stop, having done nothing yet, so that to begin anew changes nothing.

Left out on purpose: close(2), which has closed already, and ioctl(2), of which each driver decides by itself.
"""


def go_on(pid: int, tid: int) -> bool:
    """Decide what becomes of the call in which `tid` stands still; True where a mere stop would have ended it.

    `tid` is in a ptrace-stop on its way out of the call, before the kernel has decided.
    """
    regs = ptrace.registers(tid)
    if not regs.in_syscall:
        return False
    number = regs.orig_rax & _U32
    call = _CALLS.get(number)
    # The kernel begins io_pgetevents anew by itself, with its whole time too.
    again = number == x86_64.NR_IO_PGETEVENTS and regs.result == -_ERESTARTNOHAND
    if call is None or not (regs.result == -errno.EINTR or again):
        return False
    limit = call(pid, regs)
    began, now = regs.orig_rax >> 32, 1 + int(time.monotonic() * 1000) % _PERIOD_MS
    # Both moments were rounded down, so that a millisecond less may have passed than lies between them.
    if began and (now - began) % _PERIOD_MS > limit.seconds * 1000 + 1:
        regs.rax, regs.orig_rax = limit.result & _NO_SYSCALL, _NO_SYSCALL
    else:
        if not began and limit is not _FOREVER:
            regs.orig_rax |= now << 32
        regs.rax = (1 << 64) - _ERESTARTNOHAND
    ptrace.set_registers(tid, regs)
    return True
