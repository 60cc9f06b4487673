# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of ours inside another process: code, journal and entries of a batch, kept while a weld lasts.

It is a memfd that both processes map. Its header holds a lock that lives exactly as long as the welder: another
welder, in whatever container, reads there that this process is taken.
"""

import ctypes
import os
import secrets
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Final, NamedTuple

from vmaweld import abi
from vmaweld.kernel import robust_futex, syscalls, x86_64
from vmaweld.kernel.robust_futex import RobustFutex
from vmaweld.snapshot import Row
from vmaweld.welding import machine_code as mc
from vmaweld.welding.errors import Busy, Refused
from vmaweld.welding.names import NAMES
from vmaweld.welding.program import Outcome, Program
from vmaweld.welding.puppet import Puppet

AREA: Final = 16 << 20
"""Bytes of address space for code and journal in the other process; pages are used as far as entries need them."""
MOST_ENTRIES: Final = (AREA - mc.HEADER_AT - mc.HEADER_SIZE) // mc.ENTRY_SIZE

_MFD_CLOEXEC: Final = 1
_TICK_NS: Final = 2_000_000
_RW: Final = abi.PROT_READ | abi.PROT_WRITE
_ROOM: Final = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS | abi.MAP_NORESERVE
_PROOFS: Final = (mc.CODE_SIZE // 2, mc.SAVED_AT)
"""Where proofs are written, one in each of the two VMAs: between machine and way back, and where a batch that has not
begun will write first."""


class SharedState:
    """The STATE word, at that address, of a journal that both processes map."""

    def __init__(self, address: int) -> None:
        self._address = address

    def read(self) -> int:
        """Its value now."""
        return ctypes.c_uint32.from_address(self._address).value

    def sleep(self) -> None:
        """Until the batch ends, or for a moment."""
        for value in (mc.READY, mc.RUNNING):
            buffer = ctypes.create_string_buffer(struct.pack("<qq", 0, _TICK_NS), 16)
            syscalls.raw(x86_64.NR_FUTEX, self._address, 0, value, ctypes.addressof(buffer), 0, 0)


class Workshop:
    """Code and journal inside another process, kept from one standstill to the next. Use it in a `with`.

    Between two standstills the process runs, and may unmap it, map over it or execute another program: after each
    rest `is_there` must prove that it still is what and where it was, or `forget` must be called.
    The lock belongs to the thread that enters the `with`, and lives as long as that; the rest may be called by others.
    """

    def __init__(self) -> None:
        self.address = 0
        self._here = 0
        self._lock: RobustFutex | None = None
        self._filled = False

    def __enter__(self) -> "Workshop":
        # Room for our own view of it, at an address that the kernel is told now: there it will find the lock.
        self._here = syscalls.mmap(0, AREA, abi.PROT_NONE, _ROOM)
        self._lock = RobustFutex(self._here + mc.HEADER_AT + mc.HEADER["OWNER"])
        return self

    def __exit__(self, *_exception: object) -> None:
        self.forget()
        assert self._lock is not None
        self._lock.close()
        syscalls.munmap(self._here, AREA)

    def set_up(self, puppet: Puppet) -> None:
        """Map it in the puppet's process. Raises Refused; then nothing stays behind there."""
        theirs = _refuse_errors(puppet.call(x86_64.NR_MEMFD_CREATE, puppet.text, _MFD_CLOEXEC), "memfd_create")
        try:
            ours = os.open(f"/proc/{puppet.pid}/fd/{theirs}", os.O_RDWR | os.O_CLOEXEC)
            try:
                os.ftruncate(ours, AREA)
                syscalls.mmap(self._here, AREA, _RW, abi.MAP_SHARED | abi.MAP_FIXED, ours)
                syscalls.madvise(self._here, AREA, abi.MADV_DONTFORK)
            finally:
                os.close(ours)
            self._write(0, mc.CODE)
            self._write(mc.HEADER_AT, mc.header(0))
            assert self._lock is not None
            self._filled = True
            self._lock.hold()
            self.address = _refuse_errors(puppet.call(x86_64.NR_MMAP, 0, AREA, _RW, abi.MAP_SHARED, theirs, 0), "mmap")
            prot, flags = abi.PROT_READ | abi.PROT_EXEC, abi.MAP_SHARED | abi.MAP_FIXED
            _refuse_errors(
                puppet.call(x86_64.NR_MMAP, self.address, mc.CODE_SIZE, prot, flags, theirs, 0),
                "mmap of executable memory",
            )
            _refuse_errors(
                puppet.call(x86_64.NR_MADVISE, self.address, AREA, abi.MADV_DONTFORK), "madvise(MADV_DONTFORK)"
            )
        except BaseException:
            self.take_down(puppet)
            raise
        finally:
            puppet.call(x86_64.NR_CLOSE, theirs)

    def _write(self, at: int, data: bytes) -> None:
        ctypes.memmove(self._here + at, data, len(data))

    def is_there(self, pid: int, rows: Sequence[Row]) -> bool:
        """Whether all of it is still mapped in `pid`, where it was and nothing else in its place.

        rows: the VMAs of `pid`, which must stand still. A name proves nothing, and a later program may map anything at
        the same address. So each of the two VMAs must show, through the other process's eyes, a number that was
        drawn and written just now through this one's. Only the same file at the same offset can, and no program that
        was executed meanwhile maps it.
        """
        first = bisect_right(rows, self.address, key=lambda row: row.end)
        inside = rows[first : bisect_left(rows, self.address + AREA, first, key=lambda row: row.start)]
        journal = self.address + mc.CODE_SIZE
        if [(row.start, row.end) for row in inside] != [(self.address, journal), (journal, self.address + AREA)]:
            return False
        for at in _PROOFS:
            drawn = secrets.token_bytes(16)
            self._write(at, drawn)
            if _read(pid, self.address + at, len(drawn)) != drawn:
                return False
        return True

    def take_down(self, puppet: Puppet) -> None:
        """Unmap it; it must have been proved to be there since the process last ran."""
        if self.address:
            puppet.call(x86_64.NR_MUNMAP, self.address, AREA)
        self.forget()

    def forget(self) -> None:
        """Let go of it (it is gone, or not proved to be ours, or stays for a later welder), and of the lock."""
        self.address = 0
        if self._filled:
            self._filled = False
            assert self._lock is not None
            self._lock.drop()
            syscalls.mmap(self._here, AREA, abi.PROT_NONE, _ROOM | abi.MAP_FIXED)

    def run(self, puppet: Puppet, program: Program) -> tuple[tuple[str, int], list[Outcome]]:
        """Run `program`, which must be finished, by that thread; returns `Program.outcomes`."""
        assert self._lock is not None
        header = self.address + mc.HEADER_AT
        entries_at = mc.HEADER_AT + mc.HEADER_SIZE
        entries = program.place(header)
        self._write(mc.SAVED_AT, puppet.saved())
        self._write(mc.HEADER_AT, mc.header(self.address + entries_at, alive=self._lock.alive))
        self._write(entries_at, entries)
        puppet.run(self.address, header, SharedState(self._here + mc.HEADER_AT + mc.HEADER["STATE"]))
        return program.outcomes(ctypes.string_at(self._here + entries_at, len(entries)))


class Found(NamedTuple):
    """A mapped workshop, of whoever: the range ``[start, end)``."""

    start: int
    end: int

    @property
    def header(self) -> int:
        """Where its journal begins."""
        return self.start + mc.HEADER_AT


def named(rows: Sequence[Row], name: str = NAMES) -> list[Row]:
    """Those of `rows` that map a memfd whose name begins with `name`."""
    beginning = f"/memfd:{name}"
    return [row for row in rows if row.file and row.file.startswith(beginning)]


def found(pid: int, rows: Sequence[Row], name: str) -> list[Found]:
    """Workshops mapped in `pid` from a memfd whose name begins with `name`, known by their journals.

    rows: the VMAs of `pid`, or those that `named` picks. Those of another version of this program are not among them:
    nobody knows what they hold.
    """
    areas: list[Found] = []
    before: Row | None = None
    for row in named(rows, name):
        if row.pgoff == 0:
            areas.append(Found(row.start, row.end))
        elif before is not None and areas and areas[-1].end == row.start and before.file == row.file:
            areas[-1] = areas[-1]._replace(end=row.end)
        before = row
    return [area for area in areas if _read(pid, area.header, len(mc.MARK)) == mc.MARK]


def refuse_if_taken(pid: int, rows: Sequence[Row], but: int = 0) -> None:
    """Raises Busy where process `pid` is being welded, by another welder or by itself.

    rows: its VMAs, or those that `named` picks. but: the address of the caller's own workshop.
    """
    for area in found(pid, rows, NAMES):
        owner = _read(pid, area.header + mc.HEADER["OWNER"], 4)
        if area.start != but and robust_futex.held(int.from_bytes(owner, "little")):
            raise Busy(f"process {pid} is being welded already, by another vmaweld or by itself: wait for its end")


def _read(pid: int, address: int, length: int) -> bytes:
    try:
        return syscalls.read_memory(pid, address, length)
    except OSError:
        return b""


def _refuse_errors(result: int, call: str) -> int:
    if -4096 < result < 0:
        raise Refused(f"the process may not do what a weld needs: {call}: {os.strerror(-result)}")
    return result
