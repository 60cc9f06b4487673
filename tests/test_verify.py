# SPDX-License-Identifier: GPL-2.0-or-later
"""The verification itself: that it sees differences, shrinks them, and finds none between model and running kernel."""

import copy
import json
import os
import random
import subprocess
import sys
import time

import pytest
from conftest import require_guest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmaweld.events import Event
from vmaweld.policy import KERNELS, parse_policy
from vmaweld.snapshot import Row, Snapshot
from vmaweld.verify.check import Bench
from vmaweld.verify.compare import difference
from vmaweld.verify.programs import ProgramMaker
from vmaweld.verify.run import make_maker, run, running_policy, shrunk
from vmaweld.verify.scenario import source
from vmaweld.verify.shrink import shrink

LOW = 0x6000_0000_0000
HIGH = LOW + (1 << 30)
A = LOW + (1 << 24)


def under(bench: Bench, policy: str) -> Bench:
    """The same bench, held against other rules."""
    other = copy.copy(bench)
    other.policy = parse_policy(policy)
    return other


def snapshot(*rows: Row) -> Snapshot:
    return Snapshot(1, rows, source="model", flags_exact=True, hidden=True)


def row(start: int, end: int, **fields: object) -> Row:
    return Row(start << 12, end << 12, 3, pgoff=start, **({"anon_vma": 0, "uffd": 0} | fields))  # type: ignore[arg-type]


def test_programs_are_a_function_of_their_seed() -> None:
    maker = ProgramMaker(LOW, HIGH, brk=A)
    assert maker.make(7, 200) == maker.make(7, 200)
    assert maker.make(7, 200) != maker.make(8, 200)


def test_programs_reach_every_operation() -> None:
    maker = ProgramMaker(LOW, HIGH, brk=A, seal=True)
    seen = {event.op for seed in range(300) for event in maker.make(seed, 60)}
    assert {"mmap", "munmap", "mprotect", "mremap", "brk", "madvise", "mlock", "fork", "exit", "mseal", "shmat"} <= seen
    assert {"uffd_register", "uffd_unregister", "uffd_close", "mbind", "set_name", "read", "write"} <= seen


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        (snapshot(row(1, 3)), snapshot(row(1, 2)), "row 0"),
        (snapshot(row(1, 2), row(2, 3)), snapshot(row(1, 2)), "2 rows in the model"),
        (snapshot(row(1, 2, anon_vma=1)), snapshot(row(1, 2)), "only the model has an anon_vma"),
        (snapshot(row(1, 2, chain=1)), snapshot(row(1, 2, chain=2)), "chain"),
        (snapshot(row(1, 2, uffd=1)), snapshot(row(1, 2)), None),
        (
            snapshot(row(1, 2, anon_vma=1), row(2, 3, anon_vma=1)),
            snapshot(row(1, 2, anon_vma=7), row(2, 3, anon_vma=8)),
            "anon_vma",
        ),
        (
            snapshot(row(1, 2, anon_vma=1), row(2, 3, anon_vma=2)),
            snapshot(row(1, 2, anon_vma=7), row(2, 3, anon_vma=7)),
            "anon_vma",
        ),
    ],
)
def test_a_difference_is_seen(ours: Snapshot, theirs: Snapshot, told: str | None) -> None:
    what = difference(ours, theirs)
    if told is not None:
        assert what is not None
        assert told in what


def test_equal_up_to_renaming_is_equal() -> None:
    ours = snapshot(row(1, 2, anon_vma=1), row(2, 3, anon_vma=2), row(3, 4, anon_vma=1))
    theirs = snapshot(row(1, 2, anon_vma=0xAA), row(2, 3, anon_vma=0xBB), row(3, 4, anon_vma=0xAA))
    assert difference(ours, theirs) is None


def test_shrinking_keeps_what_fails_and_drops_the_rest() -> None:
    program = ProgramMaker(LOW, HIGH).make(3, 120)
    bad = next(event for event in program if event.op == "mremap")

    def fails(candidate: list[Event]) -> bool:
        return any(event.op == "mremap" and event.addr == bad.addr for event in candidate)

    assert [event.op for event in shrink(program, fails)] == ["mremap"]


def test_shrinking_never_makes_nonsense() -> None:
    program = [Event("fork", 1, child=2), Event("munmap", 2, addr=A, length=4096)]

    def fails(candidate: list[Event]) -> bool:
        assert [event.op for event in candidate if event.pid == 2] == [] or candidate[0].op == "fork"
        return any(event.pid == 2 for event in candidate)

    assert len(shrink(program, fails)) == 2


def test_a_printed_event_is_the_event() -> None:
    for event in ProgramMaker(LOW, HIGH, brk=A, seal=True).make(11, 200):
        assert eval(source(event), {"Event": Event}) == event


@pytest.mark.live
def test_the_running_kernel_agrees(bench: Bench) -> None:
    """As many events as fit into the time; in CI that is most of two minutes, `make verify-long` takes a million."""
    seconds = 100 if os.environ.get("CI") else 10
    outcome = run(bench, events=1_000_000, first_seed=1_000_000, seconds=seconds, clock=time.monotonic)
    assert outcome.difference is None, outcome.as_json()
    assert outcome.events >= 1_000
    print(f"{outcome.events} events, no difference")


@pytest.mark.live
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(source=st.randoms(use_true_random=False), length=st.integers(1, 40))
def test_the_running_kernel_agrees_with_what_hypothesis_thinks_of(
    bench: Bench, source: random.Random, length: int
) -> None:
    found = bench.check(make_maker(bench).make_from(source, length))
    assert found is None, found.what


@pytest.mark.live
def test_a_wrong_rule_is_caught_and_shrunk(bench: Bench) -> None:
    """Under the series the model merges what no released kernel does: verify must see it and tell it shortly."""
    wrong = under(bench, running_policy().name + "+series")
    outcome = run(wrong, events=20_000, first_seed=5)
    assert outcome.difference is not None
    assert len(outcome.difference.program) <= 8
    assert bench.check(outcome.difference.program) is None, "the right rules have no such difference"


@pytest.mark.live
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_other_kernel_is_told_apart(bench: Bench, kernel: str) -> None:
    """Each policy differs from the running kernel's in some row that random programs reach."""
    if parse_policy(kernel).rules == running_policy().rules:
        return
    other = under(bench, kernel)
    maker = make_maker(other)
    assert any(other.check(maker.make(seed, 60)) is not None for seed in range(400))


@pytest.mark.live
def test_a_dead_process_is_a_difference_not_a_hang(bench: Bench) -> None:
    bench.executor.start(1)
    real = bench.executor.real_pid(1)
    bench.executor.reset()
    assert real > 0
    found = bench.check([Event("mmap", 1, addr=A, length=4096, prot=3, flags=0x32)])
    assert found is None


@pytest.mark.live
def test_shrunk_difference_is_stable(bench: Bench) -> None:
    wrong = under(bench, "linux-5.10")
    maker = make_maker(wrong)
    for seed in range(200):
        found = wrong.check(maker.make(seed, 60))
        if found is not None:
            small = shrunk(wrong, found)
            assert len(small.program) <= len(found.program)
            assert wrong.check(small.program) is not None
            return
    pytest.fail("5.10's rules never differed from this kernel")


def vmaweld(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from vmaweld.cli import main; main()", *words],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def test_bad_input_is_one_line() -> None:
    answer = vmaweld("verify", "--policy", "linux-9.9")
    assert answer.returncode == 2
    assert answer.stderr.startswith("vmaweld: no kernel called 'linux-9.9'")
    assert answer.stderr.count("\n") == 1
    assert vmaweld("verify", "--events", "0").returncode == 2


@pytest.mark.live
def test_the_command(bench: Bench) -> None:
    answer = vmaweld("verify", "--events", "600", "--seed", "3", "--json")
    assert answer.returncode == 0, answer.stderr
    told = json.loads(answer.stdout)
    assert told["difference"] is None
    assert told["events"] >= 600
    assert told["policy"] == running_policy().name
    wrong = vmaweld("verify", "--events", "20000", "--policy", running_policy().name + "+series", "--test", "found")
    assert wrong.returncode == 1
    assert "then: " in wrong.stdout
    assert "def test_found(bench: Bench)" in wrong.stdout


@pytest.mark.live
def test_another_kernel_agrees_with_its_own_policy() -> None:
    """One guest, from the cache when it is there; all of them are in `make verify-guests`."""
    version = "6.1"
    require_guest(version)
    answer = vmaweld("verify", "--guest", version, "--events", "1200", "--seed", "9", "--json")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    told = json.loads(answer.stdout)
    assert told["kernel"].startswith(version)
    assert (told["policy"], told["difference"], told["hidden_fields_compared"]) == ("linux-6.1", None, True)
    assert told["events"] >= 1200


def test_a_missing_guest_is_one_line() -> None:
    answer = vmaweld("verify", "--guest", "1.2")
    assert answer.returncode == 3
    assert answer.stderr.count("\n") == 1
