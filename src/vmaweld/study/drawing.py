# SPDX-License-Identifier: GPL-2.0-or-later
"""Address spaces as drawings in plain characters, several of them to one scale so that they can be laid side by side.

page      0        4        8        12
VMA       AAAAAAAAABBBBBBBBB.........
pgoff     100      10c
anon_vma  1        2
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from vmaweld.abi import PAGE_SHIFT, VM_EXEC, VM_READ, VM_WRITE
from vmaweld.snapshot import Row, Snapshot

_NARROW: Final = 9
_WIDE: Final = 27
_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Scale:
    """Columns for addresses: every border of any of the drawings begins a column; the distances are not true.

    base: the lowest address, whose page is 0.

    >>> rows = [Row(0x10000, 0x14000, 3, pgoff=16, anon_vma=0)]
    >>> scale = Scale([Snapshot(1, rows, source="model", flags_exact=True, hidden=True)])
    >>> scale.width
    9
    """

    def __init__(self, snapshots: Iterable[Snapshot]) -> None:
        every = [row for snapshot in snapshots for row in snapshot.rows]
        change = Counter(row.start for row in every)  # how many more rows there are from a border on
        change.subtract(row.end for row in every)
        borders = sorted(change)
        self.base = borders[0] if borders else 0
        self._columns: dict[int, int] = {}
        column = rows = 0
        for number, address in enumerate(borders):
            self._columns[address] = column
            rows += change[address]
            if number + 1 < len(borders):
                pages = (borders[number + 1] - address) >> PAGE_SHIFT
                column += min(max(_NARROW, 2 * pages), _WIDE) if rows else _NARROW
        self.width = column

    def column(self, address: int) -> int:
        """The column of a border."""
        return self._columns[address]

    def ruler(self) -> str:
        """The page numbers above the borders."""
        return _labels(
            [(column, str((address - self.base) >> PAGE_SHIFT)) for address, column in self._columns.items()]
        )


def draw(snapshot: Snapshot, scale: Scale) -> list[str]:
    """The lines of one address space: VMAs as letters, their protection, page offsets (hex) and anon_vmas."""
    picture = ["."] * scale.width
    for number, row in enumerate(snapshot.rows):
        letter = _LETTERS[number % len(_LETTERS)]
        first, last = scale.column(row.start), scale.column(row.end)
        picture[first:last] = letter * (last - first)
    rows = snapshot.rows
    lines = [
        f"page      {scale.ruler()}",
        f"VMA       {''.join(picture)}",
        f"access    {_by_row(rows, scale, [_access(row) for row in rows])}",
        f"pgoff     {_by_row(rows, scale, ['' if row.pgoff is None else f'{row.pgoff:x}' for row in rows])}",
        f"anon_vma  {_by_row(rows, scale, [_owner(row) for row in rows])}",
    ]
    return [line.rstrip() for line in lines]


def _access(row: Row) -> str:
    return "".join(c if row.flags & bit else "-" for c, bit in (("r", VM_READ), ("w", VM_WRITE), ("x", VM_EXEC)))


def _owner(row: Row) -> str:
    if not row.anon_vma:
        return "-"
    return f"{row.anon_vma} (of {row.chain})" if row.chain is not None and row.chain > 1 else str(row.anon_vma)


def _by_row(rows: Sequence[Row], scale: Scale, texts: Sequence[str]) -> str:
    return _labels([(scale.column(row.start), text) for row, text in zip(rows, texts, strict=True)])


def _labels(labels: Iterable[tuple[int, str]]) -> str:
    line = ""
    for column, text in labels:
        line = line.ljust(column) + text
    return line
