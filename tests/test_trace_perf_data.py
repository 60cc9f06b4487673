# SPDX-License-Identifier: GPL-2.0-or-later
"""perf.data that is not as perf leaves it: one line, or what is there; never another program's data, never a hang."""

import struct
from pathlib import Path
from time import process_time

import pytest

from vmaweld.trace.assembly.assembler import Assembler
from vmaweld.trace.recorders import perf
from vmaweld.trace.recorders.perf_data import EXECED, LEAVE, MAPPED, PerfData, PerfDataError, formats_in
from vmaweld.trace.store import Metadata, TraceError, TraceWriter

WHOLE = (Path(__file__).parent / "fuzz/corpus/perf/whole").read_bytes()
HEADER = struct.Struct("<8sQQQQQQQQ4Q")
RECORD = struct.Struct("<IHH")
START, SIZE = HEADER.unpack_from(WHOLE)[5:7]
MMAP2, SAMPLE = 10, 9


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def with_header(**fields: int) -> bytes:
    names = ("magic", "size", "entry", "attrs", "attrs_size", "start", "data_size", "types", "types_size", "f0")
    values = list(HEADER.unpack_from(WHOLE))
    for name, value in fields.items():
        values[names.index(name)] = value
    return HEADER.pack(*values) + WHOLE[HEADER.size :]


def places(kind: int) -> list[int]:
    """Where the records of `kind` begin."""
    found = []
    place = START
    while place < START + SIZE:
        this, _, size = RECORD.unpack_from(WHOLE, place)
        if this == kind:
            found.append(place)
        place += size
    return found


def test_a_real_recording_is_read(tmp_path: Path) -> None:
    kinds = [record[1] for record in PerfData(write(tmp_path / "a", WHOLE)).records()]
    assert (kinds.count(MAPPED), kinds.count(EXECED), kinds.count(LEAVE)) == (39, 3, 20)


@pytest.mark.parametrize(
    "data",
    [
        with_header(entry=0),
        with_header(entry=1),
        with_header(attrs=1 << 63),
        with_header(attrs=len(WHOLE)),
        with_header(attrs_size=1 << 63),
        with_header(data_size=1 << 40),
        b"perffile" + WHOLE[8:],
        WHOLE[:50],
        WHOLE[:300],
        b"",
    ],
    ids=range(10),
)
def test_a_header_that_leads_nowhere_is_one_line(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(PerfDataError) as caught:
        list(PerfData(write(tmp_path / "a", data)).records())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [1 << 40, len(WHOLE)])
def test_records_that_reach_behind_the_end_are_cut_short(size: int, tmp_path: Path) -> None:
    source = PerfData(write(tmp_path / "a", with_header(data_size=size, f0=0)))
    assert source.truncated
    list(source.records())


@pytest.mark.parametrize("kind", [MMAP2, SAMPLE])
def test_a_record_that_is_too_short_is_one_line(kind: int, tmp_path: Path) -> None:
    """What lies behind it is another record's, and was read as this one's."""
    place = places(kind)[0]
    _, misc, size = RECORD.unpack_from(WHOLE, place)
    ends = WHOLE[place + 8 : place + 16] + WHOLE[place + size - 8 : place + size]
    filler = RECORD.pack(99, 0, size - 24) + bytes(size - 32)
    data = WHOLE[:place] + RECORD.pack(kind, misc, 24) + ends + filler + WHOLE[place + size :]
    with pytest.raises(PerfDataError, match="too short"):
        list(PerfData(write(tmp_path / "a", data)).records())


def test_a_program_name_ends_with_its_record(tmp_path: Path) -> None:
    data = bytearray(WHOLE)
    path = b"/usr/bin/head\0"
    ends = {place: place + RECORD.unpack_from(data, place)[2] for place in places(SAMPLE)}
    place = next(place for place, end in ends.items() if path in data[place:end])
    name = data.index(path, place)
    at = next(at for at in range(place, name) if data[at + 2 : at + 4] == len(path).to_bytes(2, "little"))
    data[at + 2 : at + 4] = b"\xff\xff"  # as long as a number can say
    data[name : ends[place]] = b"/" * (ends[place] - name)
    programs = [record[4] for record in PerfData(write(tmp_path / "a", bytes(data))).records() if record[1] == EXECED]
    assert "/" * (ends[place] - name) in programs


def test_tracepoints_with_other_fields_are_one_line(tmp_path: Path) -> None:
    for old, new in ((b"long args[6]", b"long argz[6]"), (b"size:48;", b"size:47;"), (b"offset:16;", b"offset:12;")):
        data = WHOLE.replace(old, new)
        assert data != WHOLE
        with pytest.raises(PerfDataError, match="other fields"):
            PerfData(write(tmp_path / "a", data))


@pytest.mark.parametrize(
    "text",
    [
        b"name: x\nID: 1\nformat:\n" * 40_000,
        b"name: x\nID: 1\nformat:\n" + b"field:" * 200_000,
        b"name: x\nID: 1\nformat:\n\tfield:" + b"a" * 1_000_000,
        b"name: " * 200_000,
        b"name: x\nID: " + b"9" * 1_000_000,
    ],
    ids=range(5),
)
def test_formats_take_time_that_grows_with_their_length(text: bytes) -> None:
    begin = process_time()
    formats_in(text)
    assert process_time() - begin < 10  # a second at most; with nested repetitions, hours


def test_a_time_or_a_process_that_no_kernel_has_is_one_line(tmp_path: Path) -> None:
    first = places(SAMPLE)[0]
    for at, value in ((first + 16 + 8, b"\xff" * 8), (first + 16 + 8, b"\xff" * 7 + b"\x7f")):
        data = bytearray(WHOLE)
        data[at : at + 8] = value
        source = PerfData(write(tmp_path / "a", bytes(data)))
        root = next(record[2] for record in source.records() if record[1] == EXECED)
        writer = TraceWriter(tmp_path / "b", Metadata())
        made = Assembler(writer.append, root)
        perf.feed(source, made, writer, [], 0, lambda done: None)
        made.finish()
        try:
            writer.close()
        except TraceError as error:
            complaint = str(error)
        else:
            complaint = "a number that no kernel gives"
        assert "a number that no kernel gives" in complaint
