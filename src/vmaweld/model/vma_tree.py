# SPDX-License-Identifier: GPL-2.0-or-later
"""The VMAs of one address space: found by address, linked in order (``mm_mt``; the red-black tree until 6.0)."""

from __future__ import annotations

from collections.abc import Iterator

from vmaweld.model.address_map import AddressMap
from vmaweld.model.vma import VMA


class VmaTree:
    """VMAs by address. `find`, `insert`, `remove`: O(log n); a neighbour: O(1) through `VMA.prev` and `VMA.next`.

    first: the lowest VMA.      count: how many there are, as ``len()`` tells too.
    """

    __slots__ = ("_map", "count", "first")

    def __init__(self) -> None:
        self._map: AddressMap[VMA] = AddressMap()
        self.first: VMA | None = None
        self.count: int = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[VMA]:
        vma = self.first
        while vma is not None:
            yield vma
            vma = vma.next

    def find(self, address: int) -> VMA | None:
        """The first VMA that ends above `address`, whether or not it holds it (``find_vma``)."""
        before = self._map.at_or_before(address)
        if before is None:
            return self.first
        return before if address < before.end else before.next

    def find_prev(self, address: int) -> VMA | None:
        """The last VMA that ends at or below `address`, or that starts below and holds it: `find`'s predecessor."""
        before = self._map.at_or_before(address)
        if before is None:
            return None
        return before.prev if address < before.end else before

    def intersection(self, start: int, end: int) -> VMA | None:
        """The first VMA that overlaps ``[start, end)`` (``find_vma_intersection``)."""
        vma = self.find(start)
        return vma if vma is not None and vma.start < end else None

    def insert(self, vma: VMA) -> None:
        """Add `vma` where nothing is mapped."""
        prev = self._map.insert(vma.start, vma)
        self.count += 1
        vma.prev = prev
        if prev is None:
            next = self.first
            self.first = vma
        else:
            next = prev.next
            prev.next = vma
        vma.next = next
        if next is not None:
            next.prev = vma

    def remove(self, vma: VMA) -> None:
        """Take `vma` out; its own links are cut."""
        self._map.remove(vma.start)
        self.count -= 1
        prev = vma.prev
        next = vma.next
        if prev is None:
            self.first = next
        else:
            prev.next = next
        if next is not None:
            next.prev = prev
        vma.prev = None
        vma.next = None

    def set_start(self, vma: VMA, start: int) -> None:
        """Change where `vma` starts, which must not change its place in the order."""
        self._map.rekey(vma.start, start)
        vma.start = start

    def check(self) -> None:
        """Raise AssertionError unless map and links agree and no two VMAs overlap."""
        self._map.check()
        linked = list(self)
        assert linked == list(self._map.values()), "links and map differ"
        assert self.count == len(linked)
        previous: VMA | None = None
        for vma in linked:
            assert vma.prev is previous
            assert vma.start < vma.end, f"{vma!r} is empty"
            assert previous is None or previous.end <= vma.start, f"{previous!r} overlaps {vma!r}"
            assert self._map.get(vma.start) is vma
            previous = vma
