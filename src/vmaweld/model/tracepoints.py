# SPDX-License-Identifier: GPL-2.0-or-later
"""MergeRecord: one attempted merge, and the trace events that patch 4 of the series defines."""

from __future__ import annotations

from vmaweld.abi import PAGE_SHIFT
from vmaweld.model.anon_vma import why_shared
from vmaweld.model.merge import (
    ANON_VMA,
    ANSWER_NAMES,
    AV_MERGE_DIFFERENT,
    AV_MERGE_FAILED,
    AV_MERGE_SAME,
    NEW_TO_BOTH,
    NEW_TO_NEXT,
    OBSTACLE_NAMES,
    SOFT,
    TAIL_TO_NEXT,
    WHOLE_TO_BOTH,
    WHOLE_TO_NEXT,
    MergeState,
)


class MergeRecord:
    """What one attempt to merge asked, was answered and did.

    sequence: number of the event, from 0, that led to it.      pid: the process of that event.    call: its operation.
    start, end: the range as it was to be.      case: 1-8, 0 where nothing merged.
    prev_answer, next_answer, both_answer: as in ``vm_av_merge``; see `ANSWER_NAMES`.
    prev_obstacles, next_obstacles: bits of `OBSTACLE_NAMES`; a neighbour that only SOFT bits refuse is a missed merge.
    moved: the range was being moved by mremap.     faulted: and had an anon_vma.   updated: and got a new page offset.
    shared: why patch 2 or 3 left it alone ("" where they did not have to): the limitation, in words.
    """

    __slots__ = (
        "both_answer",
        "call",
        "case",
        "end",
        "faulted",
        "moved",
        "next_answer",
        "next_obstacles",
        "pid",
        "prev_answer",
        "prev_obstacles",
        "sequence",
        "shared",
        "start",
        "updated",
    )

    def __init__(self, sequence: int, pid: int, call: str, m: MergeState) -> None:
        self.sequence: int = sequence
        self.pid: int = pid
        self.call: str = call
        self.start: int = m.start
        self.end: int = m.end
        self.case: int = m.case
        self.prev_answer: int = m.prev_answer
        self.next_answer: int = m.next_answer
        self.both_answer: int = m.both_answer
        self.prev_obstacles: int = m.prev_obstacles
        self.next_obstacles: int = m.next_obstacles
        self.moved: bool = m.source is not None
        self.faulted: bool = m.source is not None and m.anon_vma is not None
        self.updated: bool = m.updated
        self.shared: str = m.shared
        if not m.shared and (m.prev_obstacles | m.next_obstacles) & ANON_VMA:
            self.shared = why_shared(m.anon_vma)

    @property
    def merged(self) -> bool:
        """True if the range became part of a neighbour."""
        return self.case != 0

    @property
    def saved(self) -> int:
        """VMAs that the merge saved, against leaving range and neighbours apart."""
        return 2 if self.case in (NEW_TO_BOTH, WHOLE_TO_BOTH) else 1 if self.case else 0

    def missed(self) -> list[int]:
        """Addresses of the borders at which only the page offset or the anon_vmas refused a merge.

        That includes the one left where the range could merge with either neighbour, but these not with each other.
        """
        borders = []
        if self.prev_obstacles and not self.prev_obstacles & ~SOFT:
            borders.append(self.start)
        if self.next_obstacles and not self.next_obstacles & ~SOFT:
            borders.append(self.end)
        if self.case and self.both_answer == AV_MERGE_FAILED:  # the one that was asked first was taken
            borders.append(self.start if self.case in (NEW_TO_NEXT, TAIL_TO_NEXT, WHOLE_TO_NEXT) else self.end)
        return borders

    def trace_lines(self) -> list[str]:
        """The record as the lines that tracefs would print after the task and time columns."""
        answers = (self.prev_answer, self.next_answer, self.both_answer)
        lines = [
            f"vm_av_merge: merged={int(self.merged)} predecessor={ANSWER_NAMES[answers[0]]}"
            f" successor={ANSWER_NAMES[answers[1]]} predecessor_with_successor={ANSWER_NAMES[answers[2]]}"
            f" same_count={answers.count(AV_MERGE_SAME)} diff_count={answers.count(AV_MERGE_DIFFERENT)}"
            f" failed_count={answers.count(AV_MERGE_FAILED)}"
        ]
        if self.moved and self.merged:
            lines.append(f"vm_pgoff_merge: faulted={int(self.faulted)} updated={int(self.updated)}")
        return lines

    def __repr__(self) -> str:
        pages = (self.end - self.start) >> PAGE_SHIFT
        return f"<merge #{self.sequence} {self.call} {self.start:#x}+{pages}p case {self.case}>"


def obstacle_names(bits: int) -> list[str]:
    """The obstacles in `bits`, by name."""
    return [name for bit, name in OBSTACLE_NAMES.items() if bits & bit]


class Tracepoints:
    """Collects merge records. A machine without one pays nothing for them.

    records: in order; whoever reads them may clear the list.
    """

    __slots__ = ("call", "pid", "records", "sequence")

    def __init__(self) -> None:
        self.records: list[MergeRecord] = []
        self.sequence: int = 0
        self.pid: int = 0
        self.call: str = ""

    def merge(self, m: MergeState) -> None:
        """Note the attempt `m` by the event under way. It has been decided and not been applied yet."""
        self.records.append(MergeRecord(self.sequence, self.pid, self.call, m))
