"""Recording a command: with perf where that is permitted, else with strace."""

import gc
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from vmaweld.abi import DEFAULT_MAX_MAP_COUNT, PAGE_SIZE
from vmaweld.output import OutputError
from vmaweld.trace.launch import Launch, LaunchError
from vmaweld.trace.progress import Progress
from vmaweld.trace.recorders import perf, strace
from vmaweld.trace.recorders.perf import NoRoomError, PerfRecorder, RecorderError
from vmaweld.trace.recorders.strace import StraceRecorder
from vmaweld.trace.sampler import Sample, Sampler
from vmaweld.trace.store import Metadata, TraceWriter

RECORDERS: Final = ("perf", "strace")


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


def choose(wanted: str | None) -> tuple[str, str]:
    """(the recorder to use, why not a better one or ""). Raises RecorderError where none, or not the wanted, works."""
    if wanted not in (None, *RECORDERS):
        raise RecorderError(f"there is no recorder {wanted!r}: choose perf or strace")
    perf_ok, perf_reason = (False, "") if wanted == "strace" else perf.available()
    if perf_ok:
        return "perf", ""
    if wanted == "perf":
        raise RecorderError(perf_reason)
    strace_ok, strace_reason = strace.available()
    if strace_ok:
        return "strace", perf_reason
    raise RecorderError("; ".join(reason for reason in (perf_reason, strace_reason) if reason))


def machine_metadata(command: Sequence[str]) -> Metadata:
    """What the trace's metadata says about this machine, before anything has been recorded."""
    return Metadata(
        command=list(command),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        kernel=platform.release(),
        machine=platform.machine(),
        page_size=PAGE_SIZE,
        max_map_count=_number("/proc/sys/vm/max_map_count", DEFAULT_MAX_MAP_COUNT),
        overcommit=_number("/proc/sys/vm/overcommit_memory", 0),
        thp=_chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        nodes=len(_list(perf.nodes())),
    )


def _number(path: str, default: int) -> int:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return default


def _chosen(path: str) -> str:
    """The word in brackets: ``always [madvise] never``."""
    try:
        return Path(path).read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return ""


def _list(text: str) -> list[int]:
    """The numbers of a kernel list such as "0-2,5"."""
    numbers: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        numbers += range(int(low), int(high or low) + 1)
    return numbers


def record(
    command: Sequence[str],
    output: str | os.PathLike[str],
    *,
    recorder: str | None = None,
    snapshots: bool = True,
    progress: Progress = lambda what, done, total: None,
    started: Callable[[str, str], None] = lambda name, fallback: None,
) -> Recording:
    """Run `command` and record what it and its children do to memory into the trace file `output`.

    The command has our terminal, user, environment and directory; its end ends the recording.

    recorder: "perf" or "strace"; None takes the best that works. snapshots: take true snapshots too.
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
    name, fallback = choose(recorder)
    metadata = machine_metadata(command)
    metadata.recorder = name
    # The writer first: an output that cannot be written is known before the command has run.
    with TraceWriter(path, metadata, inputs=[program]) as writer:
        source = PerfRecorder(writer.directory) if name == "perf" else StraceRecorder(writer.directory)
        metadata.faults = source.faults
        started(name, fallback)
        try:
            root, status, samples, seconds = _run(list(command), source, snapshots)
            metadata.exit_status = status
            with _without_gc():
                source.convert(writer, root, samples, progress)
        except NoRoomError as error:
            raise OutputError(
                f"cannot write {path}: no room beside it for what is recorded ({error}); name an output on another disk"
            ) from None
        metadata.notes += _notes(metadata)
    return Recording(path, status, metadata, fallback, seconds)


def _run(
    command: list[str], source: PerfRecorder | StraceRecorder, snapshots: bool
) -> tuple[int, int, list[Sample], float]:
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


def _notes(metadata: Metadata) -> list[str]:
    """What the losses mean, a line each."""
    meanings = {
        "perf_records": "records lost by perf (events are missing, what follows them may be wrong): {:,}",
        "perf_file_cut_short": "perf did not finish its file: the end of the recording is missing",
        "processes_32_bit": "32-bit programs, left out: {:,}",
        "userfaultfd": "userfaultfds made, with ranges that perf does not see: {:,}",
        "execs_without_mappings": "programs that ended too soon for a look at what exec had mapped: {:,}",
        "tasks_of_unknown_parent": "tasks left out, for it is not known who made them: {:,}",
    }
    return [meanings[cause].format(number) for cause, number in metadata.losses.items() if cause in meanings]
