# SPDX-License-Identifier: GPL-2.0-or-later
"""No event breaks the model: it happens, or fails as Linux lets it fail, and every invariant holds after it."""

import random
from contextlib import suppress

import pytest

from vmaweld.events import OPERATIONS, Event
from vmaweld.model.errors import LinuxError
from vmaweld.model.system import System
from vmaweld.policy import parse_policy

B = 0x100000
WORDS = [0, 1, 4095, 4096, B, B + 1, B + 4096, B + 8192, 1 << 20, 1 << 31, 1 << 32, 1 << 40, (1 << 47) - 4096, 1 << 47]
WORDS += [1 << 63, (1 << 64) - 4096, (1 << 64) - 1]
FLAGS = [*range(26), 0x31, 0x32, 0x22, 0x132, 0x8022, 0x40022, 0x100022, 0x1_0000_0031, *range(100, 104), *WORDS]
FILES = ["", "", "", "f", "[heap]", "[stack]", "bind:0", "a" * 300, "\udcff\ud800\0"]


def absurd(chance: random.Random) -> Event:
    """An event of any kind with numbers of any size, near enough to the others that they meet."""
    return Event(
        chance.choice(OPERATIONS),
        chance.choice([1, 1, 1, 2, 3]),
        addr=chance.choice([*WORDS, *[B] * 10]),
        length=chance.choice([*WORDS, *[4096, 8192] * 10]),
        prot=chance.choice([*WORDS, 1, 3, 3, 7]),
        flags=chance.choice(FLAGS),
        file=chance.choice(FILES),
        pgoff=chance.choice([0, 0, *WORDS]),
        new_addr=chance.choice([*WORDS, *[B] * 5]),
        new_length=chance.choice([*WORDS, *[4096] * 10]),
        child=chance.choice([1, 2, 3, 4]),
        result=chance.choice([None, None, -12, *(word for word in WORDS if word < 1 << 63)]),
    )


@pytest.mark.parametrize("policy", ["linux-5.17", "linux-5.17+series", "linux-6.12", "linux-6.18"])
def test_absurd_events_keep_every_invariant(policy: str) -> None:
    for seed in range(400):
        chance = random.Random(f"{policy} {seed}")
        system = System(parse_policy(policy))
        events = [absurd(chance) for _ in range(40)]
        for number, event in enumerate(events):
            with suppress(LinuxError):
                system.apply(event)
            try:
                system.check()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {error} after {events[: number + 1]}") from None


def test_a_mapping_that_no_kernel_makes_is_refused() -> None:
    system = System(parse_policy("linux-6.18"))
    for addr, length in ((B + 1, 4095), (B, 0), (B, 100), (B, (1 << 64) - 1), (1 << 47, 4096)):
        with pytest.raises(LinuxError, match="EINVAL"):
            system.apply(Event("place", 1, addr=addr, length=length, flags=3))
    assert not system.snapshot(1).rows


@pytest.mark.parametrize("result", [B + 1, (1 << 47) - 4096, 1 << 47, 1 << 62])
def test_an_answer_that_no_kernel_gives_is_not_believed(result: int) -> None:
    system = System(parse_policy("linux-6.18"))
    address = system.apply(Event("mmap", 1, length=8192, prot=3, flags=0x22, result=result))
    assert address != result
    moved = system.apply(Event("mremap", 1, addr=address, length=8192, new_length=16384, flags=1, result=result))
    assert moved != result
    system.check()


def test_a_move_goes_where_the_recording_saw_it_though_the_model_has_something_there() -> None:
    """A munmap that the recording has lost: what was there is gone, or two VMAs would lie one over the other."""
    system = System(parse_policy("linux-6.18"))
    for addr in (B, B + 0x2000, B + 0x10000):
        system.apply(Event("mmap", 1, addr=addr, length=0x2000, prot=3 if addr == B else 1, flags=0x32))
    target = B + 0x10000
    move = Event("mremap", 1, addr=B, length=0x2000, new_length=0x4000, flags=1, result=target)
    assert system.apply(move) == target
    system.check()
    assert [(row.start, row.end) for row in system.snapshot(1).rows] == [
        (B + 0x2000, B + 0x4000),
        (target, target + 0x4000),
    ]


def test_a_child_of_a_number_that_is_taken_begins_anew() -> None:
    system = System(parse_policy("linux-6.18"))
    system.apply(Event("mmap", 1, addr=B, length=4096, prot=3, flags=0x32))
    system.apply(Event("write", 1, addr=B, length=4096))
    for _ in range(2):
        system.apply(Event("fork", 1, child=2))
        system.check()
    assert len(system.snapshot(2).rows) == 1
    with pytest.raises(LinuxError, match="EINVAL"):
        system.apply(Event("fork", 1, child=1))
