# SPDX-License-Identifier: GPL-2.0-or-later
"""What each system call that touches address spaces means as an `Event`; shared by the perf and strace recorders.

Numbers: arch/x86/entry/syscalls/syscall_64.tbl; a 32-bit program's calls have other numbers and are not recorded.
"""

from collections.abc import Callable
from typing import Final

from vmaweld import events
from vmaweld.abi import MAP_ANONYMOUS, MAP_FIXED, PAGE_SHIFT, PROT_EXEC, PROT_READ, PROT_WRITE
from vmaweld.events import Event
from vmaweld.kernel.x86_64 import numbers_of

NUMBERS: Final = numbers_of(
    "mmap",
    "mprotect",
    "munmap",
    "brk",
    "mremap",
    "madvise",
    "shmat",
    "shmdt",
    "mlock",
    "munlock",
    "mlockall",
    "munlockall",
    "prctl",
    "io_setup",
    "io_destroy",
    "remap_file_pages",
    "mbind",
    "mlock2",
    "pkey_mprotect",
    "mseal",
)
"""Calls that become events (io_setup's ring becomes a `PLACE`)."""

TASK_NUMBERS: Final = numbers_of("clone", "fork", "vfork", "execve", "execveat", "clone3")
UNSEEN_NUMBERS: Final = numbers_of("userfaultfd", "set_mempolicy_home_node")
"""Calls whose effect is in memory that perf does not read; counted, so that the trace can say so."""

PR_SET_VMA: Final = 0x53564D41
SHM_RDONLY: Final = 0o10000
SHM_REMAP: Final = 0o40000
SHM_EXEC: Final = 0o100000

_WORD: Final = (1 << 64) - 1
Arguments = tuple[int, ...]
"""The six registers, unsigned."""


def signed(word: int, bits: int = 64) -> int:
    """The lowest `bits` of a register as a signed number."""
    word &= (1 << bits) - 1
    return word - (1 << bits) if word >> (bits - 1) else word


def _mmap(pid: int, a: Arguments, file: str) -> Event:
    anonymous = a[3] & MAP_ANONYMOUS
    return Event(
        events.MMAP,
        pid,
        addr=a[0],
        length=a[1],
        prot=a[2],
        flags=a[3],
        file="" if anonymous else file,
        pgoff=a[5] >> PAGE_SHIFT,
    )


def _munmap(pid: int, a: Arguments, file: str) -> Event:
    return Event(events.MUNMAP, pid, addr=a[0], length=a[1])


def _mprotect(pid: int, a: Arguments, file: str) -> Event:
    return Event(events.MPROTECT, pid, addr=a[0], length=a[1], prot=a[2])


def _pkey_mprotect(pid: int, a: Arguments, file: str) -> Event:
    return Event(events.MPROTECT, pid, addr=a[0], length=a[1], prot=a[2], flags=signed(a[3], 32) + 1)


def _mremap(pid: int, a: Arguments, file: str) -> Event:
    return Event(events.MREMAP, pid, addr=a[0], length=a[1], new_length=a[2], flags=a[3], new_addr=a[4])


def _brk(pid: int, a: Arguments, file: str) -> Event:
    return Event(events.BRK, pid, addr=a[0])


def _madvise(pid: int, a: Arguments, file: str) -> Event:
    return Event(events.MADVISE, pid, addr=a[0], length=a[1], flags=a[2] & 0xFFFF_FFFF)


def _mlock(pid: int, a: Arguments, file: str) -> Event:
    return Event(events.MLOCK, pid, addr=a[0], length=a[1])


def _mlock2(pid: int, a: Arguments, file: str) -> Event:
    return Event(events.MLOCK, pid, addr=a[0], length=a[1], flags=a[2] & 0xFFFF_FFFF)


def _munlock(pid: int, a: Arguments, file: str) -> Event:
    return Event(events.MUNLOCK, pid, addr=a[0], length=a[1])


def _mlockall(pid: int, a: Arguments, file: str) -> Event:
    return Event(events.MLOCKALL, pid, flags=a[0] & 0xFFFF_FFFF)


def _munlockall(pid: int, a: Arguments, file: str) -> Event:
    return Event(events.MUNLOCKALL, pid)


def _prctl(pid: int, a: Arguments, file: str) -> Event | None:
    if a[0] & 0xFFFF_FFFF != PR_SET_VMA or a[1] != 0:
        return None
    # perf sees the name's address, not the name: the same pointer is taken for the same name.
    return Event(events.SET_NAME, pid, addr=a[2], length=a[3], file=file or (f"name@{a[4]:#x}" if a[4] else ""))


def _mbind(pid: int, a: Arguments, file: str) -> Event:
    return Event(events.MBIND, pid, addr=a[0], length=a[1], file=file)


def _shmat(pid: int, a: Arguments, file: str) -> Event:
    mode = a[2]
    prot = PROT_READ | (0 if mode & SHM_RDONLY else PROT_WRITE) | (PROT_EXEC if mode & SHM_EXEC else 0)
    return Event(
        events.SHMAT,
        pid,
        addr=a[1],
        prot=prot,
        flags=MAP_FIXED if mode & SHM_REMAP else 0,
        file=f"SYSV:{a[0] & 0xFFFF_FFFF}",
    )


def _shmdt(pid: int, a: Arguments, file: str) -> Event:
    return Event(events.SHMDT, pid, addr=a[0])


def _remap_file_pages(pid: int, a: Arguments, file: str) -> Event:
    return Event(events.REMAP_FILE_PAGES, pid, addr=a[0], length=a[1], pgoff=a[3])


def _mseal(pid: int, a: Arguments, file: str) -> Event:
    return Event(events.MSEAL, pid, addr=a[0], length=a[1])


_MEANINGS: Final[dict[str, Callable[[int, Arguments, str], Event | None]]] = {
    "mmap": _mmap,
    "munmap": _munmap,
    "mprotect": _mprotect,
    "pkey_mprotect": _pkey_mprotect,
    "mremap": _mremap,
    "brk": _brk,
    "madvise": _madvise,
    "mlock": _mlock,
    "mlock2": _mlock2,
    "munlock": _munlock,
    "mlockall": _mlockall,
    "munlockall": _munlockall,
    "prctl": _prctl,
    "mbind": _mbind,
    "shmat": _shmat,
    "shmdt": _shmdt,
    "remap_file_pages": _remap_file_pages,
    "mseal": _mseal,
}


def event_of(name: str, pid: int, arguments: Arguments, result: int, file: str = "") -> Event | None:
    """The event that call `name` is, or None where it changes no address space.

    arguments: the six registers, unsigned. result: what it returned, ``-errno`` on failure.
    file: identity of the open file for mmap, policy as text for mbind, the name for prctl where the recorder knows it.
    """
    meaning = _MEANINGS.get(name)
    if meaning is None:
        return None
    event = meaning(pid, arguments, file)
    if event is not None:
        event.result = result
    return event
