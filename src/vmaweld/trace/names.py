# SPDX-License-Identifier: GPL-2.0-or-later
r"""Names in a trace: files, programs and labels are bytes to Linux, a column of Parquet holds UTF-8.

A name is stored as it is but for two things: a byte that is no part of valid UTF-8 is written ``\xff``, and so that it
can be told from those four characters, a backslash is doubled. In Python such a byte is a lone surrogate, as in every
path of `os` (PEP 383). A lone surrogate that stands for no byte is written ``\ud800``.
"""

import re
from collections.abc import Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

_UNSAFE: Final = re.compile(r"[\\\ud800-\udfff]")
_ESCAPE: Final = re.compile(r"\\(?:(\\)|x([89a-f][0-9a-f])|u(d[89a-f][0-9a-f]{2}))")


def stored(name: str) -> str:
    r"""`name` as a trace holds it.

    >>> print(stored("a\\b\udcff"))
    a\\b\xff
    """
    return _UNSAFE.sub(_escaped, name)


def restored(text: str) -> str:
    """The name that `stored` made `text` of; a backslash that it cannot have written is taken for itself."""
    return _ESCAPE.sub(_unescaped, text)


def stored_all(names: Sequence[str | None]) -> Sequence[str | None]:
    """`stored` for a column of names; None stays."""
    # Few names and many rows: looking at each name once is all that the common case costs.
    changed = {name: stored(name) for name in set(names) if name and _UNSAFE.search(name)}
    return [changed.get(name, name) if name else name for name in names] if changed else names


def may_be_escaped(column: pa.Array) -> bool:
    """True if any text in `column` is other than the name it stands for."""
    return pc.any(pc.match_substring(column, "\\")).as_py() is True


def restored_all(texts: Sequence[str | None]) -> list[str | None]:
    """`restored` for a column of names; None stays."""
    return [text and restored(text) for text in texts]


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    if character == "\\":
        return "\\\\"
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _unescaped(found: re.Match[str]) -> str:
    backslash, byte, code = found.groups()
    if backslash:
        return "\\"
    return chr(0xDC00 + int(byte, 16)) if byte else chr(int(code, 16))
