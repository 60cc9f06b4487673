# SPDX-License-Identifier: GPL-2.0-or-later
"""What a report says of a snapshot made by hand: kinds, obstacles, outcome, words, JSON keys."""

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vmaweld import abi
from vmaweld.inspect.as_json import maps_data, report_data
from vmaweld.inspect.html import picture_data
from vmaweld.inspect.kinds import KINDS, kind_of
from vmaweld.inspect.legend import CLASSES, MEANINGS, class_of
from vmaweld.inspect.obstacles import obstacles
from vmaweld.inspect.report import Inspection, Pages
from vmaweld.inspect.svg import strip
from vmaweld.inspect.text import map_lines, print_report
from vmaweld.inspect.words import percent_text, size_text
from vmaweld.kernel import pagemap
from vmaweld.seams import OPEN_MASK, REASON_NAMES, REASONS, runs_of_open_seams, seams
from vmaweld.snapshot import Row, Snapshot
from vmaweld.welding import support
from vmaweld.welding.plan import OBSTACLES
from vmaweld.words import printable

RW = abi.VM_READ | abi.VM_WRITE | abi.VM_MAYREAD | abi.VM_MAYWRITE | abi.VM_MAYEXEC
DOCS = Path(__file__).parent.parent / "docs" / "inspect.md"


def row(page: int, pages: int = 4, flags: int = RW, **fields: Any) -> Row:
    known: dict[str, Any] = {"pgoff": page, "anon_vma": 0, "chain": 0, "mempolicy": "", "uffd": 0, "file_id": 0}
    known.update(fields)
    return Row(page * 4096, (page + pages) * 4096, flags, **known)


def report_of(rows: list[Row], pages: dict[int, Pages] | None = None, *, hidden: bool = True) -> Inspection:
    source = "bpf" if hidden else "procfs"
    snapshot = Snapshot(7, rows, source=source, flags_exact=hidden, hidden=hidden)
    found = seams(snapshot)
    return Inspection(
        snapshot, found, "name", 0, 100, pages or {}, obstacles(snapshot, runs_of_open_seams(found), None)
    )


@pytest.mark.parametrize(
    ("flags", "fields", "kind"),
    [
        (RW, {}, "anonymous"),
        (RW, {"name": "[anon:cache]"}, "anonymous"),
        (abi.VM_MAYREAD, {}, "reserved"),
        (RW, {"name": "[heap]"}, "heap"),
        (RW | abi.VM_GROWSDOWN, {}, "stack"),
        (RW, {"name": "[stack]"}, "stack"),
        (abi.VM_READ | abi.VM_EXEC, {"file": "/bin/true"}, "file-private"),
        (RW | abi.VM_SHARED | abi.VM_MAYSHARE, {"file": "/var/db"}, "file-shared"),
        (RW | abi.VM_SHARED | abi.VM_MAYSHARE, {"file": "/dev/zero (deleted)"}, "shared-memory"),
        (RW | abi.VM_SHARED | abi.VM_MAYSHARE, {"file": "/memfd:x (deleted)"}, "shared-memory"),
        (RW | abi.VM_HUGETLB | abi.VM_DONTEXPAND, {"file": "/anon_hugepage (deleted)"}, "hugetlb"),
        (abi.VM_READ | abi.VM_DONTEXPAND, {"name": "[vdso]"}, "special"),
        (abi.VM_READ, {"name": "[vvar]"}, "special"),
        (RW | abi.VM_PFNMAP | abi.VM_IO | abi.VM_MAYSHARE, {"file": "/dev/mem"}, "special"),
    ],
)
def test_kinds(flags: int, fields: dict[str, Any], kind: str) -> None:
    assert kind_of(row(16, flags=flags, **fields)) == kind
    assert kind in KINDS


OWN = pagemap.PRESENT | pagemap.EXCLUSIVE


@pytest.mark.parametrize(
    ("flags", "fields", "pages", "expected"),
    [
        (RW, {}, OWN, ""),
        (RW, {}, pagemap.SWAPPED, ""),
        (RW, {"name": "[heap]"}, OWN, ""),
        (RW, {}, pagemap.PRESENT, "shared-pages"),
        (RW, {}, pagemap.PRESENT | pagemap.ZERO, "zeroes"),
        (RW, {"file": "/lib/x.so"}, OWN, "file"),
        (RW | abi.VM_MAYSHARE, {"file": "/dev/zero (deleted)"}, OWN, "shared-memory"),
        (RW | abi.VM_HUGETLB, {}, OWN, "hugetlb"),
        (RW, {"name": "[stack]"}, OWN, "stack"),
        (RW | abi.VM_GROWSDOWN, {}, OWN, "stack"),
        (RW | abi.VM_UFFD_MISSING, {}, OWN, "userfaultfd"),
        (RW | abi.VM_SEALED, {}, OWN, "sealed"),
        (RW | abi.VM_SHADOW_STACK, {}, OWN, "shadow-stack"),
        (RW | abi.VM_DROPPABLE, {}, OWN, "droppable"),
        (RW & ~abi.VM_WRITE, {}, OWN, "never-writable"),
        (RW & ~abi.VM_WRITE | abi.VM_ACCOUNT, {}, OWN, ""),
        (RW | abi.VM_LOCKED, {}, OWN, ""),
        (RW | abi.VM_LOCKED, {}, 0, "locked-holes"),
        (RW | abi.VM_LOCKED | abi.VM_LOCKONFAULT, {}, 0, ""),
        (RW | abi.VM_MERGEABLE, {}, OWN, "ksm"),
        (RW & ~abi.VM_WRITE | abi.VM_LOCKED, {}, pagemap.PRESENT, "never-writable"),
    ],
)
@pytest.mark.parametrize("relock", ["", "locked-swap"])
def test_obstacles(
    flags: int, fields: dict[str, Any], pages: int, expected: str, relock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are the weld's own: what it asks of machine and process is asked here too."""
    monkeypatch.setattr(support, "relock_reason", lambda _pid: OBSTACLES.get(relock, ""))
    monkeypatch.setattr(support, "zero_stays", lambda: True)
    if flags & abi.VM_LOCKED_MASK and relock and expected != "never-writable":
        expected = relock
    rows = [row(16, flags=flags, **fields), row(20, flags=flags, **fields, pgoff=7)]
    if "file" in fields:
        rows[1].pgoff, rows[1].anon_vma, rows[0].anon_vma = 20, 1, 2
    snapshot = Snapshot(7, rows, source="bpf", flags_exact=True, hidden=True)
    runs = runs_of_open_seams(seams(snapshot))

    def look(start: int, end: int) -> list[pagemap.Run]:
        return [pagemap.Run(start, end, pages)] if pages else []

    assert obstacles(snapshot, runs, look) == ({20 * 4096: expected} if expected else {})
    # Where pages cannot be read, none stands in the way as far as is known.
    held = ("shared-pages", "zeroes", "locked-holes")
    blind = expected if expected not in held else ""
    assert obstacles(snapshot, runs, None) == ({20 * 4096: blind} if blind else {})


def test_what_welding_would_leave() -> None:
    locked = RW | abi.VM_LOCKED
    report = report_of(
        [
            row(16, anon_vma=1, chain=1),
            row(20, anon_vma=2, chain=1),  # open
            row(24, anon_vma=3, chain=1),  # open
            row(40, flags=RW | abi.VM_GROWSDOWN, anon_vma=4, chain=1),
            row(44, flags=RW | abi.VM_GROWSDOWN, anon_vma=5, chain=1),  # open, but stack
            row(48, flags=locked),  # shut
            row(52, flags=locked, pgoff=7),  # open; locked again after the weld
        ],
        {page * 4096: Pages(page, 0) for page in (16, 20, 24, 40, 44, 48, 52)},
    )
    assert (report.vmas, len(report.seams), len(report.open), len(report.runs)) == (7, 5, 4, 3)
    assert (report.weldable, report.after_welding) == (3, 4)
    assert report.obstacle_counts() == {"stack": 1}
    assert [one.populated for one in report.open] == [36, 44, 84, 100]
    assert sum(total.vmas for total in report.kinds.values()) == 7
    assert list(report.reasons) == list(REASONS)
    assert report.alone == {**dict.fromkeys(REASONS, 0), "page-offset": 1, "anon-vma": 3, "flags": 1}


def test_every_reason_has_a_meaning_and_every_mask_a_class() -> None:
    assert MEANINGS.keys() == set(REASONS)
    for bit, name in REASON_NAMES.items():
        shown = CLASSES[class_of(bit)]
        assert shown.name == name
        assert shown.open is bool(bit & OPEN_MASK)
        if not bit & OPEN_MASK:
            # With others, a shut seam goes by its first reason.
            assert class_of(bit | 1 << 9 | 1 << 7) == min(class_of(bit), class_of(1 << 7))
    assert CLASSES[class_of(0)].name == "not-attempted"


def text_of(report: Inspection, width: int = 100) -> str:
    out = StringIO()
    print_report(report, Console(file=out, width=width, highlight=False), 20)
    return out.getvalue()


def test_text_of_a_name_with_markup_and_escapes() -> None:
    report = report_of([row(16, anon_vma=1, chain=1), row(20, anon_vma=2, chain=1)])
    report.name = "[red]x\x1b[2J\n"
    text = text_of(report)
    assert "[red]x\\x1b[2J\\n (pid 7" in text
    assert "1 open seam in 1 run." in text
    assert "populated pages are unknown" in text


def test_text_says_how_far_it_can_be_trusted() -> None:
    rows = [row(16, pgoff=None, anon_vma=None, uffd=None, mempolicy=None), row(20, pgoff=None, anon_vma=None)]
    text = text_of(report_of(rows, hidden=False))
    assert "By elimination" in text
    assert "page-offset-or-anon-vma" in text
    assert text_of(report_of([row(16)])).count("No open seam") == 1
    report = report_of([row(16)])
    report.snapshot.consistent = False
    assert "changed its memory while it was read" in text_of(report)


def test_maps_annotates_every_border() -> None:
    rows = [
        row(16, anon_vma=0xFFFF888812345678, chain=2),
        row(20, pgoff=99, anon_vma=5, chain=1),
        row(24, flags=RW | abi.VM_DONTDUMP, name="[anon:a\nb]", mempolicy="bind:0"),
        row(1024),
    ]
    lines = list(map_lines(report_of(rows)))
    assert len(lines) == 7
    assert "anon_vma #1  chain 2" in lines[0]
    assert not any("ffff8888" in line for line in lines)
    assert lines[1].endswith("~~~ open: page-offset, anon-vma")
    assert "(+79 pages from its address)" in lines[2]
    assert lines[3].endswith("--- flags (dontdump), anon-name, mempolicy, page-offset")
    assert lines[4].endswith("dontdump  bind:0  [anon:a\\nb]")
    assert lines[5].endswith("...  3.89 MiB unmapped")


def test_every_json_key_is_documented_and_serves() -> None:
    report = report_of([row(16, anon_vma=1, chain=1), row(20, anon_vma=2, chain=1)], {16 * 4096: Pages(1, 0)})
    data = report_data(report)
    data["maps"] = maps_data(report.snapshot, {seam.index: seam.reasons for seam in report.seams})
    documented = set(re.findall(r"`([a-z_]+)`", DOCS.read_text(encoding="utf-8")))

    def keys(value: object) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*map(keys, value.values())) if value else set()
        return set().union(*map(keys, value)) if isinstance(value, list) else set()

    names = {name.replace("-", "_") for name in (*REASONS, *KINDS, *OBSTACLES)}
    assert {key for key in keys(data) if key.replace("-", "_") not in names} <= documented
    assert json.loads(json.dumps(data))["after_welding"] == 1
    (seam,) = json.loads(json.dumps(data["open_seams"]))
    assert seam["left"]["populated_pages"] == 1
    assert seam["right"]["populated_pages"] is None


@pytest.mark.parametrize("name", [*REASONS, *KINDS, *OBSTACLES])
def test_every_name_is_documented(name: str) -> None:
    assert f"`{name}`" in DOCS.read_text(encoding="utf-8")


def test_words() -> None:
    assert [size_text(n) for n in (4096, 1023 << 10, 1 << 20, 1000 << 20, 3 << 40, 127 << 40)] == [
        "4 KiB",
        "1023 KiB",
        "1 MiB",
        "1000 MiB",
        "3 TiB",
        "127 TiB",
    ]
    assert printable("caf\u00e9 \udcff\u202e\t") == "caf\u00e9 \\xff\\u202e\\t"
    assert [percent_text(n, 65530) for n in (0, 500, 60_000)] == ["0.0 %", "0.8 %", "92 %"]
    assert percent_text(1, 0) == "0 %"


def test_a_picture_by_elimination() -> None:
    rows = [
        row(16, pgoff=None, anon_vma=None),
        row(20, pgoff=None, anon_vma=None),
        row(24, flags=abi.VM_READ, pgoff=None),
    ]
    report = report_of(rows, hidden=False)
    data = picture_data(report)
    shown = [CLASSES[number].name for number in data["seams"]["cls"]]  # type: ignore[index]
    assert shown == ["page-offset-or-anon-vma", "protection"]
    assert data["rows"]["shift"] == [None] * 3  # type: ignore[index]
    assert "page-offset-or-anon-vma" in strip(report)
