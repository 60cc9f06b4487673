# SPDX-License-Identifier: GPL-2.0-or-later
"""What the memory of a process that stands still holds, as a hash: the same before a weld and after it."""

import errno
import hashlib
import os
from collections.abc import Sequence
from typing import Final

from vmaweld import abi
from vmaweld.kernel import pagemap
from vmaweld.kernel.pagemap import Pagemap
from vmaweld.kernel.ptrace import Rseq
from vmaweld.welding import plan
from vmaweld.welding.errors import Refused

_CHUNK: Final = 4 << 20
_ZEROES: Final = bytes(abi.PAGE_SIZE)


def digest(pid: int, pages: Pagemap, candidates: Sequence[plan.Candidate], low: int, rseq: Rseq | None) -> bytes:
    """A hash of all pages that welding `candidates` touches and that hold more than zeroes, and of where they lie.

    Holes, zero pages and pages full of zeroes are one and the same here: when the kernel has to split a huge page, it
    gives those of its pages that hold only zeroes back (6.12). Left out is what the kernel itself writes whenever the
    thread that does the work comes to another processor: its ``struct rseq``.
    """
    found = hashlib.sha256()
    kernels = range(rseq.area, rseq.area + rseq.size) if rseq is not None else range(0)
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for candidate in candidates:
            for start, end, kind in pages.runs(plan.keep_from(candidate.rows[0], low), candidate.rows[-1].end):
                if kind & pagemap.ZERO:
                    continue
                for chunk in range(start, end, _CHUNK):
                    data = bytearray(_read(fd, min(_CHUNK, end - chunk), chunk))
                    low, high = max(kernels.start, chunk), min(kernels.stop, chunk + len(data))
                    if low < high:
                        data[low - chunk : high - chunk] = bytes(high - low)
                    _add_pages(found, chunk, memoryview(data))
    finally:
        os.close(fd)
    return found.digest()


def _read(fd: int, length: int, address: int) -> bytes:
    data = b""
    while len(data) < length:
        at = address + len(data)
        try:
            piece = os.pread(fd, length - len(data), at)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise Refused(
                f"--verify cannot read the memory at {at:x}, which has no read access: this kernel does not let even "
                "a tracer (proc_mem.force_override, Linux 6.12): weld without --verify, or leave it out with --range"
            ) from None
        if not piece:  # the process has been killed
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        data += piece
    return data


def _add_pages(found: "hashlib._Hash", address: int, data: memoryview) -> None:
    for at in range(0, len(data), abi.PAGE_SIZE):
        page = data[at : at + abi.PAGE_SIZE]
        if page != _ZEROES:
            found.update(b"%d;" % (address + at))
            found.update(page)
