# SPDX-License-Identifier: GPL-2.0-or-later
"""Fidelity: the model's rows against the true snapshots that a trace holds, each taken at its place among the events.

A row is exact when the model has a VMA with the same start and end, the same flags (soft-dirty aside), the same page
offset, a file where the kernel has one, an anon_vma and an inherited chain where the kernel has one, and when its
anon_vma is the model's up to renaming: one name for one name over the whole snapshot. What a snapshot's source does
not show is not compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from os.path import basename
from typing import Final

from vmaweld.comparison import Names, row_difference
from vmaweld.events import Event
from vmaweld.policy import Policy, policy_for_release
from vmaweld.snapshot import Row, Snapshot
from vmaweld.study.replay import Lane, Replayer
from vmaweld.trace.store import Trace

_PROGRESS_EVERY: Final = 2000

# Causes: what is not the model's in a row, beside those of `comparison`.
LAYOUT: Final = "borders"
OWNER: Final = "anon_vma identity"
PROCESS: Final = "process"


@dataclass(slots=True, frozen=True)
class Inexact:
    """One row that differs. cause: one of the above. text: kernel's row and what the model has, on one line."""

    pid: int
    program: str
    position: int
    snapshot: int
    row: str
    cause: str
    text: str


@dataclass(slots=True)
class Fidelity:
    """What comparing gave.

    policy: that of the recorded kernel. rows, exact: rows compared and how many of them are exact.
    snapshots: how many were compared, perfect: without any difference. hidden: how many of them showed page offsets
    and anon_vmas. inexact: the rows that differ; causes: their number by cause.
    lane: the machine that replayed, with its divergences.
    """

    policy: Policy
    lane: Lane
    rows: int = 0
    exact: int = 0
    snapshots: int = 0
    perfect: int = 0
    hidden: int = 0
    processes: set[int] = field(default_factory=set)
    inexact: list[Inexact] = field(default_factory=list)

    @property
    def share(self) -> float:
        """The share of exact rows, from 0 to 1; 1 where there are none."""
        return self.exact / self.rows if self.rows else 1.0

    @property
    def causes(self) -> Counter[str]:
        """How many rows differ, by cause."""
        return Counter(row.cause for row in self.inexact)


def compare(model: Snapshot, true: Snapshot) -> list[tuple[Row, str, str]]:
    """The rows that differ as (row, cause, text): true rows, and the model's where the kernel has nothing at all."""
    by_start = {row.start: row for row in model.rows}
    names = Names()
    found: list[tuple[Row, str, str]] = []
    for theirs in true.rows:
        ours = by_start.get(theirs.start)
        if ours is None or ours.end != theirs.end:
            here = [row for row in model.rows if row.start < theirs.end and theirs.start < row.end]
            text = "; ".join(map(repr, here[:3])) + (f"; {len(here) - 3} more" if len(here) > 3 else "")
            found.append((theirs, LAYOUT, f"model: {text or 'nothing'}"))
            continue
        difference = row_difference(ours, theirs, exact=true.flags_exact)
        if difference is None and ours.anon_vma and theirs.anon_vma and not names.same(ours.anon_vma, theirs.anon_vma):
            difference = OWNER, f"model: anon_vma {ours.anon_vma}, which is another one elsewhere"
        if difference is not None:
            found.append((theirs, *difference))
    position = 0
    for ours in model.rows:
        while position < len(true.rows) and true.rows[position].end <= ours.start:
            position += 1
        if position == len(true.rows) or true.rows[position].start >= ours.end:
            found.append((ours, LAYOUT, "only in the model"))
    return found


def check(
    trace: Trace, *, policy: Policy | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> Fidelity:
    """Replay `trace` under `policy` (that of the recorded kernel where None) and compare every true snapshot.

    Raises TraceError where the file turns out to be damaged.
    """
    metadata = trace.metadata
    chosen = policy_for_release(metadata.kernel) if policy is None else policy
    replayer = Replayer(
        [chosen],
        max_map_count=metadata.max_map_count,
        overcommit_never=metadata.overcommit == 2,
        thp=metadata.thp or "madvise",
    )
    lane = replayer.lanes[0]
    fidelity = Fidelity(chosen, lane)
    total = len(trace)
    for item in trace.items():
        if isinstance(item, Event):
            replayer.apply(item)
            if not replayer.events % _PROGRESS_EVERY:
                progress(replayer.events, total)
            continue
        true = item.snapshot
        fidelity.snapshots += 1
        fidelity.hidden += true.hidden
        fidelity.processes.add(true.pid)
        fidelity.rows += len(true.rows)
        program = basename(replayer.programs.get(true.pid, ""))
        if lane.space(true.pid) is None:
            differing = [(row, PROCESS, "the model has no such process") for row in true.rows]
        else:
            differing = compare(lane.system.snapshot(true.pid), true)
        fidelity.perfect += not differing
        only_ours = sum(1 for row, _, _ in differing if row not in true.rows)
        fidelity.rows += only_ours
        fidelity.exact += len(true.rows) - (len(differing) - only_ours)
        fidelity.inexact += [
            Inexact(true.pid, program, item.position, fidelity.snapshots, repr(row), cause, text)
            for row, cause, text in differing
        ]
    progress(total, total)
    return fidelity
