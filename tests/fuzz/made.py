# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces with any content, made of bytes: as another program could write them, and as no recorder does."""

import json
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from vmaweld.events import OPERATIONS
from vmaweld.trace.store import SCHEMA

_KINDS: Final = (*OPERATIONS, "snapshot", "mmap", "mremap", "write")
_ODD_KINDS: Final = ("vma", "snapshot", "fly", "", None)
_WORDS: Final = (0, 1, 4095, 0x100000, 0x101000, 0x102000, 1 << 31, (1 << 47) - 4096, 1 << 63, (1 << 64) - 1)
_FLAGS: Final = (0, 1, 2, 3, 0x10, 0x22, 0x31, 0x32, 0x100, 0x2000, 1 << 32, (1 << 64) - 1)
_TEXTS: Final = ("", "/bin/x", "[heap]", "[stack]", "bind:0", "\\xff", "\\\\", "\\ud800", "a" * 300, "\0", None)
_TYPES: Final = (pa.large_string(), pa.int64(), pa.float64(), pa.bool_(), pa.binary(), pa.uint8(), pa.null())
_MOST_ROWS: Final = 60


class _Bytes:
    """Choices, as long as there are bytes; then always the first one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def __bool__(self) -> bool:
        return self._place < len(self._data)

    def byte(self) -> int:
        self._place += 1
        return self._data[self._place - 1] if self._place <= len(self._data) else 0

    def choose(self, values: Any) -> Any:
        return values[self.byte() % len(values)]

    def word(self) -> int:
        way = self.byte()
        if way < 200:
            return 0x100000 + (way % 16) * 4096 if way & 16 else int(_WORDS[way % len(_WORDS)])
        return sum(self.byte() << 8 * number for number in range(8))


def made_trace(data: bytes, path: Path) -> None:
    """Write to `path` the trace that `data` stands for."""
    source = _Bytes(data)
    metadata = _metadata(source)
    odd = [(source.choose(SCHEMA.names), source.choose(_TYPES)) for _ in range(max(0, source.byte() - 253))]
    rows: list[dict[str, Any]] = []
    while source and len(rows) < _MOST_ROWS:
        rows += _rows(source)
    columns = {name: pa.array([row[name] for row in rows], SCHEMA.field(name).type) for name in SCHEMA.names}
    for name, type in odd:
        try:
            columns[name] = columns[name].cast(type)
        except pa.ArrowException:
            columns.pop(name, None)
            break
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata({"vmaweld": metadata}), path)


def _rows(source: _Bytes) -> list[dict[str, Any]]:
    """One event, or a snapshot and its rows; seldom something else."""
    if source.byte() > 253:
        return [_row(source, source.choose(_ODD_KINDS))]
    head = _row(source, source.choose(_KINDS))
    if head["op"] != "snapshot":
        return [head]
    head["length"] = source.byte() % 4
    head["name"] = "bpf"
    return [head, *(_row(source, "vma") | {"name": source.choose(_TEXTS[:-1])} for _ in range(head["length"]))]


def _row(source: _Bytes, kind: str | None) -> dict[str, Any]:
    null = source.byte()
    row: dict[str, Any] = {
        "op": kind,
        "pid": source.choose((1, 1, 1, 2, 3, -1, (1 << 31) - 1)),
        "addr": source.word(),
        "length": source.word(),
        "prot": source.choose((0, 1, 3, 3, 7, (1 << 64) - 1)),
        "flags": source.choose(_FLAGS),
        "file": source.choose(_TEXTS[:-1]),
        "pgoff": source.word(),
        "new_addr": source.word(),
        "new_length": source.word(),
        "child": source.choose((0, 1, 2, 3, -1)),
        "result": source.choose((None, 0, -12, -14, 0x100000, 0x101001, (1 << 63) - 1, -(1 << 63))),
        "time": source.choose((0, 1, 1000, 1 << 40, (1 << 63) - 1, -1)),
        "anon_vma": source.choose((None, 0, 1, (1 << 64) - 1)),
        "chain": source.choose((None, 0, 1)),
        "uffd": source.choose((None, 0, 1)),
        "name": source.choose(_TEXTS),
        "mempolicy": source.choose(_TEXTS),
        "file_id": source.choose((None, 0, 1)),
        "close": source.choose((None, True, False)),
    }
    if null > 253:
        row[SCHEMA.names[source.byte() % len(SCHEMA.names)]] = None
    return row


def _metadata(source: _Bytes) -> str:
    values: dict[str, Any] = {"format": 1, "kernel": source.choose(("6.18.0", "", "banana", "5.17", "9" * 30, "0.0.0"))}
    while (which := source.byte()) > 235:
        name = source.choose(("format", "events", "duration", "max_map_count", "overcommit", "thp", "losses", "faults"))
        values[name] = (0, 1, 2, 3, -1, 1 << 62, 1 << 64, None, "x", [], {}, {"a": 1}, 0.5, True)[which % 14]
    return json.dumps(values)
