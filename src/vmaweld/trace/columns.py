# SPDX-License-Identifier: GPL-2.0-or-later
"""Arrow columns as Python lists, fast: a trace is read column by column, and most columns are plain integers."""

from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc

_FORMATS: Final[dict[pa.DataType, Literal["i", "I", "q", "Q"]]] = {
    pa.int32(): "i",
    pa.uint32(): "I",
    pa.int64(): "q",
    pa.uint64(): "Q",
}


def as_list(column: pa.Array) -> list[Any]:
    """What ``column.to_pylist()`` gives; integers are read straight off Arrow's buffer, twice as fast."""
    code = _FORMATS.get(column.type)
    if code is None:
        made: list[Any] = column.to_pylist()
        return made
    if not column.null_count:
        data = memoryview(column.buffers()[1]).cast(code)
        return data[column.offset : column.offset + len(column)].tolist()
    present = as_list(pc.cast(pc.is_valid(column), pa.int32()))
    return [value if there else None for value, there in zip(as_list(column.fill_null(0)), present, strict=True)]
