"""Reads perf.data itself: the records of the events that `vmaweld.trace.perf` asks for, in order of time.

Why not ``perf script``: it prints each record as text only for us to take it apart again, several times slower than
reading the binary records; it needs tracefs and a libtraceevent that knows the running kernel's formats; and its text
is made for people. The file's layout (tools/perf/Documentation/perf.data-file-format.txt) and the records
(include/uapi/linux/perf_event.h) are stable interfaces, and the file carries the tracepoints' formats with it.
"""

import mmap
import os
import re
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from struct import Struct, error, unpack_from
from typing import Any, Final

Record = tuple[Any, ...]
"""(time in ns, kind, pid, tid, ...): what follows depends on the kind, told beside its name below."""

ENTER: Final = 0  # number, arg0 ... arg5
LEAVE: Final = 1  # number, result
FAULT: Final = 2  # address, error code
NEW_TASK: Final = 3  # clone flags; pid and tid are the parent's
EXECED: Final = 4  # program: exec has succeeded, the new image is mapped
MAPPED: Final = 5  # addr, length, pgoff in bytes, prot, MAP_* flags, (major, minor, inode), name
FORKED: Final = 6  # parent's pid, parent's tid; pid and tid are the new task's
ENDED: Final = 7  # a task (thread) has ended
EXECING: Final = 8  # the address space has just been replaced; what exec maps follows

_TRACEPOINTS: Final = (
    "sys_enter",
    "sys_exit",
    "page_fault_user",
    "page_fault_kernel",
    "task_newtask",
    "sched_process_exec",
)

_RECORD_LOST: Final = 2
_RECORD_COMM: Final = 3
_RECORD_EXIT: Final = 4
_RECORD_FORK: Final = 7
_RECORD_SAMPLE: Final = 9
_RECORD_MMAP2: Final = 10
_RECORD_LOST_SAMPLES: Final = 13
_RECORD_FINISHED_ROUND: Final = 68
_RECORD_COMPRESSED: Final = 81
_MISC_COMM_EXEC: Final = 1 << 13
_MISC_LOST_SAMPLES_BPF: Final = 1 << 15

_TRACING_DATA: Final = 1  # bit and order of the header's feature section
_SAMPLE_BEFORE_RAW: Final = (  # (bit of sample_type, bytes), in the order of the sample's layout
    (1 << 16, 8),  # IDENTIFIER
    (1 << 0, 8),  # IP
    (1 << 1, 8),  # TID
    (1 << 2, 8),  # TIME
    (1 << 3, 8),  # ADDR
    (1 << 6, 8),  # ID
    (1 << 9, 8),  # STREAM_ID
    (1 << 7, 8),  # CPU
    (1 << 8, 8),  # PERIOD
)
_NOT_IN_TRAILER: Final = 1 << 0 | 1 << 3 | 1 << 8  # IP, ADDR, PERIOD
_SAMPLE_TID: Final = 1 << 1
_SAMPLE_TIME: Final = 1 << 2
_SAMPLE_READ: Final = 1 << 4
_SAMPLE_CALLCHAIN: Final = 1 << 5
_SAMPLE_RAW: Final = 1 << 10
_SAMPLE_IDENTIFIER: Final = 1 << 16

_HEADER: Final = Struct("<8sQQQQQQQQ4Q")
_RECORD_HEAD: Final = Struct("<IHH")
_MMAP2: Final = Struct("<IIQQQIIQQII")
_WORD: Final = Struct("<Q")
_time_of: Final = itemgetter(0)


class PerfDataError(Exception):
    """The file is not what `vmaweld.trace.perf` made; one line."""


class PerfData:
    """One perf.data file.

    losses: records that perf or the kernel reports as lost; complete when `records` has been read to its end.
    truncated: the file ends in the middle of a record (perf was killed).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.losses = 0
        self.truncated = False
        self._path = Path(path)
        self._names: dict[bytes, str] = {}
        with self._path.open("rb") as stream:
            try:
                self._data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:
                raise PerfDataError(f"{path} is empty: perf recorded nothing") from None
        try:
            self._read_header()
        except error:
            raise PerfDataError(f"{path} is cut short: perf did not finish writing it") from None

    def _read_header(self) -> None:
        data = self._data
        magic, _, entry, attrs, attrs_size, start, size, _, _, *flags = _HEADER.unpack_from(data)
        if magic != b"PERFILE2":
            raise PerfDataError(f"{self._path} is not a perf.data file of this machine's byte order")
        self._start = start
        # perf fills in the size when it ends; killed, it leaves 0 and the records reach to the end of the file.
        self._end = start + size if size else len(data)
        formats = _formats_in(self._tracing_data(flags) if size else b"") or _formats_of_this_kernel()
        self._samples: dict[int, Callable[[Any, int], Record]] = {}
        self._trailers: dict[int, int] = {}
        for place in range(attrs, attrs + attrs_size, entry):
            kind, _, config, _, sample_type = unpack_from("<IIQQQ", data, place)
            ids_at, ids_size = unpack_from("<QQ", data, place + entry - 16)
            if not sample_type & _SAMPLE_IDENTIFIER or not sample_type & _SAMPLE_TIME or not sample_type & _SAMPLE_TID:
                raise PerfDataError(
                    f"{self._path} was not recorded by vmaweld: its records carry no identifier or time"
                )
            decoder = _decoder(sample_type, *formats[config]) if kind == 2 and config in formats else None
            for event in unpack_from(f"<{ids_size // 8}Q", data, ids_at):
                # Records that are no samples end with {tid, time, [id], [stream], [cpu], identifier}.
                trailer = sample_type & ~_NOT_IN_TRAILER
                self._trailers[event] = sum(size for bit, size in _SAMPLE_BEFORE_RAW if trailer & bit)
                if decoder is not None:
                    self._samples[event] = decoder

    def _tracing_data(self, flags: list[int]) -> bytes:
        if not flags[0] >> _TRACING_DATA & 1:
            return b""
        at, size = unpack_from("<QQ", self._data, self._end + 16 * (flags[0] & ((1 << _TRACING_DATA) - 1)).bit_count())
        return self._data[at : at + size]

    @property
    def size(self) -> int:
        """Bytes of records, for a progress bar."""
        size: int = self._end - self._start
        return size

    def records(self, progress: Callable[[int], None] = lambda _: None) -> Iterator[Record]:
        """All records in order of time; `progress` is told the bytes read so far, a few times a second of work.

        perf drains one ring buffer after the other and marks the end of each round: what was written before the
        round began cannot come later, so a round's records are sorted and given out when the next one has ended.
        """
        data = self._data
        samples = self._samples
        head = _RECORD_HEAD.unpack_from
        identifier = _WORD.unpack_from
        place = self._start
        end = self._end
        pending: list[Record] = []
        newest = horizon = 0
        while place + 8 <= end:
            kind, misc, size = head(data, place)
            if size < 8 or place + size > end:
                self.truncated = True
                break
            if kind == _RECORD_SAMPLE:
                decode = samples.get(identifier(data, place + 8)[0])
                if decode is not None:
                    pending.append(decode(data, place))
            elif kind == _RECORD_FINISHED_ROUND:
                if pending:
                    pending.sort(key=_time_of)
                    newest, horizon = pending[-1][0], newest
                    cut = _first_after(pending, horizon)
                    yield from pending[:cut]
                    pending = pending[cut:]
                    progress(place - self._start)
            elif kind == _RECORD_COMPRESSED:
                raise PerfDataError(f"{self._path} is compressed (perf record -z): record without it")
            else:
                other = self._other(kind, misc, place, size)
                if other is not None:
                    pending.append(other)
            place += size
        pending.sort(key=_time_of)
        yield from pending
        progress(self.size)

    def _other(self, kind: int, misc: int, place: int, size: int) -> Record | None:
        data: Any = self._data
        if kind == _RECORD_LOST:
            self.losses += unpack_from("<Q", data, place + 16)[0]
            return None
        if kind == _RECORD_LOST_SAMPLES:
            # perf's own sum at the end counts again what the kernel has told in RECORD_LOST.
            if not misc & _MISC_LOST_SAMPLES_BPF:
                self.losses = max(self.losses, unpack_from("<Q", data, place + 8)[0])
            return None
        if kind not in (_RECORD_MMAP2, _RECORD_FORK, _RECORD_EXIT, _RECORD_COMM):
            return None
        trailer = self._trailers.get(_WORD.unpack_from(data, place + size - 8)[0])
        if trailer is None:  # made up by perf itself for what ran before, not by the kernel
            return None
        time = _WORD.unpack_from(data, place + size - trailer + 8)[0]
        if kind == _RECORD_MMAP2:
            pid, tid, addr, length, pgoff, major, minor, inode, _, prot, flags = _MMAP2.unpack_from(data, place + 8)
            raw = data[place + 72 : place + size - trailer]
            name = self._names.get(raw)  # few names, many mappings
            if name is None:
                name = self._names[raw] = raw.partition(b"\0")[0].decode(errors="surrogateescape")
            return time, MAPPED, pid, tid, addr, length, pgoff, prot, flags, (major, minor, inode), name
        if kind == _RECORD_COMM:
            pid, tid = unpack_from("<II", data, place + 8)
            return (time, EXECING, pid, tid) if misc & _MISC_COMM_EXEC else None
        pid, parent, tid, parent_tid = unpack_from("<IIII", data, place + 8)
        if kind == _RECORD_FORK:
            return time, FORKED, pid, tid, parent, parent_tid
        return time, ENDED, pid, tid


def _first_after(records: list[Record], time: int) -> int:
    low, high = 0, len(records)
    while low < high:
        middle = (low + high) // 2
        if records[middle][0] <= time:
            low = middle + 1
        else:
            high = middle
    return low


def _formats_in(text: bytes) -> dict[int, tuple[str, dict[str, tuple[int, int]]]]:
    """Tracepoints by id: name and fields, as (offset, size) by field name, from tracefs format files run together."""
    formats: dict[int, tuple[str, dict[str, tuple[int, int]]]] = {}
    for part in re.finditer(rb"name: (\w+)\nID: (\d+)\nformat:\n((?:[^\n]*field:[^\n]*\n|\n)*)", text):
        fields = {
            found[1].decode(): (int(found[2]), int(found[3]))
            for found in re.finditer(rb"field:[^;]*?(\w+)(?:\[[^\]]*\])?;\toffset:(\d+);\tsize:(\d+);", part[3])
        }
        formats[int(part[2])] = part[1].decode(), fields
    return formats


def _formats_of_this_kernel() -> dict[int, tuple[str, dict[str, tuple[int, int]]]]:
    text = b""
    for path in Path("/sys/kernel/tracing/events").glob("*/*/format"):
        if path.parent.name in _TRACEPOINTS:
            text += path.read_bytes()
    return _formats_in(text)


def _decoder(sample_type: int, name: str, fields: dict[str, tuple[int, int]]) -> Callable[[Any, int], Record] | None:
    """What turns a sample of tracepoint `name` at a place of the file into a `Record`."""
    if not sample_type & _SAMPLE_RAW or sample_type & (_SAMPLE_READ | _SAMPLE_CALLCHAIN):
        return None
    at = 8  # offset from the record's start, behind its head
    tid_at = time_at = 0
    for bit, size in _SAMPLE_BEFORE_RAW:
        if sample_type & bit:
            if bit == _SAMPLE_TID:
                tid_at = at
            if bit == _SAMPLE_TIME:
                time_at = at
            at += size
    raw = at + 4  # behind the raw data's size
    # One Struct a tracepoint, padding over what nobody reads: the whole sample is taken in a single call.
    wanted = [(tid_at, "I"), (tid_at + 4, "I"), (time_at, "Q")]

    def field(which: str, code: str) -> tuple[int, str]:
        return raw + fields[which][0], code

    if name == "sys_enter":
        args = raw + fields["args"][0]
        take = Struct(_padded([*wanted, field("id", "q"), *((args + 8 * i, "Q") for i in range(6))])).unpack_from

        def enter(data: Any, place: int) -> Record:
            pid, tid, time, number, a, b, c, d, e, f = take(data, place)
            return time, ENTER, pid, tid, number, a, b, c, d, e, f

        return enter
    if name == "sys_exit":
        take = Struct(_padded([*wanted, field("id", "q"), field("ret", "q")])).unpack_from

        def leave(data: Any, place: int) -> Record:
            pid, tid, time, number, result = take(data, place)
            return time, LEAVE, pid, tid, number, result

        return leave
    if name in ("page_fault_user", "page_fault_kernel"):
        take = Struct(_padded([*wanted, field("address", "Q"), field("error_code", "Q")])).unpack_from

        def fault(data: Any, place: int) -> Record:
            pid, tid, time, address, code = take(data, place)
            return time, FAULT, pid, tid, address, code

        return fault
    if name == "task_newtask":
        take = Struct(_padded([*wanted, field("clone_flags", "Q")])).unpack_from

        def new_task(data: Any, place: int) -> Record:
            pid, tid, time, flags = take(data, place)
            return time, NEW_TASK, pid, tid, flags

        return new_task
    if name == "sched_process_exec":
        take = Struct(_padded([*wanted, field("filename", "I")])).unpack_from

        def execed(data: Any, place: int) -> Record:
            pid, tid, time, where = take(data, place)
            begin = place + raw + (where & 0xFFFF)
            program = bytes(data[begin : begin + (where >> 16)]).split(b"\0", 1)[0].decode(errors="surrogateescape")
            return time, EXECED, pid, tid, program

        return execed
    return None


def _padded(fields: list[tuple[int, str]]) -> str:
    """A little-endian struct format that takes `fields` (offset, code), which come in order of offset."""
    text = "<"
    place = 0
    for at, code in fields:
        text += f"{at - place}x{code}"
        place = at + Struct("<" + code).size
    return text
