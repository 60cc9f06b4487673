# SPDX-License-Identifier: GPL-2.0-or-later
"""The open files behind a process's descriptors: mappings merge only where they map one and the same open file."""

from typing import Final, Self

from vmaweld.kernel.x86_64 import numbers_of
from vmaweld.trace.calls import Arguments, signed

NUMBERS: Final = numbers_of(
    "open", "close", "dup", "dup2", "fcntl", "creat", "openat", "dup3", "memfd_create", "close_range", "openat2"
)
"""Calls that open, copy or close descriptors. Those received over a socket come without any of these."""

ENTRY_ONLY: Final = frozenset(numbers_of("close", "close_range"))
"""Calls whose result does not matter: what they close is free for others as soon as they have been entered."""
MUST_SUCCEED: Final = frozenset(numbers_of("open", "dup", "dup2", "creat", "openat", "dup3", "memfd_create", "openat2"))
"""Calls that change nothing when they fail."""
NAMES: Final = frozenset(NUMBERS.values())

_O_ACCMODE: Final = 3
_O_RDONLY: Final = 0
_O_CLOEXEC: Final = 0o2000000
_F_DUPFD: Final = 0
_F_SETFD: Final = 2
_F_DUPFD_CLOEXEC: Final = 1030
_FD_CLOEXEC: Final = 1
_MFD_CLOEXEC: Final = 1
_CLOSE_RANGE_CLOEXEC: Final = 4


class OpenFile:
    """One open file (``struct file``). writable: opened for writing too; None where its opening was not seen."""

    __slots__ = ("writable",)

    def __init__(self, writable: bool | None) -> None:
        self.writable = writable


class OpenFiles:
    """A table of descriptors, as far as the recording has seen it."""

    def __init__(self) -> None:
        self._files: dict[int, tuple[OpenFile, bool]] = {}  # (file, close on exec)

    def of(self, descriptor: int) -> OpenFile:
        """The open file behind `descriptor`; one whose opening was not seen stays the same until it is closed."""
        known = self._files.get(descriptor)
        if known is None:
            known = self._files[descriptor] = OpenFile(None), False
        return known[0]

    def copy(self) -> Self:
        """What a forked child has."""
        table = type(self)()
        table._files = dict(self._files)
        return table

    def after_exec(self) -> Self:
        """What is left after an exec."""
        table = type(self)()
        table._files = {number: known for number, known in self._files.items() if not known[1]}
        return table

    def entered(self, name: str, a: Arguments) -> None:
        """A call of `ENTRY_ONLY` has been entered."""
        if name == "close":
            self._files.pop(a[0] & 0xFFFF_FFFF, None)
            return
        first, last, flags = a[0] & 0xFFFF_FFFF, a[1] & 0xFFFF_FFFF, a[2]
        for number in [number for number in self._files if first <= number <= last]:
            file, _ = self._files.pop(number)
            if flags & _CLOSE_RANGE_CLOEXEC:
                self._files[number] = file, True

    def left(self, name: str, a: Arguments, result: int) -> None:
        """Another call has returned `result`."""
        if result < 0:
            return
        if name in ("open", "openat"):
            flags = a[1] if name == "open" else a[2]
            self._files[result] = OpenFile(flags & _O_ACCMODE != _O_RDONLY), bool(flags & _O_CLOEXEC)
        elif name == "creat":
            self._files[result] = OpenFile(True), False
        elif name == "openat2":  # its flags are in memory
            self._files[result] = OpenFile(None), False
        elif name == "memfd_create":
            self._files[result] = OpenFile(True), bool(a[1] & _MFD_CLOEXEC)
        elif name == "fcntl":
            command = signed(a[1], 32)
            if command in (_F_DUPFD, _F_DUPFD_CLOEXEC):
                self._files[result] = self.of(a[0] & 0xFFFF_FFFF), command == _F_DUPFD_CLOEXEC
            elif command == _F_SETFD:
                number = a[0] & 0xFFFF_FFFF
                self._files[number] = self.of(number), bool(a[2] & _FD_CLOEXEC)
        elif name in ("dup", "dup2", "dup3"):
            cloexec = name == "dup3" and bool(a[2] & _O_CLOEXEC)
            self._files[result] = self.of(a[0] & 0xFFFF_FFFF), cloexec
