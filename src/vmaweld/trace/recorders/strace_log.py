# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the log of ``strace -f -X raw -y --absolute-timestamps=unix,ns``: calls entered and left, tasks ended.

A line is a whole call, or its first part (``<unfinished ...>``) or its last (``<... NAME resumed>``) where another
task's line came between. Strings, structures and file names are quoted and escaped, so a comma or a parenthesis within
them is told from one that ends an argument.
"""

import errno
import re
from collections.abc import Iterable, Iterator
from typing import Final

ENTER: Final = "enter"
LEAVE: Final = "leave"
ENDED: Final = "ended"
REPLACED: Final = "replaced"

Line = tuple[str, int, int, str, list[str], int | None]
"""(kind, time in ns, tid, name of the call, its arguments as text, result or None where it is not known).

ENTER: arguments as far as strace knew them then. LEAVE: all of them. ENDED: neither. REPLACED: an exec by another
thread took over this task; the result is that thread's tid.
"""

_LINE: Final = re.compile(r"([0-9]{1,10}) +([0-9]{1,10})\.([0-9]{9}) (.*)")
_CALL: Final = re.compile(r"(\w+)\((.*)", re.DOTALL)
_RESUMED: Final = re.compile(r"<\.\.\. (\w+) resumed>(.*)", re.DOTALL)
_RESULT: Final = re.compile(r"\)\s+= (\?|-?\w+)(?:<[^>]*>)?(?: (E\w+))?(?: \([^()]*\))*$")
_SUPERSEDED: Final = re.compile(r"\+\+\+ superseded by execve in pid ([0-9]{1,10}) \+\+\+")
_ENDINGS: Final = ("+++ exited with ", "+++ killed by ")
_UNFINISHED: Final = " <unfinished ...>"
_ESCAPE: Final = re.compile(r"\\(?:([0-7]{1,3})|x([0-9a-f]{2})|(.))")
_ESCAPED: Final = {"n": 10, "t": 9, "r": 13, "v": 11, "f": 12}


def parse(lines: Iterable[str]) -> Iterator[Line]:
    """What `lines` tell, in their order. Lines that tell nothing about calls or tasks (signals) are left out."""
    begun: dict[int, tuple[str, str]] = {}
    for text in lines:
        found = _LINE.match(text.rstrip("\n"))
        if found is None:
            continue
        tid, time, rest = int(found[1]), int(found[2]) * 1_000_000_000 + int(found[3]), found[4]
        if rest.startswith("+++ "):
            superseded = _SUPERSEDED.match(rest)
            if superseded is not None:
                begun.pop(tid, None)
                yield REPLACED, time, tid, "", [], int(superseded[1])
            elif rest.startswith(_ENDINGS):
                begun.pop(tid, None)
                yield ENDED, time, tid, "", [], None
            continue
        resumed = _RESUMED.match(rest)
        if resumed is not None:
            name, before = begun.pop(tid, ("", ""))
            if name == resumed[1]:
                arguments, result = _finish(before + resumed[2])
                yield LEAVE, time, tid, name, arguments, result
            continue
        call = _CALL.match(rest)
        if call is None:
            continue
        name = call[1]
        if rest.endswith(_UNFINISHED):
            so_far = call[2][: -len(_UNFINISHED)]
            begun[tid] = name, so_far
            yield ENTER, time, tid, name, split(so_far), None
            continue
        arguments, result = _finish(call[2])
        yield ENTER, time, tid, name, arguments, None
        yield LEAVE, time, tid, name, arguments, result


def _finish(text: str) -> tuple[list[str], int | None]:
    """Arguments and result from what follows a call's opening parenthesis."""
    found = _RESULT.search(text)
    if found is None:
        return split(text), None
    arguments = split(text[: found.start()])
    if found[1] == "?":
        return arguments, None
    if found[2]:
        number = getattr(errno, found[2], None)
        return arguments, -number if number is not None else None
    try:
        return arguments, int(found[1], 0)
    except ValueError:
        return arguments, None


def split(text: str) -> list[str]:
    """The arguments in `text`, cut at the commas that are in no string, structure, array or file name."""
    if not any(mark in text for mark in '"{[<('):
        return text.split(", ") if text else []
    parts: list[str] = []
    begin = depth = 0
    place = 0
    while place < len(text):
        mark = text[place]
        if mark == '"':
            place += 1
            while place < len(text) and text[place] != '"':
                place += 2 if text[place] == "\\" else 1
        elif mark == "<":
            # A descriptor's file: strace escapes the closing bracket within it, so the first one ends it.
            end = text.find(">", place)
            place = end if end >= 0 else len(text)
        elif mark in "{[(":
            depth += 1
        elif mark in "}])":
            depth -= 1
        elif mark == "," and depth == 0:
            parts.append(text[begin:place].strip())
            begin = place + 1
        place += 1
    if text[begin:].strip():
        parts.append(text[begin:].strip())
    return parts


def number(text: str) -> int:
    """An argument as the register it was in: ``NULL``, ``0x22``, ``-1``, ``0x1200000|17``, ``3</path>``."""
    text = text.partition(" /*")[0].partition("<")[0]
    if text == "NULL":
        return 0
    value = 0
    for part in text.split("|"):
        try:
            value |= int(part, 8) if len(part) > 1 and part[0] == "0" and part.isdigit() else int(part, 0)
        except ValueError:
            return 0
    return value & ((1 << 64) - 1)


def file_name(text: str) -> str:
    r"""The path behind a descriptor: ``3</a/b\76c>`` is ``/a/b>c``; "" where strace does not know it."""
    _, _, name = text.partition("<")
    return unescape(name.removesuffix(">"))


def string(text: str) -> str:
    """What a quoted string says."""
    begin, end = text.find('"'), text.rfind('"')
    return unescape(text[begin + 1 : end]) if 0 <= begin < end else ""


def unescape(text: str) -> str:
    """`text` without strace's escapes; bytes that are no UTF-8 survive as surrogates."""
    if "\\" not in text:
        return text
    data = bytearray()
    place = 0
    for found in _ESCAPE.finditer(text):
        data += text[place : found.start()].encode(errors="surrogateescape")
        if found[1]:
            data.append(int(found[1], 8) & 0xFF)
        elif found[2]:
            data.append(int(found[2], 16))
        elif found[3] in _ESCAPED:
            data.append(_ESCAPED[found[3]])
        else:
            data += found[3].encode(errors="surrogateescape")
        place = found.end()
    data += text[place:].encode(errors="surrogateescape")
    return data.decode(errors="surrogateescape")


def field(text: str, name: str) -> int | None:
    """The number of field `name` in a structure's text: ``{range={start=0x1000, len=0x2000}, mode=0x1}``."""
    found = re.search(rf"\b{name}=(-?\w+(?:\|\w+)*)", text)
    return number(found[1]) if found is not None else None
