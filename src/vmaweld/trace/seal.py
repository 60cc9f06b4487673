# SPDX-License-Identifier: GPL-2.0-or-later
"""The seal of a trace file: a checksum over every byte of it.

Parquet's own checksums cover the pages, not their headers and not the footer, which says where the pages lie and how
they are to be read. So sixteen bytes of our own stand between the last page and the footer, where the format allows
for bytes that nobody refers to: a tag, then the CRC-32 (that of zlib, four bytes, little-endian) of all other bytes
of the file in their order. A CRC-32 notices every flipped bit, every change within 32 bits, and all but one in four
billion of the others.
"""

import zlib
from typing import BinaryIO, Final

_TAG: Final = b"vmaweld seal"
SIZE: Final = len(_TAG) + 4
"""Bytes of the seal."""
_TRAILER: Final = 8  # the footer's length (four bytes, little-endian), then Parquet's magic
_PIECE: Final = 1 << 20


class SealError(Exception):
    """The file is not what was sealed."""


def seal(file: BinaryIO) -> None:
    """Seal the Parquet file that `file`, open for reading and writing, holds as a whole."""
    footer_at = _footer_at(file)
    file.seek(footer_at)
    footer = file.read()
    checksum = zlib.crc32(footer, _checksum(file, 0, footer_at))
    file.seek(footer_at)
    file.write(_TAG + checksum.to_bytes(4, "little") + footer)


def sealed(file: BinaryIO) -> bool:
    """True if `file`, a Parquet file, has a seal, which then holds; False where it has none.

    Raises:
        SealError: the file was changed after it had been sealed.

    """
    footer_at = _footer_at(file)
    seal_at = footer_at - SIZE
    if seal_at < 0:
        return False
    file.seek(seal_at)
    found = file.read(SIZE)
    if not found.startswith(_TAG):
        return False
    if _checksum(file, footer_at, _size(file), _checksum(file, 0, seal_at)) != int.from_bytes(found[-4:], "little"):
        raise SealError("its checksum does not hold")
    return True


def _size(file: BinaryIO) -> int:
    return file.seek(0, 2)


def _footer_at(file: BinaryIO) -> int:
    """Where the footer begins, below 0 where the file is too short for what it says of itself."""
    size = _size(file)
    if size < _TRAILER:
        return -1
    file.seek(size - _TRAILER)
    return size - _TRAILER - int.from_bytes(file.read(4), "little")


def _checksum(file: BinaryIO, start: int, end: int, before: int = 0) -> int:
    """The CRC-32 of the bytes from `start` to `end` behind those whose CRC-32 is `before`."""
    file.seek(start)
    checksum = before
    while start < end:
        piece = file.read(min(_PIECE, end - start))
        if not piece:
            raise SealError("it became shorter while it was read")
        checksum = zlib.crc32(piece, checksum)
        start += len(piece)
    return checksum
