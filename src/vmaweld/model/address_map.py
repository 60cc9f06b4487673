# SPDX-License-Identifier: GPL-2.0-or-later
"""A sorted map from address to object, in chunks: the index below VMAs and below page runs.

Two levels of plain lists searched by `bisect`. A chunk is split when it has grown past `_LOAD` entries, so that
an insertion moves at most `_LOAD` pointers however large the map: find, insert and remove cost
O(log n + _LOAD) pointer moves, which is flat in practice from ten entries to a million.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_LOAD: Final = 512


class AddressMap(Generic[T]):
    """Sorted by integer key; keys are unique.

    >>> m = AddressMap()
    >>> m.insert(0x2000, "b"); m.insert(0x1000, "a")
    >>> m.at_or_before(0x1fff), m.at_or_after(0x1001), len(m)
    ('a', 'b', 2)
    """

    __slots__ = ("_borders", "_keys", "_values", "count")

    def __init__(self) -> None:
        self._keys: list[list[int]] = [[]]
        self._values: list[list[T]] = [[]]
        # The smallest key of every chunk but the first, so that bisect_right(_borders, key) is the chunk of `key`.
        self._borders: list[int] = []
        self.count: int = 0

    def __len__(self) -> int:
        return self.count

    def get(self, key: int) -> T | None:
        """The value at exactly `key`."""
        chunk = bisect_right(self._borders, key)
        keys = self._keys[chunk]
        position = bisect_left(keys, key)
        if position < len(keys) and keys[position] == key:
            return self._values[chunk][position]
        return None

    def at_or_before(self, key: int) -> T | None:
        """The value with the greatest key <= `key`."""
        chunk = bisect_right(self._borders, key)
        position = bisect_right(self._keys[chunk], key)
        if position:
            return self._values[chunk][position - 1]
        return None

    def at_or_after(self, key: int) -> T | None:
        """The value with the smallest key >= `key`."""
        chunk = bisect_right(self._borders, key)
        keys = self._keys[chunk]
        position = bisect_left(keys, key)
        if position < len(keys):
            return self._values[chunk][position]
        if chunk + 1 < len(self._keys):
            return self._values[chunk + 1][0]
        return None

    def insert(self, key: int, value: T) -> T | None:
        """Add `value` at `key`, which must be absent. Returns the value before it, None if it is the first."""
        chunk = bisect_right(self._borders, key)
        keys = self._keys[chunk]
        values = self._values[chunk]
        position = bisect_right(keys, key)
        keys.insert(position, key)
        values.insert(position, value)
        self.count += 1
        before = values[position - 1] if position else None  # only the first chunk is ever added to at its front
        if len(keys) > 2 * _LOAD:
            self._split(chunk)
        return before

    def _split(self, chunk: int) -> None:
        keys = self._keys[chunk]
        values = self._values[chunk]
        self._keys.insert(chunk + 1, keys[_LOAD:])
        self._values.insert(chunk + 1, values[_LOAD:])
        self._borders.insert(chunk, keys[_LOAD])
        del keys[_LOAD:]
        del values[_LOAD:]

    def remove(self, key: int) -> None:
        """Drop the entry at `key`, which must be there."""
        chunk = bisect_right(self._borders, key)
        keys = self._keys[chunk]
        position = bisect_left(keys, key)
        del keys[position]
        del self._values[chunk][position]
        self.count -= 1
        if not keys:
            if len(self._keys) > 1:
                del self._keys[chunk]
                del self._values[chunk]
                del self._borders[max(chunk - 1, 0)]
        elif chunk and position == 0:
            self._borders[chunk - 1] = keys[0]

    def rekey(self, old: int, new: int) -> None:
        """Change the key of an entry without changing its place in the order."""
        chunk = bisect_right(self._borders, old)
        keys = self._keys[chunk]
        position = bisect_left(keys, old)
        keys[position] = new
        if chunk and position == 0:
            self._borders[chunk - 1] = new

    def values(self) -> Iterator[T]:
        """All values in the order of their keys. The map must not change meanwhile."""
        for chunk in self._values:
            yield from chunk

    def check(self) -> None:
        """Raise AssertionError unless the keys are sorted and the chunks consistent."""
        count = 0
        last = -1
        for position, keys in enumerate(self._keys):
            assert len(keys) == len(self._values[position])
            assert keys or len(self._keys) == 1
            assert position == 0 or self._borders[position - 1] == keys[0]
            count += len(keys)
            for key in keys:
                assert key > last, f"keys out of order: {last:#x} then {key:#x}"
                last = key
        assert count == self.count
        assert len(self._borders) == len(self._keys) - 1
