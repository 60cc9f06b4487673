# SPDX-License-Identifier: GPL-2.0-or-later
"""What exec makes: the mappings of the kernel, the pages it touched, and the events that come of them.

The kernel announces each mapping that it makes; they become `PLACE` events. What it does not announce: the stack holds
the arguments (written without a fault, here a `WRITE`), and where the heap begins (the first brk's result tells).
"""

from collections.abc import Mapping
from typing import Final

from vmaweld import abi, events
from vmaweld.abi import PAGE_SHIFT, PAGE_SIZE
from vmaweld.events import Event
from vmaweld.trace.assembly import elf
from vmaweld.trace.assembly.files import FileIdentity, FileNames
from vmaweld.trace.assembly.open_files import OpenFile

STACK: Final = "[stack]"
ANONYMOUS: Final = "//anon"
"""How the kernel calls memory without a file when it announces it."""
_HIGHEST_32_BIT: Final = 1 << 32

_MAY_ALL: Final = abi.VM_MAYREAD | abi.VM_MAYWRITE | abi.VM_MAYEXEC
SPECIAL_FLAGS: Final[dict[str, int]] = {
    "[vdso]": abi.VM_READ | abi.VM_EXEC | _MAY_ALL,
    "[vvar]": abi.VM_READ | abi.VM_MAYREAD | abi.VM_IO | abi.VM_DONTDUMP | abi.VM_PFNMAP,
    "[vvar_vclock]": abi.VM_READ | abi.VM_MAYREAD | abi.VM_IO | abi.VM_DONTDUMP | abi.VM_PFNMAP,
}
"""Flags of the mappings that are no file and no memory; they differ between releases, so a recorder passes its own."""


def is_anonymous(name: str) -> bool:
    """True if a mapping that the kernel calls `name` is of no file."""
    return name == ANONYMOUS or name.startswith("[")


def place_flags(prot: int, flags: int, name: str, special: Mapping[str, int]) -> int:
    """``VM_*`` of a mapping that the kernel made itself. special: those of ``[vdso]`` and the like."""
    if name in special:
        return special[name]
    bits = prot & 7 | _MAY_ALL  # PROT_READ, WRITE and EXEC are VM_READ, WRITE and EXEC
    if name == STACK:
        return bits | abi.VM_GROWSDOWN | abi.VM_ACCOUNT
    if flags & abi.MAP_SHARED:
        return bits | abi.VM_SHARED | abi.VM_MAYSHARE
    return bits | (abi.VM_ACCOUNT if prot & abi.PROT_WRITE else 0)


class ExecImage:
    """What the kernel has mapped and touched for process `pid` since an exec replaced its address space."""

    __slots__ = ("_faults", "_files", "_pid", "_placed")

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._placed: list[Event] = []
        self._faults: list[Event] = []
        self._files: dict[FileIdentity, OpenFile] = {}

    def map(self, place: Event, name: str, identity: FileIdentity, names: FileNames) -> None:
        """The kernel maps `place`, whose file it calls `name`. names: of the new address space."""
        if name.startswith("["):
            place.file = name
        elif not is_anonymous(name):
            place.file = names.of(name, identity, self._files.setdefault(identity, OpenFile(False)))
        self._placed.append(place)

    def touch(self, op: str, page: int, time: int) -> None:
        """The kernel touches `page`. op: WRITE or READ."""
        self._faults.append(Event(op, self._pid, addr=page, length=PAGE_SIZE, time=time))

    def finish(self, program: str) -> list[Event] | None:
        """The exec and all that it did, as events; None for a 32-bit program.

        program: path, "" where it is not known.
        """
        stack = next((place for place in reversed(self._placed) if place.file == STACK), None)
        if stack is not None and stack.addr + stack.length <= _HIGHEST_32_BIT:
            return None
        happened = [self.begin(program), *settle(self._placed)]
        if stack is not None:
            # copy_strings() writes arguments and environment through get_user_pages: pages without a fault.
            end = stack.addr + stack.length
            touched = [fault.addr for fault in self._faults if stack.addr <= fault.addr < end]
            low = min([end - PAGE_SIZE, *touched])
            happened.append(Event(events.WRITE, self._pid, addr=low, length=end - low))
        return happened + self._faults

    def begin(self, program: str) -> Event:
        """The exec alone. program: as for `finish`."""
        first = next((place.file for place in self._placed if place.file.startswith("/")), "")
        return Event(events.EXEC, self._pid, file=program or first)


def settle(placed: list[Event]) -> list[Event]:
    """What is left of the mappings `placed` one over the other, in order of address.

    For a program or interpreter whose address is chosen at random the kernel first maps the whole span of the file,
    so that it fits, then unmaps what is behind the first segment and maps the others (elf_load in fs/binfmt_elf.c).
    That unmapping is not announced: the first segment's size is taken from the file.
    """
    rows: list[Event] = []
    first_of: set[str] = set()
    for new in placed:
        if new.file.startswith("/") and new.file not in first_of:
            first_of.add(new.file)
            size = elf.first_segment_size(new.file)
            if size and size < new.length:
                new.length = size
        end = new.addr + new.length
        kept: list[Event] = []
        for row in rows:
            row_end = row.addr + row.length
            if row_end <= new.addr or end <= row.addr:
                kept.append(row)
                continue
            if row.addr < new.addr:
                kept.append(_cut(row, row.addr, new.addr))
            if end < row_end:
                kept.append(_cut(row, end, row_end))
        kept.append(new)
        rows = kept
    return sorted(rows, key=lambda row: row.addr)


def _cut(row: Event, start: int, end: int) -> Event:
    return Event(
        row.op,
        row.pid,
        addr=start,
        length=end - start,
        flags=row.flags,
        file=row.file,
        pgoff=row.pgoff + ((start - row.addr) >> PAGE_SHIFT),
        time=row.time,
    )
