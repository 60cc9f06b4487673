# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading one live process into a report."""

import gc
from collections.abc import Sequence
from functools import partial
from typing import Final

from vmaweld.abi import PAGE_SHIFT
from vmaweld.inspect.obstacles import obstacles
from vmaweld.inspect.report import Inspection, Pages
from vmaweld.kernel import pagemap, procfs
from vmaweld.kernel.errors import NotPermitted
from vmaweld.seams import SeamRun, runs_of_open_seams, seams
from vmaweld.snapshot import Row, Snapshot
from vmaweld.welding import source
from vmaweld.welding.plan import clip

_NEAR: Final = 16 << 20
"""Runs of open seams nearer to each other than this are looked up in one walk: 60,000 walks would take seconds."""
_NO_RUN: Final = pagemap.Run(1 << 64, 1 << 64, 0)


def inspect_process(pid: int, *, pages: bool = True) -> Inspection:
    """Everything about `pid`.

    pages: look up how many pages beside the open seams are populated and shared, too.
    Raises what `snapshots.take` raises: ProcessGone, NoAddressSpace, NotPermitted.
    """
    collecting = gc.isenabled()
    gc.disable()  # hundreds of thousands of objects are made and none is garbage
    try:
        status = procfs.status(pid)
        snapshot = source.take(pid)
        found = seams(snapshot)
        runs = runs_of_open_seams(found)
        populated = _populated(snapshot, runs) if pages else None
        known: dict[int, Pages] = {}
        if populated is not None:
            _add(known, [row for run in runs for row in snapshot.rows[run.first : run.last + 1]], populated)
        barred = obstacles(snapshot, runs, None if populated is None else partial(clip, populated))
        return Inspection(snapshot, found, status.name, status.uid, procfs.max_map_count(), known, barred)
    finally:
        if collecting:
            gc.enable()


def _populated(snapshot: Snapshot, runs: Sequence[SeamRun]) -> list[pagemap.Run] | None:
    """The pages of every row beside an open seam, ascending; None where pagemap may not be read."""
    found: list[pagemap.Run] = []
    try:
        with pagemap.Pagemap(snapshot.pid) as pages:
            for cluster in _clusters(runs):
                found += pages.closely(cluster[0].start, cluster[-1].end)
    except NotPermitted:
        return None
    return found


def _clusters(runs: Sequence[SeamRun]) -> list[list[SeamRun]]:
    clusters: list[list[SeamRun]] = []
    for run in runs:
        if clusters and run.start - clusters[-1][-1].end < _NEAR:
            clusters[-1].append(run)
        else:
            clusters.append([run])
    return clusters


def _add(known: dict[int, Pages], rows: Sequence[Row], populated: Sequence[pagemap.Run]) -> None:
    """Share `populated` out to `rows`, both in order of address."""
    alike: dict[tuple[int, int], Pages] = {}
    runs = iter(populated)
    start, end, kind = next(runs, _NO_RUN)
    for row in rows:
        low, high = row.start, row.end
        total = shared = 0
        while end <= low:
            start, end, kind = next(runs, _NO_RUN)
        while start < high:
            if not kind & pagemap.ZERO:
                count = (min(end, high) - max(start, low)) >> PAGE_SHIFT
                total += count
                # Swapped pages move whoever shares them: their offset is rebuilt from the VMA at swap-in.
                if kind & pagemap.MARKED or (kind & pagemap.PRESENT and not kind & (pagemap.EXCLUSIVE | pagemap.FILE)):
                    shared += count
            if end > high:
                break
            start, end, kind = next(runs, _NO_RUN)
        pages = alike.get((total, shared))
        if pages is None:
            pages = alike[total, shared] = Pages(total, shared)
        known[low] = pages
