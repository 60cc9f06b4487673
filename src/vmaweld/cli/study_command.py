# SPDX-License-Identifier: GPL-2.0-or-later
"""`vmaweld study`: record a command, replay it with and without the series, say what merges."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import click

from vmaweld.cli.common import INTERRUPTED, NO, OUTPUT, USAGE, console, fail, print_json
from vmaweld.cli.recording import record_for_terminal
from vmaweld.cli.replaying import replay_for_terminal
from vmaweld.policy import PolicyError
from vmaweld.scratch import Scratch
from vmaweld.study.as_json import answer_data
from vmaweld.study.policies import DEFAULT_BASE, known_policies, study_policies
from vmaweld.study.text import print_answer
from vmaweld.trace.recorders.protocol import RecorderError
from vmaweld.trace.recorders.table import RECORDERS
from vmaweld.trace.recording import choose
from vmaweld.trace.samples import open_sample, sample_names
from vmaweld.trace.store import Trace, TraceError, open_trace

EXAMPLES = """\b
Examples:
  vmaweld study -- .venv/bin/python examples/growing_buffers.py
  vmaweld study -o build.trace -- make -j2         keep the trace: replay and report read it again
  vmaweld study --base linux-6.18 -- ./server      what the patches would do to a newer kernel
  vmaweld study --json -- make > study.json        the command's own stdout goes to stderr
  vmaweld study --sample growing-buffers           a recorded example: no perf, no strace, no root
"""


@click.command(epilog=EXAMPLES, context_settings={"allow_interspersed_args": False, "max_content_width": 100})
@click.option("-o", "--output", type=OUTPUT, help="Keep the trace in this file.")
@click.option("--sample", metavar="NAME", help=f"Study a shipped recording: {', '.join(sample_names())}.")
@click.option("--or-sample", metavar="NAME", help="Where nothing can record here, study this sample and say so.")
@click.option(
    "-p", "--policy", "policies", multiple=True, metavar="POLICY", help="A policy to replay under. Repeatable."
)
@click.option("--base", metavar="KERNEL", help=f"The stock kernel: {known_policies()}. Default: {DEFAULT_BASE}.")
@click.option(
    "--recorder", type=click.Choice(list(RECORDERS)), help="perf sees page faults; strace needs no privilege."
)
@click.option("--json", "as_json", is_flag=True, help="JSON; the keys are told in docs/study.md.")
@click.argument("command_line", metavar="[--] COMMAND...", nargs=-1, type=click.UNPROCESSED)
def command(
    output: Path | None,
    sample: str | None,
    or_sample: str | None,
    policies: tuple[str, ...],
    base: str | None,
    recorder: str | None,
    as_json: bool,
    command_line: tuple[str, ...],
) -> None:
    """Run COMMAND, record what it does to memory, and say which merges its kernel missed and the series makes.

    The command keeps its terminal and its signals; the report follows on stdout when it has ended. With --json
    stdout holds the JSON alone: the command's own output goes to stderr then.

    Exit status: 0 the study is done, whatever the command's own status, which the report tells; 1 the trace cannot be
    written or read; 2 bad usage or no such command; 3 no recorder works here; 130 interrupted.
    """
    arguments = list(command_line[1:] if command_line[:1] == ("--",) else command_line)
    if base is not None and policies:
        fail("give --base or --policy, one of the two", USAGE)
    if bool(arguments) == bool(sample):
        fail("give a command to study, or --sample NAME: vmaweld study -- COMMAND", USAGE)
    if sample and (output or recorder or or_sample):
        fail("a sample is recorded already: give it without -o, --recorder and --or-sample", USAGE)
    try:
        study_policies(base or DEFAULT_BASE, policies)
    except PolicyError as error:
        fail(str(error), USAGE)
    if arguments and or_sample:
        try:
            choose(recorder)
        except RecorderError as error:
            click.echo(f"vmaweld: cannot record here: {error}", err=True)
            click.echo(f"vmaweld: this is the sample {or_sample} instead, recorded elsewhere", err=True)
            sample, arguments = or_sample, []
    try:
        if sample:
            with open_sample(sample) as trace:
                _answer(trace, base, policies, as_json)
            return
        with _trace_file(output) as path:
            with _stdout_to_stderr() if as_json else nullcontext():
                record_for_terminal(arguments, path, recorder, snapshots=output is not None, keep=output is not None)
            if not as_json:
                _separate()
            with open_trace(path) as trace:
                _answer(trace, base, policies, as_json)
            if not as_json:
                _next(output)
    except TraceError as error:
        fail(str(error), USAGE if sample else NO)
    except KeyboardInterrupt:
        if output is None:
            raise
        fail(f"interrupted: {output} holds the whole recording, for `vmaweld replay {output}`", INTERRUPTED)


@contextmanager
def _trace_file(output: Path | None) -> Iterator[Path]:
    """Where the recording goes: to `output`, or into a directory that is gone afterwards."""
    if output is not None:
        yield output
        return
    with Scratch() as scratch:
        yield scratch.place / "study.trace"


def _answer(trace: Trace, base: str | None, policies: tuple[str, ...], as_json: bool) -> None:
    answer = replay_for_terminal(trace, base or DEFAULT_BASE, policies)
    if as_json:
        print_json(answer_data(answer))
    else:
        print_answer(answer, console())


def _next(kept: Path | None) -> None:
    """What one may do after a study. kept: where the recording is, if it is."""
    file = kept or "FILE"
    lines = [] if kept else ["`vmaweld study -o FILE -- COMMAND` keeps the recording"]
    lines += [
        f"`vmaweld report {file}` draws it, `vmaweld replay --check {file}` tells how exact the model was",
        "`vmaweld inspect PID` shows the same of a process that runs, `vmaweld weld PID` mends it",
    ]
    click.echo("\nNext: " + "\n      ".join(lines))


def _separate() -> None:
    """A line between what the command printed and the report."""
    sys.stdout.flush()
    out = console()
    out.print()
    out.rule("vmaweld study", align="left")


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """What is started meanwhile inherits our stderr as its stdout."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
