# SPDX-License-Identifier: GPL-2.0-or-later
"""Replaying: recorded failures, disagreements with the recording, lanes in lock-step."""

import errno

from vmaweld.abi import CLONE_VM, MADV_DONTDUMP, PROT_NONE, PROT_READ
from vmaweld.events import Event
from vmaweld.policy import parse_policy
from vmaweld.study.replay import ALLOWED, ELSEWHERE, REFUSED, Replayer

PAGE = 4096
BASE = 0x100000
POLICIES = [parse_policy("linux-5.17"), parse_policy("linux-5.17+series")]


def mmap(page: int, pages: int, *, result: int | None = None, prot: int = 3, flags: int = 0x32) -> Event:
    return Event("mmap", 1, addr=BASE + page * PAGE, length=pages * PAGE, prot=prot, flags=flags, result=result)


def replayed(*events: Event) -> Replayer:
    replayer = Replayer(POLICIES)
    for event in events:
        replayer.apply(event)
    return replayer


def rows(replayer: Replayer, pid: int = 1) -> list[list[tuple[int, int, int]]]:
    return [
        [(row.start - BASE, row.end - BASE, row.flags & 7) for row in lane.system.snapshot(pid).rows]
        for lane in replayer.lanes
    ]


def test_a_recorded_address_is_kept() -> None:
    replayer = replayed(mmap(0, 1, flags=0x22, result=BASE + 7 * PAGE))
    assert rows(replayer) == [[(7 * PAGE, 8 * PAGE, 3)]] * 2
    assert not any(lane.divergences for lane in replayer.lanes)


def test_a_failed_mmap_or_mremap_changes_nothing() -> None:
    replayer = replayed(
        mmap(0, 4, result=BASE),
        mmap(2, 4, result=-errno.ENOMEM),
        Event("munmap", 1, addr=BASE, length=PAGE, result=-errno.EINVAL),
        Event("mremap", 1, addr=BASE, length=4 * PAGE, new_length=8 * PAGE, flags=1, result=-errno.EFAULT),
    )
    assert rows(replayer) == [[(0, 4 * PAGE, 3)]] * 2
    assert [lane.failed_calls for lane in replayer.lanes] == [3, 3]
    assert not any(lane.divergences for lane in replayer.lanes)


def test_a_call_that_failed_at_a_hole_has_changed_what_lies_before_it() -> None:
    replayer = replayed(
        mmap(0, 2, result=BASE),
        mmap(3, 1, result=BASE + 3 * PAGE),
        Event("mprotect", 1, addr=BASE, length=4 * PAGE, prot=PROT_READ, result=-errno.ENOMEM),
    )
    assert rows(replayer) == [[(0, 2 * PAGE, 1), (3 * PAGE, 4 * PAGE, 3)]] * 2
    assert not any(lane.divergences or lane.failed_calls for lane in replayer.lanes)


def test_a_call_that_failed_for_a_limit_is_not_repeated() -> None:
    locked = Event("mlock", 1, addr=BASE, length=2 * PAGE, result=-errno.ENOMEM)  # RLIMIT_MEMLOCK: no hole here
    advice = Event("madvise", 1, addr=BASE, length=PAGE, flags=MADV_DONTDUMP, result=-errno.EINVAL)
    replayer = replayed(mmap(0, 2, result=BASE), locked, advice)
    assert rows(replayer) == [[(0, 2 * PAGE, 3)]] * 2
    assert [lane.failed_calls for lane in replayer.lanes] == [2, 2]


def test_a_break_that_did_not_move_stays() -> None:
    replayer = replayed(
        Event("brk", 1, result=BASE),
        Event("brk", 1, addr=BASE + PAGE, result=BASE + PAGE),
        Event("brk", 1, addr=BASE + 9 * PAGE, result=BASE + PAGE),
    )
    assert rows(replayer) == [[(0, PAGE, 3)]] * 2
    assert [lane.failed_calls for lane in replayer.lanes] == [1, 1]


def test_disagreements_are_counted_and_shown() -> None:
    replayer = replayed(
        Event("munmap", 1, addr=BASE + 1, length=PAGE, result=0),
        mmap(0, 1, result=BASE + PAGE),
        Event("brk", 1, result=BASE + 8 * PAGE),
        Event("brk", 1, addr=BASE + 10 * PAGE, result=BASE + 10 * PAGE),
        mmap(12, 1, result=BASE + 12 * PAGE),
        Event("brk", 1, addr=BASE + 13 * PAGE, result=BASE + 13 * PAGE),
    )
    lane = replayer.lanes[0]
    assert lane.divergences == {("munmap", REFUSED): 1, ("mmap", ELSEWHERE): 1, ("brk", REFUSED): 1}
    assert len(lane.examples) == 3
    assert lane.examples[0].startswith("event 0: refused: munmap(")
    assert "EINVAL" in lane.examples[0]


def test_a_call_that_fails_in_the_recording_alone_is_counted() -> None:
    # DONTFORK-like advice walks on behind a hole: the machine succeeds only where there is none, so make the
    # recording claim a hole that the machine has too, yet an operation that does not mind it.
    replayer = replayed(
        mmap(0, 1, result=BASE),
        Event("mbind", 1, addr=BASE, length=2 * PAGE, file="", result=-errno.EFAULT),
    )
    assert replayer.lanes[0].divergences == {("mbind", ALLOWED): 1}


def test_a_fault_without_access_is_no_divergence() -> None:
    replayer = replayed(
        mmap(0, 1, prot=PROT_NONE, result=BASE),
        Event("read", 1, addr=BASE, length=PAGE),
        Event("write", 1, addr=BASE + 9 * PAGE, length=PAGE),
    )
    assert [lane.bad_faults for lane in replayer.lanes] == [2, 2]
    assert not any(lane.divergences for lane in replayer.lanes)


def test_records_are_those_of_the_latest_event() -> None:
    replayer = replayed(mmap(0, 4, result=BASE), mmap(4, 4, result=BASE + 4 * PAGE))
    assert [len(lane.records) for lane in replayer.lanes] == [1, 1]
    replayer.apply(Event("write", 1, addr=BASE, length=PAGE))
    assert [lane.records for lane in replayer.lanes] == [[], []]
    assert [(lane.attempts, lane.merges, lane.saved) for lane in replayer.lanes] == [(1, 1, 1)] * 2


def test_programs_are_known_by_exec_and_inherited_by_fork() -> None:
    replayer = replayed(
        Event("exec", 1, file="/bin/sh"),
        Event("fork", 1, child=2),
        Event("fork", 1, child=3, flags=CLONE_VM),
        Event("exec", 3, file="/bin/ls"),
    )
    assert replayer.programs == {1: "/bin/sh", 2: "/bin/sh", 3: "/bin/ls"}
