# SPDX-License-Identifier: GPL-2.0-or-later
"""The structures below the model, each against a naive one that cannot be wrong."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmaweld.abi import PAGE_SHIFT, PAGE_SIZE
from vmaweld.model import address_map
from vmaweld.model.address_map import AddressMap
from vmaweld.model.anon_vma import AnonVma
from vmaweld.model.pages import PageTable, SharedPages
from vmaweld.model.vma import VMA
from vmaweld.model.vma_tree import VmaTree

# AddressMap: a dict -------------------------------------------------------------------------------------


def same_as_dict(found: AddressMap[str], known: dict[int, str], probes: list[int]) -> None:
    found.check()
    keys = sorted(known)
    assert len(found) == len(known)
    assert list(found.values()) == [known[key] for key in keys]
    for probe in probes:
        below = [key for key in keys if key <= probe]
        above = [key for key in keys if key >= probe]
        assert found.get(probe) == known.get(probe)
        assert found.at_or_before(probe) == (known[below[-1]] if below else None)
        assert found.at_or_after(probe) == (known[above[0]] if above else None)


@given(
    st.lists(st.tuples(st.sampled_from("iiirm"), st.integers(0, 60)), max_size=80),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_address_map_with_tiny_chunks(steps: list[tuple[str, int]]) -> None:
    """Chunks of four, so that they split and vanish all the time."""
    load = address_map._LOAD
    address_map._LOAD = 4  # type: ignore[misc]
    try:
        _play_address_map(steps)
    finally:
        address_map._LOAD = load  # type: ignore[misc]


def _play_address_map(steps: list[tuple[str, int]]) -> None:
    found: AddressMap[str] = AddressMap()
    known: dict[int, str] = {}
    for number, (step, key) in enumerate(steps):
        if step == "i" and key not in known:
            found.insert(key, f"v{number}")
            known[key] = f"v{number}"
        elif step == "r" and key in known:
            found.remove(key)
            del known[key]
        elif step == "m" and key in known and key + 1 not in known:  # the order stays
            found.rekey(key, key + 1)
            known[key + 1] = known.pop(key)
        same_as_dict(found, known, [key - 1, key, key + 1, -1, 99])


def test_address_map_of_thousands() -> None:
    dice = random.Random(5)
    found: AddressMap[str] = AddressMap()
    known: dict[int, str] = {}
    for number in range(6000):
        key = dice.randrange(4000) * 2
        if key in known and dice.random() < 0.4:
            found.remove(key)
            del known[key]
        elif key not in known:
            found.insert(key, str(number))
            known[key] = str(number)
    same_as_dict(found, known, [dice.randrange(8000) for _ in range(60)])
    for key in sorted(known):
        found.rekey(key, key + 1)
    known = {key + 1: value for key, value in known.items()}
    same_as_dict(found, known, [dice.randrange(8000) for _ in range(60)])
    for key in sorted(known, reverse=True):
        found.remove(key)
    same_as_dict(found, {}, [0, 1])


def test_address_map_check_finds_disorder() -> None:
    found: AddressMap[str] = AddressMap()
    found.insert(1, "a")
    found.insert(5, "b")
    found.rekey(1, 9)
    with pytest.raises(AssertionError, match="out of order"):
        found.check()


# VmaTree: a sorted list ---------------------------------------------------------------------------------


def test_vma_tree_against_a_list() -> None:
    pages = PageTable()
    dice = random.Random(6)
    tree = VmaTree()
    known: list[VMA] = []
    for _ in range(1500):
        start = dice.randrange(60) * PAGE_SIZE
        end = start + dice.randrange(1, 5) * PAGE_SIZE
        overlapping = [vma for vma in known if vma.start < end and vma.end > start]
        if not overlapping:
            vma = VMA(pages, start, end, 0x73, start >> PAGE_SHIFT)
            tree.insert(vma)
            known = sorted([*known, vma], key=lambda vma: vma.start)
        elif dice.random() < 0.5:
            gone = dice.choice(overlapping)
            tree.remove(gone)
            known.remove(gone)
            assert gone.prev is None
            assert gone.next is None
        elif len(overlapping) == 1 and overlapping[0].pages > 1:
            tree.set_start(overlapping[0], overlapping[0].start + PAGE_SIZE)
        tree.check()
        assert list(tree) == known
        assert len(tree) == len(known)
        probe = dice.randrange(66) * PAGE_SIZE + dice.choice((0, 1))
        assert tree.find(probe) is next((vma for vma in known if vma.end > probe), None)
        before = [vma for vma in known if vma.end <= probe]
        assert tree.find_prev(probe) is (before[-1] if before else None)
        stop = probe + dice.randrange(1, 9000)
        assert tree.intersection(probe, stop) is next(
            (vma for vma in known if vma.end > probe and vma.start < stop), None
        )


# SharedPages: a mapcount a page -------------------------------------------------------------------------


@given(
    st.integers(1, 24),
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 23), st.integers(1, 24), st.sampled_from((-1, 1))), max_size=40),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_shared_pages_against_a_list(pages: int, count: int, changes: list[tuple[int, int, int]]) -> None:
    base = 1000
    found = SharedPages(base, base + pages, count)
    known = [count] * pages
    for start, length, change in changes:
        end = min(start + length, pages)
        if start >= end:
            continue
        found.add(base + start, base + end, change)
        for index in range(start, end):
            known[index] += change
        assert found.highest(base + start, base + end) == max(known[start:end])
        for first in (0, start):
            steps = list(found.steps(base + first, base + pages))
            assert [value for a, b, value in steps for _ in range(a, b)] == known[first:]
            assert [a for a, _, _ in steps[1:]] == [b for _, b, _ in steps[:-1]]
    whole = list(found.steps(base, base + pages))
    assert all(left[2] != right[2] for left, right in pairwise(whole)), "equal steps stay apart"


# PageTable: a dict of pages, over two processes ---------------------------------------------------------


class Frame:
    """A physical page."""

    def __init__(self, anon_vma: AnonVma, index: int) -> None:
        self.anon_vma = anon_vma
        self.index = index
        self.mapcount = 1
        self.exclusive = True


class NaiveTable:
    """What `PageTable` promises, a page at a time."""

    def __init__(self) -> None:
        self.frames: dict[int, Frame] = {}

    def _unmap(self, page: int) -> None:
        self.frames.pop(page).mapcount -= 1

    def write(self, start: int, end: int, anon_vma: AnonVma, index: int) -> tuple[int, int]:
        made = copied = 0
        for page in range(start, end):
            frame = self.frames.get(page)
            if frame is not None and frame.exclusive:
                continue
            if frame is None:
                made += 1
            else:
                copied += frame.mapcount > 1
                self._unmap(page)
            self.frames[page] = Frame(anon_vma, index + page - start)
        return made, copied

    def drop(self, start: int, end: int) -> int:
        pages = [page for page in self.frames if start <= page < end]
        for page in pages:
            self._unmap(page)
        return len(pages)

    def move(
        self, start: int, end: int, to: int, index_change: int, old_owner: AnonVma | None, new_owner: AnonVma | None
    ) -> int:
        moved = {page: self.frames.pop(page) for page in list(self.frames) if start <= page < end}
        for page, frame in moved.items():
            frame.index += index_change
            if frame.anon_vma is old_owner and new_owner is not None:
                frame.anon_vma = new_owner
            self.frames[page + to - start] = frame
        return len(moved)

    def give(self, start: int, end: int, old_owner: AnonVma, new_owner: AnonVma) -> int:
        given = [frame for page, frame in self.frames.items() if start <= page < end and frame.anon_vma is old_owner]
        for frame in given:
            frame.anon_vma = new_owner
        return len(given)

    def fork_into(self, child: NaiveTable, start: int, end: int) -> None:
        for page, frame in self.frames.items():
            if start <= page < end:
                frame.mapcount += 1
                frame.exclusive = False
                child.frames[page] = frame

    def any_mapped_elsewhere(self, start: int, end: int) -> bool:
        return any(start <= page < end and frame.mapcount > 1 for page, frame in self.frames.items())


def shown(table: PageTable) -> dict[int, tuple[AnonVma, int, bool, int]]:
    """Page -> owner, offset, exclusive, mapcount."""
    pages = {}
    for run in table.all_runs():
        for number in range((run.end - run.start) >> PAGE_SHIFT):
            index = run.index + number
            count = 1 if run.shared is None else run.shared.highest(index, index + 1)
            pages[(run.start >> PAGE_SHIFT) + number] = (run.anon_vma, index, run.shared is None, count)
    return pages


def known(table: NaiveTable) -> dict[int, tuple[AnonVma, int, bool, int]]:
    return {page: (f.anon_vma, f.index, f.exclusive, f.mapcount) for page, f in table.frames.items()}


_OWNERS = (AnonVma(1), AnonVma(2))
_SIZE = 24
_steps = st.lists(
    st.tuples(
        st.sampled_from(("write", "write", "drop", "move", "give", "fork", "shift")),
        st.integers(0, 1),
        st.integers(0, _SIZE - 1),
        st.integers(1, 8),
        st.integers(0, _SIZE - 1),
    ),
    max_size=30,
)


@given(_steps)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_page_tables_against_dicts(steps: list[tuple[str, int, int, int, int]]) -> None:
    """Two processes; a page of process p is born with the offset of its page number and the owner p."""
    tables = (PageTable(), PageTable())
    naive = (NaiveTable(), NaiveTable())
    for step, who, start, length, to in steps:
        end = min(start + length, _SIZE)
        table, dumb, other, dumb_other = tables[who], naive[who], tables[1 - who], naive[1 - who]
        first, last, target = start << PAGE_SHIFT, end << PAGE_SHIFT, to << PAGE_SHIFT
        if step == "write":
            assert table.write(first, last, _OWNERS[who], start) == dumb.write(start, end, _OWNERS[who], start)
        elif step == "drop":
            assert table.populated(first, last) == len([page for page in dumb.frames if start <= page < end])
            assert table.drop(first, last) == dumb.drop(start, end)
        elif step in ("move", "shift") and (to >= end or to + end - start <= start):
            table.drop(target, target + last - first)
            dumb.drop(to, to + end - start)
            alone = not dumb.any_mapped_elsewhere(start, end)
            assert table.any_mapped_elsewhere(first, last) == (not alone)
            change = to - start if step == "shift" and alone else 0  # offsets change only where nobody else maps
            owners = (_OWNERS[who], _OWNERS[1 - who]) if alone else (None, None)
            assert table.move(first, last, target, change, *owners) == dumb.move(start, end, to, change, *owners)
        elif step == "give" and not dumb.any_mapped_elsewhere(start, end):
            given = table.give(first, last, _OWNERS[1 - who], _OWNERS[who])
            assert given == dumb.give(start, end, _OWNERS[1 - who], _OWNERS[who])
        elif step == "fork":
            other.drop(first, last)
            dumb_other.drop(start, end)
            table.fork_into(other, first, last)
            dumb.fork_into(dumb_other, start, end)
        for one, naive_one in zip(tables, naive, strict=True):
            one.check()
            assert shown(one) == known(naive_one)


def test_touching_in_order_makes_one_run() -> None:
    """Whatever the size: 100 GiB written page by page, in order, is one object."""
    table = PageTable()
    for page in range(1000):
        table.write(page << PAGE_SHIFT, (page + 1) << PAGE_SHIFT, _OWNERS[0], page)
    assert len(table) == 1
    table.write(1000 << PAGE_SHIFT, 26_214_400 << PAGE_SHIFT, _OWNERS[0], 1000)
    assert len(table) == 1
    child = PageTable()
    table.fork_into(child, 0, 26_214_400 << PAGE_SHIFT)
    assert len(child) == 1
    assert child.write(5 << PAGE_SHIFT, 6 << PAGE_SHIFT, _OWNERS[1], 5) == (0, 1)
    assert len(child) == 3
    assert len(table) == 1
