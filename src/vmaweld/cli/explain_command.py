"""`vmaweld explain`: one scenario, before and after, drawn."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from vmaweld.cli.common import USAGE, console, fail, print_json
from vmaweld.events import EVENT_FIELDS, Event
from vmaweld.policy import PolicyError, parse_policy
from vmaweld.snapshot import Snapshot
from vmaweld.study.drawing import Scale, draw
from vmaweld.study.explain import Outcome, ScenarioError, describe, explain, read_scenario, verdict
from vmaweld.study.policies import kernel_data, kernel_text
from vmaweld.study.scenarios import SCENARIOS, Scenario
from vmaweld.words import count_text, printable

EXAMPLES = """\b
Examples:
  vmaweld explain                          the scenarios there are
  vmaweld explain mremap-back              a moved buffer beside another, under each patch
  vmaweld explain case-4 -p linux-6.18     under a policy of one's own choice
  vmaweld explain --file calls.json        calls of one's own (docs/study.md tells the format)
  vmaweld explain --kernel 6.6 --against 6.1   the rules in which two kernels differ
"""


@click.command(epilog=EXAMPLES)
@click.argument("name", metavar="[SCENARIO]", required=False)
@click.option("--file", "path", type=click.Path(path_type=Path), help="Draw the events in this JSON file.")
@click.option("-p", "--policy", "policies", multiple=True, metavar="POLICY", help="Under this policy. Repeatable.")
@click.option("--kernel", metavar="RELEASE", help="Tell what is known of this kernel's rules (6.6, 6.1.30).")
@click.option("--against", metavar="RELEASE", help="With --kernel: the rules in which it differs from this one.")
@click.option("--json", "as_json", is_flag=True, help="JSON; the keys are told in docs/study.md and docs/policies.md.")
def command(
    name: str | None,
    path: Path | None,
    policies: tuple[str, ...],
    kernel: str | None,
    against: str | None,
    as_json: bool,
) -> None:
    """Draw one scenario: the address space before its last call, and after it under each policy.

    Letters are VMAs; below them their access, their page offset (hex) and the number of their anon_vma, with the
    length of the chain where fork has made it longer than one.

    Exit status: 0 done; 2 no such scenario or policy, or the file holds none; 130 interrupted.
    """
    if kernel or against:
        _compare(kernel, against, bool(name or path or policies), as_json)
        return
    if name and path:
        fail("give a scenario or --file, one of the two", USAGE)
    if not name and not path:
        _list(as_json)
        return
    if path:
        try:
            scenario = read_scenario(path)
        except ScenarioError as error:
            fail(str(error), USAGE)
    elif name is not None and name in SCENARIOS:
        scenario = SCENARIOS[name]
    else:
        fail(f"no scenario is called {name}; there are {', '.join(SCENARIOS)}", USAGE)
    try:
        chosen = [parse_policy(policy) for policy in policies or scenario.policies]
    except PolicyError as error:
        fail(str(error), USAGE)
    outcomes = [explain(scenario.events, policy) for policy in chosen]
    if as_json:
        print_json(_data(scenario, outcomes))
    else:
        _print(scenario, outcomes)


def _compare(kernel: str | None, against: str | None, scenario: bool, as_json: bool) -> None:
    if kernel is None or scenario:
        fail("--against goes with --kernel, and neither with a scenario or a policy", USAGE)
    first, second = (release and f"linux-{release.removeprefix('linux-')}" for release in (kernel, against or ""))
    try:
        if as_json:
            print_json(kernel_data(first, second))
        else:
            out = console()
            for line in kernel_text(first, second):
                out.print(Text(line), soft_wrap=True)
    except PolicyError as error:
        fail(str(error), USAGE)


def _list(as_json: bool) -> None:
    if as_json:
        print_json({"scenarios": [{"name": s.name, "text": s.text} for s in SCENARIOS.values()]})
        return
    out = console()
    for scenario in SCENARIOS.values():
        out.print(Text(scenario.name, style="bold"))
        out.print(Text(f"  {scenario.text}"))
    out.print()
    out.print("`vmaweld explain NAME` draws one.")


def _print(scenario: Scenario, outcomes: list[Outcome]) -> None:
    out = console()
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
        _drawing("before" if len(names) == len(outcomes) else f"before, under {' and '.join(names)}", lines)
    for names, lines in _alike((outcome.policy.name, _after(outcome, scale)) for outcome in outcomes):
        _drawing(f"after, under {' and '.join(names)}", lines)


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


def _after(outcome: Outcome, scale: Scale) -> list[str]:
    lines = _lines(outcome.after, scale)
    lines += [f"failed before: {failure}" for failure in outcome.failures]
    if outcome.error:
        lines.append(f"failed: {outcome.error}")
    lines += [verdict(record, outcome.policy) for record in outcome.records]
    vmas = sum(len(snapshot.rows) for snapshot in outcome.after)
    lines.append(count_text(vmas, "VMA"))
    return lines


def _drawing(title: str, lines: list[str]) -> None:
    out = console()
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


def _data(scenario: Scenario, outcomes: list[Outcome]) -> dict[str, Any]:
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
