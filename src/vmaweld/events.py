# SPDX-License-Identifier: GPL-2.0-or-later
"""Event: one thing a process does to memory.

One flat record serves every kind of event, so that a trace is a table (one column a field) and a machine
needs one dispatch. Which fields an operation reads is told beside its name below; the others stay at
their defaults. Addresses and lengths are bytes, as the program passed them (not rounded to pages).
"""

import errno
from typing import Final

# One name an operation; the strings are what the trace file stores.
MMAP: Final = "mmap"  # addr, length, prot, flags, file ("" anonymous), pgoff; pkey not possible
MUNMAP: Final = "munmap"  # addr, length
MPROTECT: Final = "mprotect"  # addr, length, prot; flags = pkey + 1 for pkey_mprotect, else 0
MREMAP: Final = "mremap"  # addr, length (old), new_length, flags, new_addr
BRK: Final = "brk"  # addr (0 asks)
MADVISE: Final = "madvise"  # addr, length, flags = MADV_*
MLOCK: Final = "mlock"  # addr, length, flags = MLOCK_*
MUNLOCK: Final = "munlock"  # addr, length
MLOCKALL: Final = "mlockall"  # flags = MCL_*
MUNLOCKALL: Final = "munlockall"
SET_NAME: Final = "set_name"  # prctl(PR_SET_VMA_ANON_NAME): addr, length, file = the name, "" clears it
MBIND: Final = "mbind"  # addr, length, file = the policy as text ("bind:0"), "" for the default
SHMAT: Final = "shmat"  # addr, length, prot, flags (MAP_FIXED for SHM_REMAP), file = the segment
SHMDT: Final = "shmdt"  # addr
REMAP_FILE_PAGES: Final = "remap_file_pages"  # addr, length, pgoff
MSEAL: Final = "mseal"  # addr, length (6.10)
UFFD_REGISTER: Final = "uffd_register"  # addr, length, flags = UFFDIO_REGISTER_MODE_*, new_addr = context id
UFFD_UNREGISTER: Final = "uffd_unregister"  # addr, length, new_addr = context id
UFFD_CLOSE: Final = "uffd_close"  # new_addr = context id
UFFD_MOVE: Final = "uffd_move"  # addr (source), length, new_addr (target); UFFDIO_MOVE with ALLOW_SRC_HOLES (6.8)
READ: Final = "read"  # read faults on the pages of [addr, addr + length)
WRITE: Final = "write"  # write faults on the pages of [addr, addr + length)
FORK: Final = "fork"  # child = pid of the new process; flags = CLONE_VM where it shares the address space
EXEC: Final = "exec"  # the address space is replaced by an empty one; file = the program
PLACE: Final = "place"  # a mapping the kernel itself makes: exec's segments, stack, vdso, or a row that was
#                         there when recording began. addr, length, flags = VM_*, file, pgoff
EXIT: Final = "exit"  # the process ends

OPERATIONS: Final[tuple[str, ...]] = (
    MMAP,
    MUNMAP,
    MPROTECT,
    MREMAP,
    BRK,
    MADVISE,
    MLOCK,
    MUNLOCK,
    MLOCKALL,
    MUNLOCKALL,
    SET_NAME,
    MBIND,
    SHMAT,
    SHMDT,
    REMAP_FILE_PAGES,
    MSEAL,
    UFFD_REGISTER,
    UFFD_UNREGISTER,
    UFFD_CLOSE,
    UFFD_MOVE,
    READ,
    WRITE,
    FORK,
    EXEC,
    PLACE,
    EXIT,
)


READ_ONLY_FILE: Final = 1 << 32
"""In the flags of a shared file mapping: the file was opened for reading only, so the mapping can never be written
(neither VM_SHARED nor VM_MAYWRITE). No flag of mmap's; the descriptor's mode is all that tells."""


def result_text(result: int) -> str:
    """A call's result as a person reads it: ``0``, an address in hex, or the name of the error.

    >>> result_text(-12)
    'ENOMEM'
    """
    if result < 0:
        return errno.errorcode.get(-result, str(result))
    return hex(result) if result > 9 else str(result)


EVENT_FIELDS: Final[tuple[str, ...]] = (
    "op",
    "pid",
    "addr",
    "length",
    "prot",
    "flags",
    "file",
    "pgoff",
    "new_addr",
    "new_length",
    "child",
    "result",
    "time",
)
"""The fields of an `Event` in order; the compiled class has no ``__slots__`` that would tell."""


class Event:
    """One operation by one process.

    pid: the process (thread group), the owner of an address space.
    result: what the call returned where it was observed: an address, 0, or ``-errno``; None where nobody looked.
    time: nanoseconds since the start of the recording, 0 where there was none.

    >>> Event("mmap", 1, addr=0x10000, length=4096, prot=3, flags=0x32)
    mmap(pid=1, addr=0x10000, length=0x1000, prot=3, flags=0x32)
    """

    __slots__ = (
        "op",
        "pid",
        "addr",
        "length",
        "prot",
        "flags",
        "file",
        "pgoff",
        "new_addr",
        "new_length",
        "child",
        "result",
        "time",
    )

    def __init__(
        self,
        op: str,
        pid: int,
        *,
        addr: int = 0,
        length: int = 0,
        prot: int = 0,
        flags: int = 0,
        file: str = "",
        pgoff: int = 0,
        new_addr: int = 0,
        new_length: int = 0,
        child: int = 0,
        result: int | None = None,
        time: int = 0,
    ) -> None:
        self.op = op
        self.pid = pid
        self.addr = addr
        self.length = length
        self.prot = prot
        self.flags = flags
        self.file = file
        self.pgoff = pgoff
        self.new_addr = new_addr
        self.new_length = new_length
        self.child = child
        self.result = result
        self.time = time

    def __repr__(self) -> str:
        parts = [f"pid={self.pid}"]
        if self.addr or self.op == PLACE:
            parts.append(f"addr={self.addr:#x}")
        if self.length:
            parts.append(f"length={self.length:#x}")
        if self.prot:
            parts.append(f"prot={self.prot}")
        if self.flags:
            parts.append(f"flags={self.flags:#x}")
        if self.file:
            parts.append(f"file={self.file!r}")
        if self.pgoff:
            parts.append(f"pgoff={self.pgoff:#x}")
        if self.new_addr:
            parts.append(f"new_addr={self.new_addr:#x}")
        if self.new_length:
            parts.append(f"new_length={self.new_length:#x}")
        if self.child:
            parts.append(f"child={self.child}")
        if self.result is not None:
            parts.append(f"result={self.result:#x}" if self.result > 0 else f"result={self.result}")
        return f"{self.op}({', '.join(parts)})"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Event)
            and self.op == other.op
            and self.pid == other.pid
            and self.addr == other.addr
            and self.length == other.length
            and self.prot == other.prot
            and self.flags == other.flags
            and self.file == other.file
            and self.pgoff == other.pgoff
            and self.new_addr == other.new_addr
            and self.new_length == other.new_length
            and self.child == other.child
            and self.result == other.result
            and self.time == other.time
        )

    __hash__ = None  # type: ignore[assignment]


def events_from_columns(
    ops: list[str],
    pids: list[int],
    addrs: list[int],
    lengths: list[int],
    prots: list[int],
    flags: list[int],
    files: list[str],
    pgoffs: list[int],
    new_addrs: list[int],
    new_lengths: list[int],
    children: list[int],
    results: list[int | None],
    times: list[int],
) -> list[Event]:
    """Events from a table: one list a field, all of one length, in the order of `Event`'s fields."""
    return [
        Event(
            ops[row],
            pids[row],
            addr=addrs[row],
            length=lengths[row],
            prot=prots[row],
            flags=flags[row],
            file=files[row],
            pgoff=pgoffs[row],
            new_addr=new_addrs[row],
            new_length=new_lengths[row],
            child=children[row],
            result=results[row],
            time=times[row],
        )
        for row in range(len(ops))
    ]
