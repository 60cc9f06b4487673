# SPDX-License-Identifier: GPL-2.0-or-later
"""Columns read off Arrow's buffers are what Arrow itself makes of them."""

import pyarrow as pa
import pytest

from vmaweld.trace.columns import as_list

INTEGERS = [0, 1, 4096, 2**31 - 1, 7, 0]


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint32(), pa.int64(), pa.uint64()])
@pytest.mark.parametrize("values", [INTEGERS, [None, *INTEGERS, None], [None, None], []])
def test_integers(kind: pa.DataType, values: list[int | None]) -> None:
    array = pa.array(values, kind)
    assert as_list(array) == array.to_pylist() == values
    assert as_list(array.slice(1, 3)) == array.slice(1, 3).to_pylist()


def test_the_largest_integers() -> None:
    assert as_list(pa.array([2**64 - 1], pa.uint64())) == [2**64 - 1]
    assert as_list(pa.array([-(2**63), -1], pa.int64())) == [-(2**63), -1]


def test_strings() -> None:
    assert as_list(pa.array(["mmap", "", None])) == ["mmap", "", None]
