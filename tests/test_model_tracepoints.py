# SPDX-License-Identifier: GPL-2.0-or-later
"""Patch 4: the two trace events, line by line, and what a merge record tells besides."""

import pytest
from drawing import World, page, play

from vmaweld.abi import PAGE_SIZE
from vmaweld.model.merge import FLAGS, NOT_ADJACENT, OBSTACLE_NAMES
from vmaweld.model.system import System
from vmaweld.model.tracepoints import obstacle_names
from vmaweld.policy import parse_policy

FAILED = "MERGE_FAILED"
STOCK = "linux-5.17"
SERIES = "linux-5.17+series"


def av_merge(merged: int, prev: str, next: str, both: str, same: int, diff: int, failed: int) -> str:
    return (
        f"vm_av_merge: merged={merged} predecessor={prev} successor={next} predecessor_with_successor={both} "
        f"same_count={same} diff_count={diff} failed_count={failed}"
    )


def lines(policy: str, timeline: str) -> list[str]:
    return play(policy, timeline).last.trace_lines()


def test_the_line_itself() -> None:
    """Written out once: names, order and blanks."""
    shown = lines(STOCK, "aaaa        mmap\n....bb      mmap")
    assert shown == [
        "vm_av_merge: merged=1 predecessor=AV_MERGE_NULL successor=MERGE_FAILED "
        "predecessor_with_successor=MERGE_FAILED same_count=0 diff_count=0 failed_count=0"
    ]


def test_nothing_absent_everything_fine() -> None:
    shown = lines(STOCK, "aaaa....cccc   mmap\n....bbbb       mmap")
    assert shown == [av_merge(1, "AV_MERGE_NULL", "AV_MERGE_NULL", "AV_MERGE_NULL", 0, 0, 0)]


def test_the_same_anon_vma_three_times() -> None:
    shown = lines(STOCK, "AAAAAAAAAAAA   mmap\n....xxxx       mprotect r\n....xxxx       mprotect rw")
    assert shown == [av_merge(1, "AV_MERGE_SAME", "AV_MERGE_SAME", "AV_MERGE_SAME", 3, 0, 0)]


def test_neighbours_that_do_not_go_together() -> None:
    timeline = "AAAA....CCCC   mmap\n....bbbb       mmap"
    assert lines(STOCK, timeline) == [av_merge(1, "AV_MERGE_NULL", "AV_MERGE_NULL", "AV_MERGE_FAILED", 0, 0, 1)]
    assert lines(SERIES, timeline) == [av_merge(1, "AV_MERGE_NULL", "AV_MERGE_NULL", "AV_MERGE_DIFFERENT", 0, 1, 0)]


BORN_APART = """
    AAAA......BBBB     mmap
    ..........xxxx     mremap ....bbbb
"""


def test_a_move_that_merges_has_a_second_line() -> None:
    assert lines(SERIES, BORN_APART) == [
        av_merge(1, "AV_MERGE_DIFFERENT", FAILED, FAILED, 0, 1, 0),
        "vm_pgoff_merge: faulted=1 updated=1",
    ]
    unfaulted = "AAAA......bbbb     mmap\n..........xxxx     mremap ....bbbb"
    for policy in (STOCK, SERIES):
        assert lines(policy, unfaulted) == [
            av_merge(1, "AV_MERGE_NULL", FAILED, FAILED, 0, 0, 0),
            "vm_pgoff_merge: faulted=0 updated=0",
        ]
    home_again = """
        AAAAAA         mmap
        ..xx           mremap ..........aa
        ..........xx   mremap ..aa
    """
    assert lines(STOCK, home_again)[1:] == ["vm_pgoff_merge: faulted=1 updated=0"]


def test_a_move_that_does_not_merge_has_one_line() -> None:
    """With the offset wrong, the anon_vma is not what forbids it: MERGE_FAILED."""
    assert lines(STOCK, BORN_APART) == [av_merge(0, FAILED, FAILED, FAILED, 0, 0, 0)]
    assert lines("linux-5.17+pgoff", BORN_APART) == [av_merge(0, "AV_MERGE_FAILED", FAILED, FAILED, 0, 0, 1)]


def test_other_reasons_are_merge_failed() -> None:
    shown = lines(STOCK, "aaaa        mmap r\n....bb      mmap rw")
    assert shown == [av_merge(0, FAILED, FAILED, FAILED, 0, 0, 0)]


def test_two_failures_are_counted() -> None:
    shown = lines(
        STOCK,
        """
        AAAA....BBBB   mmap noreserve
        fork 2
        2: ....cccc    mmap none noreserve
        2: ....xxxx    mprotect rw
        """,
    )
    assert shown == [av_merge(0, "AV_MERGE_FAILED", "AV_MERGE_FAILED", FAILED, 0, 0, 2)]


# what else a record tells -------------------------------------------------------------------------------


def test_who_asked_and_where() -> None:
    world = play(STOCK, "aaaa        mmap\nfork 2\n2: ....bb   mmap")
    record = world.last
    assert (record.sequence, record.pid, record.call) == (2, 2, "mmap")
    assert (record.start, record.end, record.case, record.saved) == (page(4), page(6), 2, 1)
    assert record.merged
    assert not record.moved
    assert repr(record) == f"<merge #2 mmap {page(4):#x}+2p case 2>"


@pytest.mark.parametrize(
    ("timeline", "case", "saved"),
    [
        ("aaaa....cccc   mmap\n....bbbb       mmap", 1, 2),
        ("aaaa           mmap\n....bbbb       mmap", 2, 1),
        ("....bbbb       mmap\naaaa           mmap", 3, 1),
        ("aaaabbbb       mmap\n....xxxx       mprotect r\n..xx           mprotect r", 4, 1),
        ("aaaabbbb       mmap\n....xxxx       mprotect r\n....xx         mprotect rw", 5, 1),
        ("aaaabbbbcccc   mmap\n....xxxx       mprotect r\n....xxxx       mprotect rw", 6, 2),
        ("aaaabbbb       mmap\n....xxxx       mprotect r\n....xxxx       mprotect rw", 7, 1),
        ("aaaabbbb       mmap\nxxxx           mprotect r\nxxxx           mprotect rw", 8, 1),
        ("aaaa           mmap\n.....b         mmap", 0, 0),
    ],
)
def test_what_each_case_saves(timeline: str, case: int, saved: int) -> None:
    record = play("linux-6.12", timeline).last
    assert (record.case, record.saved, record.merged) == (case, saved, bool(case))


def missed(policy: str, timeline: str) -> list[int]:
    """Columns of the missed borders of the last attempt."""
    return [(address - page(0)) // PAGE_SIZE for address in play(policy, timeline).last.missed()]


def test_missed_merges() -> None:
    assert missed(STOCK, BORN_APART) == [4]
    assert missed(SERIES, BORN_APART) == []
    assert missed(STOCK, "AAAA....CCCC   mmap\n....bbbb       mmap") == [8]  # the two do not go together
    assert missed("linux-6.1", "AAAA....CCCC   mmap\n....bbbb       mmap") == [4]  # there the upper one is taken
    assert missed(STOCK, "aaaa    mmap r\n....bb  mmap") == []  # flags are no missed merge
    assert missed(STOCK, "AAAA    mmap\n.....bb mmap") == []
    both_sides = """
        AAAA....BBBB......CCCC   mmap
        ..................xxxx   mremap ....cccc
        """
    assert missed(STOCK, both_sides) == [4, 8]


def test_why_a_border_stays() -> None:
    world = play(STOCK, BORN_APART)
    assert obstacle_names(world.last.prev_obstacles) == ["page offset", "anon_vma"]
    assert obstacle_names(world.last.next_obstacles) == ["no neighbour"]
    assert world.last.next_obstacles == NOT_ADJACENT
    assert obstacle_names(FLAGS) == ["flags"]
    assert obstacle_names(sum(OBSTACLE_NAMES)) == list(OBSTACLE_NAMES.values())
    for difference, name in (
        ("madvise DONTFORK", "flags"),
        ("mbind bind:0", "memory policy"),
        ("uffd wp 1", "flags"),
        ("name cache", "anonymous name"),
    ):
        world = play(STOCK, f"aaaa        mmap\nxxxx        {difference}\n....bb      mmap")
        assert obstacle_names(world.last.prev_obstacles) == [name]
    world = play(STOCK, "aaaa        mmap file=lib\n....bb      mmap")
    assert obstacle_names(world.last.prev_obstacles) == ["file"]
    world = play(STOCK, "aabb        shmat file=SYSV1\n..xx        mprotect r\n..xx        mprotect rw")
    assert obstacle_names(world.last.prev_obstacles) == ["close operation"]


def test_the_limitation_is_told_in_words() -> None:
    assert play(SERIES, BORN_APART).last.shared == ""
    assert play(SERIES, BORN_APART.replace("mmap", "mmap\n    fork 2")).last.shared == "shared with child"
    in_the_child = "AAAA......BBBB  mmap\nfork 2\n2: ..........xxxx mremap ....bbbb"
    assert play(SERIES, in_the_child).last.shared == "shared with parent"


def test_nobody_listens() -> None:
    """A machine without tracepoints does the same and keeps no record."""
    deaf = System(parse_policy(SERIES), mmap_base=page(62))
    world = World(SERIES)
    for timeline in (
        ("AAAA......BBBB", "mmap", []),
        ("..........xxxx", "mremap", ["....bbbb"]),
    ):
        for event in world.events(1, *timeline):
            world.apply(event)
            deaf.apply(event)
    assert [repr(row) for row in deaf.snapshot(1).rows] == [repr(row) for row in world.system.snapshot(1).rows]
    assert deaf.machine.trace is None
