# SPDX-License-Identifier: GPL-2.0-or-later
"""The trace file: events and true snapshots in one Parquet table, written and read as a stream.

One row an event, one column a field of `Event`, in order of time. A true snapshot of a recorded process is a run
of rows in the same table, at the very place in that order where it was taken: one row ``snapshot`` (pid, the number
of VMAs, how exact it is), then one row ``vma`` for each VMA. So a trace is a single ordinary Parquet file, and "all
events before it have happened" needs no clock. The schema and the metadata are documented in docs/trace-file.md.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vmaweld import __version__
from vmaweld.events import OPERATIONS, Event, events_from_columns
from vmaweld.output import Output
from vmaweld.snapshot import Row, Snapshot
from vmaweld.trace import names, seal
from vmaweld.trace.columns import as_list
from vmaweld.trace.typed import fits
from vmaweld.words import count_text

FORMAT: Final = 2
"""Version of the schema. A reader refuses a higher one; columns and keys may be added without raising it.

1: no seal, no checksums, names as they were (a byte that is no UTF-8 shown as ``\\xff``). 2: sealed (`seal`), names
as in `names`.
"""
_FIRST_SEALED: Final = 2
_MAGIC: Final = b"PAR1"

SNAPSHOT: Final = "snapshot"
VMA: Final = "vma"
_FLAGS_EXACT: Final = 1
_HIDDEN: Final = 2
_CONSISTENT: Final = 4

_EVENT_COLUMNS: Final = (
    ("op", pa.string()),
    ("pid", pa.int32()),
    ("addr", pa.uint64()),
    ("length", pa.uint64()),
    ("prot", pa.uint64()),
    ("flags", pa.uint64()),
    ("file", pa.string()),
    ("pgoff", pa.uint64()),
    ("new_addr", pa.uint64()),
    ("new_length", pa.uint64()),
    ("child", pa.int32()),
    ("result", pa.int64()),
    ("time", pa.int64()),
)
_ROW_COLUMNS: Final = (
    ("anon_vma", pa.uint64()),
    ("chain", pa.uint32()),
    ("uffd", pa.uint64()),
    ("name", pa.string()),
    ("mempolicy", pa.string()),
    ("file_id", pa.uint64()),
    ("close", pa.bool_()),
)
SCHEMA: Final = pa.schema([*_EVENT_COLUMNS, *_ROW_COLUMNS])
_EVENT_NAMES: Final = [name for name, _ in _EVENT_COLUMNS]
_NEVER_NULL: Final = [name for name in _EVENT_NAMES if name not in ("pgoff", "result")]
_ROW_VALUES: Final = [
    *("addr", "length", "flags", "pgoff", "file", "name"),
    *("anon_vma", "mempolicy", "uffd", "chain", "file_id", "close"),
]
_NAMES: Final = frozenset({"file", "name", "mempolicy"})
_KINDS: Final = pa.array([*OPERATIONS, SNAPSHOT, VMA])
_FIRST_ROW_KIND: Final = len(OPERATIONS)
_DICTIONARY: Final = ["op", "pid", "prot", "file", "child", "name", "mempolicy", "flags"]

_BATCH_ROWS: Final = 1 << 15
_GROUP_ROWS: Final = 1 << 17
_SLICE_ROWS: Final = 1 << 11  # events made at a time: few enough to stay in the processor's cache until they are used


class TraceError(Exception):
    """A file is no trace that can be read; the message is one line: which file, why, what to do."""


@dataclass(slots=True)
class Metadata:
    """What a trace says about itself; stored as JSON under the Parquet key ``vmaweld``.

    command: argument vector of the recorded command.
    started: wall clock at the start, ISO 8601 in UTC.
    kernel: release of the kernel it ran on (``uname -r``). machine: ``uname -m``.
    recorder: "perf", "strace", "sample" or whatever else made the events.
    faults: "seen" where page faults were recorded; "assumed" where every writable private page counts as written.
    page_size: bytes. max_map_count, overcommit: the sysctls' values. thp: "always", "madvise", "never" or "".
    nodes: number of NUMA nodes.
    exit_status: of the command; ``-N`` where signal N ended it, None where it is not known.
    interrupted: the recording was cut short; what is there is whole.
    losses: what is known to be missing, as counts by cause (``perf_records`` ...); empty where nothing is.
    notes: one line each on what the recorder could not see.
    duration: nanoseconds from the first to the last event. events, snapshots, processes: counts.
    """

    command: list[str] = field(default_factory=list)
    started: str = ""
    kernel: str = ""
    machine: str = ""
    recorder: str = ""
    faults: str = "seen"
    page_size: int = 4096
    max_map_count: int = 65530
    overcommit: int = 0
    thp: str = ""
    nodes: int = 1
    exit_status: int | None = None
    interrupted: bool = False
    losses: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    duration: int = 0
    events: int = 0
    snapshots: int = 0
    processes: int = 0
    vmaweld: str = __version__
    format: int = FORMAT

    @property
    def lost(self) -> int:
        """Sum of all losses."""
        return sum(self.losses.values())

    def add_losses(self, losses: Mapping[str, int]) -> None:
        """Add counts by cause; a cause of which there are none is left out."""
        for cause, number in losses.items():
            if number:
                self.losses[cause] = self.losses.get(cause, 0) + number

    def as_json(self) -> dict[str, Any]:
        """All fields by name, ready for JSON."""
        return asdict(self)


_METADATA_TYPES: Final = get_type_hints(Metadata)


@dataclass(slots=True, frozen=True)
class TakenSnapshot:
    """A true snapshot. position: how many events of the trace came before it. time: nanoseconds since the start."""

    position: int
    time: int
    snapshot: Snapshot


class TraceWriter:
    """Writes a trace as a stream: memory stays bounded, the file appears under its name when it is whole.

    Leaving the ``with`` block publishes the file. On an interrupt (KeyboardInterrupt) it is published where no file
    stood before, marked `Metadata.interrupted`. Any other exception leaves all as it was.

    inputs: files that the trace must not replace, as `Output` has them. Whatever writes raises OutputError.

    >>> with TraceWriter("run.trace", Metadata(recorder="perf")) as writer:  # doctest: +SKIP
    ...     writer.append(Event("munmap", 7, addr=0x10000, length=4096, result=0, time=12))
    """

    def __init__(
        self, path: str | os.PathLike[str], metadata: Metadata, *, inputs: Iterable[str | os.PathLike[str]] = ()
    ) -> None:
        self.path = Path(path)
        self.metadata = metadata
        self._pending: list[Event] = []
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0
        self._pids: set[int] = set()
        self._first: int | None = None
        metadata.events = metadata.snapshots = metadata.duration = 0
        metadata.format = FORMAT
        metadata.vmaweld = __version__
        # No file of Arrow's own, which the command that is recorded would inherit.
        self._output = Output(path, inputs=inputs)
        # Times only rise, so their differences are tiny; zstd then packs them to a byte or two.
        self._writer = pq.ParquetWriter(
            self._output.file,
            SCHEMA,
            compression="zstd",
            use_dictionary=_DICTIONARY,
            column_encoding={"time": "DELTA_BINARY_PACKED"},
            write_page_checksum=True,
        )

    @property
    def directory(self) -> Path:
        """A private directory on the trace's own disk, for what else the work needs; it is gone with the writer."""
        assert self._output.scratch is not None
        return self._output.scratch.path

    def append(self, event: Event) -> None:
        """Add `event`; events come in the order in which they happened."""
        self._pending.append(event)
        if len(self._pending) >= _BATCH_ROWS:
            self._collect()

    def append_snapshot(self, snapshot: Snapshot, time: int) -> None:
        """Add a true snapshot that was taken after all events so far and before all that follow."""
        self._collect()
        self.metadata.snapshots += 1
        self._add(_snapshot_batch(snapshot, time))

    def _collect(self) -> None:
        pending = self._pending
        if not pending:
            return
        try:
            columns = [_array([getattr(event, name) for event in pending], type) for name, type in _EVENT_COLUMNS]
        except (OverflowError, pa.ArrowInvalid) as error:
            raise TraceError(f"cannot write {self.path}: an event has a number that no kernel gives: {error}") from None
        columns += [pa.nulls(len(pending), type) for _, type in _ROW_COLUMNS]
        batch = pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
        pids = {event.pid for event in pending}
        # An interrupt may come anywhere above, and then `close` does it all again; from here on it is done.
        self._pending = []
        if self._first is None:
            self._first = pending[0].time
        self.metadata.duration = pending[-1].time - self._first
        self.metadata.events += len(pending)
        self._pids |= pids
        self._add(batch)

    def _add(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)
        self._rows += batch.num_rows
        if self._rows >= _GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._batches:
            try:
                self._writer.write_table(pa.Table.from_batches(self._batches), row_group_size=2 * _GROUP_ROWS)
            except OSError as error:
                raise self._output.error(error) from None
            self._batches = []
            self._rows = 0

    def close(self) -> None:
        """Write what is left and the metadata, then give the file its name."""
        try:
            self._collect()
            self._flush()
            self.metadata.processes = len(self._pids)
            self._writer.add_key_value_metadata({"vmaweld": json.dumps(self.metadata.as_json())})
            self._writer.close()
            seal.seal(self._output.file)
        except BaseException as error:
            self._discard()
            if isinstance(error, OSError):
                raise self._output.error(error) from None
            raise
        self._output.publish()

    def _discard(self) -> None:
        with contextlib.suppress(OSError):  # a full disk: nothing of it is wanted any more
            self._writer.close()
        self._output.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif issubclass(kind, KeyboardInterrupt) and not self._output.replaces:
            self.metadata.interrupted = True
            self.close()
        else:
            self._discard()


def _array(values: list[Any], type: pa.DataType) -> pa.Array:
    return pa.array(names.stored_all(values) if type == pa.string() else values, type)


def _snapshot_batch(snapshot: Snapshot, time: int) -> pa.RecordBatch:
    rows = snapshot.rows
    count = len(rows)
    exactness = (
        (_FLAGS_EXACT if snapshot.flags_exact else 0)
        | (_HIDDEN if snapshot.hidden else 0)
        | (_CONSISTENT if snapshot.consistent else 0)
    )
    zeros = [0] * (count + 1)
    values: dict[str, list[Any]] = {
        "op": [SNAPSHOT] + [VMA] * count,
        "pid": [snapshot.pid] * (count + 1),
        "addr": [0] + [row.start for row in rows],
        "length": [count] + [row.end - row.start for row in rows],
        "prot": zeros,
        "flags": [exactness] + [row.flags for row in rows],
        "file": [""] + [row.file for row in rows],
        "pgoff": [0] + [row.pgoff for row in rows],
        "new_addr": zeros,
        "new_length": zeros,
        "child": zeros,
        "result": [None] * (count + 1),
        "time": [time] * (count + 1),
        "anon_vma": [None] + [row.anon_vma for row in rows],
        "chain": [None] + [row.chain for row in rows],
        "uffd": [None] + [row.uffd for row in rows],
        "name": [snapshot.source] + [row.name for row in rows],
        "mempolicy": [None] + [row.mempolicy for row in rows],
        "file_id": [None] + [row.file_id for row in rows],
        "close": [None] + [row.close for row in rows],
    }
    return pa.RecordBatch.from_arrays([_array(values[f.name], f.type) for f in SCHEMA], schema=SCHEMA)


class Trace:
    """A trace file that is open for reading. Every iterator starts from the beginning and holds one batch at a time.

    ``len(trace)`` is the number of events.
    """

    def __init__(self, path: Path, file: pq.ParquetFile, metadata: Metadata) -> None:
        self.path = path
        self.metadata = metadata
        self._file = file
        self._escaped = metadata.format >= _FIRST_SEALED

    def __len__(self) -> int:
        return self.metadata.events

    def close(self) -> None:
        """Close the file."""
        self._file.close(force=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def events(self, pids: Iterable[int] | None = None) -> Iterator[Event]:
        """The events in order of time; only those of `pids` where given.

        Raises:
            TraceError: the file is damaged behind its footer.

        """
        wanted = None if pids is None else pa.array(sorted(set(pids)), pa.int64())
        for batch, kinds in self._batches(_EVENT_NAMES):
            keep = pc.less(kinds, _FIRST_ROW_KIND)
            if wanted is not None:
                keep = pc.and_(keep, pc.is_in(batch.column("pid").cast(pa.int64()), wanted))
            yield from self._events(batch.filter(keep))

    def snapshots(self, pids: Iterable[int] | None = None) -> Iterator[TakenSnapshot]:
        """The true snapshots in order of time; only those of `pids` where given."""
        for item in self._items(None if pids is None else set(pids), with_events=False):
            assert isinstance(item, TakenSnapshot)
            yield item

    def items(self, pids: Iterable[int] | None = None) -> Iterator[Event | TakenSnapshot]:
        """Events and true snapshots together, each at its place."""
        return self._items(None if pids is None else set(pids), with_events=True)

    def _items(self, pids: set[int] | None, *, with_events: bool) -> Iterator[Event | TakenSnapshot]:
        position = 0
        head: dict[str, Any] | None = None
        rows: list[Row] = []
        for batch, _ in self._batches(SCHEMA.names):
            ops = batch.column("op").to_pylist()
            begin = 0
            while begin < len(ops):
                kind = ops[begin]
                end = begin + 1
                if kind != SNAPSHOT:
                    # Runs of events or of rows are taken whole, so that the common case stays a column at a time.
                    while end < len(ops) and ops[end] != SNAPSHOT and (ops[end] == VMA) == (kind == VMA):
                        end += 1
                part = batch.slice(begin, end - begin)
                begin = end
                if (head is not None) != (kind == VMA):
                    raise self._damaged("the rows of a snapshot are not those that it says it has")
                if kind == SNAPSHOT:
                    head = part.to_pylist()[0]
                    rows = []
                elif kind == VMA:
                    rows.extend(self._rows(part))
                else:
                    position += part.num_rows
                    if with_events:
                        for event in self._events(part):
                            if pids is None or event.pid in pids:
                                yield event
                if head is not None and len(rows) >= head["length"]:
                    if pids is None or head["pid"] in pids:
                        yield TakenSnapshot(position, head["time"], self._snapshot(head, rows))
                    head = None
        if head is not None:
            raise self._damaged("the last snapshot is not whole")

    def _batches(self, columns: list[str]) -> Iterator[tuple[pa.RecordBatch, pa.Array]]:
        """The rows with these `columns` a batch at a time, of the right types, and the kind of each (`_KINDS`)."""
        left = self._file.metadata.num_rows
        try:
            for batch in self._file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                left -= batch.num_rows
                arrays = [batch.column(name).cast(SCHEMA.field(name).type) for name in columns]
                typed = pa.RecordBatch.from_arrays(arrays, names=columns)
                typed.validate(full=True)
                for name in _NEVER_NULL:
                    if typed.column(name).null_count:
                        raise self._damaged(f"a row has no {name}")
                ops = typed.column("op")
                kinds = pc.index_in(ops, _KINDS)
                if kinds.null_count:
                    unknown = ops.filter(pc.is_null(kinds))[0].as_py()
                    raise self._damaged(f"there is no operation {unknown!r}")
                yield typed, kinds
            if left:  # Arrow ends without a word where a column has fewer values than the others
                raise self._damaged(f"missing: {count_text(left, 'row')}")
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, why: str) -> TraceError:
        return TraceError(f"{self.path} is damaged ({' '.join(why.split())}): record again")

    def _events(self, batch: pa.RecordBatch) -> Iterator[Event]:
        if batch.column("pgoff").null_count:
            raise self._damaged("an event has no pgoff")
        for offset in range(0, batch.num_rows, _SLICE_ROWS):
            part = batch.slice(offset, _SLICE_ROWS)
            yield from events_from_columns(*[self._values(part, name) for name in _EVENT_NAMES])

    def _rows(self, batch: pa.RecordBatch) -> Iterator[Row]:
        columns = [self._values(batch, name) for name in _ROW_VALUES]
        for start, length, flags, pgoff, file, name, *rest in zip(*columns, strict=True):
            if name is None:
                raise self._damaged("a VMA has no name")
            anon_vma, mempolicy, uffd, chain, file_id, close = rest
            yield Row(start, start + length, flags, pgoff, anon_vma, file, name, mempolicy, uffd, chain, file_id, close)

    def _snapshot(self, head: dict[str, Any], rows: list[Row]) -> Snapshot:
        if head["name"] is None:
            raise self._damaged("a snapshot has no source")
        exactness = head["flags"]
        return Snapshot(
            head["pid"],
            rows,
            source=head["name"],
            flags_exact=bool(exactness & _FLAGS_EXACT),
            hidden=bool(exactness & _HIDDEN),
            consistent=bool(exactness & _CONSISTENT),
        )

    def _values(self, batch: pa.RecordBatch, name: str) -> list[Any]:
        column = batch.column(name)
        values = as_list(column)
        if self._escaped and name in _NAMES and names.may_be_escaped(column):
            return names.restored_all(values)
        return values


def open_trace(path: str | os.PathLike[str]) -> Trace:
    """Open the trace file at `path`.

    Raises:
        TraceError: no such file, not a trace, cut short, changed since it was written, or by a newer vmaweld.

    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            magic = stream.read(len(_MAGIC))
            if magic != _MAGIC:
                raise TraceError(f"{path} is not a vmaweld trace: make one with `vmaweld record -o FILE -- COMMAND`")
            sealed = seal.sealed(stream)
        # A name that is no UTF-8 goes to Arrow as bytes.
        file = pq.ParquetFile(pa.OSFile(os.fsencode(path)), page_checksum_verification=True)
        text = (file.metadata.metadata or {}).get(b"vmaweld")
        schema = file.schema_arrow
    except (pa.ArrowException, ValueError):  # a ValueError is a name that is no UTF-8, in a footer that is none of ours
        raise TraceError(f"{path} is cut short or damaged: record again") from None
    except seal.SealError as error:
        raise TraceError(f"{path} is damaged ({error}): record again") from None
    except OSError as error:
        # Arrow's own errors are OSErrors too, and have no number where the file is not what it should be.
        why = (
            f"cannot read {path}: {error.strerror}" if error.errno else f"{path} is cut short or damaged: record again"
        )
        raise TraceError(why) from None
    if text is None:
        raise TraceError(f"{path} is a Parquet file but not a vmaweld trace: make one with `vmaweld record`")
    metadata = _metadata(path, text)
    if metadata.format >= _FIRST_SEALED and not sealed:
        raise TraceError(f"{path} has lost its seal, so it was changed or damaged since it was written: record again")
    for name in SCHEMA.names:
        if len(schema.get_all_field_indices(name)) != 1:
            raise TraceError(f"{path} lacks the column {name}: record again")
    return Trace(path, file, metadata)


def _metadata(path: Path, text: bytes) -> Metadata:
    damaged = TraceError(f"{path}: its metadata is damaged: record again")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise damaged from None
    if not fits(values, dict) or not fits(values.get("format"), int) or values["format"] < 1:
        raise damaged
    version = values["format"]
    if version > FORMAT:
        raise TraceError(
            f"{path} has format {version}, made by vmaweld {' '.join(str(values.get('vmaweld', '?')).split())}; "
            f"this vmaweld {__version__} reads up to {FORMAT}: upgrade vmaweld"
        )
    known = {name: values[name] for name in _METADATA_TYPES if name in values}
    if not all(fits(value, _METADATA_TYPES[name]) for name, value in known.items()):
        raise damaged
    metadata = Metadata(**known)
    if min(metadata.events, metadata.snapshots, metadata.processes, metadata.max_map_count) < 0:
        raise damaged
    return metadata
