# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios and what comes of them, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from vmaweld.events import EVENT_FIELDS, Event
from vmaweld.snapshot import Snapshot
from vmaweld.study.drawing import Scale, draw
from vmaweld.study.explain import Explanation, describe, verdict
from vmaweld.study.scenarios import SCENARIOS, Scenario
from vmaweld.words import count_text, printable


def list_data() -> dict[str, Any]:
    """The scenarios that there are, as JSON."""
    return {"scenarios": [{"name": s.name, "text": s.text} for s in SCENARIOS.values()]}


def print_list(out: Console) -> None:
    """The scenarios that there are."""
    for scenario in SCENARIOS.values():
        out.print(Text(scenario.name, style="bold"))
        out.print(Text(f"  {scenario.text}"))
    out.print()
    out.print("`vmaweld explain NAME` draws one.")


def print_explanation(scenario: Scenario, outcomes: Sequence[Explanation], out: Console) -> None:
    """One scenario: its events, and the address spaces before and after the last of them."""
    out.print(Text(printable(scenario.name), style="bold"))
    if scenario.text:
        out.print(Text(printable(scenario.text)))
    out.print()
    scale = Scale(snapshot for outcome in outcomes for snapshot in (*outcome.before, *outcome.after))
    last = len(scenario.events) - 1
    for number, event in enumerate(scenario.events):
        line = f"  {number + 1}. {describe(event, scale.base)}"
        out.print(Text(printable(line), style="bold" if number == last else ""), soft_wrap=True)
    for names, lines in _alike((outcome.policy.name, _lines(outcome.before, scale)) for outcome in outcomes):
        _drawing(out, "before" if len(names) == len(outcomes) else f"before, under {' and '.join(names)}", lines)
    for names, lines in _alike((outcome.policy.name, _after(outcome, scale)) for outcome in outcomes):
        _drawing(out, f"after, under {' and '.join(names)}", lines)


def _alike(drawings: Iterable[tuple[str, list[str]]]) -> list[tuple[list[str], list[str]]]:
    """Equal drawings once, with the names of all that they belong to."""
    found: list[tuple[list[str], list[str]]] = []
    for name, lines in drawings:
        for names, other in found:
            if other == lines:
                names.append(name)
                break
        else:
            found.append(([name], lines))
    return found


def _after(outcome: Explanation, scale: Scale) -> list[str]:
    lines = _lines(outcome.after, scale)
    lines += [f"failed before: {failure}" for failure in outcome.failures]
    if outcome.error:
        lines.append(f"failed: {outcome.error}")
    lines += [verdict(record, outcome.policy) for record in outcome.records]
    vmas = sum(len(snapshot.rows) for snapshot in outcome.after)
    lines.append(count_text(vmas, "VMA"))
    return lines


def _drawing(out: Console, title: str, lines: list[str]) -> None:
    out.print()
    out.print(Text(title, style="bold"), soft_wrap=True)
    for line in lines:
        out.print(Text(f"  {printable(line)}"), soft_wrap=True)


def _lines(snapshots: list[Snapshot], scale: Scale) -> list[str]:
    lines: list[str] = []
    for snapshot in snapshots:
        if len(snapshots) > 1:
            lines.append(f"process {snapshot.pid}")
        lines += draw(snapshot, scale)
    return lines


def explanation_data(scenario: Scenario, outcomes: Sequence[Explanation]) -> dict[str, Any]:
    """One scenario as JSON; the keys are told in docs/study.md."""
    return {
        "schema": 1,
        "scenario": scenario.name,
        "text": scenario.text,
        "events": [_event_data(event) for event in scenario.events],
        "policies": [
            {
                "name": outcome.policy.name,
                "before": [_space_data(snapshot) for snapshot in outcome.before],
                "after": [_space_data(snapshot) for snapshot in outcome.after],
                "error": outcome.error,
                "failures": outcome.failures,
                "merges": [
                    {
                        "case": record.case,
                        "start": record.start,
                        "end": record.end,
                        "text": verdict(record, outcome.policy),
                        "trace": record.trace_lines(),
                    }
                    for record in outcome.records
                ],
            }
            for outcome in outcomes
        ],
    }


def _event_data(event: Event) -> dict[str, Any]:
    return {name: value for name in EVENT_FIELDS if (value := getattr(event, name)) not in (0, "", None)}


def _space_data(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "pid": snapshot.pid,
        "vmas": [
            {
                "start": row.start,
                "end": row.end,
                "flags": row.flags,
                "pgoff": row.pgoff,
                "anon_vma": row.anon_vma,
                "chain": row.chain,
                "file": row.file,
                "name": row.name,
            }
            for row in snapshot.rows
        ],
    }
