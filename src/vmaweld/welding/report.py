# SPDX-License-Identifier: GPL-2.0-or-later
"""What a weld did, for people and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vmaweld.welding.folding import Folded
from vmaweld.welding.plan import Left


@dataclass
class Report:
    """What a weld did.

    pid: the process.
    vmas_before, vmas_after: VMAs of the whole process.
    seams: open seams found in the range, before.
    closed: seams closed.
    pages: populated pages that moved (4 KiB each).
    copied: pages that `unshare` copied, because someone else maps them.
    left: open seams that stay, with reasons.
    repaired: what was put in order that an interrupted weld had left, "" for nothing.
    warnings: what is no longer as it was before, a line each; empty unless something quite unlikely happened.
    work: seconds that the batches took, where the memory is.
    pauses: seconds for which the threads were stopped, one a slice; empty for a weld of the own process.
    max_pause: seconds that was asked for as the longest of them; None where it was not.
    """

    pid: int
    vmas_before: int = 0
    vmas_after: int = 0
    seams: int = 0
    closed: int = 0
    pages: int = 0
    copied: int = 0
    left: Sequence[Left] = ()
    repaired: str = ""
    warnings: list[str] = field(default_factory=list)
    work: float = 0.0
    pauses: list[float] = field(default_factory=list)
    max_pause: float | None = None

    def add(self, folded: Folded) -> None:
        """Count in what `folded` did."""
        self.closed += folded.closed
        self.pages += folded.pages
        self.work += folded.work
        self.warnings += folded.warnings

    @property
    def pauses_over(self) -> int:
        """How many standstills took longer than was asked for."""
        return 0 if self.max_pause is None else sum(pause > self.max_pause for pause in self.pauses)

    def as_json(self) -> dict[str, object]:
        """The keys of ``vmaweld weld --json``; stable."""
        return {
            "pid": self.pid,
            "vmas": {"before": self.vmas_before, "after": self.vmas_after},
            "seams": {"before": self.seams, "closed": self.closed, "left": sum(left.seams for left in self.left)},
            "pages_moved": self.pages,
            "pages_copied": self.copied,
            "repaired": self.repaired,
            "warnings": self.warnings,
            "work_ms": round(self.work * 1e3, 3),
            "pauses_ms": [round(pause * 1e3, 3) for pause in self.pauses],
            "max_pause_ms": None if self.max_pause is None else round(self.max_pause * 1e3, 3),
            "pauses_over": self.pauses_over,
            "left": left_as_json(self.left),
        }


def left_as_json(left: Sequence[Left]) -> list[dict[str, object]]:
    """`left` as it appears in JSON; the keys are stable."""
    return [
        {
            "start": f"{entry.start:#x}",
            "end": f"{entry.end:#x}",
            "seams": entry.seams,
            "reason": entry.reason,
            "shared_pages": entry.pages,
        }
        for entry in left
    ]
