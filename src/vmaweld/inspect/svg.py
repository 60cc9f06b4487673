# SPDX-License-Identifier: GPL-2.0-or-later
"""The picture of an address space as an SVG strip, for documents: lines of regions, seams below each.

Up to `WHOLE` VMAs are drawn one by one on the compressed axis (a VMA is a step wider for each doubling of its
size, a gap has one small width); beyond that neighbours are added up into columns.
"""

import html
import math
from typing import Final

from vmaweld.inspect.kinds import KINDS, kind_of
from vmaweld.inspect.legend import CLASSES, KIND_COLOURS, class_of
from vmaweld.inspect.report import Inspection
from vmaweld.inspect.words import percent_text, reasons_text, size_text
from vmaweld.snapshot import Row
from vmaweld.words import count_text, printable

WIDTH: Final = 1200
MARGIN: Final = 16
LINE: Final = 56
BAND: Final = 26
TICK: Final = 16
WHOLE: Final = 3000
COLUMNS: Final = WIDTH - 2 * MARGIN
MOST_LINES: Final = 24
COLUMN_LINES: Final = 8  # lines where columns are drawn: each is a thousand rectangles

_GAP: Final = 2.0

_STYLE: Final = """
text { font: 12px system-ui, sans-serif; fill: #1d2329; }
.small { font-size: 10px; fill: #5c6670; }
.paper { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
  text { fill: #e4e8ec; }
  .small { fill: #98a3ae; }
  .paper { fill: #14181c; }
}
"""


def _styles() -> str:
    """A CSS class for every kind (k0 ...) and every class of seams (s0 ...), light and dark."""
    pairs = [(f".k{at}", KIND_COLOURS[kind]) for at, kind in enumerate(KINDS)]
    pairs += [(f".s{at}", one.colours) for at, one in enumerate(CLASSES)]
    light = "\n".join(f"{name} {{ fill: {colours[0]}; }}" for name, colours in pairs)
    dark = "\n".join(f"{name} {{ fill: {colours[1]}; }}" for name, colours in pairs)
    return f"{_STYLE}{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"


def _weight(row: Row) -> float:
    return 1.0 + math.log2(max(row.pages, 1))


class _Line:
    """The VMAs of one line: rows[first] to rows[last], `units` wide on the axis."""

    __slots__ = ("first", "last", "units")

    def __init__(self, first: int) -> None:
        self.first = first
        self.last = first
        self.units = 0.0


def _lines(report: Inspection) -> list[_Line]:
    """The rows shared out to lines of about the same width; a line breaks at a gap where one is near."""
    rows = report.snapshot.rows
    total = sum(map(_weight, rows)) + _GAP * (len(rows) - len(report.seams))
    wanted = min(MOST_LINES, max(1, math.ceil(len(rows) / 48))) if len(rows) <= WHOLE else COLUMN_LINES
    room = total / wanted
    lines: list[_Line] = []
    for index, row in enumerate(rows):
        gap = index > 0 and rows[index - 1].end != row.start
        full = bool(lines) and (lines[-1].units >= room or (gap and lines[-1].units >= 0.85 * room))
        if not lines or full:
            lines.append(_Line(index))
        elif gap:
            lines[-1].units += _GAP
        lines[-1].units += _weight(row)
        lines[-1].last = index
    return lines


def _tip(text: str) -> str:
    return f"<title>{html.escape(printable(text))}</title>"


def _draw_whole(report: Inspection, line: _Line, y: float, scale: float, seams: dict[int, int]) -> list[str]:
    """Every VMA and every seam of one line."""
    rows = report.snapshot.rows
    kinds = {kind: at for at, kind in enumerate(KINDS)}
    parts = []
    x = float(MARGIN)
    for index in range(line.first, line.last + 1):
        row = rows[index]
        if index > line.first and rows[index - 1].end != row.start:
            x += _GAP * scale
        width = _weight(row) * scale
        kind = kind_of(row)
        words = f"{row.start:x}-{row.end:x} {row.perms()} {size_text(row.size)} {kind} {row.name or row.file}".rstrip()
        parts.append(
            f'<rect class="k{kinds[kind]}" x="{x:.2f}" y="{y:.0f}" width="{max(width - 0.5, 0.3):.2f}" '
            f'height="{BAND}">{_tip(words)}</rect>'
        )
        x += width
        at = seams.get(index)
        if at is not None:
            seam = report.seams[at]
            state = "open seam" if seam.open else "seam"
            parts.append(
                f'<rect class="s{class_of(seam.mask)}" x="{x - 1:.2f}" y="{y + BAND + 2:.0f}" width="2" '
                f'height="{TICK if seam.open else TICK / 2:.0f}">'
                f"{_tip(f'{state} at {seam.address:x}: {reasons_text(seam)}')}</rect>"
            )
    return parts


def _draw_columns(report: Inspection, line: _Line, y: float, scale: float, seams: dict[int, int]) -> list[str]:
    """One line added up by pixel column: the kind that fills most of it, and the seams in it by class."""
    rows = report.snapshot.rows
    kinds = {kind: at for at, kind in enumerate(KINDS)}
    fills: list[dict[int, float]] = [{} for _ in range(COLUMNS + 1)]
    density: list[dict[int, int]] = [{} for _ in range(COLUMNS + 1)]
    x = 0.0
    for index in range(line.first, line.last + 1):
        row = rows[index]
        if index > line.first and rows[index - 1].end != row.start:
            x += _GAP * scale
        width = _weight(row) * scale
        kind = kinds[kind_of(row)]
        for column in range(min(int(x), COLUMNS), min(int(x + width), COLUMNS) + 1):
            part = min(x + width, column + 1) - max(x, column)
            fills[column][kind] = fills[column].get(kind, 0.0) + part
        x += width
        at = seams.get(index)
        if at is not None:
            shown = class_of(report.seams[at].mask)
            counts = density[min(int(x), COLUMNS)]
            counts[shown] = counts.get(shown, 0) + 1
    parts = []
    start = 0
    best = [max(fill, key=lambda kind: fill[kind]) if fill else -1 for fill in fills]
    for column in range(1, len(best) + 1):
        if column == len(best) or best[column] != best[start]:
            if best[start] >= 0:
                parts.append(
                    f'<rect class="k{best[start]}" x="{MARGIN + start}" y="{y:.0f}" width="{column - start}" '
                    f'height="{BAND}"/>'
                )
            start = column
    fullest = max((sum(one.values()) for one in density), default=1) or 1
    for at, one in enumerate(density):
        count = sum(one.values())
        if not count:
            continue
        high = TICK * (0.33 + 0.67 * math.sqrt(count / fullest))
        top = y + BAND + 2
        for shown in sorted(one, reverse=True):
            part = high * one[shown] / count
            state = "open" if CLASSES[shown].open else "shut"
            parts.append(
                f'<rect class="s{shown}" x="{MARGIN + at}" y="{top:.2f}" width="1" height="{part:.2f}">'
                f"{_tip(f'{one[shown]} {state}: {CLASSES[shown].name}')}</rect>"
            )
            top += part
    return parts


def _legend(report: Inspection, y: float) -> tuple[list[str], float]:
    """Kinds and classes that occur, with counts, in rows of the full width; and the y below them."""
    entries = [
        (f"k{at}", f"{kind} {report.kinds[kind].vmas:,}") for at, kind in enumerate(KINDS) if kind in report.kinds
    ]
    counts: dict[int, int] = {}
    for seam in report.seams:
        shown = class_of(seam.mask)
        counts[shown] = counts.get(shown, 0) + 1
    entries += [
        (f"s{at}", f"{'open: ' if CLASSES[at].open else 'seam: '}{CLASSES[at].name} {counts[at]:,}")
        for at in sorted(counts)
    ]
    parts = []
    x = MARGIN
    for name, words in entries:
        width = 24 + 7 * len(words)
        if x + width > WIDTH - MARGIN:
            x = MARGIN
            y += 20
        parts.append(f'<rect class="{name}" x="{x}" y="{y - 10:.0f}" width="12" height="12"/>')
        parts.append(f'<text x="{x + 17}" y="{y:.0f}">{html.escape(words)}</text>')
        x += width
    return parts, y + 12


def strip(report: Inspection) -> str:
    """The SVG document."""
    seams = {seam.index: at for at, seam in enumerate(report.seams)}
    draw = _draw_whole if report.vmas <= WHOLE else _draw_columns
    words = (
        f"{printable(report.name)} (pid {report.pid}): {count_text(report.vmas, 'VMA')}, "
        f"{percent_text(report.vmas, report.limit)} of {report.limit:,}; {count_text(len(report.open), 'open seam')}; "
        f"{count_text(report.after_welding, 'VMA')} after welding"
    )
    parts, y = _legend(report, 50.0)
    lines = _lines(report)
    widest = max((line.units for line in lines), default=1.0)
    scale = COLUMNS / widest
    for line in lines:
        y += 16
        parts.append(
            f'<text class="small" x="{MARGIN}" y="{y - 4:.0f}">{report.snapshot.rows[line.first].start:x}</text>'
        )
        parts += draw(report, line, y, scale, seams)
        y += LINE - 10
    height = y + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
            f'height="{height:.0f}" role="img">',
            f"<title>{html.escape(words)}</title>",
            f"<style>{_styles()}</style>",
            f'<rect class="paper" width="{WIDTH}" height="{height:.0f}"/>',
            f'<text x="{MARGIN}" y="26" style="font-size: 15px">{html.escape(words)}</text>',
            *parts,
            "</svg>\n",
        ]
    )
