# SPDX-License-Identifier: GPL-2.0-or-later
"""`vmaweld replay`: a recorded trace under one or more policies."""

from __future__ import annotations

import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import click

from vmaweld.cli.common import NO, PID, USAGE, Number, console, fail, print_json
from vmaweld.cli.progress import ProgressBar
from vmaweld.cli.replaying import policies_for_terminal, replay_for_terminal
from vmaweld.policy import PolicyError, parse_policy
from vmaweld.study.as_json import SCHEMA, answer_data, fidelity_data
from vmaweld.study.fidelity import check
from vmaweld.study.many import processors, replay_many
from vmaweld.study.overview import print_overview
from vmaweld.study.policies import DEFAULT_BASE, known_policies
from vmaweld.study.text import print_answer, print_divergences, print_fidelity
from vmaweld.study.trace_pipe import trace_pipe
from vmaweld.trace.store import Trace, TraceError, open_trace

EXAMPLES = """\b
Examples:
  vmaweld replay make.trace                                    stock 5.17 against the series
  vmaweld replay make.trace --base linux-6.18                  the same patches on another kernel
  vmaweld replay make.trace -p linux-5.17 -p linux-6.18        any policies; the first is held against
  vmaweld replay make.trace --trace-pipe | grep DIFFERENT      the series' own trace events
  vmaweld replay make.trace --check                            is the model exact? against true snapshots
  vmaweld replay traces/*.trace                                many traces at once, on all processors
"""

SERIES = "linux-5.17+series"


@click.command(epilog=EXAMPLES)
@click.argument("trace_files", metavar="TRACE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-p", "--policy", "policies", multiple=True, metavar="POLICY", help=f"A kernel and changes: {SERIES}. Repeatable."
)
@click.option(
    "--base", metavar="KERNEL", help=f"The kernel to compare with and without the patches: {known_policies()}."
)
@click.option("--trace-pipe", "pipe", is_flag=True, help=f"The merges' trace events as tracefs prints them ({SERIES}).")
@click.option("--check", "checking", is_flag=True, help="Compare the model with the trace's true snapshots.")
@click.option(
    "--threshold",
    type=Number(0, 100),
    default=99.9,
    show_default=True,
    help="With --check: percent of rows that must be exact.",
)
@click.option("--pid", "pids", type=PID, multiple=True, help="With --trace-pipe: of this process alone. Repeatable.")
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1),
    help="Replay in N processes, an overview the result. Default where TRACEs are many: all processors.",
    metavar="N",
)
@click.option("-v", "--verbose", is_flag=True, help="Show calls that ended otherwise than in the recording.")
@click.option("--json", "as_json", is_flag=True, help="JSON; the keys are told in docs/study.md.")
def command(
    trace_files: tuple[Path, ...],
    policies: tuple[str, ...],
    base: str | None,
    pipe: bool,
    checking: bool,
    threshold: float,
    pids: tuple[int, ...],
    jobs: int | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """Replay the events of each TRACE under one or more policies and say what merges.

    A policy is a kernel, with changes where wanted: linux-5.17, linux-6.18+pgoff, linux-5.17+series. By default the
    stock kernel of the series is held against each of its patches alone and both.

    Exit status: 0 done; 1 the trace cannot be read, or --check found fewer exact rows than the threshold or none to
    compare; 2 bad usage; 130 interrupted.
    """
    if pipe and (checking or as_json):
        fail("--trace-pipe prints trace lines: give it without --check and --json", USAGE)
    if pids and not pipe:
        fail("--pid chooses among the lines of --trace-pipe: give both", USAGE)
    if base is not None and policies:
        fail("give --base or --policy, one of the two", USAGE)
    if (pipe or checking) and (len(policies) > 1 or base is not None):
        fail(f"{'--trace-pipe' if pipe else '--check'} replays under one policy: give one --policy at most", USAGE)
    if (pipe or checking or verbose) and (len(trace_files) > 1 or jobs is not None):
        option = "--trace-pipe" if pipe else "--check" if checking else "--verbose"
        fail(f"{option} tells of one trace: give one, without --jobs", USAGE)
    if len(trace_files) > 1 or jobs is not None:
        _many([str(path) for path in trace_files], base or DEFAULT_BASE, policies, jobs or processors(), as_json)
        return
    trace_file = trace_files[0]
    try:
        with open_trace(trace_file) as trace:
            if pipe:
                _pipe(trace, policies[0] if policies else SERIES, frozenset(pids))
            elif checking:
                _check(trace, policies[0] if policies else None, threshold / 100, as_json)
            else:
                answer = replay_for_terminal(trace, base or DEFAULT_BASE, policies)
                if as_json:
                    print_json(answer_data(answer))
                else:
                    out = console()
                    print_answer(answer, out)
                    for policy in answer.policies if verbose else ():
                        print_divergences(policy.divergences, policy.examples, policy.policy.name, out)
    except TraceError as error:
        fail(str(error), NO)


def _many(paths: list[str], base: str, policies: tuple[str, ...], jobs: int, as_json: bool) -> None:
    chosen = policies_for_terminal(base, policies)
    try:
        with ProgressBar() as progress:
            answers = replay_many(
                paths, chosen, jobs=jobs, progress=lambda done, total: progress("replaying", done, total)
            )
    except TraceError as error:
        fail(str(error), NO)
    except BrokenProcessPool:
        fail("a process that replayed was killed, for want of memory perhaps: try fewer --jobs", NO)
    if not as_json:
        print_overview(paths, answers, console())
    elif len(paths) == 1:
        print_json(answers[0])
    else:
        traces = [{"trace": path, **answer} for path, answer in zip(paths, answers, strict=True)]
        print_json({"schema": SCHEMA, "traces": traces})


def _pipe(trace: Trace, name: str, pids: frozenset[int]) -> None:
    try:
        policy = parse_policy(name)
    except PolicyError as error:
        fail(str(error), USAGE)
    out = sys.stdout
    for line in trace_pipe(trace, policy, pids):
        out.write(line + "\n")


def _check(trace: Trace, name: str | None, threshold: float, as_json: bool) -> None:
    try:
        policy = None if name is None else parse_policy(name)
    except PolicyError as error:
        fail(str(error), USAGE)
    with ProgressBar() as progress:
        fidelity = check(trace, policy=policy, progress=lambda done, total: progress("comparing", done, total))
    data = fidelity_data(fidelity, threshold)
    if as_json:
        print_json(data)
    else:
        print_fidelity(fidelity, threshold, trace.metadata.recorder, console())
    if not data["passed"]:
        raise SystemExit(NO)
