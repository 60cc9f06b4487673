# SPDX-License-Identifier: GPL-2.0-or-later
"""Random programs on the model alone: every kind of event there is, `System.check` after each.

`vmaweld.verify.programs` makes programs that a real kernel can run too; here they get, besides, what only the model
can be told: exec, placed mappings, UFFDIO_MOVE, remap_file_pages and a mlockall of everything.
"""

from __future__ import annotations

import random
from collections import Counter

from vmaweld import abi
from vmaweld import events as ev
from vmaweld.abi import PAGE_SHIFT, PAGE_SIZE
from vmaweld.events import Event
from vmaweld.model.system import System, result_of
from vmaweld.model.tracepoints import Tracepoints
from vmaweld.policy import CHANGES, KERNELS, parse_policy
from vmaweld.verify.programs import ProgramMaker
from vmaweld.verify.scenario import source
from vmaweld.verify.shrink import shrink

LOW = 0x1000_0000
HIGH = LOW + 112 * PAGE_SIZE
BRK = LOW + 44 * PAGE_SIZE
_EXTRAS = (ev.EXEC, ev.PLACE, ev.PLACE, ev.UFFD_MOVE, ev.UFFD_MOVE, ev.REMAP_FILE_PAGES, ev.MLOCKALL)
_PLACED = abi.VM_MAYREAD | abi.VM_MAYWRITE | abi.VM_MAYEXEC

POLICIES = [
    kernel + "".join(f"+{change}" for change in changes)
    for kernel in KERNELS
    for changes in ((), ("pgoff",), ("anon-vma",), ("series",), ("series", "grow"))
]
"""Every kernel, with no change and with each change of the series."""
assert set(CHANGES) == {"pgoff", "anon-vma", "series", "grow"}


class Violation(Exception):
    """An invariant broke. program: the events up to and with the one that broke it, shrunk; str() tells it all."""

    def __init__(self, policy: str, seed: int, program: list[Event], max_map_count: int, why: BaseException) -> None:
        self.program = shrink(program, lambda candidate: _broken(policy, candidate, max_map_count) is not None)
        what = _broken(policy, self.program, max_map_count) or why
        lines = "\n".join(f"    {source(event)}," for event in self.program)
        super().__init__(f"{policy}, seed {seed}, max_map_count {max_map_count}: {what!r} after\n{lines}")


def _broken(policy: str, events: list[Event], max_map_count: int) -> Exception | None:
    """What breaks when `events` run, if anything does."""
    system = new_system(policy, max_map_count)
    for event in events:
        try:
            result_of(system, event)
            system.check()
        except Exception as why:
            return why
    return None


def new_system(policy: str, max_map_count: int = abi.DEFAULT_MAX_MAP_COUNT) -> System:
    """A system with one process, whose arena the programs use."""
    system = System(
        parse_policy(policy), trace=Tracepoints(), mmap_base=HIGH, min_address=LOW, max_map_count=max_map_count
    )
    space = system.add_process(1)
    space.start_brk = space.brk = BRK
    return system


def program(seed: int, length: int) -> list[Event]:
    """The program of `seed`, some `length` events: a pure function of both."""
    return program_from(random.Random(seed), length)


def program_from(dice: random.Random, length: int) -> list[Event]:
    """A program drawn from `dice`, which hypothesis may control."""
    made = ProgramMaker(LOW, HIGH, brk=BRK, seal=True).make_from(dice, length * 9 // 10)
    events = _ground(dice, 1)
    for event in made:
        chance = dice.random()
        if chance < 0.03:
            events.append(_extra(dice, event.pid))
        elif chance < 0.06:
            events += _ground(dice, event.pid)
        events.append(event)
    return events


def _ground(dice: random.Random, pid: int) -> list[Event]:
    """Memory for the rest to meet: without it half of all calls find nothing mapped."""
    addr = LOW + PAGE_SIZE * dice.randrange(56, 84)
    length = PAGE_SIZE * dice.choice((8, 13, 21))
    flags = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS | abi.MAP_FIXED
    events = [Event(ev.MMAP, pid, addr=addr, length=length, prot=3, flags=flags)]
    if dice.random() < 0.5:
        events.append(Event(ev.WRITE, pid, addr=addr, length=length))
    return events


def _extra(dice: random.Random, pid: int) -> Event:
    op = dice.choice(_EXTRAS)
    addr = LOW + PAGE_SIZE * dice.randrange(56, 96)
    length = PAGE_SIZE * dice.choice((1, 2, 3, 5))
    if op == ev.MLOCKALL:
        return Event(op, pid, flags=dice.choice((abi.MCL_CURRENT, abi.MCL_CURRENT | abi.MCL_ONFAULT, 7)))
    if op == ev.EXEC:
        return Event(op, pid, file="/bin/true")
    event = Event(op, pid, addr=addr, length=length)
    if op == ev.PLACE:
        event.flags = _PLACED | dice.choice((1, 3, 5, 3 | abi.VM_ACCOUNT, 3 | abi.VM_DONTEXPAND, 3 | abi.VM_GROWSDOWN))
        event.file = dice.choice(("", "/bin/true", "[stack]", "/dev/device"))
        event.pgoff = dice.randrange(4) if event.file.startswith("/") else addr >> PAGE_SHIFT
    elif op == ev.UFFD_MOVE:
        event.new_addr = LOW + PAGE_SIZE * dice.randrange(56, 96)
    else:
        event.pgoff = dice.randrange(4)
    return event


def limit_of(seed: int) -> int:
    """max_map_count for a seed: every fourth program lives under one that it meets."""
    return 9 + seed % 7 if seed % 4 == 3 else abi.DEFAULT_MAX_MAP_COUNT


def run(policy: str, seed: int, length: int) -> Counter[str]:
    """Run a program with `System.check` after every event; what happened, counted.

    Counts: ``events``, ``failed``, ``attempts`` to merge, ``merged``, ``case N`` and each operation.
    Raises Violation.
    """
    max_map_count = limit_of(seed)
    system = new_system(policy, max_map_count)
    events = program(seed, length)
    counts: Counter[str] = Counter()
    for number, event in enumerate(events):
        try:
            result = result_of(system, event)
            system.check()
        except Exception as why:
            raise Violation(policy, seed, events[: number + 1], max_map_count, why) from why
        counts["events"] += 1
        counts[event.op] += 1
        counts["failed"] += result < 0
    trace = system.machine.trace
    assert trace is not None
    for record in trace.records:
        counts["attempts"] += 1
        counts["merged"] += record.merged
        counts[f"case {record.case}"] += 1
    return counts
