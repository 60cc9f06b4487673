"""Reading one live process into a report."""

import gc
from collections.abc import Mapping, Sequence
from typing import Final

from vmaweld.abi import PAGE_SHIFT
from vmaweld.inspect.report import Pages, Report
from vmaweld.kernel import pagemap, procfs, snapshots
from vmaweld.kernel.errors import NotPermitted
from vmaweld.seams import Run, Seam, runs_of_open_seams, seams
from vmaweld.snapshot import Row, Snapshot

_NEAR: Final = 16 << 20
"""Runs of open seams nearer to each other than this are looked up in one walk: 60,000 walks would take seconds."""


def inspect_process(pid: int, *, pages: bool = True) -> Report:
    """Everything about `pid`.

    pages: look up how many pages beside the open seams are populated and shared, too.
    Raises what `snapshots.take` raises: ProcessGone, NoAddressSpace, NotPermitted.
    """
    collecting = gc.isenabled()
    gc.disable()  # hundreds of thousands of objects are made and none is garbage
    try:
        status = procfs.status(pid)
        snapshot = snapshots.take(pid)
        found = seams(snapshot)
        known = _pages(snapshot, found) if pages else {}
        return Report(snapshot, found, status.name, status.uid, procfs.max_map_count(), known)
    finally:
        if collecting:
            gc.enable()


def _pages(snapshot: Snapshot, found: Sequence[Seam]) -> Mapping[int, Pages]:
    """The pages of every row beside an open seam, by start address; empty where pagemap may not be read."""
    runs = runs_of_open_seams(found)
    if not runs:
        return {}
    known: dict[int, Pages] = {}
    try:
        with pagemap.Pagemap(snapshot.pid) as pages:
            for cluster in _clusters(runs):
                rows = [row for run in cluster for row in snapshot.rows[run.first : run.last + 1]]
                _add(known, rows, pages.runs(rows[0].start, rows[-1].end))
    except NotPermitted:
        return {}
    return known


def _clusters(runs: Sequence[Run]) -> list[list[Run]]:
    clusters: list[list[Run]] = []
    for run in runs:
        if clusters and run.start - clusters[-1][-1].end < _NEAR:
            clusters[-1].append(run)
        else:
            clusters.append([run])
    return clusters


def _add(known: dict[int, Pages], rows: Sequence[Row], populated: Sequence[pagemap.Run]) -> None:
    """Share `populated` out to `rows`, both in order of address."""
    at = 0
    for row in rows:
        total = shared = 0
        while at < len(populated) and populated[at].end <= row.start:
            at += 1
        index = at
        while index < len(populated) and populated[index].start < row.end:
            start, end, kind = populated[index]
            index += 1
            if kind & pagemap.ZERO:
                continue
            count = (min(end, row.end) - max(start, row.start)) >> PAGE_SHIFT
            total += count
            # Swapped pages move whoever shares them: their offset is rebuilt from the VMA at swap-in.
            if kind & pagemap.PRESENT and not kind & (pagemap.EXCLUSIVE | pagemap.FILE):
                shared += count
        known[row.start] = Pages(total, shared)
