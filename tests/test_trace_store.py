"""The trace file gives back what was written, streams, and says in one line why a file is none."""

import dataclasses
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vmaweld.events import OPERATIONS, Event
from vmaweld.output import OutputError
from vmaweld.snapshot import ROW_FIELDS, Row, Snapshot
from vmaweld.trace.store import FORMAT, SCHEMA, Metadata, TakenSnapshot, TraceError, TraceWriter, open_trace


def sample_events(count: int, pids: int = 3) -> list[Event]:
    return [
        Event(
            "mmap" if i % 2 else "write",
            1 + i % pids,
            addr=0x7F00_0000_0000 + i * 4096,
            length=(1 << 64) - 1 if i == 5 else 4096,
            prot=3,
            flags=0x22,
            file="/lib/libc.so" if i % 7 == 0 else "",
            pgoff=i,
            new_addr=i * 2,
            new_length=i,
            child=i % 5,
            result=None if i % 3 == 0 else -12 if i % 3 == 1 else 0x7F00_0000_0000,
            time=i * 10,
        )
        for i in range(count)
    ]


def snapshot(pid: int, rows: int) -> Snapshot:
    return Snapshot(
        pid,
        [
            Row(
                0x10000 * (i + 1),
                0x10000 * (i + 1) + 4096,
                (1 << 42) | 3,
                pgoff=None if i == 1 else i,
                anon_vma=None if i == 2 else i,
                file="/bin/x" if i == 0 else "",
                name="[heap]" if i == 3 else "",
                mempolicy=None if i == 1 else "",
                uffd=0xFFFF_8880_0000_0000 if i == 0 else None,
                chain=i or None,
                file_id=None if i == 1 else 0xFFFF_8880_0000_0000 + i,
                close=None if i == 1 else i == 2,
            )
            for i in range(rows)
        ],
        source="bpf",
        flags_exact=True,
        hidden=True,
        consistent=False,
    )


def as_tuples(taken: Snapshot) -> list[tuple[object, ...]]:
    return [tuple(getattr(row, name) for name in ROW_FIELDS) for row in taken.rows]


def test_events_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    written = sample_events(100)
    with TraceWriter(path, Metadata(command=["x", "y z"], recorder="perf", losses={"perf_records": 2})) as writer:
        for event in written:
            writer.append(event)
    with open_trace(path) as trace:
        assert list(trace.events()) == written
        assert len(trace) == 100
        assert list(trace.events(pids=[2])) == [event for event in written if event.pid == 2]
        assert trace.metadata.command == ["x", "y z"]
        assert trace.metadata.lost == 2
        assert trace.metadata.processes == 3
        assert trace.metadata.duration == 990


def test_no_name_appears_before_the_trace_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    with TraceWriter(path, Metadata()):
        assert not path.exists()
    assert path.exists()
    assert len(open_trace(path)) == 0
    assert list(open_trace(path).items()) == []


def test_an_interrupt_leaves_a_readable_trace(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"

    def interrupted() -> None:
        with TraceWriter(path, Metadata()) as writer:
            writer.append(Event("exit", 4))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    trace = open_trace(path)
    assert trace.metadata.interrupted
    assert list(trace.events()) == [Event("exit", 4)]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), TraceWriter(tmp_path / "a.trace", Metadata()) as writer:
        writer.append(Event("exit", 1 // 0))
    assert list(tmp_path.iterdir()) == []


def test_snapshots_keep_their_place_and_their_hidden_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    events = sample_events(40_000)  # more than one batch
    taken = snapshot(7, 5)
    large = snapshot(8, 40_000)  # spans batches
    with TraceWriter(path, Metadata()) as writer:
        for i, event in enumerate(events):
            if i == 3:
                writer.append_snapshot(taken, 25)
                writer.append_snapshot(Snapshot(9, [], source="procfs", flags_exact=False, hidden=False), 26)
            if i == 39_000:
                writer.append_snapshot(large, 389_995)
            writer.append(event)
    trace = open_trace(path)
    assert len(trace) == 40_000
    assert trace.metadata.snapshots == 3
    found = list(trace.snapshots())
    assert [(each.position, each.time, each.snapshot.pid) for each in found] == [
        (3, 25, 7),
        (3, 26, 9),
        (39_000, 389_995, 8),
    ]
    assert as_tuples(found[0].snapshot) == as_tuples(taken)
    assert found[0].snapshot.source == "bpf"
    assert (found[0].snapshot.flags_exact, found[0].snapshot.hidden, found[0].snapshot.consistent) == (
        True,
        True,
        False,
    )
    assert not found[1].snapshot.hidden
    assert as_tuples(found[2].snapshot) == as_tuples(large)
    assert list(trace.events()) == events
    items = list(trace.items())
    assert [isinstance(item, TakenSnapshot) for item in items[:6]] == [False, False, False, True, True, False]
    assert [item for item in items if isinstance(item, Event)] == events
    assert [each.snapshot.pid for each in trace.snapshots(pids=[8])] == [8]


def test_a_path_that_is_no_utf8_shows_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    name = os.fsdecode(b"/tmp/\xff\xc3\xa4")
    with TraceWriter(path, Metadata(command=[name])) as writer:
        writer.append(Event("mmap", 1, file=name))
        writer.append_snapshot(
            Snapshot(1, [Row(0, 4096, 1, file=name)], source="procfs", flags_exact=False, hidden=False), 1
        )
    trace = open_trace(path)
    assert [event.file for event in trace.events()] == ["/tmp/\\xffä"]
    assert [taken.snapshot.rows[0].file for taken in trace.snapshots()] == ["/tmp/\\xffä"]
    assert trace.metadata.command == [name]


def test_reading_holds_one_batch_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    with TraceWriter(path, Metadata()) as writer:
        for i in range(300_000):
            writer.append(Event("write", 1, addr=i * 4096, length=4096, time=i))
    trace = open_trace(path)
    tracemalloc.start()
    count = sum(1 for _ in trace.events())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 300_000
    assert peak < 40 << 20  # all of them at once would be over 60 MiB


@pytest.mark.parametrize("keep", [3, 4, 100, 0.5, 0.999])
def test_a_truncated_file_is_one_line(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "a.trace"
    with TraceWriter(path, Metadata()) as writer:
        for event in sample_events(5000):
            writer.append(event)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    with pytest.raises(TraceError, match=r"cut short|not a vmaweld trace") as caught:
        open_trace(path)
    assert "\n" not in str(caught.value)


def test_a_file_damaged_in_the_middle_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    with TraceWriter(path, Metadata()) as writer:
        for event in sample_events(5000):
            writer.append(event)
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)
    path.write_bytes(data)
    with pytest.raises(TraceError) as caught:
        list(open_trace(path).events())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello\n", b"PAR1", bytes(1000)])
def test_a_foreign_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.trace"
    path.write_bytes(content)
    with pytest.raises(TraceError) as caught:
        open_trace(path)
    assert "\n" not in str(caught.value)


def test_a_parquet_file_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(TraceError, match="not a vmaweld trace"):
        open_trace(path)


def test_a_newer_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    meta = {b"vmaweld": json.dumps({"format": FORMAT + 1, "vmaweld": "9.0"}).encode()}
    pq.write_table(pa.table({"x": [1]}).replace_schema_metadata(meta), path)
    with pytest.raises(TraceError, match=r"format 2, made by vmaweld 9\.0.*upgrade"):
        open_trace(path)


def test_unknown_metadata_of_a_later_minor_version_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    with TraceWriter(path, Metadata(recorder="perf")) as writer:
        writer.append(Event("exit", 1))
    table = pq.read_table(path)
    values = json.loads(pq.ParquetFile(path).metadata.metadata[b"vmaweld"]) | {"invented_later": 1}
    pq.write_table(table.replace_schema_metadata({"vmaweld": json.dumps(values)}), path)
    assert open_trace(path).metadata.recorder == "perf"


def test_the_documentation_names_every_column_and_key() -> None:
    text = (Path(__file__).parent.parent / "docs/trace-file.md").read_text()
    for name in (*SCHEMA.names, *(f.name for f in dataclasses.fields(Metadata)), *OPERATIONS):
        assert f"`{name}`" in text


def test_missing_and_unwritable_paths(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file"):
        open_trace(tmp_path / "none")
    with pytest.raises(OutputError, match="cannot write"):
        TraceWriter(tmp_path / "no" / "such" / "dir.trace", Metadata())
