# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts and names as every report writes them."""


def count_text(count: int, one: str, many: str = "") -> str:
    """`count` and the word for it.

    many: the plural, where it is not `one` with an s.

    >>> count_text(1, "process", "processes"), count_text(0, "VMA"), count_text(1234, "open seam")
    ('1 process', '0 VMAs', '1,234 open seams')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def printable(text: str) -> str:
    r"""`text` on one line and without anything that a terminal obeys; bytes that were no UTF-8 as ``\xNN``.

    >>> printable("a\nb\x1b[2J")
    'a\\nb\\x1b[2J'
    """
    if text.isprintable() and text.isascii():
        return text
    escaped = []
    for character in text:
        if "\udc80" <= character <= "\udcff":
            escaped.append(f"\\x{ord(character) - 0xDC00:02x}")
        elif character.isprintable():
            escaped.append(character)
        else:
            escaped.append(repr(character)[1:-1])
    return "".join(escaped)
