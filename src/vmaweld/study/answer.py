# SPDX-License-Identifier: GPL-2.0-or-later
"""The answer of a study: what merged, what did not, why, and how many VMAs that is; plain data for every reader."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from os.path import basename

from vmaweld.policy import Policy
from vmaweld.study.missed import SHARED
from vmaweld.study.timeline import Clock, Timeline
from vmaweld.trace.store import Metadata


@dataclass(slots=True)
class Losses:
    """Missed merges under the first policy (the base) and their fate under the others.

    missed: how many. by_obstacle: of them, how many only the page offset forbade, only the anon_vmas, or both.
    recovered: per policy, how many became one VMA there; always 0 for the base.
    left: per policy, how many remain, by cause (`missed.CAUSES`).
    """

    policies: int
    missed: int = 0
    by_obstacle: Counter[str] = field(default_factory=Counter)
    recovered: list[int] = field(default_factory=list)
    left: list[Counter[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.recovered = [0] * self.policies
        self.left = [Counter() for _ in range(self.policies)]

    def add(self, obstacle: str, fates: list[str]) -> None:
        """One missed merge. fates: per policy, "" where it recovered the merge, else the cause that is left."""
        self.missed += 1
        self.by_obstacle[obstacle] += 1
        for policy, cause in enumerate(fates):
            if cause:
                self.left[policy][cause] += 1
            else:
                self.recovered[policy] += 1

    def include(self, other: Losses) -> None:
        """Add all that `other` counts."""
        self.missed += other.missed
        self.by_obstacle += other.by_obstacle
        self.recovered = [a + b for a, b in zip(self.recovered, other.recovered, strict=True)]
        for mine, theirs in zip(self.left, other.left, strict=True):
            mine.update(theirs)

    def shared(self, policy: int) -> int:
        """How many remain under policy number `policy` because memory is shared."""
        return self.left[policy][SHARED]


@dataclass(slots=True)
class ProcessAnswer:
    """One program in one process: from its exec (or the fork that made the process) to its exec or exit.

    program: path of what it executes, "" where it is not known. peak: highest VMA count under each policy.
    """

    pid: int
    program: str
    losses: Losses
    peak: list[int]
    timeline: Timeline
    events: int = 0
    merges: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The program's name without its directory."""
        return basename(self.program) or "(unknown)"


@dataclass(slots=True)
class PolicyAnswer:
    """What happened under one policy.

    attempts, merges, saved: merges asked for and done, VMAs that these saved.
    peak, peak_pid, peak_program: the highest VMA count of any process, and whose it was.
    over_limit: events that left some process with more VMAs than the recorded machine's vm.max_map_count.
    divergences: (operation, how) -> count; see `replay.Lane`. examples: lines. bad_faults, failed_calls: counts.
    """

    policy: Policy
    attempts: int = 0
    merges: int = 0
    saved: int = 0
    peak: int = 0
    peak_pid: int = 0
    peak_program: str = ""
    over_limit: int = 0
    divergences: dict[tuple[str, str], int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    bad_faults: int = 0
    failed_calls: int = 0

    @property
    def diverged(self) -> int:
        """Calls in which the machine and the recording disagree."""
        return sum(self.divergences.values())


@dataclass(slots=True)
class Answer:
    """A replay's result.

    policies: one each, the base first. losses: of all. by_call: of each operation. processes: in order of appearance.
    passing: missed merges with a neighbour that was gone by the end of the same call, as the source of a move; not
        among `losses`, for they leave no border. file_offsets: neighbours that hold another part of the same file;
        neither, for no kernel could merge them.
    needs_both: recovered by the policy with both patches, but by neither patch alone.
    reasons: per policy, why merges remain missed, in words. totals: VMAs of all processes over time.
    """

    metadata: Metadata
    policies: list[PolicyAnswer]
    clock: Clock
    losses: Losses
    by_call: dict[str, Losses]
    processes: list[ProcessAnswer]
    reasons: list[Counter[tuple[str, str]]]
    totals: Timeline
    events: int = 0
    passing: int = 0
    file_offsets: int = 0
    needs_both: int = 0

    @property
    def pids(self) -> int:
        """How many processes there were."""
        return len({process.pid for process in self.processes})

    def index_of(self, *, update_pgoff: bool, merge_anon_vmas: bool) -> int | None:
        """The number of the first policy after the base with exactly these of the patches, None if there is none."""
        for number, answer in enumerate(self.policies):
            policy = answer.policy
            if number and policy.update_pgoff == update_pgoff and policy.merge_anon_vmas == merge_anon_vmas:
                return number
        return None

    @property
    def series(self) -> int | None:
        """The number of the policy with both patches."""
        return self.index_of(update_pgoff=True, merge_anon_vmas=True)
