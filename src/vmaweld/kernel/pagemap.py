# SPDX-License-Identifier: GPL-2.0-or-later
"""Which pages of a range are there, and whose: /proc/PID/pagemap, and PAGEMAP_SCAN (6.7) where there is one.

Bits: the kernel's ``Documentation/admin-guide/mm/pagemap.rst`` and ``include/uapi/linux/fs.h``. Readable for the
owner of the process and for root; page frame numbers are not used, so no privilege beyond that is needed.
"""

import ctypes
import errno
import mmap
import os
import re
import struct
from array import array
from fcntl import ioctl
from typing import Final, NamedTuple

from vmaweld.abi import HUGE_PAGE_SIZE, PAGE_SHIFT, PAGE_SIZE
from vmaweld.kernel.errors import NotPermitted, ProcessGone

PRESENT: Final = 1  # in memory
SWAPPED: Final = 2  # swapped out, or migrating
FILE: Final = 4  # a page of a file or of shared memory, not anonymous
EXCLUSIVE: Final = 8  # anonymous and mapped by this process alone, so that UFFDIO_MOVE takes it
ZERO: Final = 16  # the kernel's page of zeroes, mapped by a read; told since 6.7 only
GUARD: Final = 32  # a guard marker (MADV_GUARD_INSTALL, 6.13; told since 6.15)
MARKED: Final = 64  # nobody else maps it now, but since a fork the kernel takes it for shared; see `Pagemap.closely`

# Bits 56 to 63 of an entry: its last byte.
_ENTRY_BITS: Final = ((0x80, PRESENT), (0x40, SWAPPED), (0x20, FILE), (0x01, EXCLUSIVE), (0x04, GUARD))
_KINDS: Final = tuple(sum(kind for bit, kind in _ENTRY_BITS if byte & bit) for byte in range(256))
_RUN: Final = re.compile(rb"(.)\1*", re.DOTALL)

_SCAN: Final = 0xC0606610
_SCAN_PRESENT, _SCAN_SWAPPED, _SCAN_ZERO, _SCAN_HUGE = 8, 16, 32, 64
_REGIONS: Final = 4096
_READ_PAGES: Final = 1 << 17
_GAP: Final = 512 << PAGE_SHIFT
"""Regions nearer to each other than this are read in one piece: a read costs about as much as 500 entries."""
_FRAME: Final = (1 << 55) - 1
_FRAMES: Final = 8
"""Frames whose flags are read in one piece: neighbours often serve one process, but each takes the kernel time."""
_HUGE_PAGES: Final = HUGE_PAGE_SIZE >> PAGE_SHIFT


class Run(NamedTuple):
    """Neighbouring pages of one kind. start, end: bytes. kind: bits such as PRESENT | EXCLUSIVE, never 0."""

    start: int
    end: int
    kind: int


class Totals(NamedTuple):
    """Pages of a range by kind.

    populated: present or swapped, the zero page not counted. exclusive, shared: anonymous and present; shared is what
    another process maps too (or did until it ended, or KSM merged). file: of a file or of shared memory.
    """

    populated: int
    exclusive: int
    shared: int
    swapped: int
    file: int
    zero: int


class _FrameFlags:
    """What /proc/kpageflags says of page frames, a few read at a time. For one look: flags change."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._known: dict[int, bytes] = {}

    def is_exclusive(self, entry: int) -> bool:
        """Whether the frame that a page map's `entry` names is marked so; of an anonymous page."""
        frame = entry & _FRAME
        block = frame // _FRAMES
        flags = self._known.get(block)
        if flags is None:
            flags = self._known[block] = os.pread(self._fd, _FRAMES * 8, block * _FRAMES * 8)
        at = frame % _FRAMES * 8 + 4
        # PG_anon_exclusive (5.19) has the bit that is KPF_MAPPEDTODISK, number 34, for pages of files.
        return at >= len(flags) or bool(flags[at] & 4)


class Pagemap:
    """The page map of one process, open.

    Raises ProcessGone or NotPermitted. Close it, or use it in a `with`.

    >>> import os
    >>> with Pagemap(os.getpid()) as pages:        # doctest: +SKIP
    ...     pages.totals(0x7FFE_0000_0000, 0x7FFE_0002_1000).populated
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        try:
            self._fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            raise ProcessGone(f"process {pid} does not exist (any more)") from None
        except PermissionError:
            raise NotPermitted(
                f"not permitted to read the page map of process {pid}: run as its owner, or as root (CAP_SYS_PTRACE)"
            ) from None
        self._can_scan = True
        self._frames: int | None = None

    def runs(self, start: int, end: int) -> list[Run]:
        """All populated pages of ``[start, end)``, as runs in ascending order. Holes are left out, however large."""
        return self._runs(start, end, self._scan(start, end))

    def _runs(self, start: int, end: int, regions: list[tuple[int, int, int]] | None) -> list[Run]:
        if regions is None:
            return self._read(start, end)
        zero = [(a, b) for a, b, kinds in regions if kinds & _SCAN_ZERO]
        found: list[Run] = []
        at = 0
        while at < len(regions):
            first, last = regions[at][0], regions[at][1]
            at += 1
            while at < len(regions) and regions[at][0] - last < _GAP:
                last = regions[at][1]
                at += 1
            found += self._read(first, last)
        return _mark_zero(found, zero) if zero else found

    def closely(self, start: int, end: int) -> list[Run]:
        """As `runs`, and pages that the kernel still takes for shared are MARKED: root only, else none is.

        fork() takes PageAnonExclusive from every page; only a write, or a swap-in, gives it back when the child is
        gone, and UFFDIO_MOVE asks for it. The page map tells only how many map a page. A microsecond or less a page.
        """
        regions = self._scan(start, end)
        found = self._runs(start, end, regions)
        if self._frames is None:
            self._frames = _open_frames()
        if self._frames < 0:
            return found
        flags = _FrameFlags(self._frames)
        huge = [(first, last) for first, last, kinds in regions or () if kinds & _SCAN_HUGE]
        marked: list[Run] = []
        for run in found:
            if run.kind & (PRESENT | EXCLUSIVE | FILE | ZERO) == PRESENT | EXCLUSIVE:
                marked += self._marked(run, flags, huge)
            else:
                marked.append(run)
        return marked

    def _marked(self, run: Run, flags: "_FrameFlags", huge: list[tuple[int, int]]) -> list[Run]:
        page, last = run.start >> PAGE_SHIFT, run.end >> PAGE_SHIFT
        entries = array("Q")
        while page < last:
            data = os.pread(self._fd, min(last - page, _READ_PAGES) * 8, page * 8)
            if not data:
                return [run]
            entries.frombytes(data)
            page += len(data) >> 3
        own = bytearray(map(flags.is_exclusive, entries))
        for first, past in huge:  # mapped whole: what its first page says goes for all
            for at in range(max(first, run.start), min(past, run.end), HUGE_PAGE_SIZE):
                index = (at - run.start) >> PAGE_SHIFT
                own[index : index + _HUGE_PAGES] = own[index : index + 1] * min(_HUGE_PAGES, len(own) - index)
        return [
            Run(
                run.start + (match.start() << PAGE_SHIFT),
                run.start + (match.end() << PAGE_SHIFT),
                run.kind if match[0][0] else run.kind | MARKED,
            )
            for match in _RUN.finditer(own)
        ]

    def populated(self, start: int, end: int) -> list[Run]:
        """As `runs`, but pages that are present are taken for exclusive: a quarter of the time, from 6.7 on."""
        regions = self._scan(start, end)
        if regions is None:
            return self._read(start, end)
        found: list[Run] = []
        for first, last, kinds in regions:
            there = PRESENT | ZERO if kinds & _SCAN_ZERO else PRESENT | EXCLUSIVE
            kind = there if kinds & _SCAN_PRESENT else SWAPPED
            if found and found[-1].end == first and found[-1].kind == kind:
                first = found.pop().start
            found.append(Run(first, last, kind))
        return found

    def totals(self, start: int, end: int) -> Totals:
        """Pages of ``[start, end)`` by kind."""
        return totals(self.runs(start, end))

    def _read(self, start: int, end: int) -> list[Run]:
        found: list[Run] = []
        page, last = start >> PAGE_SHIFT, end >> PAGE_SHIFT
        while page < last:
            data = os.pread(self._fd, min(last - page, _READ_PAGES) * 8, page * 8)
            if not data:  # past the end of user space, or the process has ended
                break
            for match in _RUN.finditer(data[7::8]):
                kind = _KINDS[match[0][0]]
                if kind:
                    first, past = (page + match.start()) << PAGE_SHIFT, (page + match.end()) << PAGE_SHIFT
                    if found and found[-1].end == first and found[-1].kind == kind:
                        first = found.pop().start
                    found.append(Run(first, past, kind))
            page += len(data) >> 3
        return found

    def _scan(self, start: int, end: int) -> list[tuple[int, int, int]] | None:
        """(start, end, PAGE_IS_* bits) of what is populated; None where the kernel has no PAGEMAP_SCAN."""
        if not self._can_scan:
            return None
        regions: list[tuple[int, int, int]] = []
        buffer = ctypes.create_string_buffer(_REGIONS * 24)
        wanted = _SCAN_PRESENT | _SCAN_SWAPPED
        while start < end:
            # size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, return_mask
            argument = bytearray(
                struct.pack(
                    "<12Q",
                    96,
                    0,
                    start,
                    end,
                    0,
                    ctypes.addressof(buffer),
                    _REGIONS,
                    0,
                    0,
                    0,
                    wanted,
                    wanted | _SCAN_ZERO | _SCAN_HUGE,
                )
            )
            try:
                count = ioctl(self._fd, _SCAN, argument)
            except OSError as error:
                if error.errno in (errno.ENOTTY, errno.EINVAL):
                    self._can_scan = False
                    return None
                if error.errno == errno.ESRCH:
                    raise ProcessGone(f"process {self._pid} has ended") from None
                raise
            regions += struct.iter_unpack("<QQQ", buffer.raw[: count * 24])
            (walked,) = struct.unpack_from("<Q", argument, 32)
            if walked <= start:
                break
            start = walked
        return regions

    def close(self) -> None:
        """Close it; safe to call twice."""
        for fd in (self._fd, -1 if self._frames is None else self._frames):
            if fd >= 0:
                os.close(fd)
        self._fd = self._frames = -1

    def __enter__(self) -> "Pagemap":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _open_frames() -> int:
    """/proc/kpageflags, open; -1 where it may not be read, or does not tell which pages are exclusive."""
    try:
        fd = os.open("/proc/kpageflags", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    if _tells_exclusive(fd):
        return fd
    os.close(fd)
    return -1


def _tells_exclusive(fd: int) -> bool:
    """Whether a page that is certainly our own is marked so: not before 5.19, nor without CAP_SYS_ADMIN."""
    with (
        mmap.mmap(-1, PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page,
        open("/proc/self/pagemap", "rb") as file,
    ):
        page[0] = 1
        word = ctypes.c_char.from_buffer(page)
        file.seek((ctypes.addressof(word) >> PAGE_SHIFT) * 8)
        entry = int.from_bytes(file.read(8), "little")
        del word
        return bool(entry & _FRAME) and _FrameFlags(fd).is_exclusive(entry)


def _mark_zero(runs: list[Run], zero: list[tuple[int, int]]) -> list[Run]:
    """`runs` split at the borders of the ranges `zero` (ascending), those inside marked ZERO."""
    marked: list[Run] = []
    at = 0
    for run in runs:
        start = run.start
        while at < len(zero) and zero[at][1] <= start:
            at += 1
        index = at
        while index < len(zero) and zero[index][0] < run.end:
            first, last = max(zero[index][0], start), min(zero[index][1], run.end)
            if first > start:
                marked.append(Run(start, first, run.kind))
            marked.append(Run(first, last, run.kind | ZERO))
            start = last
            index += 1
        if start < run.end:
            marked.append(Run(start, run.end, run.kind))
    return marked


def totals(runs: list[Run]) -> Totals:
    """Pages of `runs` by kind."""
    populated = exclusive = shared = swapped = file = zero = 0
    for start, end, kind in runs:
        pages = (end - start) // PAGE_SIZE
        if kind & ZERO:
            zero += pages
        elif kind & FILE:
            file += pages
            populated += pages
        elif kind & SWAPPED:
            swapped += pages
            populated += pages
        elif kind & PRESENT:
            populated += pages
            if kind & EXCLUSIVE:
                exclusive += pages
            else:
                shared += pages
    return Totals(populated, exclusive, shared, swapped, file, zero)
