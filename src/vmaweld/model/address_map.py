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

    __slots__ = ("_count", "_firsts", "_keys", "_values")

    def __init__(self) -> None:
        self._keys: list[list[int]] = [[]]
        self._values: list[list[T]] = [[]]
        self._firsts: list[int] = [0]  # smallest key of each chunk; the first chunk takes all that is smaller
        self._count: int = 0

    def __len__(self) -> int:
        return self._count

    def _chunk(self, key: int) -> int:
        """Index of the chunk that holds, or would take, `key`."""
        if len(self._firsts) == 1:
            return 0
        return max(bisect_right(self._firsts, key) - 1, 0)

    def get(self, key: int) -> T | None:
        """The value at exactly `key`."""
        chunk = self._chunk(key)
        keys = self._keys[chunk]
        position = bisect_left(keys, key)
        if position < len(keys) and keys[position] == key:
            return self._values[chunk][position]
        return None

    def at_or_before(self, key: int) -> T | None:
        """The value with the greatest key <= `key`."""
        chunk = self._chunk(key)
        position = bisect_right(self._keys[chunk], key) - 1
        if position >= 0:
            return self._values[chunk][position]
        return None

    def at_or_after(self, key: int) -> T | None:
        """The value with the smallest key >= `key`."""
        chunk = self._chunk(key)
        position = bisect_left(self._keys[chunk], key)
        if position < len(self._keys[chunk]):
            return self._values[chunk][position]
        if chunk + 1 < len(self._keys):
            return self._values[chunk + 1][0]
        return None

    def insert(self, key: int, value: T) -> None:
        """Add `value` at `key`, which must be absent."""
        chunk = self._chunk(key)
        keys = self._keys[chunk]
        position = bisect_right(keys, key)
        keys.insert(position, key)
        self._values[chunk].insert(position, value)
        self._count += 1
        if chunk and position == 0:
            self._firsts[chunk] = key
        if len(keys) > 2 * _LOAD:
            self._split(chunk)

    def _split(self, chunk: int) -> None:
        keys = self._keys[chunk]
        values = self._values[chunk]
        self._keys.insert(chunk + 1, keys[_LOAD:])
        self._values.insert(chunk + 1, values[_LOAD:])
        self._firsts.insert(chunk + 1, keys[_LOAD])
        del keys[_LOAD:]
        del values[_LOAD:]

    def remove(self, key: int) -> None:
        """Drop the entry at `key`, which must be there."""
        chunk = self._chunk(key)
        keys = self._keys[chunk]
        position = bisect_left(keys, key)
        del keys[position]
        del self._values[chunk][position]
        self._count -= 1
        if keys:
            if chunk and position == 0:
                self._firsts[chunk] = keys[0]
        elif len(self._keys) > 1:
            del self._keys[chunk]
            del self._values[chunk]
            del self._firsts[chunk]
            self._firsts[0] = 0

    def rekey(self, old: int, new: int) -> None:
        """Change the key of an entry without changing its place in the order."""
        chunk = self._chunk(old)
        keys = self._keys[chunk]
        position = bisect_left(keys, old)
        keys[position] = new
        if chunk and position == 0:
            self._firsts[chunk] = new

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
            assert position == 0 or self._firsts[position] == keys[0]
            count += len(keys)
            for key in keys:
                assert key > last, f"keys out of order: {last:#x} then {key:#x}"
                last = key
        assert count == self._count
