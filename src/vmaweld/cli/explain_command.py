# SPDX-License-Identifier: GPL-2.0-or-later
"""`vmaweld explain`: one scenario, before and after, drawn."""

from __future__ import annotations

from pathlib import Path

import click
from rich.text import Text

from vmaweld.cli.common import USAGE, console, fail, print_json
from vmaweld.policy import PolicyError, parse_policy
from vmaweld.study.explain import ScenarioError, explain, read_scenario
from vmaweld.study.explanation import explanation_data, list_data, print_explanation, print_list
from vmaweld.study.policies import kernel_data, kernel_text
from vmaweld.study.scenarios import SCENARIOS

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
    if kernel is not None or against is not None:
        _compare(kernel, against, bool(name or path or policies), as_json)
        return
    if name and path:
        fail("give a scenario or --file, one of the two", USAGE)
    if not name and not path:
        if as_json:
            print_json(list_data())
        else:
            print_list(console())
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
        print_json(explanation_data(scenario, outcomes))
    else:
        print_explanation(scenario, outcomes, console())


def _compare(kernel: str | None, against: str | None, scenario: bool, as_json: bool) -> None:
    if kernel is None or scenario:
        fail("--against goes with --kernel, and neither with a scenario or a policy", USAGE)
    first = f"linux-{kernel.removeprefix('linux-')}"
    second = "" if against is None else f"linux-{against.removeprefix('linux-')}"
    try:
        if as_json:
            print_json(kernel_data(first, second))
        else:
            out = console()
            for line in kernel_text(first, second):
                out.print(Text(line), soft_wrap=True)
    except PolicyError as error:
        fail(str(error), USAGE)
