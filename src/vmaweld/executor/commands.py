# SPDX-License-Identifier: GPL-2.0-or-later
"""Events as commands for a serving process: one method an event or a family of events, and a table of them."""

import struct
from collections.abc import Callable
from typing import Final

from vmaweld import events as ev
from vmaweld.abi import (
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MCL_CURRENT,
    MREMAP_FIXED,
    PAGE_SHIFT,
    PROT_EXEC,
    PROT_WRITE,
)
from vmaweld.events import Event
from vmaweld.executor import child
from vmaweld.executor.arena import Arena
from vmaweld.executor.process import Command
from vmaweld.kernel import syscalls, x86_64
from vmaweld.mempolicy import parse_policy

_SHM_RDONLY, _SHM_REMAP, _SHM_EXEC = 0o10000, 0o40000, 0o100000
_ALL: Final = 0xFFFF_FFFF_FFFF_FFFF


class Commands:
    """Makes the command for each event.

    Attributes:
        can_brk: BRK events can be run.
        can_lock_current: MLOCKALL events with MCL_CURRENT can be run.

    Args:
        arena: what events may reach.
        scratch: address of the page in each process that takes a command's data.
        perform: runs one command at once in the process of an event, and gives its result.

    """

    def __init__(
        self,
        arena: Arena,
        scratch: int,
        perform: Callable[[Event, Command], int],
        *,
        can_brk: bool,
        can_lock_current: bool,
    ) -> None:
        self.can_brk = can_brk
        self.can_lock_current = can_lock_current
        self._arena = arena
        self._scratch = scratch
        self._perform = perform

    def of(self, event: Event) -> Command:
        """The command for `event`. Raises ValueError for what is not done here."""
        translate = _TRANSLATIONS.get(event.op)
        if translate is None:
            raise ValueError(f"{event.op} cannot be performed by a live process")
        return translate(self, event)

    def _mmap(self, event: Event) -> Command:
        descriptor = _ALL
        if event.file:
            if event.file not in self._arena.files:
                raise ValueError(f"{event!r}: the files are {', '.join(self._arena.files)}")
            descriptor = self._arena.files[event.file]
        if event.flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
            self._arena.check(event, event.addr, event.length)
        numbers = event.addr, event.length, event.prot, event.flags, descriptor, event.pgoff << PAGE_SHIFT
        return child.CALL, b"", (x86_64.NR_MMAP, *numbers)

    def _range_call(self, event: Event) -> Command:
        self._arena.check(event, event.addr, event.length)
        return child.CALL, b"", (_RANGE_CALLS[event.op], event.addr, event.length)

    def _mprotect(self, event: Event) -> Command:
        self._arena.check(event, event.addr, event.length)
        if event.flags:
            numbers = event.addr, event.length, event.prot, (event.flags - 1) & _ALL
            return child.CALL, b"", (x86_64.NR_PKEY_MPROTECT, *numbers)
        return child.CALL, b"", (x86_64.NR_MPROTECT, event.addr, event.length, event.prot)

    def _mremap(self, event: Event) -> Command:
        self._arena.check(event, event.addr, event.length or 1)
        if event.flags & MREMAP_FIXED:
            self._arena.check(event, event.new_addr, event.new_length)
        numbers = event.addr, event.length, event.new_length, event.flags, event.new_addr
        return child.CALL, b"", (x86_64.NR_MREMAP, *numbers)

    def _brk(self, event: Event) -> Command:
        if not self.can_brk:
            raise ValueError("brk: the program break is not in the arena (give brk=; needs CONFIG_CHECKPOINT_RESTORE)")
        if event.addr and not self._arena.low <= event.addr <= self._arena.high:
            raise self._arena.beyond(event)
        return child.CALL, b"", (x86_64.NR_BRK, event.addr)

    def _mlock(self, event: Event) -> Command:
        self._arena.check(event, event.addr, event.length)
        if event.flags:
            return child.CALL, b"", (x86_64.NR_MLOCK2, event.addr, event.length, event.flags)
        return child.CALL, b"", (x86_64.NR_MLOCK, event.addr, event.length)

    def _mlockall(self, event: Event) -> Command:
        if event.flags & MCL_CURRENT and not self.can_lock_current:
            raise ValueError("mlockall(MCL_CURRENT) cannot be undone here in any reasonable time (Linux before 5.18)")
        return child.CALL, b"", (x86_64.NR_MLOCKALL, event.flags)

    def _munlockall(self, _event: Event) -> Command:
        return child.CALL, b"", (x86_64.NR_MUNLOCKALL,)

    def _set_name(self, event: Event) -> Command:
        self._arena.check(event, event.addr, event.length)
        name = event.file.encode()
        numbers = syscalls.PR_SET_VMA, syscalls.PR_SET_VMA_ANON_NAME, event.addr, event.length
        return child.CALL, name + b"\0" if name else b"", (x86_64.NR_PRCTL, *numbers, self._scratch if name else 0)

    def _mbind(self, event: Event) -> Command:
        self._arena.check(event, event.addr, event.length)
        mode, nodes = parse_policy(event.file)
        numbers = event.addr, event.length, mode, self._scratch if nodes else 0, 65 if nodes else 0, 0
        return child.CALL, struct.pack("<Q", nodes) if nodes else b"", (x86_64.NR_MBIND, *numbers)

    def _shmat(self, event: Event) -> Command:
        replace = event.flags & MAP_FIXED
        if replace or event.addr:
            self._arena.check(event, event.addr, event.length)
        key = event.file, event.length
        if key not in self._arena.segments:
            result = self._perform(event, (child.CALL, b"", (x86_64.NR_SHMGET, 0, event.length, 0o600)))
            self._arena.segments[key] = syscalls.check(result, f"shmget(IPC_PRIVATE, {event.length:#x})")
        flags = 0 if event.prot & PROT_WRITE else _SHM_RDONLY
        flags |= (_SHM_EXEC if event.prot & PROT_EXEC else 0) | (_SHM_REMAP if replace else 0)
        return child.CALL, b"", (x86_64.NR_SHMAT, self._arena.segments[key], event.addr, flags)

    def _shmdt(self, event: Event) -> Command:
        self._arena.check(event, event.addr, 1)
        return child.CALL, b"", (x86_64.NR_SHMDT, event.addr)

    def _remap_file_pages(self, event: Event) -> Command:
        self._arena.check(event, event.addr, event.length)
        return child.CALL, b"", (x86_64.NR_REMAP_FILE_PAGES, event.addr, event.length, 0, event.pgoff)

    def _madvise(self, event: Event) -> Command:
        self._arena.check(event, event.addr, event.length)
        return child.CALL, b"", (x86_64.NR_MADVISE, event.addr, event.length, event.flags)

    def _touch(self, event: Event) -> Command:
        self._arena.check(event, event.addr, event.length)
        return child.WRITE if event.op == ev.WRITE else child.READ, b"", (event.addr, event.length)

    def _uffd_register(self, event: Event) -> Command:
        self._arena.check(event, event.addr, event.length)
        return child.UFFD_REGISTER, b"", (event.new_addr, event.addr, event.length, event.flags)

    def _uffd_unregister(self, event: Event) -> Command:
        self._arena.check(event, event.addr, event.length)
        return child.UFFD_UNREGISTER, b"", (event.new_addr, event.addr, event.length)

    def _uffd_close(self, event: Event) -> Command:
        return child.UFFD_CLOSE, b"", (event.new_addr,)

    def _uffd_move(self, event: Event) -> Command:
        self._arena.check(event, event.addr, event.length)
        self._arena.check(event, event.new_addr, event.length)
        return child.UFFD_MOVE, b"", (event.addr, event.new_addr, event.length)

    def _fork(self, _event: Event) -> Command:
        return child.FORK, b"", ()

    def _exit(self, _event: Event) -> Command:
        return child.EXIT, b"", ()


_RANGE_CALLS: Final = {ev.MUNMAP: x86_64.NR_MUNMAP, ev.MUNLOCK: x86_64.NR_MUNLOCK, ev.MSEAL: x86_64.NR_MSEAL}

_TRANSLATIONS: Final[dict[str, Callable[[Commands, Event], Command]]] = {
    ev.MMAP: Commands._mmap,
    ev.MUNMAP: Commands._range_call,
    ev.MUNLOCK: Commands._range_call,
    ev.MSEAL: Commands._range_call,
    ev.MPROTECT: Commands._mprotect,
    ev.MREMAP: Commands._mremap,
    ev.BRK: Commands._brk,
    ev.MADVISE: Commands._madvise,
    ev.MLOCK: Commands._mlock,
    ev.MLOCKALL: Commands._mlockall,
    ev.MUNLOCKALL: Commands._munlockall,
    ev.SET_NAME: Commands._set_name,
    ev.MBIND: Commands._mbind,
    ev.SHMAT: Commands._shmat,
    ev.SHMDT: Commands._shmdt,
    ev.REMAP_FILE_PAGES: Commands._remap_file_pages,
    ev.UFFD_REGISTER: Commands._uffd_register,
    ev.UFFD_UNREGISTER: Commands._uffd_unregister,
    ev.UFFD_CLOSE: Commands._uffd_close,
    ev.UFFD_MOVE: Commands._uffd_move,
    ev.READ: Commands._touch,
    ev.WRITE: Commands._touch,
    ev.FORK: Commands._fork,
    ev.EXIT: Commands._exit,
}
