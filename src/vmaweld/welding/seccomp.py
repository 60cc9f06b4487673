# SPDX-License-Identifier: GPL-2.0-or-later
"""Would a process's seccomp filters let a weld's system calls pass? Asked of the filters, not of the process.

A call that a filter forbids may kill the process, so none is tried. The filters are read by ptrace and worked through
here: classic BPF over ``struct seccomp_data`` (``include/uapi/linux/seccomp.h``, ``kernel/seccomp.c``).
"""

import errno
import struct
from collections.abc import Iterable, Sequence
from typing import Final

from vmaweld import abi
from vmaweld.kernel import procfs, ptrace, x86_64
from vmaweld.kernel.x86_64 import numbers_of
from vmaweld.welding import program
from vmaweld.welding.errors import Refused

_ARCH: Final = 0xC000_003E  # AUDIT_ARCH_X86_64
_ALLOW: Final = 0x7FFF_0000
_LOG: Final = 0x7FFC_0000
_SOMEWHERE: Final = 0x7F00_0000_0000
_ELSEWHERE: Final = 0x7E00_0000_0000
_PAGE: Final = abi.PAGE_SIZE
_U32: Final = 0xFFFF_FFFF
_U64: Final = (1 << 64) - 1
_RW: Final = abi.PROT_READ | abi.PROT_WRITE
_RX: Final = abi.PROT_READ | abi.PROT_EXEC

Filter = Sequence[tuple[int, int, int, int]]
"""Instructions as (code, jt, jf, k)."""
Call = tuple[int, tuple[int, ...]]
"""A system call's number and arguments."""

NAMES: Final = numbers_of(
    "close",
    "mmap",
    "mprotect",
    "munmap",
    "rt_sigprocmask",
    "ioctl",
    "select",
    "mremap",
    "madvise",
    "munlock",
    "futex",
    "restart_syscall",
    "memfd_create",
    "userfaultfd",
    "mlock2",
    "rseq",
)
OUTSIDE: Final[tuple[Call, ...]] = (
    (x86_64.NR_MEMFD_CREATE, (_SOMEWHERE, 1)),
    (x86_64.NR_MMAP, (0, _PAGE, _RW, abi.MAP_SHARED, 3, 0)),
    (x86_64.NR_MMAP, (_SOMEWHERE, _PAGE, _RX, abi.MAP_SHARED | abi.MAP_FIXED, 3, 0)),
    (x86_64.NR_MUNMAP, (_SOMEWHERE, _PAGE)),
    (x86_64.NR_MADVISE, (_SOMEWHERE, _PAGE, abi.MADV_DONTFORK)),
    (x86_64.NR_CLOSE, (3,)),
    (x86_64.NR_RT_SIGPROCMASK, (2, _SOMEWHERE, 0, 8)),
    (x86_64.NR_SELECT, (0, 0, 0, 0, _SOMEWHERE)),
    (x86_64.NR_FUTEX, (_SOMEWHERE, 1, 0x7FFF_FFFF)),
    (x86_64.NR_RESTART_SYSCALL, ()),
)
"""The system calls outside a `program.Program`: those of `puppet` and of the batch machine itself."""


class Filters:
    """The seccomp filters of one thread; none: everything passes."""

    def __init__(self, code: Sequence[bytes] = ()) -> None:
        self.code = code
        self._filters: list[Filter] = [list(struct.iter_unpack("<HBBI", one)) for one in code]
        self._known: dict[tuple[int, int], str] = {}
        self._passes: dict[Call, bool] = {}
        self._forbids_rseq: str | None = None

    def forbidden(self, calls: Iterable[Call]) -> str:
        """The name of the first of `calls` that a filter does not simply allow, "" where all pass."""
        if not self._filters:
            return ""
        for call in calls:
            passes = self._passes.get(call)
            if passes is None:
                passes = self._passes[call] = self._allows(*call)
            if not passes:
                return NAMES.get(call[0], f"system call {call[0]}")
        return ""

    def _allows(self, number: int, arguments: tuple[int, ...]) -> bool:
        padded = [value & _U64 for value in (*arguments, *(0,) * (6 - len(arguments)))]
        data = struct.pack("<iIQ6Q", number, _ARCH, _SOMEWHERE, *padded)
        return all(evaluate(code, data) & 0xFFFF_0000 in (_ALLOW, _LOG) for code in self._filters)

    def forbids_weld(self) -> str:
        """What every weld needs and they forbid, "" where there is no such thing."""
        return self.forbidden(OUTSIDE) or self.forbids_group(_RW, -1)

    def forbids_group(self, prot: int, locked: int) -> str:
        """What they forbid of that which a `program.Group` with these two fields needs, "" for nothing."""
        found = self._known.get((prot, locked))
        if found is None:
            found = self._known[prot, locked] = self.forbidden(_calls(prot, locked))
        return found

    def forbids_rseq(self) -> str:
        """Not "" where they forbid what `program.Program.leave_rseq` adds."""
        if self._forbids_rseq is None:
            self._forbids_rseq = self.forbidden(_calls(_RW, -1, ptrace.Rseq(_SOMEWHERE, 32, 0)))
        return self._forbids_rseq

    def why_left(self, prot: int, locked: int) -> str:
        """Why memory with these two fields of a `program.Group` is to be left out, "" where it is not."""
        name = self.forbids_group(prot, locked)
        return name and f"its seccomp filter forbids {name}, which this memory takes"


NONE: Final = Filters()


def _calls(prot: int, locked: int, rseq: ptrace.Rseq | None = None) -> Iterable[Call]:
    """All that a program with one group can call; the group has all that a group may have."""
    keep, page = _SOMEWHERE, _PAGE
    middle, end = keep + 2 * page, keep + 4 * page
    sample = program.Program()
    if rseq is not None:
        sample.leave_rseq(rseq)
    sample.weld(program.Group(keep, [(middle, end)], _ELSEWHERE, prot, locked, [(middle, end)], (keep, keep + page)))
    sample.finish()
    return sample.calls()


def check(pid: int, tid: int, known: Filters = NONE) -> Filters:
    """The filters of thread `tid`, which must be stopped; the very object `known` where they are still those.

    Raises Refused where they cannot be read, or forbid what every weld needs.
    """
    found = _read(pid, tid)
    if found == known.code:
        return known
    filters = Filters(found)
    name = filters.forbids_weld()
    if name:
        raise Refused(f"the seccomp filter of process {pid} forbids {name}")
    return filters


def allows_leaving(pid: int, tid: int) -> bool:
    """Whether thread `tid`, which must be stopped, may still make what calls it takes to leave a process."""
    try:
        return not Filters(_read(pid, tid)).forbidden(OUTSIDE)
    except Refused:
        return False


def _read(pid: int, tid: int) -> Sequence[bytes]:
    status = dict(
        line.split(b":\t", 1) for line in procfs.read_file(pid, f"task/{tid}/status").splitlines() if b":\t" in line
    )
    mode = int(status.get(b"Seccomp", b"0"))
    if not mode:
        return ()
    if mode == 1:
        raise Refused(f"process {pid} is in strict seccomp mode: it may make none of a weld's system calls")
    found: list[bytes] = []
    while True:
        try:
            found.append(ptrace.seccomp_filter(tid, len(found)))
        except OSError as error:
            if error.errno == errno.ENOENT and found:
                return tuple(found)
            raise Refused(
                f"process {pid} has a seccomp filter that cannot be read, and a call it forbids might kill the "
                "process: run as root (CAP_SYS_ADMIN)"
            ) from None


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
