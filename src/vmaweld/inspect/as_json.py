# SPDX-License-Identifier: GPL-2.0-or-later
"""A report as plain data, for --json. The keys are told in docs/inspect.md and do not change their meaning."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vmaweld.abi import flag_names
from vmaweld.inspect.kinds import kind_of
from vmaweld.inspect.report import Inspection, OpenSeam, Pages
from vmaweld.snapshot import Row, Snapshot

if TYPE_CHECKING:
    from prometheus_client import Metric

    from vmaweld.inspect.census import Census, Counted

SCHEMA = 1
"""Raised when a key goes away or changes its meaning; new keys may come at any time."""


class Numbering:
    """Small numbers for anon_vmas, in order of appearance: their kernel addresses are nobody's business."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def __call__(self, identity: int | None) -> int | None:
        """None for unknown, 0 for none, else 1, 2, 3 ..."""
        if not identity:
            return identity
        return self._numbers.setdefault(identity, len(self._numbers) + 1)


def report_data(report: Inspection) -> dict[str, object]:
    """Everything `inspect` knows but the VMAs one by one."""
    snapshot = report.snapshot
    return {
        "schema": SCHEMA,
        "pid": report.pid,
        "name": report.name,
        "uid": report.uid,
        "source": snapshot.source,
        "exact": report.exact,
        "consistent": snapshot.consistent,
        "vmas": report.vmas,
        "limit": report.limit,
        "share": round(report.vmas / report.limit, 6),
        "kinds": {kind: {"vmas": total.vmas, "bytes": total.size} for kind, total in report.kinds.items()},
        "seams": len(report.seams),
        "reasons": report.reasons,
        "reasons_alone": report.alone,
        "open": len(report.open),
        "weldable": report.weldable,
        "after_welding": report.after_welding,
        "runs": len(report.runs),
        "obstacles": report.obstacle_counts(),
        "open_seams": [_open_seam(one) for one in report.open],
    }


def _open_seam(one: OpenSeam) -> dict[str, object]:
    seam = one.seam
    return {
        "address": hex(seam.address),
        "reasons": list(seam.reasons),
        "exact": seam.exact,
        "left": _side(seam.left, one.left_pages),
        "right": _side(seam.right, one.right_pages),
        "obstacles": [one.obstacle] if one.obstacle else [],
        "weldable": one.weldable,
    }


def _side(row: Row, pages: Pages | None) -> dict[str, object]:
    return {
        "start": hex(row.start),
        "end": hex(row.end),
        "kind": kind_of(row),
        "name": row.name or row.file,
        "populated_pages": pages.populated if pages else None,
        "shared_pages": pages.shared if pages else None,
    }


def maps_data(snapshot: Snapshot, reasons: dict[int, tuple[str, ...]]) -> list[dict[str, object]]:
    """The VMAs one by one; `reasons` tells by row what holds the seam after it."""
    number = Numbering()
    return [
        {
            "start": hex(row.start),
            "end": hex(row.end),
            "perms": row.perms(),
            "flags": flag_names(row.flags),
            "kind": kind_of(row),
            "page_offset": row.pgoff,
            "anon_vma": number(row.anon_vma),
            "chain": row.chain,
            "file": row.file,
            "name": row.name,
            "mempolicy": row.mempolicy,
            "userfaultfd": None if row.uffd is None else row.uffd != 0,
            "seam_after": list(reasons[index]) if index in reasons else None,
        }
        for index, row in enumerate(snapshot.rows)
    ]


def watch_data(report: Inspection, time: str, growth: float) -> dict[str, object]:
    """One line of --watch: `growth` in VMAs a second."""
    return {
        "schema": SCHEMA,
        "time": time,
        "pid": report.pid,
        "name": report.name,
        "vmas": report.vmas,
        "limit": report.limit,
        "share": round(report.vmas / report.limit, 6),
        "open": len(report.open),
        "growth_per_second": round(growth, 3),
        "exact": report.exact,
    }


def census_data(census: "Census", counted: "Sequence[Counted]") -> dict[str, object]:
    """Every process of `inspect --all`."""
    return _ranking(census, [_counted(census, one) for one in counted])


def top_data(census: "Census", counted: "Sequence[Counted]") -> dict[str, object]:
    """The table of `top`: the same, and how fast each grows."""
    return _ranking(census, [{**_counted(census, one), "growth_per_second": round(one.growth, 3)} for one in counted])


def _ranking(census: "Census", processes: list[dict[str, object]]) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "limit": census.limit,
        "exact": census.exact,
        "refused": census.refused,
        "processes": processes,
    }


def _counted(census: "Census", one: "Counted") -> dict[str, object]:
    return {
        "pid": one.pid,
        "name": one.name,
        "uid": one.uid,
        "vmas": one.vmas,
        "share": round(one.vmas / census.limit, 6),
        "seams": one.seams,
        "open": one.open_seams,
        "open_reasons": one.reasons,
    }


def metrics_data(families: "Iterable[Metric]") -> dict[str, object]:
    """What one scrape of `export` gives."""
    return {
        "schema": SCHEMA,
        "metrics": [
            {
                "name": family.name,
                "help": family.documentation,
                "samples": [{"labels": sample.labels, "value": sample.value} for sample in family.samples],
            }
            for family in families
        ],
    }
