# SPDX-License-Identifier: GPL-2.0-or-later
"""The picture of an address space as one self-contained HTML file.

All data goes in as columns of numbers, so that 60,000 VMAs take about 2 MB, and the page draws them on a canvas
with as much detail as fits: see picture.js.
"""

import html
import json
from importlib.resources import files

from vmaweld.abi import (
    PAGE_SHIFT,
    VM_ACCESS_FLAGS,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_SHARED,
    flag_names,
)
from vmaweld.inspect.as_json import Numbering
from vmaweld.inspect.kinds import KINDS, kind_of
from vmaweld.inspect.legend import CLASSES, KIND_COLOURS, class_of
from vmaweld.inspect.report import Inspection
from vmaweld.inspect.text import source_line
from vmaweld.inspect.words import percent_text, reasons_text
from vmaweld.words import count_text, printable

_TOLD_BY_PERMS = VM_ACCESS_FLAGS | VM_SHARED | VM_MAYSHARE | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC


class _Strings:
    """Each text once; rows hold its number."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._numbers: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        number = self._numbers.get(text)
        if number is None:
            number = self._numbers[text] = len(self.all)
            self.all.append(printable(text))
        return number


def title(report: Inspection) -> str:
    """What the picture shows, in a line."""
    vmas, seams = count_text(report.vmas, "VMA"), count_text(len(report.open), "open seam")
    return f"{printable(report.name)} (pid {report.pid}): {vmas}, {seams}"


def picture_data(report: Inspection) -> dict[str, object]:
    """Everything the page draws. Offsets and gaps in pages, `shift` = page offset less the page of the address."""
    rows = report.snapshot.rows
    text = _Strings()
    number = Numbering()
    kinds = list(KINDS)
    kind_numbers = {kind: at for at, kind in enumerate(kinds)}
    class_counts = [0] * len(CLASSES)
    seam_classes = []
    for seam in report.seams:
        at = class_of(seam.mask)
        class_counts[at] += 1
        seam_classes.append(at)
    positions = {seam.index: at for at, seam in enumerate(report.seams)}
    tiles = [
        ("VMAs", f"{report.vmas:,}"),
        ("of vm.max_map_count", f"{report.limit:,} ({percent_text(report.vmas, report.limit)})"),
        ("seams", f"{len(report.seams):,}"),
        ("open seams", f"{len(report.open):,}"),
        ("VMAs after welding", f"{report.after_welding:,}"),
    ]
    gaps = []
    end = 0
    for row in rows:
        gaps.append((row.start - end) >> PAGE_SHIFT)
        end = row.end
    totals = report.kinds
    return {
        "meta": {"title": title(report), "source": source_line(report), "tiles": tiles},
        "kinds": [
            {
                "name": kind,
                "meaning": KINDS[kind],
                "colour": KIND_COLOURS[kind],
                "count": totals[kind].vmas if kind in totals else 0,
                "pages": totals[kind].size >> PAGE_SHIFT if kind in totals else 0,
            }
            for kind in kinds
        ],
        "classes": [
            {
                "name": one.name,
                "open": one.open,
                "meaning": one.meaning,
                "colour": one.colours,
                "count": class_counts[at],
            }
            for at, one in enumerate(CLASSES)
        ],
        "rows": {
            "gap": gaps,
            "pages": [row.pages for row in rows],
            "perms": [text(row.perms()) for row in rows],
            "flags": [text(" ".join(flag_names(row.flags & ~_TOLD_BY_PERMS))) for row in rows],
            "kind": [kind_numbers[kind_of(row)] for row in rows],
            "name": [text(row.name or row.file) for row in rows],
            "shift": [None if row.pgoff is None else row.pgoff - (row.start >> PAGE_SHIFT) for row in rows],
            "anon": [number(row.anon_vma) for row in rows],
        },
        "seams": {
            "row": [seam.index for seam in report.seams],
            "cls": seam_classes,
            "why": [text(reasons_text(seam)) for seam in report.seams],
        },
        "open": {
            "seam": [positions[one.seam.index] for one in report.open],
            "populated": [one.populated for one in report.open],
            "shared": [one.shared for one in report.open],
            "obstacles": [text(one.obstacle) for one in report.open],
        },
        "strings": text.all,
    }


def picture(report: Inspection) -> str:
    """The whole page. It loads nothing and opens from a file."""
    room = files("vmaweld.inspect")
    # "<" would end the script element, whatever a file is called; U+2028 and its like are escaped by json.
    data = json.dumps(picture_data(report), separators=(",", ":")).replace("<", "\\u003c")
    page = (room / "picture.html").read_text(encoding="utf-8")
    style = (room / "picture.css").read_text(encoding="utf-8").rstrip()
    script = (room / "picture.js").read_text(encoding="utf-8").rstrip()
    before, _, rest = page.partition("@DATA@")
    head = before.replace("@TITLE@", html.escape(title(report))).replace("@STYLE@", style)
    return head + data + rest.replace("@SCRIPT@", script)
