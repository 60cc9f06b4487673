# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a stopped thread makes single system calls for us: a few hundred bytes in a gap of the program's own text.

The first call that a thread is to make maps memory of ours, so it cannot be made from there. It is made from the end of
the last page of a code segment: what lies between the end of the segment and the end of its page belongs to nobody
(System V ABI, chapter 5, "Program Loading"). Data and stacks of the process are never written to. The bytes are
written by ptrace, which gives the process a copy of its own of that one page, and are zeroed again at the end.

The call is followed by `way_back`: whenever the welder dies, the thread finishes the call and goes back by itself.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from vmaweld import abi
from vmaweld.kernel import ptrace, syscalls
from vmaweld.snapshot import Row
from vmaweld.welding import way_back
from vmaweld.welding.errors import Refused
from vmaweld.welding.names import WORKSHOP

_CALL: Final = b"\x0f\x05" + b"\x0f\x1f\x44\x00\x00" + b"\x90"  # syscall; nop up to a multiple of 8
CODE: Final = _CALL + way_back.CODE
_TEXT: Final = WORKSHOP.encode() + b"\0"
TEXT_AT: Final = len(CODE) + way_back.SAVED_SIZE
"""Offset of the name of the memfd, as memfd_create wants it."""
SIZE: Final = TEXT_AT + len(_TEXT)

_ELF: Final = b"\x7fELF\x02\x01"  # 64 bits, little endian
_PT_LOAD: Final = 1
_PF_X: Final = 1
_MOST_HEADERS: Final = 64


class Gap(NamedTuple):
    """Room for a trampoline. address: where it lies. left: an earlier welder died and left its own there."""

    address: int
    left: bool


def gap(pid: int, rows: Sequence[Row]) -> Gap:
    """The gap to be used in process `pid`, always the same while its mappings stay. Raises Refused where none is.

    rows: the process's VMAs.
    """
    for address, size in _gaps(pid, rows):
        address = (address + 7) & -8
        held = syscalls.read_memory(pid, address, min(size - 8, SIZE + 8))
        if len(held) < SIZE:
            continue
        if held.startswith(_CALL):
            return Gap(address, True)
        if not any(held):
            return Gap(address, False)
    raise Refused(
        f"process {pid} cannot be welded: no page of its program text has {SIZE} bytes free behind the text, from "
        "which a thread could be made to work"
    )


def write(tid: int, address: int, registers: ptrace.Registers, mask: int) -> None:
    """Lay out a trampoline at `address` that leads thread `tid`, which is stopped, back to `registers` and `mask`.

    The first word is written first and erased last, so that one that was half done is known by it.
    """
    ptrace.poke(tid, address, (CODE + way_back.saved(registers, mask) + _TEXT).ljust(_rounded(SIZE), b"\0"))


def erase(tid: int, address: int) -> None:
    """Make the gap what it was."""
    ptrace.poke(tid, address + 8, bytes(_rounded(SIZE) - 8))
    ptrace.poke(tid, address, bytes(8))


def _rounded(size: int) -> int:
    return (size + 7) & -8


def _gaps(pid: int, rows: Sequence[Row]) -> Iterator[tuple[int, int]]:
    """(address, bytes) of what lies behind code segments up to the end of their last pages; [vdso]'s comes first."""
    for row in reversed(rows):  # it is one of the last
        if row.name == "[vdso]":
            yield from _behind(pid, row, row.start)
            break
    first_pages = {row.file: row.start for row in rows if row.file and row.pgoff == 0}
    for row in rows:
        code = row.flags & abi.VM_EXEC and row.flags & abi.VM_READ and not row.flags & abi.VM_SHARED
        if code and row.file in first_pages:
            yield from _behind(pid, row, first_pages[row.file])


def _behind(pid: int, row: Row, image: int) -> Iterator[tuple[int, int]]:
    """The gap at the end of `row`, which maps code of the ELF image whose header is at `image`."""
    header = _read(pid, image, 64)
    if not header.startswith(_ELF):
        return
    segments_at, sections_at = struct.unpack_from("<QQ", header, 32)
    size, count, section_size, sections = struct.unpack_from("<HHHH", header, 54)
    if size != 56 or not 0 < count <= _MOST_HEADERS:
        return
    headers = _read(pid, image + segments_at, size * count)
    if len(headers) < size * count:
        return
    begin = (row.pgoff or 0) << abi.PAGE_SHIFT if row.file else 0
    for kind, flags, offset, _virtual, _physical, length, _memory, _align in struct.iter_unpack("<IIQQQQQQ", headers):
        end = offset + length
        if kind != _PT_LOAD or not flags & _PF_X or not begin < end <= begin + row.size:
            continue
        if not row.file:  # the vDSO is mapped whole, with the table of its sections behind the segment
            end = max(end, sections_at + sections * section_size)
        room = begin + row.size - end
        if abi.page_align_up(end) == begin + row.size and room >= SIZE + 16:
            yield row.start + end - begin, room


def _read(pid: int, address: int, length: int) -> bytes:
    try:
        return syscalls.read_memory(pid, address, length)
    except OSError:
        return b""
