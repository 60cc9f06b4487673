# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads perf.data itself: the records of the events that `vmaweld.trace.recorders.perf` asks for, in order of time.

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

_TRACEPOINTS: Final[dict[str, tuple[tuple[str, str, int], ...]]] = {
    "sys_enter": (("id", "q", 1), ("args", "Q", 6)),
    "sys_exit": (("id", "q", 1), ("ret", "q", 1)),
    "page_fault_user": (("address", "Q", 1), ("error_code", "Q", 1)),
    "page_fault_kernel": (("address", "Q", 1), ("error_code", "Q", 1)),
    "task_newtask": (("clone_flags", "Q", 1),),
    "sched_process_exec": (("filename", "I", 1),),
}
"""The tracepoints that become records; of each the wanted fields in their order: name, struct code, how many."""
_FORMAT: Final = re.compile(rb"name: (\w{1,100})\nID: (\d{1,9})\nformat:\n")
_FIELD: Final = re.compile(rb"field:([^;]*);\s*offset:(\d{1,9});\s*size:(\d{1,9});")
_LONGEST_FORMAT: Final = 8192

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

_LEAST: Final = {
    _RECORD_LOST: 24,
    _RECORD_LOST_SAMPLES: 16,
    _RECORD_COMM: 16,
    _RECORD_EXIT: 32,
    _RECORD_FORK: 32,
    _RECORD_MMAP2: 72,
}
"""Bytes of the records that are looked at, up to what comes behind their fixed fields."""
_SMALLEST_ATTRIBUTE: Final = 64 + 16  # struct perf_event_attr of the first version, and where its ids lie

_HEADER: Final = Struct("<8sQQQQQQQQ4Q")
_RECORD_HEAD: Final = Struct("<IHH")
_MMAP2: Final = Struct("<IIQQQIIQQII")
_WORD: Final = Struct("<Q")
_time_of: Final = itemgetter(0)


_Decoder = tuple[Callable[[Any, int], Record], int]
"""What makes a `Record` of a sample at a place of the file, and the bytes that such a sample has at least."""


class PerfDataError(Exception):
    """The file is not what `vmaweld.trace.recorders.perf` made; one line."""


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
        except (error, OverflowError):  # an offset behind the end, or beyond all ends
            raise PerfDataError(f"{path} is cut short: perf did not finish writing it") from None

    def _read_header(self) -> None:
        data = self._data
        magic, _, entry, attrs, attrs_size, start, size, _, _, *flags = _HEADER.unpack_from(data)
        if magic != b"PERFILE2":
            raise PerfDataError(f"{self._path} is not a perf.data file of this machine's byte order")
        self._start = start
        # perf fills in the size when it ends; killed, it leaves 0 and the records reach to the end of the file.
        self._end = min(start + size, len(data)) if size else len(data)
        self.truncated = start + size > len(data)
        formats = formats_in(self._tracing_data(flags) if size else b"") or formats_of_this_kernel()
        self._samples: dict[int, _Decoder] = {}
        self._trailers: dict[int, int] = {}
        if entry < _SMALLEST_ATTRIBUTE or attrs_size > len(data):
            raise PerfDataError(f"{self._path} is damaged: its list of events is none")
        listed = 0
        for place in range(attrs, attrs + attrs_size, entry):
            kind, _, config, _, sample_type = unpack_from("<IIQQQ", data, place)
            ids_at, ids_size = unpack_from("<QQ", data, place + entry - 16)
            if not sample_type & _SAMPLE_IDENTIFIER or not sample_type & _SAMPLE_TIME or not sample_type & _SAMPLE_TID:
                raise PerfDataError(
                    f"{self._path} was not recorded by vmaweld: its records carry no identifier or time"
                )
            try:
                decoder = _decoder(sample_type, *formats[config]) if kind == 2 and config in formats else None
            except (KeyError, error):
                raise PerfDataError(f"{self._path}: the kernel's {formats[config][0]} has other fields") from None
            listed += ids_size
            if listed > len(data):
                raise PerfDataError(f"{self._path} is damaged: its list of events is none")
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
                decoder = samples.get(identifier(data, place + 8)[0]) if size >= 16 else None
                if decoder is not None:
                    decode, least = decoder
                    if size < least:
                        raise self._damaged(place)
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
        least = _LEAST.get(kind)
        if least is None:
            return None
        if size < least:
            raise self._damaged(place)
        if kind == _RECORD_LOST:
            self.losses += unpack_from("<Q", data, place + 16)[0]
            return None
        if kind == _RECORD_LOST_SAMPLES:
            # perf's own sum at the end counts again what the kernel has told in RECORD_LOST.
            if not misc & _MISC_LOST_SAMPLES_BPF:
                self.losses = max(self.losses, unpack_from("<Q", data, place + 8)[0])
            return None
        trailer = self._trailers.get(_WORD.unpack_from(data, place + size - 8)[0])
        if trailer is None:  # made up by perf itself for what ran before, not by the kernel
            return None
        if size < least + trailer:
            raise self._damaged(place)
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

    def _damaged(self, place: int) -> PerfDataError:
        return PerfDataError(f"{self._path} is damaged: the record at byte {place:,} is too short")


def _first_after(records: list[Record], time: int) -> int:
    low, high = 0, len(records)
    while low < high:
        middle = (low + high) // 2
        if records[middle][0] <= time:
            low = middle + 1
        else:
            high = middle
    return low


def formats_in(text: bytes) -> dict[int, tuple[str, dict[str, tuple[int, int]]]]:
    """Tracepoints by id: name and fields, as (offset, size) by field name, from tracefs format files run together."""
    formats: dict[int, tuple[str, dict[str, tuple[int, int]]]] = {}
    for found in _FORMAT.finditer(text):
        fields: dict[str, tuple[int, int]] = {}
        for line in text[found.end() : found.end() + _LONGEST_FORMAT].split(b"\n"):
            parts = _FIELD.search(line)
            if parts is not None:
                # "unsigned long args[6]"
                declared = parts[1].rpartition(b" ")[2].partition(b"[")[0]
                fields[declared.decode(errors="replace")] = int(parts[2]), int(parts[3])
            elif line:
                break
        formats[int(found[2])] = found[1].decode(), fields
    return formats


def formats_of_this_kernel() -> dict[int, tuple[str, dict[str, tuple[int, int]]]]:
    """The same of the running kernel, for a file that perf could not finish."""
    text = b""
    for path in Path("/sys/kernel/tracing/events").glob("*/*/format"):
        if path.parent.name in _TRACEPOINTS:
            text += path.read_bytes()
    return formats_in(text)


def _decoder(sample_type: int, name: str, fields: dict[str, tuple[int, int]]) -> _Decoder | None:
    """What turns a sample of tracepoint `name` into a `Record`; None where nobody wants it.

    Raises KeyError or struct.error where its fields are not those that are wanted, of their sizes and in their order.
    """
    if name not in _TRACEPOINTS or not sample_type & _SAMPLE_RAW or sample_type & (_SAMPLE_READ | _SAMPLE_CALLCHAIN):
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
    for which, code, count in _TRACEPOINTS[name]:
        offset, size = fields[which]
        each = Struct("<" + code).size
        if size != each * count:
            raise KeyError(which)
        wanted += [(raw + offset + each * number, code) for number in range(count)]
    layout = Struct(_padded(wanted))
    take = layout.unpack_from

    def enter(data: Any, place: int) -> Record:
        pid, tid, time, number, a, b, c, d, e, f = take(data, place)
        return time, ENTER, pid, tid, number, a, b, c, d, e, f

    def leave(data: Any, place: int) -> Record:
        pid, tid, time, number, result = take(data, place)
        return time, LEAVE, pid, tid, number, result

    def fault(data: Any, place: int) -> Record:
        pid, tid, time, address, code = take(data, place)
        return time, FAULT, pid, tid, address, code

    def new_task(data: Any, place: int) -> Record:
        pid, tid, time, flags = take(data, place)
        return time, NEW_TASK, pid, tid, flags

    def execed(data: Any, place: int) -> Record:
        pid, tid, time, where = take(data, place)
        begin = place + raw + (where & 0xFFFF)
        end = min(begin + (where >> 16), place + _RECORD_HEAD.unpack_from(data, place)[2])
        program = bytes(data[begin:end]).split(b"\0", 1)[0].decode(errors="surrogateescape")
        return time, EXECED, pid, tid, program

    decoders: dict[str, Callable[[Any, int], Record]] = {
        "sys_enter": enter,
        "sys_exit": leave,
        "page_fault_user": fault,
        "page_fault_kernel": fault,
        "task_newtask": new_task,
        "sched_process_exec": execed,
    }
    return decoders[name], layout.size


def _padded(fields: list[tuple[int, str]]) -> str:
    """A little-endian struct format that takes `fields` (offset, code), which come in order of offset."""
    text = "<"
    place = 0
    for at, code in fields:
        text += f"{at - place}x{code}"
        place = at + Struct("<" + code).size
    return text
