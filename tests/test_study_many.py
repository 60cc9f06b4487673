# SPDX-License-Identifier: GPL-2.0-or-later
"""Many traces and policies on many processes: the same answers as one after the other."""

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner
from study_support import write_trace

from vmaweld import events as ev
from vmaweld.cli.replay_command import command
from vmaweld.events import Event
from vmaweld.policy import parse_policy
from vmaweld.study.as_json import answer_data
from vmaweld.study.many import policy_groups, replay_many
from vmaweld.study.tally import replay
from vmaweld.trace.samples import open_sample
from vmaweld.trace.store import TraceError, open_trace

PAGE = 4096
BASE = 0x10_0000
SEVEN = [
    "linux-5.17",
    "linux-6.18",
    "linux-5.17+pgoff",
    "linux-5.10",
    "linux-5.17+anon-vma",
    "linux-6.18+pgoff",
    "linux-5.17+series",
]


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two short traces of their own and a sample."""
    folder = tmp_path_factory.mktemp("traces")
    with open_sample("forking-workers") as sample:
        paths = [str(sample.path)]
    for seed in (1, 2):
        chooser = random.Random(seed)
        events = [Event(ev.EXEC, 7, file=f"/bin/program-{seed}")]
        for i in range(60):
            addr = BASE + i * 16 * PAGE
            events.append(Event(ev.MMAP, 7, addr=addr, length=4 * PAGE, prot=3, flags=0x32, result=addr))
            events.append(Event(ev.WRITE, 7, addr=addr, length=4 * PAGE))
            if i % 20 == 19:
                events.append(Event(ev.FORK, 7, child=7 + i, result=7 + i))
            source, target = addr + 2 * PAGE, BASE + (16 * chooser.randrange(i + 1) + 4) * PAGE
            move = Event(ev.MREMAP, 7, addr=source, length=2 * PAGE, new_length=2 * PAGE, flags=3, new_addr=target)
            move.result = target
            events.append(move)
        paths.append(str(write_trace(folder / f"{seed}.trace", events)))
    return paths


def alone(path: str, names: list[str]) -> object:
    """The answer of one process that replays all policies in lock-step, as JSON gives it back."""
    with open_trace(path) as trace:
        return json.loads(json.dumps(answer_data(replay(trace, [parse_policy(name) for name in names]))))


@pytest.mark.parametrize("names", [SEVEN, SEVEN[::-1], SEVEN[:1], ["linux-6.18", *SEVEN[2::2]]], ids=" ".join)
def test_groups_lose_no_policy_and_keep_the_patches_together(names: list[str]) -> None:
    groups = policy_groups([parse_policy(name) for name in names])
    assert all(group[0] == names[0] for group in groups)
    assert sorted(name for group in groups for name in group[1:]) == sorted(names[1:])
    patched = {name for name in names[1:] if name in SEVEN[2::2]}
    assert names[0] != "linux-5.17" or patched <= set(groups[0])


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_answer_is_that_of_one_process(traces: list[str], jobs: int) -> None:
    """Field by field, and with the keys in the same order."""
    for names in (SEVEN, ["linux-6.18", "linux-5.17+series", *SEVEN[2:5]]):
        policies = [parse_policy(name) for name in names]
        answers = replay_many(traces, policies, jobs=jobs)
        expected = [alone(path, names) for path in traces]
        assert json.dumps(answers) == json.dumps(expected)
    assert any(answer["missed"]["total"] for answer in answers), "the traces must miss something to tell apart"


def test_answers_come_in_the_order_of_the_traces(traces: list[str]) -> None:
    policies = [parse_policy(name) for name in SEVEN[:2]]
    forward = replay_many(traces, policies, jobs=3)
    assert replay_many(traces[::-1], policies, jobs=2) == forward[::-1]


def test_progress_ends_complete(traces: list[str]) -> None:
    seen: list[tuple[int, int]] = []
    replay_many(
        traces,
        [parse_policy(name) for name in SEVEN],
        jobs=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][0] == seen[-1][1]


def test_a_bad_trace_is_one_clear_line(traces: list[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.trace"
    bad.write_text("no trace")
    with pytest.raises(TraceError, match="not a vmaweld trace"):
        replay_many([*traces, str(bad)], [parse_policy("linux-5.17")], jobs=2)


def test_replay_of_many_traces(traces: list[str]) -> None:
    done = CliRunner().invoke(command, traces)
    assert done.exit_code == 0, done.output
    for path in traces:
        assert Path(path).name in done.output
    assert "3 traces" in done.output
    assert "linux-5.17+series recovers" in done.output


def test_json_of_many_traces(traces: list[str]) -> None:
    done = CliRunner().invoke(command, [*traces, "--json", "--jobs", "2"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert [trace["trace"] for trace in told["traces"]] == traces
    assert all(trace["base"] == "linux-5.17" for trace in told["traces"])


def test_jobs_do_not_change_the_json_of_one_trace(traces: list[str]) -> None:
    plain, jobs = (CliRunner().invoke(command, [traces[1], "--json", *more]).output for more in ([], ["--jobs", "2"]))
    assert plain == jobs


@pytest.mark.parametrize("option", ["--check", "--trace-pipe", "--verbose"])
def test_what_tells_of_one_trace_refuses_more(traces: list[str], option: str) -> None:
    done = CliRunner().invoke(command, [*traces, option])
    assert done.exit_code == 2
    assert "one trace" in done.output
