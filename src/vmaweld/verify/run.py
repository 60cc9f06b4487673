# SPDX-License-Identifier: GPL-2.0-or-later
"""Many programs of many seeds: the measurement that `vmaweld verify` prints."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vmaweld.abi import MAP_ANONYMOUS, MAP_PRIVATE, PAGE_SIZE, PROT_READ
from vmaweld.events import Event
from vmaweld.executor.arena import ARENA_LOW
from vmaweld.executor.executor import Executor
from vmaweld.kernel import syscalls
from vmaweld.policy import Policy, policy_for_release
from vmaweld.verify.check import Bench, Difference
from vmaweld.verify.programs import DISK_FILE, MEMFDS, ProgramMaker
from vmaweld.verify.shrink import shrink

PROGRAM_LENGTH: Final = 60
"""Events of a program: long enough for forks and moves to meet, short enough to stay dense."""
SEED_EVENTS: Final = 20_000
"""Events of one seed."""
_BRK: Final = ARENA_LOW + (64 << 20)


class Verification:
    """What a run found.

    policy, kernel: what was held against what.      exact: hidden fields were compared.
    events, programs, seeds: how many; seeds are the finished ones.      next_seed: where a later run would go on.
    difference: the first one, shrunk (as far as it was, if interrupted), or None. interrupted: by Ctrl-C.
    """

    def __init__(self, policy: str, kernel: str, exact: bool, first_seed: int) -> None:
        self.policy = policy
        self.kernel = kernel
        self.exact = exact
        self.events = 0
        self.programs = 0
        self.seeds = 0
        self.next_seed = first_seed
        self.failed_program: int | None = None
        self.difference: Difference | None = None
        self.interrupted = False

    def as_json(self) -> dict[str, object]:
        """The outcome under the keys that docs/verify.md tells."""
        found = self.difference
        return {
            "policy": self.policy,
            "kernel": self.kernel,
            "hidden_fields_compared": self.exact,
            "events": self.events,
            "programs": self.programs,
            "seeds": self.seeds,
            "next_seed": self.next_seed,
            "interrupted": self.interrupted,
            "difference": None
            if found is None
            else {
                "program": self.failed_program,
                "what": found.what,
                "events": [repr(event) for event in found.program],
            },
        }


def configured_anon_names() -> bool:
    """True if this kernel has CONFIG_ANON_VMA_NAME, found by naming a page of our own."""
    address = syscalls.mmap(0, PAGE_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS)
    try:
        syscalls.set_anon_name(address, PAGE_SIZE, "vmaweld")
    except OSError:
        return False
    finally:
        syscalls.munmap(address, PAGE_SIZE)
    return True


def protection_keys() -> bool:
    """True if the kernel has switched protection keys on (``ospke``)."""
    return " ospke" in Path("/proc/cpuinfo").read_text()


def transparent_huge_pages() -> str:
    """When this kernel makes them: "always", "madvise" or "never" (also where it cannot)."""
    try:
        modes = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "never"
    return modes[modes.index("[") + 1 : modes.index("]")]


def running_policy() -> Policy:
    """The policy of the kernel that is running."""
    return policy_for_release(os.uname().release)


def make_bench(policy: Policy | None = None, *, exact: bool | None = None) -> Bench:
    """An executor on this kernel, and the model that stands for it. Close ``bench.executor`` when done."""
    executor = Executor(brk=_BRK, exact=exact)
    return Bench(
        executor,
        policy or running_policy(),
        brk=_BRK,
        anon_names=configured_anon_names(),
        pkeys=protection_keys(),
        thp=transparent_huge_pages(),
        total_pages=os.sysconf("SC_PHYS_PAGES"),
    )


def _temporary_files_on_disk() -> bool:
    """True if temporary files lie on a common disk file system; others have rules of their own for mappings."""
    device = os.stat(tempfile.gettempdir()).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1] in ("ext4", "xfs", "f2fs")
    return False


def make_maker(bench: Bench, operations: frozenset[str] | None = None) -> ProgramMaker:
    """Programs for `bench`'s arena and kernel."""
    executor = bench.executor
    return ProgramMaker(
        executor.low,
        executor.high,
        brk=_BRK if executor.can_brk else None,
        operations=operations,
        seal=bench.policy.mseal,
        files=(*MEMFDS, DISK_FILE) if _temporary_files_on_disk() else MEMFDS,
    )


def run(
    bench: Bench,
    *,
    events: int,
    first_seed: int = 0,
    operations: frozenset[str] | None = None,
    progress: Callable[[Verification], None] | None = None,
    seconds: float = 0,
    clock: Callable[[], float] | None = None,
) -> Verification:
    """Hold the model against the kernel for `events` events, seed after seed, or until the first difference.

    operations: only these kinds of events.     seconds: stop when `clock` has advanced so far, whatever is left.
    A KeyboardInterrupt ends it, too, and the outcome is what was found by then.
    """
    outcome = Verification(bench.policy.name, os.uname().release, bench.executor.exact, first_seed)
    maker = make_maker(bench, operations)
    end = clock() + seconds if clock is not None and seconds else None
    seed = first_seed
    try:
        while outcome.events < events:
            for number in range(SEED_EVENTS // PROGRAM_LENGTH + 1):
                if outcome.events >= events or (end is not None and clock is not None and clock() >= end):
                    return outcome
                program = maker.make(seed << 20 | number, PROGRAM_LENGTH)
                found = bench.check(program)
                outcome.events += len(program) if found is None else len(found.program)
                outcome.programs += 1
                if progress is not None:
                    progress(outcome)
                if found is not None:
                    outcome.failed_program = seed << 20 | number
                    outcome.difference = found
                    outcome.difference = shrunk(bench, found)
                    return outcome
            outcome.seeds += 1
            seed += 1
            outcome.next_seed = seed
    except KeyboardInterrupt:
        outcome.interrupted = True
    return outcome


def run_one(bench: Bench, program: int) -> Verification:
    """The program that an earlier difference named, alone."""
    outcome = Verification(bench.policy.name, os.uname().release, bench.executor.exact, program >> 20)
    events = make_maker(bench).make(program, PROGRAM_LENGTH)
    found = bench.check(events)
    outcome.events = len(events)
    outcome.programs = 1
    if found is not None:
        outcome.failed_program = program
        outcome.difference = shrunk(bench, found)
    return outcome


def shrunk(bench: Bench, found: Difference) -> Difference:
    """`found` with as few and as plain events as still differ."""

    def fails(program: list[Event]) -> bool:
        return bench.check(program) is not None

    smallest = shrink(found.program, fails)
    again = bench.check(smallest)
    return again if again is not None else found
