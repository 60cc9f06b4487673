# SPDX-License-Identifier: GPL-2.0-or-later
"""`vmaweld record`: what a command does to memory, into a trace file."""

import json
import os
from pathlib import Path

import click

from vmaweld.cli.common import OUTPUT, USAGE, fail
from vmaweld.cli.recording import record_for_terminal
from vmaweld.trace.recorders.table import RECORDERS

EXAMPLES = """\b
Examples:
  vmaweld record -- make -j2                  into make.trace
  vmaweld record -o run.trace -- ./server     Ctrl-C ends the server, the trace is whole
  vmaweld record --recorder strace -- ls      without privilege; page faults are assumed
  sudo vmaweld record -- sudo -u me ./prog    perf's eyes, the program's own user
"""


def shell_status(exit_status: int) -> int:
    """An exit status as a shell tells it: 128 + N where signal N ended the command."""
    return exit_status if exit_status >= 0 else 128 - exit_status


@click.command(epilog=EXAMPLES, context_settings={"allow_interspersed_args": False, "max_content_width": 100})
@click.option("-o", "--output", type=OUTPUT, help="The trace file; default: COMMAND.trace.")
@click.option(
    "--recorder",
    type=click.Choice(list(RECORDERS)),
    help="perf sees page faults; strace needs no privilege. Default: perf.",
)
@click.option("--no-snapshots", is_flag=True, help="Do not take true snapshots, which `replay --check` compares with.")
@click.option("--json", "as_json", is_flag=True, help="A summary as JSON, the last line of stdout.")
@click.argument("command_line", metavar="[--] COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
def command(
    output: Path | None, recorder: str | None, no_snapshots: bool, as_json: bool, command_line: tuple[str, ...]
) -> None:
    """Record what COMMAND and all its children do to memory: calls, page faults, forks, execs.

    The command keeps its terminal, its user and its signals; Ctrl-C ends it, and the trace is still whole. The
    recording ends with the command.

    Exit status: the command's own, 128 + N where signal N ended it. Where nothing was recorded: 1 the trace cannot be
    written, or the disk is full; 2 bad usage, no such command, or an output that is never replaced (no regular file,
    or one in use here); 3 no recorder works here; 130 interrupted.
    """
    if command_line[0] == "--":
        command_line = command_line[1:]
    if not command_line:
        fail("no command given: vmaweld record -- COMMAND", USAGE)
    path = output or Path(f"{os.path.basename(command_line[0])}.trace")
    recording = record_for_terminal(list(command_line), path, recorder, snapshots=not no_snapshots)
    if as_json:
        click.echo(json.dumps(recording.as_json()))
    else:
        click.echo(f"vmaweld: {recording.as_text()}", err=True)
    raise SystemExit(shell_status(recording.exit_status))
