# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios that `vmaweld explain` draws: a few calls each, the last of which is the one to look at.

Addresses are pages from `BASE` on. Every scenario can be read as a test of section 2 and 3 of the series' story: the
eight cases of vma_merge, its patches one by one, and what they leave alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vmaweld import events as ev
from vmaweld.abi import (
    MADV_DOFORK,
    MADV_DONTFORK,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE_SIZE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)
from vmaweld.events import Event

BASE: Final = 0x100000
_RW: Final = PROT_READ | PROT_WRITE
_STOCK_AND_SERIES: Final = ("linux-5.17", "linux-5.17+series")
_ALL_FOUR: Final = ("linux-5.17", "linux-5.17+pgoff", "linux-5.17+anon-vma", "linux-5.17+series")


@dataclass(slots=True, frozen=True)
class Scenario:
    """name: for the command line. text: what is to be seen, in a sentence or two. policies: under which it shows."""

    name: str
    text: str
    events: Sequence[Event]
    policies: Sequence[str] = _STOCK_AND_SERIES


def _mmap(page: int, pages: int, prot: int = _RW) -> Event:
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
    return Event(ev.MMAP, 1, addr=BASE + page * PAGE_SIZE, length=pages * PAGE_SIZE, prot=prot, flags=flags)


def _munmap(page: int, pages: int) -> Event:
    return Event(ev.MUNMAP, 1, addr=BASE + page * PAGE_SIZE, length=pages * PAGE_SIZE)


def _protect(page: int, pages: int, prot: int) -> Event:
    return Event(ev.MPROTECT, 1, addr=BASE + page * PAGE_SIZE, length=pages * PAGE_SIZE, prot=prot)


def _write(page: int, pages: int) -> Event:
    return Event(ev.WRITE, 1, addr=BASE + page * PAGE_SIZE, length=pages * PAGE_SIZE)


def _advise(page: int, pages: int, advice: int) -> Event:
    return Event(ev.MADVISE, 1, addr=BASE + page * PAGE_SIZE, length=pages * PAGE_SIZE, flags=advice)


def _move(page: int, pages: int, to: int, *, pid: int = 1) -> Event:
    return Event(
        ev.MREMAP,
        pid,
        addr=BASE + page * PAGE_SIZE,
        length=pages * PAGE_SIZE,
        new_length=pages * PAGE_SIZE,
        flags=MREMAP_MAYMOVE | MREMAP_FIXED,
        new_addr=BASE + to * PAGE_SIZE,
    )


def _grow(page: int, pages: int, to: int) -> Event:
    return Event(
        ev.MREMAP, 1, addr=BASE + page * PAGE_SIZE, length=pages * PAGE_SIZE, new_length=to * PAGE_SIZE, flags=0
    )


_FORK: Final = Event(ev.FORK, 1, child=2)
_TWO_WRITTEN: Final = (_mmap(0, 4), _write(0, 4), _mmap(12, 4), _write(12, 4))
"""Two buffers apart from each other, each written to: two anon_vmas."""

_ALL: Final = (
    Scenario(
        "case-1",
        "A new range fills the hole between two VMAs like itself: all three become one.",
        (_mmap(0, 4), _mmap(8, 4), _mmap(4, 4)),
    ),
    Scenario("case-2", "A new range behind a VMA like itself: the VMA grows over it.", (_mmap(0, 4), _mmap(4, 4))),
    Scenario(
        "case-3",
        "A new range in front of a VMA like itself: the VMA grows down over it.",
        (_mmap(4, 4), _mmap(0, 4)),
    ),
    Scenario(
        "case-4",
        "mprotect makes the end of a VMA like its successor: the border between them moves down.",
        (_mmap(0, 12), _protect(8, 4, PROT_READ), _protect(4, 4, PROT_READ)),
    ),
    Scenario(
        "case-5",
        "mprotect makes the beginning of a VMA like its predecessor: the border between them moves up.",
        (_mmap(0, 12), _protect(4, 8, PROT_READ), _protect(4, 4, _RW)),
    ),
    Scenario(
        "case-6",
        "mprotect makes a whole VMA like both its neighbours: all three become one.",
        (_mmap(0, 12), _protect(4, 4, PROT_READ), _protect(4, 4, _RW)),
    ),
    Scenario(
        "case-7",
        "mprotect makes a whole VMA like its predecessor, which takes it over.",
        (_mmap(0, 12), _protect(4, 4, PROT_READ), _protect(8, 4, PROT_NONE), _protect(4, 4, _RW)),
    ),
    Scenario(
        "case-8",
        "mprotect makes a whole VMA like its successor, which takes it over.",
        (_mmap(0, 12), _protect(4, 4, PROT_READ), _protect(0, 4, PROT_NONE), _protect(4, 4, _RW)),
    ),
    Scenario(
        "mremap-closes-gap",
        "Patch 2. The middle of a written buffer is unmapped and its end moved up against its beginning. Both have the "
        "same anon_vma, but the moved part keeps its page offset: they stay two, unless the move updates it.",
        (_mmap(0, 12), _write(0, 12), _munmap(4, 4), _move(8, 4, 4)),
        ("linux-5.17", "linux-5.17+pgoff"),
    ),
    Scenario(
        "different-anon-vmas",
        "Patch 3. Two buffers were written to while they lay apart, so each has an anon_vma of its own. What is mapped "
        "between them could become part of either, but they cannot be joined: their anon_vmas differ.",
        (_mmap(0, 4), _write(0, 4), _mmap(8, 4), _write(8, 4), _mmap(4, 4)),
        ("linux-5.17", "linux-5.17+anon-vma"),
    ),
    Scenario(
        "mremap-back",
        "Patches 2 and 3. A written buffer is moved up against another one: page offset and anon_vma both differ, and "
        "neither patch alone makes them one.",
        (*_TWO_WRITTEN, _move(12, 4, 4)),
        _ALL_FOUR,
    ),
    Scenario(
        "limitation-child",
        "The limitation. As mremap-back, but the process has forked: its pages are shared with the child and must keep "
        "anon_vma and page offset, or the reverse map would lose the child's.",
        (*_TWO_WRITTEN, _FORK, _move(12, 4, 4)),
    ),
    Scenario(
        "limitation-parent",
        "The limitation, seen from the child: its pages are shared with the parent.",
        (*_TWO_WRITTEN, _FORK, _move(12, 4, 4, pid=2)),
    ),
    Scenario(
        "child-gone",
        "After the child's exit nothing is shared any more, and the series merges again.",
        (*_TWO_WRITTEN, _FORK, Event(ev.EXIT, 2), _move(12, 4, 4)),
    ),
    Scenario(
        "grow-to-neighbour",
        "Since Linux 6.0, and in later versions of the series: mremap grows a VMA in place until it touches the next "
        "one, and now asks whether the two are one.",
        (_mmap(0, 4), _mmap(8, 4), _grow(0, 4, 8)),
        ("linux-5.17", "linux-5.17+grow"),
    ),
    Scenario(
        "unfaulted-neighbour",
        "Since Linux 6.16: a VMA that was never written to may take over one that was.",
        (_mmap(0, 8), _advise(4, 4, MADV_DONTFORK), _write(4, 4), _advise(4, 4, MADV_DOFORK)),
        ("linux-6.12", "linux-6.18"),
    ),
)

SCENARIOS: Final[Mapping[str, Scenario]] = {scenario.name: scenario for scenario in _ALL}
"""By name, in the order in which they are best read."""
