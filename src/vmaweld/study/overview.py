# SPDX-License-Identifier: GPL-2.0-or-later
"""Many replays on a page: for every trace a line a policy, and the sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vmaweld.study.text import percent_text
from vmaweld.words import count_text, printable

_COLUMNS: Final = (("merges", 9), ("recovered", 20), ("shared", 8), ("most VMAs", 9))
"""Heads and least widths, so that the tables of all traces line up."""


def print_overview(paths: Sequence[str], answers: Sequence[dict[str, Any]], out: Console) -> None:
    """`answers` as `many.replay_many` gives them, one for each of `paths`."""
    for path, answer in zip(paths, answers, strict=True):
        missed = answer["missed"]["total"]
        out.print(Text(printable(path), style="bold"), soft_wrap=True)
        out.print(
            f"{count_text(answer['processes'], 'process', 'processes')}, {count_text(answer['events'], 'event')}, "
            f"{count_text(missed, 'merge')} missed under {answer['base']}"
        )
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("policy", min_width=24, no_wrap=True)
        for head, width in _COLUMNS:
            table.add_column(head, justify="right", min_width=width, no_wrap=True)
        for number, policy in enumerate(answer["policies"]):
            table.add_row(*_cells(policy, missed, base=number == 0))
        out.print(table)
        out.print()
    events = sum(answer["events"] for answer in answers)
    missed = sum(answer["missed"]["total"] for answer in answers)
    out.print(
        f"{count_text(len(answers), 'trace')}, {count_text(events, 'event')}: "
        f"{count_text(missed, 'merge')} missed under {answers[0]['base']}."
    )
    for number, policy in enumerate(answers[0]["policies"]):
        if number:
            recovered = sum(answer["policies"][number]["recovered"] for answer in answers)
            out.print(f"{policy['name']} recovers {recovered:,} of them ({percent_text(recovered, missed)}).")


def _cells(policy: dict[str, Any], missed: int, *, base: bool) -> list[str]:
    recovered = "-" if base else f"{policy['recovered']:,} ({percent_text(policy['recovered'], missed)})"
    shared = "-" if base else f"{policy['left']['shared']:,}"
    return [policy["name"], f"{policy['merges']:,}", recovered, shared, f"{policy['max_vmas']:,}"]
