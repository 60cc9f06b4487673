# SPDX-License-Identifier: GPL-2.0-or-later
"""What is fuzzed: each reader as a function of bytes that returns, or raises what must never be raised.

A reader may refuse its input with the error that it documents, in one line. All else is a defect: another exception,
an event that cannot be written, a trace that is read as something else than what it was made of.
"""

import os
import tempfile
import zlib
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Final

from vmaweld.cli.common import USAGE, Failure
from vmaweld.cli.explain_command import command as explain_command
from vmaweld.events import Event
from vmaweld.policy import parse_policy
from vmaweld.snapshot import Row, Snapshot
from vmaweld.study.fidelity import check
from vmaweld.study.tally import replay
from vmaweld.study.trace_pipe import trace_pipe
from vmaweld.trace.assembly import assembler, elf
from vmaweld.trace.recorders import perf, perf_data
from vmaweld.trace.recorders.strace import StraceRecorder
from vmaweld.trace.sampler import Sample
from vmaweld.trace.store import Metadata, TraceError, TraceWriter, open_trace

from .made import made_trace

_DIRECTORY: Final = Path(
    tempfile.mkdtemp(prefix="vmaweld-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
)
_INPUT: Final = _DIRECTORY / "input"
_OUTPUT: Final = _DIRECTORY / "output.trace"
_SCREEN: Final = TextIOWrapper(BytesIO(), encoding="utf-8", write_through=True)
_POLICIES: Final = [parse_policy("linux-5.17"), parse_policy("linux-5.17+series")]
_FORMATS: Final = perf_data.formats_in((Path(__file__).parent / "corpus/perf/killed").read_bytes())

# What a damaged file names is not opened, and this kernel's own tracepoints make no difference.
vars(elf)["first_segment_size"] = lambda path: 0x1000 * (len(path) % 3)
vars(perf_data)["formats_of_this_kernel"] = lambda: _FORMATS


def trace(data: bytes) -> None:
    """A trace file: read, replayed, compared. What begins with "M" is no file but the making of one (`made`)."""
    if data[:1] == b"M":
        made_trace(data[1:], _INPUT)
    else:
        _INPUT.write_bytes(data)
    try:
        with open_trace(_INPUT) as found:
            events = list(found.events())
            assert events == [item for item in found.items() if isinstance(item, Event)]
            for pid in {event.pid for event in events[:3]}:
                assert list(found.events([pid])) == [event for event in events if event.pid == pid]
            replay(found, _POLICIES)
            check(found)
            for line in trace_pipe(found, _POLICIES[1]):
                line.encode()
    except TraceError as error:
        _one_line(str(error))
        return
    if len(events) < 1000:
        _written(events)  # what could be read can be written


def perf_file(data: bytes) -> None:
    """A perf.data file, and what becomes of its records."""
    _INPUT.write_bytes(data)
    try:
        source = perf_data.PerfData(_INPUT)
        records = list(source.records())
        root = next((record[2] for record in records if record[1] == perf_data.EXECING), 0)
        events: list[Event] = []
        begin = records[0][0] if records else 0
        made = assembler.Assembler(events.append, root, begin=begin)
        with TraceWriter(_OUTPUT, Metadata()) as writer:
            perf.feed(perf_data.PerfData(_INPUT), made, writer, [], begin, lambda done: None)
        made.finish()
        _written(events)
    except (perf_data.PerfDataError, TraceError) as error:
        _one_line(str(error))


def strace_log(data: bytes) -> None:
    """A log of strace, and what becomes of it."""
    (_DIRECTORY / "strace.log").write_bytes(data)
    word = data.split(b" ", 1)[0]
    pid = int(word) if word.isdigit() and len(word) < 9 else 1
    rows = [Row(0x400000, 0x401000, 5, pgoff=0, file="/bin/x"), Row(0x401000, 0x402000, 3, pgoff=0)]
    looks = [
        Sample(at, at + 1000, Snapshot(pid, rows, source="procfs", flags_exact=False, hidden=False))
        for at in (0, 1_795_884_966_590_000_000, 1_800_000_000_000_000_000)
    ]
    with suppress(TraceError), TraceWriter(_OUTPUT, Metadata()) as writer:
        StraceRecorder(_DIRECTORY).convert(writer, 1, looks, lambda *_: None)


def scenario(data: bytes) -> None:
    """A scenario file, drawn."""
    _INPUT.write_bytes(data)
    for options in ([], ["--json"]) if zlib.crc32(data) & 1 else ([],):
        # One stream for all: click and rich remember each that they have written to.
        _SCREEN.seek(0)
        _SCREEN.truncate()
        refusal: Failure | None = None
        with redirect_stdout(_SCREEN):
            try:
                explain_command.main(["--file", str(_INPUT), *options], standalone_mode=False)
            except Failure as failure:
                refusal = failure
        if refusal is not None:
            assert refusal.exit_code == USAGE
            _one_line(refusal.message)


def _written(events: list[Event]) -> None:
    """`events` can be written and read; what cannot be written is refused in a line."""
    with TraceWriter(_OUTPUT, Metadata()) as writer:
        for event in events:
            writer.append(event)
    with open_trace(_OUTPUT) as again:
        assert list(again.events()) == events


def _one_line(complaint: str) -> None:
    assert complaint, "an error without a word"
    assert "\n" not in complaint, complaint
    assert len(complaint) < 2000, complaint


READERS: Final[dict[str, Callable[[bytes], None]]] = {
    "trace": trace,
    "perf": perf_file,
    "strace": strace_log,
    "scenario": scenario,
}


def clean_up() -> None:
    """Remove the files that the readers read."""
    for path in _DIRECTORY.iterdir():
        path.unlink()
    os.rmdir(_DIRECTORY)
