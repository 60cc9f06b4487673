# SPDX-License-Identifier: GPL-2.0-or-later
"""Anonymous pages as runs: what the page tables of one address space hold.

A run is a stretch of pages that are alike: consecutive addresses, consecutive page offsets, one anon_vma. Touching
100 GiB in order makes one run; fork shares runs until somebody writes.

Pages that only one page table maps are *exclusive* (``PageAnonExclusive``) and need no count. fork puts the pages of
a run into a `SharedPages` group that both sides then map; the group counts how often each of its pages is mapped
(mapcount). The first write of either side, or an unmap, takes pages out again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from vmaweld.abi import PAGE_SHIFT
from vmaweld.model.address_map import AddressMap
from vmaweld.model.anon_vma import AnonVma


class SharedPages:
    """Mapcounts of pages that a fork has shared: a step function over their page offsets.

    A page is known by its group and its page offset; no group ever grows.
    """

    __slots__ = ("_counts", "_starts", "end")

    def __init__(self, start: int, end: int, count: int) -> None:
        self._starts: list[int] = [start]
        self._counts: list[int] = [count]
        self.end: int = end

    def _cut(self, index: int) -> int:
        """Make `index` the start of a step; the position of that step."""
        position = bisect_right(self._starts, index) - 1
        if index == self.end:
            return len(self._starts)
        if self._starts[position] != index:
            position += 1
            self._starts.insert(position, index)
            self._counts.insert(position, self._counts[position - 1])
        return position

    def add(self, start: int, end: int, change: int) -> None:
        """Change the mapcount of the pages ``[start, end)`` by `change`."""
        starts = self._starts
        if start == starts[0] and end == self.end and len(starts) == 1:
            self._counts[0] += change
            return
        first = self._cut(start)
        last = self._cut(end)
        counts = self._counts
        for position in range(first, last):
            counts[position] += change
        for position in range(min(last, len(counts) - 1), max(first - 1, 0), -1):
            if counts[position] == counts[position - 1]:
                del counts[position]
                del starts[position]

    def steps(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """``(start, end, mapcount)`` of each step within the pages ``[start, end)``."""
        position = bisect_right(self._starts, start) - 1
        while start < end:
            position += 1
            stop = self._starts[position] if position < len(self._starts) else self.end
            stop = min(stop, end)
            yield start, stop, self._counts[position - 1]
            start = stop

    def highest(self, start: int, end: int) -> int:
        """The highest mapcount among the pages ``[start, end)``."""
        return max(count for _, _, count in self.steps(start, end))


class PageRun:
    """Anonymous pages at ``[start, end)``, page offsets from `index` on.

    anon_vma: ``folio->mapping``, where a reverse map walk of these pages begins.
    shared: the group that counts their mapcounts, None for exclusive pages.
    """

    __slots__ = ("anon_vma", "end", "index", "shared", "start")

    def __init__(self, start: int, end: int, index: int, anon_vma: AnonVma, shared: SharedPages | None = None) -> None:
        self.start: int = start
        self.end: int = end
        self.index: int = index
        self.anon_vma: AnonVma = anon_vma
        self.shared: SharedPages | None = shared

    @property
    def index_end(self) -> int:
        """Page offset past the last page."""
        return self.index + ((self.end - self.start) >> PAGE_SHIFT)

    def __repr__(self) -> str:
        kind = "shared" if self.shared is not None else "exclusive"
        return f"<pages {self.start:x}-{self.end:x} index={self.index:#x} {self.anon_vma!r} {kind}>"


class PageTable:
    """The anonymous pages that one address space maps, as runs in order of address."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: AddressMap[PageRun] = AddressMap()

    def __len__(self) -> int:
        return len(self._runs)

    def all_runs(self) -> Iterator[PageRun]:
        """Every run, in order of address."""
        return self._runs.values()

    def runs(self, start: int, end: int) -> list[PageRun]:
        """The runs that overlap ``[start, end)``, uncut."""
        if not self._runs.count:
            return []
        found: list[PageRun] = []
        run = self._runs.at_or_before(start)
        if run is None or run.end <= start:
            run = self._runs.at_or_after(start)
        while run is not None and run.start < end:
            found.append(run)
            run = self._runs.at_or_after(run.end)
        return found

    def _cut(self, address: int) -> None:
        """Make `address` a border between runs."""
        run = self._runs.at_or_before(address)
        if run is None or run.start == address or run.end <= address:
            return
        index = run.index + ((address - run.start) >> PAGE_SHIFT)
        self._runs.insert(address, PageRun(address, run.end, index, run.anon_vma, run.shared))
        run.end = address

    def _cut_runs(self, start: int, end: int) -> list[PageRun]:
        """The runs of ``[start, end)``, cut so that none reaches outside."""
        found = self.runs(start, end)
        if not found:
            return found
        if found[0].start >= start and found[-1].end <= end:
            return found
        self._cut(start)
        self._cut(end)
        return self.runs(start, end)

    def _add(self, run: PageRun) -> None:
        """Insert `run` where nothing is mapped, joining it with runs that continue it."""
        before = self._runs.at_or_before(run.start)
        if before is not None and _continues(before, run):
            before.end = run.end
            run = before
        else:
            self._runs.insert(run.start, run)
        after = self._runs.at_or_after(run.end)
        if after is not None and _continues(run, after):
            self._runs.remove(after.start)
            run.end = after.end

    def write(self, start: int, end: int, anon_vma: AnonVma, index: int) -> tuple[int, int]:
        """Write to every page of ``[start, end)`` of one VMA whose own anon_vma is `anon_vma`.

        index: page offset of the page at `start`. Missing pages are made, shared ones copied, or kept where no one
        else maps them any more (``do_wp_page``); either way they are exclusive afterwards and belong to `anon_vma`.
        Returns how many pages were made and how many were copied.
        """
        made = 0
        copied = 0
        position = start
        if not self._runs.count:
            self._runs.insert(start, PageRun(start, end, index, anon_vma))
            return (end - start) >> PAGE_SHIFT, 0
        for run in self.runs(start, end):
            if run.shared is None:
                if position < run.start:
                    made += run.start - position
                    self._add(PageRun(position, run.start, index + ((position - start) >> PAGE_SHIFT), anon_vma))
                position = run.end
                continue
            self._cut(start)
            self._cut(end)
            # The part of this run inside the range; a cut may have shortened it from below.
            lower = max(run.start, start)
            upper = min(run.end, end)
            if lower != run.start:
                cut = self._runs.get(lower)
                assert cut is not None
                run = cut
                upper = min(run.end, end)
            if position < lower:
                made += lower - position
                self._add(PageRun(position, lower, index + ((position - start) >> PAGE_SHIFT), anon_vma))
            shared = run.shared
            assert shared is not None
            for first, last, count in shared.steps(run.index, run.index_end):
                if count > 1:
                    copied += last - first
            shared.add(run.index, run.index_end, -1)
            self._runs.remove(lower)
            self._add(PageRun(lower, upper, index + ((lower - start) >> PAGE_SHIFT), anon_vma))
            position = upper
        if position < end:
            made += end - position
            self._add(PageRun(position, end, index + ((position - start) >> PAGE_SHIFT), anon_vma))
        return made >> PAGE_SHIFT, copied

    def drop(self, start: int, end: int) -> int:
        """Unmap every page of ``[start, end)`` (``zap_page_range``). Returns how many there were."""
        if not self._runs.count:
            return 0
        dropped = 0
        for run in self._cut_runs(start, end):
            self._runs.remove(run.start)
            dropped += run.end - run.start
            if run.shared is not None:
                run.shared.add(run.index, run.index_end, -1)
        return dropped >> PAGE_SHIFT

    def move(
        self, start: int, end: int, to: int, index_change: int, old_owner: AnonVma | None, new_owner: AnonVma | None
    ) -> int:
        """Move the pages of ``[start, end)`` to the address `to` (``move_page_tables``).

        index_change: what is added to their page offsets (0 on a stock kernel). Pages of `old_owner` become
        `new_owner`'s where the two differ. Both only ever happen to pages that nobody else maps.
        Returns how many pages moved.
        """
        runs = self._cut_runs(start, end)
        for run in runs:
            self._runs.remove(run.start)
        moved = 0
        for run in runs:
            moved += run.end - run.start
            if index_change and run.shared is not None:  # kept by one, not yet exclusive: a group of its own
                run.shared.add(run.index, run.index_end, -1)
                run.shared = SharedPages(run.index + index_change, run.index_end + index_change, 1)
            run.index += index_change
            run.end += to - start
            run.start += to - start
            if run.anon_vma is old_owner and new_owner is not None:
                run.anon_vma = new_owner
            self._add(run)
        return moved >> PAGE_SHIFT

    def give(self, start: int, end: int, old_owner: AnonVma, new_owner: AnonVma) -> int:
        """Make `new_owner` the anon_vma of `old_owner`'s pages in ``[start, end)``. Returns how many changed."""
        given = 0
        for run in self._cut_runs(start, end):
            if run.anon_vma is old_owner:
                run.anon_vma = new_owner
                given += run.end - run.start
        return given >> PAGE_SHIFT

    def fork_into(self, child: PageTable, start: int, end: int) -> None:
        """Share the pages of ``[start, end)`` with `child` at the same addresses (``copy_page_range``)."""
        for run in self._cut_runs(start, end):
            if run.shared is None:
                run.shared = SharedPages(run.index, run.index_end, 2)
            else:
                run.shared.add(run.index, run.index_end, 1)
            child._runs.insert(run.start, PageRun(run.start, run.end, run.index, run.anon_vma, run.shared))

    def any_mapped_elsewhere(self, start: int, end: int) -> bool:
        """True if some page of ``[start, end)`` has a mapcount above 1."""
        for run in self._cut_runs(start, end):
            if run.shared is not None and run.shared.highest(run.index, run.index_end) > 1:
                return True
        return False

    def populated(self, start: int, end: int) -> int:
        """How many pages of ``[start, end)`` are mapped."""
        pages = 0
        for run in self.runs(start, end):
            pages += min(run.end, end) - max(run.start, start)
        return pages >> PAGE_SHIFT

    def check(self) -> None:
        """Raise AssertionError unless the runs are in order and disjoint."""
        self._runs.check()
        last = 0
        for run in self._runs.values():
            assert last <= run.start < run.end, f"{run!r} overlaps what lies before it"
            last = run.end


def _continues(before: PageRun, after: PageRun) -> bool:
    """True if two runs are one: nothing between them, offsets linear, same owner, same group."""
    return (
        before.end == after.start
        and before.shared is after.shared
        and before.anon_vma is after.anon_vma
        and before.index_end == after.index
    )
