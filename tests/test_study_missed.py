# SPDX-License-Identifier: GPL-2.0-or-later
"""What counts as a missed merge, who recovers it, and what what is left is put down to."""

from pathlib import Path

import pytest
from random_events import program
from study_support import FOUR, study

from vmaweld.abi import MAP_FIXED, MAP_PRIVATE
from vmaweld.events import Event
from vmaweld.policy import parse_policy
from vmaweld.study.answer import Answer
from vmaweld.study.explain import explain
from vmaweld.study.missed import OFFSET, OWNER, SHARED, UNFAULTED
from vmaweld.study.replay import Replayer
from vmaweld.study.scenarios import SCENARIOS
from vmaweld.study.tally import Tally
from vmaweld.trace.store import Metadata

PAGE = 4096
BASE = 0x100000


def of_scenario(name: str, path: Path) -> Answer:
    return study(path, SCENARIOS[name].events)


@pytest.mark.parametrize(
    ("name", "obstacle", "recovered", "left"),
    [
        # under: stock, patch 2, patch 3, both; "" where it recovered the merge
        ("mremap-closes-gap", "page_offset", [0, 1, 0, 1], [OFFSET, "", OFFSET, ""]),
        ("different-anon-vmas", "anon_vma", [0, 0, 1, 1], [OWNER, OWNER, "", ""]),
        ("mremap-back", "both", [0, 0, 0, 1], [OFFSET, OWNER, OFFSET, ""]),
        ("limitation-child", "both", [0, 0, 0, 0], [OFFSET, SHARED, OFFSET, SHARED]),
        ("limitation-parent", "both", [0, 0, 0, 0], [OFFSET, SHARED, OFFSET, SHARED]),
        ("child-gone", "both", [0, 0, 0, 1], [OFFSET, OWNER, OFFSET, ""]),
        ("unfaulted-neighbour", "anon_vma", [0, 0, 0, 0], [UNFAULTED] * 4),
    ],
)
def test_each_scenario_misses_one(
    name: str, obstacle: str, recovered: list[int], left: list[str], tmp_path: Path
) -> None:
    answer = of_scenario(name, tmp_path)
    losses = answer.losses
    assert losses.missed == 1
    assert losses.by_obstacle == {obstacle: 1}
    assert losses.recovered == recovered
    assert [dict(causes) for causes in losses.left] == [{cause: 1} if cause else {} for cause in left]
    assert answer.needs_both == (1 if recovered == [0, 0, 0, 1] else 0)


@pytest.mark.parametrize("number", range(1, 9))
def test_the_eight_cases_miss_nothing(number: int, tmp_path: Path) -> None:
    assert of_scenario(f"case-{number}", tmp_path).losses.missed == 0


def test_the_reason_tells_who_shares(tmp_path: Path) -> None:
    answer = of_scenario("limitation-child", tmp_path)
    assert list(answer.reasons[3]) == [(SHARED, "moved while shared, so the page offset was kept")]
    owner = (
        Event("mmap", 1, addr=BASE, length=4 * PAGE, prot=3, flags=0x32),
        Event("write", 1, addr=BASE, length=4 * PAGE),
        Event("mmap", 1, addr=BASE + 8 * PAGE, length=4 * PAGE, prot=3, flags=0x32),
        Event("write", 1, addr=BASE + 8 * PAGE, length=4 * PAGE),
        Event("fork", 1, child=2),
        Event("mmap", 1, addr=BASE + 4 * PAGE, length=4 * PAGE, prot=3, flags=0x32),
    )
    answer = study(tmp_path, owner)
    assert list(answer.reasons[3]) == [(SHARED, "shared with child")]
    child = [*owner[:-1], Event("mmap", 2, addr=BASE + 4 * PAGE, length=4 * PAGE, prot=3, flags=0x32)]
    answer = study(tmp_path, child)
    assert answer.losses.missed == 2
    assert list(answer.reasons[3]) == [(SHARED, "one side was inherited through fork")]


def test_a_neighbour_that_goes_away_in_the_same_call_is_not_counted(tmp_path: Path) -> None:
    events = (
        Event("mmap", 1, addr=BASE + 4 * PAGE, length=4 * PAGE, prot=3, flags=0x32),
        Event("write", 1, addr=BASE + 4 * PAGE, length=4 * PAGE),
        Event(
            "mremap", 1, addr=BASE + 4 * PAGE, length=4 * PAGE, new_length=4 * PAGE, flags=3, new_addr=BASE, result=BASE
        ),
    )
    answer = study(tmp_path, events)
    assert (answer.losses.missed, answer.passing) == (0, 1)


def test_two_parts_of_a_file_are_not_a_missed_merge(tmp_path: Path) -> None:
    parts = [
        Event(
            "mmap",
            1,
            addr=BASE + at * 4 * PAGE,
            length=4 * PAGE,
            prot=1,
            flags=MAP_PRIVATE | MAP_FIXED,
            file="/lib/x.so",
            pgoff=offset,
        )
        for at, offset in ((0, 0), (1, 100))
    ]
    answer = study(tmp_path, parts)
    assert (answer.losses.missed, answer.file_offsets) == (0, 1)


def test_tables_by_call_and_process(tmp_path: Path) -> None:
    events = [
        Event("exec", 1, file="/usr/bin/tool"),
        *SCENARIOS["mremap-back"].events,
        Event("fork", 1, child=7),
        Event("exec", 7, file="/bin/other"),
    ]
    answer = study(tmp_path, events)
    assert {call: losses.missed for call, losses in answer.by_call.items()} == {"mremap": 1}
    assert [(process.pid, process.name, process.losses.missed) for process in answer.processes] == [
        (1, "tool", 1),
        (7, "tool", 0),
        (7, "other", 0),
    ]
    assert answer.processes[0].peak == [2, 2, 2, 2]
    assert answer.processes[1].peak == [2, 2, 2, 1]
    assert answer.pids == 2
    assert [policy.peak for policy in answer.policies] == [2, 2, 2, 2]
    assert answer.policies[0].peak_program == "/usr/bin/tool"


def test_a_count_beyond_the_limit_is_reported_not_enforced(tmp_path: Path) -> None:
    events = [
        Event("mmap", 1, addr=BASE + 2 * at * PAGE, length=PAGE, prot=3, flags=0x32, result=BASE + 2 * at * PAGE)
        for at in range(12)
    ]
    answer = study(tmp_path, events, max_map_count=10)
    assert answer.policies[0].peak == 12
    assert answer.policies[0].over_limit == 2
    assert answer.policies[0].diverged == 0


def test_another_base(tmp_path: Path) -> None:
    answer = study(tmp_path, SCENARIOS["unfaulted-neighbour"].events, ("linux-6.12", "linux-6.18"))
    assert answer.losses.missed == 1
    assert answer.losses.recovered == [0, 1]
    assert answer.series is None


@pytest.mark.parametrize(("kernel", "border"), [("linux-5.17", 8), ("linux-6.1", 4), ("linux-6.12", 8)])
def test_the_neighbour_left_out_when_both_would_go(kernel: str, border: int) -> None:
    # 6.1 to 6.11 ask the successor first where mmap fills a hole, so there the predecessor is left out.
    (record,) = explain(SCENARIOS["different-anon-vmas"].events, parse_policy(kernel)).records
    assert record.merged
    assert record.missed() == [BASE + border * PAGE]


@pytest.mark.parametrize("seed", [2, 5, 6])
def test_every_missed_merge_is_recovered_or_left(seed: int) -> None:
    replayer = Replayer([parse_policy(name) for name in FOUR])
    tally = Tally(replayer, Metadata())
    events = program(seed, 4000)
    for number, event in enumerate(events):
        event.time = number
        replayer.apply(event)
        tally.after(event)
    answer = tally.finish()
    losses = answer.losses
    assert losses.missed > 0
    assert losses.recovered[0] == 0
    for recovered, left in zip(losses.recovered, losses.left, strict=True):
        assert recovered + left.total() == losses.missed
    assert sum(process.losses.missed for process in answer.processes) == losses.missed
    assert sum(call.missed for call in answer.by_call.values()) == losses.missed
    assert sum(losses.by_obstacle.values()) == losses.missed
    for number, policy in enumerate(answer.policies):
        assert sum(process.merges[number] for process in answer.processes) == policy.merges
        assert max(process.peak[number] for process in answer.processes) == policy.peak
    # what a policy can do nothing about by its nature never counts as left over for that reason
    assert not losses.left[1][OFFSET]
    assert not losses.left[2][OWNER]
    assert not losses.left[3][OFFSET] + losses.left[3][OWNER]
