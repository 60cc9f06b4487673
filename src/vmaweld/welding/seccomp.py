"""Would a process's seccomp filters let a weld's system calls pass? Asked of the filters, not of the process.

A call that a filter forbids may kill the process, so none is tried. The filters are read by ptrace and worked through
here: classic BPF over ``struct seccomp_data`` (``include/uapi/linux/seccomp.h``, ``kernel/seccomp.c``).
"""

import errno
import os
import struct
from collections.abc import Iterable, Sequence
from typing import Final

from vmaweld import abi
from vmaweld.kernel import procfs, ptrace, syscalls
from vmaweld.welding import program
from vmaweld.welding.errors import Refused

_ARCH: Final = 0xC000_003E  # AUDIT_ARCH_X86_64
_ALLOW: Final = 0x7FFF_0000
_LOG: Final = 0x7FFC_0000
_SOMEWHERE: Final = 0x7F00_0000_0000
_PAGE: Final = abi.PAGE_SIZE
_U32: Final = 0xFFFF_FFFF
_RW: Final = abi.PROT_READ | abi.PROT_WRITE
_RX: Final = abi.PROT_READ | abi.PROT_EXEC
_RESERVE: Final = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS | abi.MAP_NORESERVE | abi.MAP_FIXED_NOREPLACE

Filter = Sequence[tuple[int, int, int, int]]
"""Instructions as (code, jt, jf, k)."""
Call = tuple[str, int, tuple[int, ...]]
"""A system call's name, number and arguments."""

RSEQ: Final[Call] = ("rseq", program.NR_RSEQ, (_SOMEWHERE, 32, 1, 0))
"""Made only where the working thread's own ``struct rseq`` lies in what is welded."""
CALLS: Final[tuple[Call, ...]] = (
    ("memfd_create", 319, (_SOMEWHERE, 1)),
    ("mmap", syscalls.NR_MMAP, (0, _PAGE, _RW, abi.MAP_SHARED, 3, 0)),
    ("mmap", syscalls.NR_MMAP, (_SOMEWHERE, _PAGE, _RX, abi.MAP_SHARED | abi.MAP_FIXED, 3, 0)),
    ("mmap", syscalls.NR_MMAP, (_SOMEWHERE, _PAGE, 0, _RESERVE, (1 << 64) - 1, 0)),
    ("close", 3, (3,)),
    ("userfaultfd", syscalls.NR_USERFAULTFD, (os.O_CLOEXEC,)),
    ("userfaultfd", syscalls.NR_USERFAULTFD, (os.O_CLOEXEC | 1,)),
    *(
        ("ioctl", 16, (3, request, _SOMEWHERE))
        for request in (program.API, program.REGISTER, program.UNREGISTER, program.MOVE, program.WAKE)
    ),
    ("mremap", syscalls.NR_MREMAP, (_SOMEWHERE, _PAGE, _PAGE, 7, _SOMEWHERE + _PAGE)),
    ("mremap", syscalls.NR_MREMAP, (_SOMEWHERE, _PAGE, _PAGE, 3, _SOMEWHERE + _PAGE)),
    ("mremap", syscalls.NR_MREMAP, (_SOMEWHERE, _PAGE, 2 * _PAGE, 0, 0)),
    ("munmap", syscalls.NR_MUNMAP, (_SOMEWHERE, _PAGE)),
    ("mprotect", syscalls.NR_MPROTECT, (_SOMEWHERE, _PAGE, _RW)),
    ("mprotect", syscalls.NR_MPROTECT, (_SOMEWHERE, _PAGE, abi.PROT_READ)),
    ("madvise", syscalls.NR_MADVISE, (_SOMEWHERE, _PAGE, abi.MADV_POPULATE_WRITE)),
    ("madvise", syscalls.NR_MADVISE, (_SOMEWHERE, _PAGE, abi.MADV_DONTNEED)),
    ("munlock", syscalls.NR_MUNLOCK, (_SOMEWHERE, _PAGE)),
    ("mlock2", syscalls.NR_MLOCK2, (_SOMEWHERE, _PAGE, 0)),
    ("rt_sigprocmask", 14, (2, _SOMEWHERE, 0, 8)),
    ("rt_sigreturn", 15, ()),
    ("select", 23, (0, 0, 0, 0, _SOMEWHERE)),
    ("futex", 202, (_SOMEWHERE, 1, 0x7FFF_FFFF)),
    ("restart_syscall", 219, ()),
)
"""Every system call that a weld makes in the other process, with arguments like those it has then."""


def check(pid: int, tid: int) -> bool:
    """Raises Refused unless all of `CALLS` would pass the seccomp filters of thread `tid`, which must be stopped.

    Returns whether `RSEQ` would pass too.
    """
    status = dict(
        line.split(b":\t", 1) for line in procfs.read_file(pid, f"task/{tid}/status").splitlines() if b":\t" in line
    )
    mode = int(status.get(b"Seccomp", b"0"))
    if not mode:
        return True
    if mode == 1:
        raise Refused(f"process {pid} is in strict seccomp mode: it may make none of a weld's system calls")
    filters: list[Filter] = []
    while True:
        try:
            filters.append(_instructions(ptrace.seccomp_filter(tid, len(filters))))
        except OSError as error:
            if error.errno == errno.ENOENT and filters:
                break
            raise Refused(
                f"process {pid} has a seccomp filter that cannot be read, and a call it forbids might kill the "
                "process: run as root (CAP_SYS_ADMIN)"
            ) from None
    name = forbidden(filters)
    if name:
        raise Refused(f"the seccomp filter of process {pid} forbids {name}")
    return not forbidden(filters, (RSEQ,))


def forbidden(filters: Sequence[Filter], calls: Iterable[Call] = CALLS) -> str:
    """The first of `calls` that one of `filters` does not simply allow, "" where all pass."""
    for name, number, arguments in calls:
        padded = (*arguments, *(0,) * (6 - len(arguments)))
        data = struct.pack("<iIQ6Q", number, _ARCH, _SOMEWHERE, *padded)
        for code in filters:
            if evaluate(code, data) & 0xFFFF_0000 not in (_ALLOW, _LOG):
                return name
    return ""


def _instructions(code: bytes) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("<HBBI", code))


def evaluate(code: Filter, data: bytes) -> int:
    """What a filter returns for that ``struct seccomp_data``; 0 (kill) where it is odd."""
    words = struct.unpack("<16I", data)
    accumulator = index = at = 0
    memory = [0] * 16
    while at < len(code):
        op, true, false, k = code[at]
        at += 1
        kind = op & 7
        operand = index if op & 8 else k
        if kind == 6:  # RET
            return accumulator if op & 0x18 == 0x10 else k
        if kind in (0, 1):  # LD, LDX
            mode = op & 0xE0
            if mode == 0x20:  # ABS
                if k % 4 or k >= 64:
                    return 0
                value = words[k // 4]
            else:
                value = {0x00: k, 0x60: memory[k & 15], 0x80: 64}.get(mode, 0)
            if kind:
                index = value
            else:
                accumulator = value
        elif kind == 2:
            memory[k & 15] = accumulator
        elif kind == 3:
            memory[k & 15] = index
        elif kind == 4:
            accumulator = _alu(op & 0xF0, accumulator, operand)
        elif kind == 5:
            test = op & 0xF0
            if test == 0:
                at += k
            else:
                holds = {
                    0x10: accumulator == operand,
                    0x20: accumulator > operand,
                    0x30: accumulator >= operand,
                    0x40: bool(accumulator & operand),
                }.get(test, False)
                at += true if holds else false
        elif op & 0xF8 == 0x80:
            accumulator = index
        else:
            index = accumulator
    return 0


def _alu(op: int, a: int, b: int) -> int:
    if op in (0x30, 0x90) and not b:
        return 0
    result = {
        0x00: lambda: a + b,
        0x10: lambda: a - b,
        0x20: lambda: a * b,
        0x30: lambda: a // b,
        0x40: lambda: a | b,
        0x50: lambda: a & b,
        0x60: lambda: a << (b & 31),
        0x70: lambda: a >> (b & 31),
        0x80: lambda: -a,
        0x90: lambda: a % b,
        0xA0: lambda: a ^ b,
    }[op]()
    return result & _U32
