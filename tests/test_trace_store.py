# SPDX-License-Identifier: GPL-2.0-or-later
"""The trace file gives back what was written, streams, and says in one line why a file is none."""

import dataclasses
import json
import os
import random
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


def rewrite(path: Path, columns: dict[str, pa.Array], metadata: dict[str, object] | None = None) -> None:
    """Write the trace anew as another program would: as format 1 and without a seal, with other `columns`."""
    table = pq.read_table(path)
    if metadata is None:
        metadata = json.loads(pq.ParquetFile(path).metadata.metadata[b"vmaweld"])
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    pq.write_table(table.replace_schema_metadata({"vmaweld": json.dumps(metadata | {"format": 1})}), path)


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


@pytest.mark.parametrize(
    "raw", [b"/tmp/\xff\xc3\xa4", rb"/a\b", rb"/a\xff", rb"/a\\xff", b"/a\\\xff", rb"\u1234", b"\xed\xa0\x80", b"\\"]
)
def test_names_that_are_no_utf8_come_back_as_the_same_bytes(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xfe.trace")
    name = os.fsdecode(raw)
    with TraceWriter(path, Metadata(command=[name])) as writer:
        writer.append(Event("mmap", 1, file=name))
        writer.append_snapshot(
            Snapshot(1, [Row(0, 4096, 1, file=name, name=name)], source="procfs", flags_exact=False, hidden=False), 1
        )
    trace = open_trace(path)
    assert [os.fsencode(event.file) for event in trace.events()] == [raw]
    row = next(trace.snapshots()).snapshot.rows[0]
    assert (os.fsencode(row.file), os.fsencode(row.name)) == (raw, raw)
    assert [os.fsencode(word) for word in trace.metadata.command] == [raw]


def test_what_is_no_utf8_is_shown_escaped_to_other_readers_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    with TraceWriter(path, Metadata()) as writer:
        writer.append(Event("mmap", 1, file=os.fsdecode(b"/tmp/\xff\\\xc3\xa4")))
        writer.append(Event("mmap", 1, file="\ud800"))
    assert pq.read_table(path).column("file").to_pylist() == [r"/tmp/\xff\\ä", r"\ud800"]
    assert [event.file for event in open_trace(path).events()] == [os.fsdecode(b"/tmp/\xff\\\xc3\xa4"), "\ud800"]


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
    with pytest.raises(TraceError, match=rf"format {FORMAT + 1}, made by vmaweld 9\.0.*upgrade"):
        open_trace(path)


def test_unknown_metadata_of_a_later_minor_version_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    with TraceWriter(path, Metadata(recorder="perf")) as writer:
        writer.append(Event("exit", 1))
    values = json.loads(pq.ParquetFile(path).metadata.metadata[b"vmaweld"]) | {"invented_later": 1}
    rewrite(path, {}, values)
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


def small_trace(path: Path) -> list[object]:
    """A trace with every kind of row at `path`; what it says."""
    with TraceWriter(path, Metadata(command=["x", "y"], recorder="perf", kernel="6.18.0")) as writer:
        for event in sample_events(40):
            writer.append(event)
        writer.append_snapshot(snapshot(7, 5), 400)
        writer.append(Event("exit", 7, time=500))
    return said_by(path)


def said_by(path: Path) -> list[object]:
    """All that a reader is told by the trace at `path`, comparable."""
    with open_trace(path) as trace:
        assert len(list(trace.events())) == sum(1 for item in trace.items() if isinstance(item, Event))
        return [
            trace.metadata,
            *(
                item
                if isinstance(item, Event)
                else (item.position, item.time, item.snapshot.pid, item.snapshot.source, as_tuples(item.snapshot))
                for item in trace.items()
            ),
        ]


def is_noticed(path: Path, data: bytes, whole: list[object]) -> bool:
    """True if `data` is refused in one line; it must be, or else say the same."""
    path.write_bytes(data)
    try:
        said = said_by(path)
    except TraceError as error:
        complaint = str(error)
    else:
        assert said == whole
        return False
    assert "\n" not in complaint
    assert str(path) in complaint
    return True


def test_no_flipped_bit_anywhere_is_read_as_other_data(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    whole = small_trace(path)
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    places = [*range(8 * (footer - 16), 8 * len(data)), *random.Random(19).sample(range(8 * (footer - 16)), 500)]
    for bit in places:
        changed = bytearray(data)
        changed[bit >> 3] ^= 1 << (bit & 7)
        assert is_noticed(path, bytes(changed), whole), f"bit {bit} of {8 * len(data)}"


def test_neither_are_pieces_cut_off_put_in_or_appended(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    whole = small_trace(path)
    data = path.read_bytes()
    chance = random.Random(23)
    for _ in range(100):
        at, to = sorted(chance.sample(range(len(data)), 2))
        garbage = chance.randbytes(chance.choice([1, 4, 8, 100, 5000]))
        for changed in (
            data[:at],
            data + garbage,
            data + data,
            data[:at] + garbage + data[at:],
            data[:at] + data[to:],
            data[:at] + bytes(to - at) + data[to:],
            data[:at] + garbage + data[at + len(garbage) :],
        ):
            if changed != data:
                assert is_noticed(path, changed, whole)


def test_pages_carry_the_checksums_that_other_readers_know(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    small_trace(path)
    data = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(0).column(SCHEMA.names.index("addr"))
    assert not column.has_dictionary_page
    data[column.data_page_offset + column.total_compressed_size - 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match=r"(?i)checksum|crc"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


def test_a_trace_of_the_first_format_has_no_seal_and_still_opens(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    whole = small_trace(path)
    rewrite(path, {})
    said = said_by(path)
    assert isinstance(said[0], Metadata)
    assert said[0].format == 1
    assert said[1:] == whole[1:]


def test_a_trace_that_lost_its_seal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    small_trace(path)
    table = pq.read_table(path)
    values = pq.ParquetFile(path).metadata.metadata[b"vmaweld"]
    pq.write_table(table.replace_schema_metadata({"vmaweld": values}), path)
    with pytest.raises(TraceError, match="lost its seal"):
        open_trace(path)


NULLS = {name: pa.nulls(47, SCHEMA.field(name).type) for name in SCHEMA.names}
ODD_CELLS = {
    "unknown op": {"op": pa.array(["fly"] * 47)},
    "null op": {"op": NULLS["op"]},
    "null pid": {"pid": NULLS["pid"]},
    "null addr": {"addr": NULLS["addr"]},
    "null file": {"file": NULLS["file"]},
    "null pgoff": {"pgoff": NULLS["pgoff"]},
    "null time": {"time": NULLS["time"]},
    "null name": {"name": NULLS["name"]},
    "text addr": {"addr": pa.array(["here"] * 47)},
    "fractional addr": {"addr": pa.array([0.5] * 47)},
    "negative length": {"length": pa.array([-1] * 47)},
    "large pid": {"pid": pa.array([1 << 40] * 47)},
    "list op": {"op": pa.array([["mmap"]] * 47)},
    "bytes file": {"file": pa.array([b"\xff"] * 47)},
    "struct file": {"file": pa.array([{"x": 1}] * 47)},
    "only rows of a snapshot": {"op": pa.array(["vma"] * 47)},
    "only snapshots": {"op": pa.array(["snapshot"] * 47)},
    "no rows of the snapshot": {"op": pa.array(["exit"] * 40 + ["snapshot"] + ["exit"] * 6)},
    "a snapshot that never ends": {"length": pa.array([1 << 60] * 47, pa.uint64())},
}


@pytest.mark.parametrize("name", ODD_CELLS)
def test_cells_that_make_no_sense_are_told_in_a_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    small_trace(path)
    rewrite(path, ODD_CELLS[name])
    with pytest.raises(TraceError, match=r"a\.trace") as caught:
        said_by(path)
    assert "\n" not in str(caught.value)


def test_columns_of_a_wider_type_are_read_as_what_they_say(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    whole = small_trace(path)
    table = pq.read_table(path)
    wider: dict[str, pa.Array] = {"op": table.column("op").cast(pa.large_string())}
    wider["pid"] = table.column("pid").cast(pa.int64())
    rewrite(path, wider)
    assert said_by(path)[1:] == whole[1:]


@pytest.mark.parametrize(
    "metadata",
    [
        {"command": "x"},
        {"command": [1]},
        {"losses": {"perf_records": "many"}},
        {"events": -1},
        {"events": 1 << 70},
        {"duration": None},
        {"duration": 1.5},
        {"interrupted": 0},
        {"exit_status": "0"},
        {"kernel": 6},
        {"overcommit": True},
    ],
    ids=str,
)
def test_metadata_of_the_wrong_type_is_told_in_a_line(metadata: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    small_trace(path)
    rewrite(path, {}, metadata)
    with pytest.raises(TraceError, match="metadata is damaged"):
        open_trace(path)


@pytest.mark.parametrize("text", [b"[1]", b"3", b'{"format": null}', b'{"format": 0}', b"[" * 100_000, b"\xff", b""])
def test_metadata_that_is_none_is_told_in_a_line(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    small_trace(path)
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"vmaweld": text}), path)
    with pytest.raises(TraceError, match="metadata is damaged"):
        open_trace(path)


def test_a_column_twice_is_told_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    small_trace(path)
    table = pq.read_table(path)
    pq.write_table(
        table.append_column("op", table.column("op")).replace_schema_metadata({"vmaweld": '{"format":1}'}), path
    )
    with pytest.raises(TraceError, match="column op"):
        open_trace(path)


def test_a_footer_whose_names_are_no_utf8_is_told_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    small_trace(path)
    rewrite(path, {})
    data = path.read_bytes()
    path.write_bytes(data.replace(b"new_length", b"new_lengt\xfe"))
    with pytest.raises(TraceError, match="cut short or damaged"):
        open_trace(path)


def test_times_that_fall_or_lie_far_apart_are_read_as_they_were_written(tmp_path: Path) -> None:
    for times in ((5, 3), (-(1 << 63), (1 << 63) - 1)):
        path = tmp_path / "a.trace"
        events = [Event("exit", 1, time=time) for time in times]
        with TraceWriter(path, Metadata()) as writer:
            for event in events:
                writer.append(event)
        assert list(open_trace(path).events()) == events


def test_a_column_with_fewer_values_than_the_others_is_told_in_a_line() -> None:
    """Arrow reads it as a file without rows; found by fuzzing."""
    with open_trace(Path(__file__).parent / "fuzz/corpus/trace/a-column-without-rows") as trace:
        assert len(list(trace.events())) == 41
        with pytest.raises(TraceError, match="missing: 47 rows"):
            list(trace.items())
