"""`vmaweld record`: what a command does to memory, into a trace file."""

import json
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import click
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from vmaweld.cli.common import INTERRUPTED, OUTPUT, UNSUPPORTED, USAGE, console, fail
from vmaweld.trace.recorders.protocol import Recorder, RecorderError
from vmaweld.trace.recorders.table import RECORDERS
from vmaweld.trace.recording import CommandError, Recording, record
from vmaweld.words import count_text

EXAMPLES = """\b
Examples:
  vmaweld record -- make -j2                  into make.trace
  vmaweld record -o run.trace -- ./server     Ctrl-C ends the server, the trace is whole
  vmaweld record --recorder strace -- ls      without privilege; page faults are assumed
  sudo vmaweld record -- sudo -u me ./prog    perf's eyes, the program's own user
"""


class ProgressBar:
    """How far the work is, on stderr, for people only: nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            console=console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task: TaskID | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` of `total` of `what`."""
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(what, total=total)
        self._progress.update(self._task, description=what, completed=done, total=total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def shell_status(exit_status: int) -> int:
    """An exit status as a shell tells it: 128 + N where signal N ended the command."""
    return exit_status if exit_status >= 0 else 128 - exit_status


def summary(recording: Recording) -> dict[str, object]:
    """What `--json` prints."""
    meta = recording.metadata
    return {
        "trace": str(recording.path),
        "command": meta.command,
        "exit_status": recording.exit_status,
        "seconds": round(recording.seconds, 3),
        "recorder": meta.recorder,
        "faults": meta.faults,
        "fallback": recording.fallback,
        "processes": meta.processes,
        "events": meta.events,
        "snapshots": meta.snapshots,
        "bytes": recording.path.stat().st_size,
        "losses": meta.losses,
        "notes": meta.notes,
    }


def record_for_terminal(
    command: list[str], output: Path, recorder: str | None, *, snapshots: bool = True, keep: bool = True
) -> Recording:
    """`record` with its errors as one-line failures, its progress on a terminal and its warnings on stderr.

    keep: the user gets the trace; else it is gone with this command.
    """
    before = _identity(output)

    def started(chosen: type[Recorder], fallback: str) -> None:
        if fallback:
            click.echo(f"vmaweld: recording with {chosen.name}, page faults {chosen.faults} ({fallback})", err=True)

    try:
        with ProgressBar() as progress:
            recording = record(
                command, output, recorder=recorder, snapshots=snapshots, progress=progress, started=started
            )
    except CommandError as error:
        fail(str(error), USAGE)
    except RecorderError as error:
        fail(f"cannot record: {error}", UNSUPPORTED)
    except KeyboardInterrupt:
        if not keep:
            kept = "nothing is kept (-o FILE would keep the trace)"
        elif _identity(output) != before:
            kept = f"{output} holds what had been read by then"
        else:
            kept = f"{output} is what it was before" if before else "there is no trace"
        fail(f"interrupted: {kept}", INTERRUPTED)
    for note in recording.metadata.notes:
        click.echo(f"vmaweld: {note}", err=True)
    return recording


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file the name `path` stands for; None for none."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino


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
    meta = recording.metadata
    if as_json:
        click.echo(json.dumps(summary(recording)))
    else:
        lost = count_text(meta.lost, "loss", "losses") if meta.losses else "nothing lost"
        click.echo(
            f"vmaweld: {recording.path}: {count_text(meta.processes, 'process', 'processes')}, "
            f"{count_text(meta.events, 'event')} in {recording.seconds:.1f} s "
            f"with {meta.recorder} (faults {meta.faults}), "
            f"{count_text(meta.snapshots, 'true snapshot')}, {lost}",
            err=True,
        )
    raise SystemExit(shell_status(recording.exit_status))
