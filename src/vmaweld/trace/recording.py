# SPDX-License-Identifier: GPL-2.0-or-later
"""Recording a command: with perf where that is permitted, else with strace."""

import gc
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmaweld.output import OutputError
from vmaweld.trace import machine
from vmaweld.trace.launch import Launch, LaunchError
from vmaweld.trace.progress import Progress
from vmaweld.trace.recorders.protocol import NoRoomError, Recorder, RecorderError
from vmaweld.trace.recorders.table import RECORDERS
from vmaweld.trace.sampler import Sample, Sampler
from vmaweld.trace.store import Metadata, TraceWriter
from vmaweld.words import count_text

_LOSSES: Final = {"processes_32_bit": "32-bit programs, left out: {:,}"}
"""What no recorder can tell, in the form of `Recorder.losses`."""


class CommandError(Exception):
    """The command itself cannot be started (not found, not executable); one line."""


@dataclass(slots=True, frozen=True)
class Recording:
    """What came of a recording.

    exit_status: of the command, ``-N`` where signal N ended it. metadata: as in the trace, losses and notes among it.
    fallback: why a better recorder was not used, "" where none is better. seconds: how long the command ran.
    """

    path: Path
    exit_status: int
    metadata: Metadata
    fallback: str
    seconds: float

    def as_json(self) -> dict[str, object]:
        """All of it by name, and what matters of the metadata; a path is text."""
        meta = self.metadata
        return {
            "trace": str(self.path),
            "command": meta.command,
            "exit_status": self.exit_status,
            "seconds": round(self.seconds, 3),
            "recorder": meta.recorder,
            "faults": meta.faults,
            "fallback": self.fallback,
            "processes": meta.processes,
            "events": meta.events,
            "snapshots": meta.snapshots,
            "bytes": self.path.stat().st_size,
            "losses": meta.losses,
            "notes": meta.notes,
        }

    def as_text(self) -> str:
        """What has been recorded, as a line."""
        meta = self.metadata
        lost = count_text(meta.lost, "loss", "losses") if meta.losses else "nothing lost"
        return (
            f"{self.path}: {count_text(meta.processes, 'process', 'processes')}, "
            f"{count_text(meta.events, 'event')} in {self.seconds:.1f} s "
            f"with {meta.recorder} (faults {meta.faults}), "
            f"{count_text(meta.snapshots, 'true snapshot')}, {lost}"
        )


def choose(wanted: str | None) -> tuple[type[Recorder], str]:
    """(the recorder to use, why not a better one or ""). Raises RecorderError where none, or not the wanted, works."""
    if wanted is not None:
        chosen = RECORDERS.get(wanted)
        if chosen is None:
            raise RecorderError(f"there is no recorder {wanted!r}: choose {' or '.join(RECORDERS)}")
        works, reason = chosen.available()
        if not works:
            raise RecorderError(reason)
        return chosen, ""
    reasons: list[str] = []
    for each in RECORDERS.values():
        works, reason = each.available()
        if works:
            return each, "; ".join(reasons)
        reasons.append(reason)
    raise RecorderError("; ".join(reasons))


def record(
    command: Sequence[str],
    output: str | os.PathLike[str],
    *,
    recorder: str | None = None,
    snapshots: bool = True,
    progress: Progress = lambda what, done, total: None,
    started: Callable[[type[Recorder], str], None] = lambda chosen, fallback: None,
) -> Recording:
    """Run `command` and record what it and its children do to memory into the trace file `output`.

    The command has our terminal, user, environment and directory; its end ends the recording.

    recorder: a name of `RECORDERS`; None takes the best that works. snapshots: take true snapshots too.
    progress: told what is being done while the recording is turned into the trace. started: told the recorder and why
    not a better one, right before the command begins.

    Raises:
        CommandError: there is no such command.
        RecorderError: no recorder works here, or not the one asked for.
        OutputError: `output` cannot be written, or what grows beside it while the command runs.

    """
    path = Path(output)
    if not command:
        raise CommandError("no command given")
    program = shutil.which(command[0])
    if program is None:
        what = "not executable" if os.path.exists(command[0]) and "/" in command[0] else "command not found"
        raise CommandError(f"{command[0]}: {what}")
    chosen, fallback = choose(recorder)
    metadata = machine.metadata(command)
    metadata.recorder = chosen.name
    metadata.faults = chosen.faults
    # The writer first: an output that cannot be written is known before the command has run.
    with TraceWriter(path, metadata, inputs=[program]) as writer:
        source = chosen(writer.directory)
        started(chosen, fallback)
        try:
            root, status, samples, seconds = _run(list(command), source, snapshots)
            metadata.exit_status = status
            with _without_gc():
                source.convert(writer, root, samples, progress)
        except NoRoomError as error:
            raise OutputError(
                f"cannot write {path}: no room beside it for what is recorded ({error}); name an output on another disk"
            ) from None
        metadata.notes += _notes(metadata, chosen)
    return Recording(path, status, metadata, fallback, seconds)


def _run(command: list[str], source: Recorder, snapshots: bool) -> tuple[int, int, list[Sample], float]:
    with Launch(source.command(command)) as launch:
        sampler = Sampler(launch.pid, source.clock)
        try:
            source.attach(launch.pid)
            if snapshots:
                if source.seizes:
                    launch.seize()
                sampler.start()
            begin = time.monotonic()
            launch.release()
            status = launch.wait(lambda _: sampler.take(launch.pid), source.target)
            seconds = time.monotonic() - begin
        except LaunchError as error:
            raise CommandError(str(error)) from None
        finally:
            samples = sampler.stop()
            source.stop()
    return launch.pid, status, samples, seconds


@contextmanager
def _without_gc() -> Iterator[None]:
    """Millions of short-lived records and no cycle among them: looking for cycles costs a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _notes(metadata: Metadata, recorder: type[Recorder]) -> list[str]:
    """What the losses mean, a line each."""
    meanings = {**_LOSSES, **recorder.losses}
    return [meanings[cause].format(number) for cause, number in metadata.losses.items() if cause in meanings]
