# SPDX-License-Identifier: GPL-2.0-or-later
"""What a turn of one program brought, added up in the table."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class Result:
    """Counts of one program.

    turns, beats: how often it was started, and how often it said that its data is right.
    cracked: seams made in it.
    welds: welders started.
    seams, closed: seams that welders found and closed, as far as they came to an end.
    refused, gone, interrupted: welders that refused, lost their process, or ended after SIGINT or SIGTERM.
    killed: welders of which a process got SIGKILL.
    reasons: the lines of those that refused, numbers left out.
    anomalies: what must never happen, a line each.
    """

    program: str
    turns: int = 0
    beats: int = 0
    cracked: int = 0
    welds: int = 0
    seams: int = 0
    closed: int = 0
    refused: int = 0
    gone: int = 0
    interrupted: int = 0
    killed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    anomalies: list[str] = field(default_factory=list)

    def add(self, other: "Result") -> None:
        """Add what another turn brought."""
        for entry in fields(self)[1:]:
            setattr(self, entry.name, getattr(self, entry.name) + getattr(other, entry.name))

    def as_json(self) -> dict[str, object]:
        """For `from_json`."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Result":
        """The result that `as_json` gave."""
        return cls(**data | {"reasons": Counter(data["reasons"])})


COUNTS = ("turns", "beats", "welds", "seams", "closed", "refused", "gone", "interrupted", "killed")


def table(results: Iterable[Result]) -> str:
    """A Markdown table, a row a program and one for all; below it why welders refused."""
    rows = list(results)
    every = Result("all together")
    for result in rows:
        every.add(result)
    titles = ("program", *COUNTS, "anomalies")
    lines = [f"| {' | '.join(titles)} |", f"|---|{'--:|' * (len(titles) - 1)}"]
    for result in (*rows, every):
        numbers = [f"{getattr(result, name):,}" for name in COUNTS]
        lines.append(f"| {result.program} | {' | '.join(numbers)} | {len(result.anomalies)} |")
    if every.reasons:
        lines += ["", "Why welders refused:", ""]
        lines += [f"{count:7,} x {reason}" for reason, count in every.reasons.most_common()]
    return "\n".join(lines)
