# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios and their drawings."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmaweld.cli.explain_command import command as explain_command
from vmaweld.events import EVENT_FIELDS, Event
from vmaweld.model.errors import LinuxError
from vmaweld.model.system import System
from vmaweld.policy import parse_policy
from vmaweld.snapshot import Row, Snapshot
from vmaweld.study.drawing import Scale, draw
from vmaweld.study.explain import ScenarioError, describe, explain, read_scenario, verdict
from vmaweld.study.scenarios import SCENARIOS
from vmaweld.study.trace_pipe import trace_lines

VMAS_AFTER = {
    "case-1": [1, 1],
    "case-2": [1, 1],
    "case-3": [1, 1],
    "case-4": [2, 2],
    "case-5": [2, 2],
    "case-6": [1, 1],
    "case-7": [2, 2],
    "case-8": [2, 2],
    "mremap-closes-gap": [2, 1],
    "different-anon-vmas": [2, 1],
    "mremap-back": [2, 2, 2, 1],
    "limitation-child": [4, 4],
    "limitation-parent": [4, 4],
    "child-gone": [2, 1],
    "grow-to-neighbour": [2, 1],
    "unfaulted-neighbour": [2, 1],
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_scenario_shows_what_it_says(name: str) -> None:
    scenario = SCENARIOS[name]
    counts = []
    for policy in scenario.policies:
        outcome = explain(scenario.events, parse_policy(policy))
        assert not outcome.error
        assert not outcome.failures
        counts.append(sum(len(snapshot.rows) for snapshot in outcome.after))
    assert counts == VMAS_AFTER[name]


@pytest.mark.parametrize("number", range(1, 9))
def test_each_case_is_that_case(number: int) -> None:
    scenario = SCENARIOS[f"case-{number}"]
    for policy in scenario.policies:
        records = explain(scenario.events, parse_policy(policy)).records
        assert [record.case for record in records] == [number]


def test_a_drawing() -> None:
    scenario = SCENARIOS["mremap-back"]
    outcomes = [explain(scenario.events, parse_policy(name)) for name in ("linux-5.17", "linux-5.17+series")]
    scale = Scale(s for outcome in outcomes for s in (*outcome.before, *outcome.after))
    assert draw(outcomes[0].before[0], scale) == [
        "page      0        4        8        12       16",
        "VMA       AAAAAAAAA..................BBBBBBBBB",
        "access    rw-                        rw-",
        "pgoff     100                        10c",
        "anon_vma  1                          2",
    ]
    assert draw(outcomes[0].after[0], scale)[1:4] == [
        "VMA       AAAAAAAAABBBBBBBBB..................",
        "access    rw-      rw-",
        "pgoff     100      10c",
    ]
    assert draw(outcomes[1].after[0], scale)[1] == "VMA       AAAAAAAAAAAAAAAAAA.................."


def test_a_forked_anon_vma_shows_its_chain() -> None:
    outcome = explain(SCENARIOS["limitation-child"].events, parse_policy("linux-5.17"))
    assert draw(outcome.after[1], Scale(outcome.after))[-1].split("  ")[1].strip() == "3 (of 2)"


def test_a_verdict_names_obstacles_and_sharing() -> None:
    events = SCENARIOS["limitation-child"].events
    for name, ending in (("linux-5.17", "no neighbour"), ("linux-5.17+series", "no neighbour (shared with child)")):
        policy = parse_policy(name)
        text = verdict(explain(events, policy).records[0], policy)
        assert text == f"not merged; predecessor: page offset and anon_vma, successor: {ending}"


def test_events_in_words() -> None:
    base = 0x100000
    scenario = SCENARIOS["unfaulted-neighbour"]
    assert [describe(event, base) for event in scenario.events] == [
        "mmap pages 0-7 rw-",
        "madvise pages 4-7 MADV_DONTFORK",
        "write pages 4-7",
        "madvise pages 4-7 MADV_DOFORK",
    ]
    assert describe(Event("fork", 2, child=3), base) == "fork process 3, by process 2"
    assert describe(SCENARIOS["grow-to-neighbour"].events[-1], base) == "mremap pages 0-3 to 8 pages"


def test_all_fields_of_an_event_are_known() -> None:
    event = Event("mmap", 1)
    assert list(getattr(Event, "__slots__", EVENT_FIELDS)) == list(EVENT_FIELDS)
    assert all(hasattr(event, name) for name in EVENT_FIELDS)


def test_a_scenario_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    calls = [
        {
            "op": "mmap",
            "addr": "0x100000",
            "length": 16384,
            "prot": "rw",
            "flags": "MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED",
        },
        {"op": "write", "addr": "0x100000", "length": 4096},
        {"op": "madvise", "pid": 1, "addr": "0x101000", "length": 4096, "flags": "MADV_DONTFORK"},
    ]
    path.write_text(json.dumps(calls))
    scenario = read_scenario(path)
    assert scenario.events[0] == Event("mmap", 1, addr=0x100000, length=16384, prot=3, flags=0x32)
    path.write_text(json.dumps({"events": calls, "text": "three", "policies": ["linux-6.18"]}))
    scenario = read_scenario(path)
    assert (scenario.name, scenario.text, list(scenario.policies)) == ("mine", "three", ["linux-6.18"])
    assert len(explain(scenario.events, parse_policy("linux-6.18")).after[0].rows) == 3


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is not JSON"),
        ("[]", "holds no events"),
        ('[{"op": "fly"}]', '"op" must be one of'),
        ('[{"op": "mmap", "adr": 1}]', "unknown field adr"),
        ('[{"op": "mmap", "addr": "here"}]', "is no number"),
        ('[{"op": "mmap", "addr": true}]', "is no number"),
        ('[{"op": "mmap", "file": 3}]', '"file" is no text'),
        ('{"events": [{"op": "munmap"}], "policies": 3}', '"policies" is no list'),
    ],
)
def test_a_file_that_holds_none_is_told_in_a_line(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=r"bad\.json") as caught:
        read_scenario(path)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="No such file"):
        read_scenario(tmp_path / "nothing.json")


def test_a_failing_last_call_is_told() -> None:
    events = (Event("mremap", 1, addr=0x100000, length=4096, new_length=8192),)
    outcome = explain(events, parse_policy("linux-5.17"))
    assert outcome.error.startswith("EFAULT")
    with pytest.raises(LinuxError):
        System(parse_policy("linux-5.17")).apply(events[0])


def test_trace_pipe_columns() -> None:
    outcome = explain(SCENARIOS["mremap-back"].events, parse_policy("linux-5.17+series"))
    (record,) = outcome.records
    assert list(trace_lines("/usr/bin/a-rather-long-name", 7, 12_345_678_999, record.trace_lines())) == [
        " a-rather-long-n-7       [000] .....    12.345678: vm_av_merge: merged=1 predecessor=AV_MERGE_DIFFERENT"
        " successor=MERGE_FAILED predecessor_with_successor=MERGE_FAILED same_count=0 diff_count=1 failed_count=0",
        " a-rather-long-n-7       [000] .....    12.345678: vm_pgoff_merge: faulted=1 updated=1",
    ]
    assert next(trace_lines("", 7, 0, ["x"])).startswith("           <...>-7 ")


def event(**fields: object) -> str:
    return json.dumps([{"op": "mmap", "addr": "0x100000", "length": 4096, "prot": "rw", "flags": "0x32", **fields}])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (event(addr=-4096), '"addr": -4096 is not from 0 to 0xffffffffffffffff'),
        (event(length=1 << 64), '"length": 18446744073709551616 is not from 0'),
        (event(length="1" * 5000), "is no number"),
        (event().replace("4096", "1" * 5000), "is not JSON"),
        (event(length=None), "is no number"),
        (event().replace("4096", "NaN"), "is no number"),
        (event(pid=0), '"pid": 0 is not from 1'),
        (event(pid=1 << 31), '"pid": 2147483648 is not from 1'),
        (event(child=-1), '"child": -1 is not from 0'),
        (event(result=1 << 63), '"result"'),
        (event(time=-1), '"time"'),
        (event(**{"x" * 5000: 1}), "unknown field xxx"),
        ("[" * 100_000, "is not JSON"),
        ("[" + ",".join(['{"op": "munlockall"}'] * 1001) + "]", "holds 1,001 events"),
        ('{"events": [{"op": "munmap"}], "policies": []}', '"policies" is no list'),
    ],
)
def test_numbers_and_sizes_that_no_machine_has_are_told_in_a_line(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=r"bad\.json") as caught:
        read_scenario(path)
    assert complaint in str(caught.value)
    assert len(str(caught.value)) < 700
    assert "\n" not in str(caught.value)


def test_a_file_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(ScenarioError, match="larger than 16 MiB"):
        read_scenario(Path("/dev/zero"))


def test_the_same_flag_twice_is_that_flag(tmp_path: Path) -> None:
    path = tmp_path / "twice.json"
    path.write_text(event(flags="MAP_PRIVATE|MAP_PRIVATE|MAP_ANONYMOUS"))
    assert read_scenario(path).events[0].flags == 0x22


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (event(op="munmap"), "0 VMAs"),
        (event(length=1 << 60), "failed: ENOMEM"),
        (event(addr=0x100001), "failed: EINVAL"),
        (event(op="write", addr=(1 << 64) - 4096), "failed: EFAULT"),
        (event(op="place", addr=0x100001), "failed: EINVAL"),
        (event(op="place", length=0), "failed: EINVAL"),
        (event(op="place", length=(1 << 64) - 1), "failed: EINVAL"),
        (event(op="fork", child=1), "failed: EINVAL"),
        (event(flags="0x22", result=0x100001), "1 VMA"),
        (event(file="\udcff\ud800\x1b[2J", flags="MAP_PRIVATE|MAP_FIXED"), r"mmap page 0 rw- \xff\ud800\x1b[2J"),
        ('{"events": [{"op": "munlockall"}], "text": "\\ud800"}', r"\ud800"),
    ],
)
def test_calls_that_make_no_sense_are_drawn_as_what_linux_makes_of_them(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_text(text)
    done = CliRunner().invoke(explain_command, ["--file", str(path)])
    assert done.exit_code == 0, done.output
    assert says in done.output
    assert CliRunner().invoke(explain_command, ["--file", str(path), "--json"]).exit_code == 0


def test_a_drawing_of_many_is_made_in_time_that_grows_with_their_number() -> None:
    rows = [Row(address << 13, (address << 13) + 4096, 3, pgoff=0, anon_vma=0) for address in range(1, 30_001)]
    scale = Scale([Snapshot(1, rows, source="model", flags_exact=True, hidden=True)])
    assert scale.width == 9 * 59_999
