# SPDX-License-Identifier: GPL-2.0-or-later
"""Cutting a weld into slices that fit into a pause."""

from collections.abc import Sequence
from typing import Final

from vmaweld import abi
from vmaweld.kernel import pagemap
from vmaweld.snapshot import Row
from vmaweld.welding.plan import Candidate, clip, keep_from

# Seconds on a slow day, to begin with; what a slice really took corrects them.
_A_SLICE: Final = 1e-3  # however little it welds
_A_GROUP: Final = 200e-6
_A_PIECE: Final = 12e-6
_A_PAGE: Final = 1.2e-6
_COMPARED: Final = 10e-6  # a page that is read and hashed twice
_LEAST: Final = 500e-6
"""Seconds' worth of work that a slice does at least, by the measures above.

What a slice takes in any case, on a busy machine above all, must not be laid at the door of what little it moved: it
would move less and less, page by page in the end.
"""


class Pace:
    """How much can be welded in how long, learned from slice to slice.

    verify: the contents are compared in the same time.
    """

    def __init__(self, *, verify: bool = False) -> None:
        self._compared = _COMPARED if verify else 0.0
        self._page = _A_PAGE + self._compared
        self._scale = 1.0
        self._expected = 0.0
        self._work = 0.0
        self._around = 0.0

    def budget(self, pause: float, spent: float) -> float:
        """Seconds to weld in, of a standstill of `pause` of which `spent` are over.

        Where all that is around the work takes most of the pause, or more than that, some time must be left for it, or
        the whole would take for ever.
        """
        return max(pause - max(spent, self._around), pause / 2, spent / 4)

    def share(self, candidates: Sequence[Candidate], seconds: float) -> tuple[Sequence[Candidate], bool]:
        """(the first of `candidates` that fit into `seconds`, whether any are left over); never nothing.

        What does not fit as a whole is cut, in the end inside a VMA: its front goes over, the seam moves.
        """
        budget = max(seconds / self._scale - _A_SLICE, _LEAST)
        self._expected = 0.0
        chosen: list[Candidate] = []
        for index, candidate in enumerate(candidates):
            part = self._front(candidate, budget - self._expected, bool(chosen))
            if part is None:
                return chosen, True
            chosen.append(part)
            if part is not candidate:
                return chosen, True
            if self._expected >= budget:
                return chosen, index + 1 < len(candidates)
        return chosen, False

    def _front(self, candidate: Candidate, budget: float, optional: bool) -> Candidate | None:
        rows = candidate.rows
        cost = _A_GROUP
        if self._compared:
            kept = clip(candidate.runs, keep_from(rows[0], 0), rows[0].end)
            cost += self._compared * pagemap.totals(kept).populated
            # What is compared in any case may be much, and must not leave next to nothing for what moves.
            budget = budget if optional else max(budget, cost + max(cost, _LEAST))
        for at, row in enumerate(rows[1:], 1):
            whole = _A_PIECE + self._page * pagemap.totals(clip(candidate.runs, row.start, row.end)).populated
            if cost + whole > budget:
                if at > 1 or optional:
                    self._expected += cost if at > 1 else 0.0
                    return candidate._replace(rows=rows[:at]) if at > 1 else None
                room = max(budget - cost - _A_PIECE, 0.0)
                self._expected += cost + _A_PIECE + room
                return self._cut(candidate, row, clip(candidate.runs, row.start, row.end), room)
            cost += whole
        self._expected += cost
        return candidate

    def _cut(self, candidate: Candidate, row: Row, runs: Sequence[pagemap.Run], budget: float) -> Candidate:
        """The first row and as much of the second as fits."""
        room = max(int(budget / self._page), 1)
        end = row.start
        for start, stop, _ in runs:
            taken = min((stop - start) >> abi.PAGE_SHIFT, room)
            room -= taken
            end = start + (taken << abi.PAGE_SHIFT)
            if not room:
                break
        whole = end & -abi.HUGE_PAGE_SIZE
        if whole > row.start:
            end = whole  # no huge page in two
        if end >= row.end:
            end = row.end
        part = row.below(max(end, row.start + abi.PAGE_SIZE))
        return candidate._replace(rows=[candidate.rows[0], part], cut=part.end < row.end)

    def learn(self, seconds: float) -> None:
        """The share last given took so long."""
        self._work = seconds
        if self._expected:
            actual = seconds / (_A_SLICE + self._expected)
            self._scale = min(max((self._scale + actual) / 2, 0.02), 50.0)

    def paused(self, seconds: float) -> None:
        """So long was the standstill around what was last learned."""
        if self._work:
            around = max(seconds - self._work, 0.0)
            self._around = (self._around + around) / 2 if self._around else around
            self._work = 0.0
