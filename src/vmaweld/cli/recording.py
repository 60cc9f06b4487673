# SPDX-License-Identifier: GPL-2.0-or-later
"""Recording as commands do it: errors as one-line failures, progress and warnings on a terminal."""

from pathlib import Path

import click

from vmaweld.cli.common import INTERRUPTED, UNSUPPORTED, USAGE, fail
from vmaweld.cli.progress import ProgressBar
from vmaweld.trace.recorders.protocol import Recorder, RecorderError
from vmaweld.trace.recording import CommandError, Recording, record


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
