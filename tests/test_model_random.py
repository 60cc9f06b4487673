# SPDX-License-Identifier: GPL-2.0-or-later
"""Random events over several processes, `System.check` after each, under every kernel and every change.

`benchmarks/check_random.py` is the long form. The machine below is hypothesis' own: it aims at borders of what is
mapped, and what it breaks it shrinks.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from random_events import POLICIES, Violation, new_system, program, run

from vmaweld import abi
from vmaweld import events as ev
from vmaweld.abi import PAGE_SHIFT, PAGE_SIZE
from vmaweld.events import Event
from vmaweld.model.errors import LinuxError
from vmaweld.model.system import System, result_of
from vmaweld.policy import KERNELS


@pytest.mark.parametrize("policy", POLICIES)
def test_random_programs(policy: str) -> None:
    counts: Counter[str] = Counter()
    for seed in range(24):
        counts += run(policy, seed, 150)
    assert counts["events"] > 3000
    assert counts["failed"] < counts["events"] / 2
    assert counts["merged"] > 100


def test_programs_reach_every_case_and_every_operation() -> None:
    counts: Counter[str] = Counter()
    for seed in range(40):
        counts += run("linux-6.18+series", 1000 + seed, 150)
    assert {f"case {case}" for case in range(9)} <= set(counts)
    assert set(ev.OPERATIONS) <= set(counts)


def test_a_program_is_a_function_of_its_seed() -> None:
    assert program(7, 100) == program(7, 100)
    assert program(7, 100) != program(8, 100)


def test_a_broken_invariant_is_told_as_a_short_program(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = System.check

    def check(system: System) -> None:
        honest(system)
        assert all(space.vmas.count < 3 for space in system.processes.values()), "three VMAs"

    monkeypatch.setattr(System, "check", check)
    with pytest.raises(Violation, match="three VMAs") as told:
        run("linux-5.17", 1, 150)
    assert len(told.value.program) <= 3


ARENA = 0x2000_0000
PAGES = 48
_lengths = st.integers(1, 8)
_places = st.tuples(st.booleans(), st.integers(0, PAGES - 1))
_prots = st.sampled_from((3, 3, 3, 1, 0, 7))
_ADVICE = ("NORMAL", "SEQUENTIAL", "DONTFORK", "DOFORK", "WIPEONFORK", "KEEPONFORK", "DONTDUMP", "DONTNEED", "FREE")


class Processes(RuleBasedStateMachine):
    """A few processes in a small arena. An address is a page, or the n-th border of what the process has mapped."""

    @initialize(
        kernel=st.sampled_from(tuple(KERNELS)),
        change=st.sampled_from(("", "+pgoff", "+anon-vma", "+series", "+series+grow")),
        limit=st.sampled_from((abi.DEFAULT_MAX_MAP_COUNT, 12)),
    )
    def begin(self, kernel: str, change: str, limit: int) -> None:
        self.system = new_system(kernel + change, limit)
        self.system.machine.mmap_base = ARENA + PAGES * PAGE_SIZE
        self.pids = [1]
        self.next_pid = 2

    def pid(self, number: int) -> int:
        return self.pids[number % len(self.pids)]

    def address(self, pid: int, place: tuple[bool, int]) -> int:
        at_border, number = place
        if at_border:
            borders = sorted({edge for vma in self.system.space(pid).vmas for edge in (vma.start, vma.end)})
            if borders:
                return borders[number % len(borders)]
        return ARENA + number * PAGE_SIZE

    def happens(
        self,
        op: str,
        who: int,
        place: tuple[bool, int],
        length: int,
        *,
        prot: int = 0,
        flags: int = 0,
        file: str = "",
        pgoff: int = 0,
        new_addr: int = 0,
    ) -> None:
        pid = self.pid(who)
        addr = self.address(pid, place)
        event = Event(op, pid, addr=addr, length=length * PAGE_SIZE, prot=prot, flags=flags, file=file, pgoff=pgoff)
        event.new_addr = new_addr
        result_of(self.system, event)

    @rule(who=st.integers(0, 3), place=_places, length=_lengths, prot=_prots, kind=st.sampled_from("aaaafsg"))
    def mmap(self, who: int, place: tuple[bool, int], length: int, prot: int, kind: str) -> None:
        flags = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS | abi.MAP_FIXED
        file, pgoff = "", 0
        if kind == "f":
            flags = abi.MAP_PRIVATE | abi.MAP_FIXED
            file, pgoff = "/memfd:a", (self.address(self.pid(who), place) - ARENA) >> PAGE_SHIFT
            pgoff = max(pgoff, 0)
        elif kind == "s":
            flags = abi.MAP_SHARED | abi.MAP_ANONYMOUS | abi.MAP_FIXED
        elif kind == "g":
            flags |= abi.MAP_GROWSDOWN
        self.happens(ev.MMAP, who, place, length, prot=prot, flags=flags, file=file, pgoff=pgoff)

    @rule(who=st.integers(0, 3), place=_places, length=_lengths)
    def write(self, who: int, place: tuple[bool, int], length: int) -> None:
        self.happens(ev.WRITE, who, place, length)

    @rule(who=st.integers(0, 3), place=_places, length=_lengths, prot=_prots)
    def mprotect(self, who: int, place: tuple[bool, int], length: int, prot: int) -> None:
        self.happens(ev.MPROTECT, who, place, length, prot=prot)

    @rule(who=st.integers(0, 3), place=_places, length=_lengths)
    def munmap(self, who: int, place: tuple[bool, int], length: int) -> None:
        self.happens(ev.MUNMAP, who, place, length)

    @rule(
        who=st.integers(0, 3),
        place=_places,
        length=_lengths,
        new_length=st.one_of(st.just(0), _lengths),
        to=_places,
        flags=st.sampled_from((3, 3, 3, 7, 1, 0)),
    )
    def mremap(
        self, who: int, place: tuple[bool, int], length: int, new_length: int, to: tuple[bool, int], flags: int
    ) -> None:
        pid = self.pid(who)
        event = Event(ev.MREMAP, pid, addr=self.address(pid, place), length=length * PAGE_SIZE, flags=flags)
        event.new_length = (new_length or length) * PAGE_SIZE
        event.new_addr = self.address(pid, to)
        result_of(self.system, event)

    @rule(who=st.integers(0, 3), place=_places, length=_lengths, advice=st.sampled_from(_ADVICE))
    def madvise(self, who: int, place: tuple[bool, int], length: int, advice: str) -> None:
        self.happens(ev.MADVISE, who, place, length, flags=getattr(abi, f"MADV_{advice}"))

    @rule(who=st.integers(0, 3), place=_places, length=_lengths, lock=st.booleans())
    def mlock(self, who: int, place: tuple[bool, int], length: int, lock: bool) -> None:
        self.happens(ev.MLOCK if lock else ev.MUNLOCK, who, place, length)

    @rule(who=st.integers(0, 3), place=_places, length=_lengths, mode=st.sampled_from((1, 2, 0)))
    def userfaultfd(self, who: int, place: tuple[bool, int], length: int, mode: int) -> None:
        self.happens(
            ev.UFFD_REGISTER if mode else ev.UFFD_UNREGISTER, who, place, length, flags=mode, new_addr=self.pid(who)
        )

    @rule(who=st.integers(0, 3), place=_places, to=_places, length=_lengths)
    def uffd_move(self, who: int, place: tuple[bool, int], to: tuple[bool, int], length: int) -> None:
        self.happens(ev.UFFD_MOVE, who, place, length, new_addr=self.address(self.pid(who), to))

    @rule(who=st.integers(0, 3), place=_places, length=_lengths, name=st.sampled_from(("", "a", "bind:0")))
    def name_or_bind(self, who: int, place: tuple[bool, int], length: int, name: str) -> None:
        self.happens(ev.MBIND if name == "bind:0" else ev.SET_NAME, who, place, length, file=name)

    @precondition(lambda self: len(self.pids) < 5)
    @rule(who=st.integers(0, 3), shares=st.sampled_from((False, False, False, True)))
    def fork(self, who: int, shares: bool) -> None:
        event = Event(ev.FORK, self.pid(who), child=self.next_pid, flags=abi.CLONE_VM if shares else 0)
        self.system.apply(event)
        self.pids.append(self.next_pid)
        self.next_pid += 1

    @precondition(lambda self: len(self.pids) > 1)
    @rule(who=st.integers(0, 4))
    def leave(self, who: int) -> None:
        self.system.apply(Event(ev.EXIT, self.pids.pop(who % len(self.pids))))

    @rule(who=st.integers(0, 3))
    def exec(self, who: int) -> None:
        self.system.apply(Event(ev.EXEC, self.pid(who), file="/bin/true"))

    @rule(who=st.integers(0, 3), place=_places, length=_lengths, flags=st.sampled_from((0x73, 0x71, 0x173, 0x100073)))
    def place_mapping(self, who: int, place: tuple[bool, int], length: int, flags: int) -> None:
        addr = self.address(self.pid(who), place)
        self.happens(ev.PLACE, who, place, length, flags=flags, pgoff=addr >> PAGE_SHIFT)

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "system"):
            self.system.check()


TestProcesses = Processes.TestCase
TestProcesses.settings = settings(
    max_examples=150,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_linux_errors_read_well() -> None:
    system = new_system("linux-5.17")
    with pytest.raises(LinuxError, match=r"^ENOMEM: nothing is mapped at 0x20000000$"):
        system.apply(Event(ev.MPROTECT, 1, addr=ARENA, length=PAGE_SIZE, prot=1))
