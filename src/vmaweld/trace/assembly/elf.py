# SPDX-License-Identifier: GPL-2.0-or-later
"""The one thing about ELF files that a recorder needs: how long a program's first segment is once mapped."""

import os
import stat
from functools import lru_cache
from struct import Struct, error
from typing import Final

from vmaweld.abi import PAGE_SIZE, page_align_up

_HEADER: Final = Struct("<4sBB10xHHIQQQIHHH")  # Elf64_Ehdr up to e_phnum
_PROGRAM_HEADER: Final = Struct("<IIQQQQQQ")
_LOAD: Final = 1


@lru_cache(maxsize=1024)
def first_segment_size(path: str) -> int:
    """Bytes that the first PT_LOAD of `path` maps, in whole pages; 0 where the file cannot tell (gone, not ELF64)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # the name may be another file's by now
                return 0
            head = stream.read(4096)
        magic, width, order, *_, table, _, _, _, entry, count = _HEADER.unpack_from(head)
        if magic != b"\x7fELF" or width != 2 or order != 1:
            return 0
        for at in range(table, table + entry * count, entry):
            kind, _, offset, _, _, in_file, _, _ = _PROGRAM_HEADER.unpack_from(head, at)
            if kind == _LOAD:
                return page_align_up(offset % PAGE_SIZE + in_file)
    except (OSError, error, ValueError, OverflowError):
        pass
    return 0
