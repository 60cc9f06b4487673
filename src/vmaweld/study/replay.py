# SPDX-License-Identifier: GPL-2.0-or-later
"""Replaying events under several policies in lock-step: every event on one machine for each policy, then the next.

Who listens (the study's tally, the trace pipe, the fidelity check) looks at the lanes after each event: their merge
records are those of that event, their address spaces are as the event left them.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable
from typing import Final

from vmaweld import events as ev
from vmaweld.abi import page_align_up
from vmaweld.events import Event
from vmaweld.model.address_space import AddressSpace
from vmaweld.model.errors import LinuxError
from vmaweld.model.system import System
from vmaweld.model.tracepoints import MergeRecord, Tracepoints
from vmaweld.policy import Policy

UNLIMITED: Final = 1 << 40
"""A vm.max_map_count that no program reaches: what a policy would have refused must not distort what follows."""

_EXAMPLES: Final = 20

_CHANGES_A_PREFIX: Final = frozenset(
    {ev.MPROTECT, ev.MADVISE, ev.MLOCK, ev.MUNLOCK, ev.MBIND, ev.SET_NAME, ev.UFFD_REGISTER, ev.UFFD_UNREGISTER}
)
"""Calls that have changed what lies before the point where they fail."""

_ANSWERS_WITH_ADDRESS: Final = frozenset({ev.MMAP, ev.MREMAP, ev.SHMAT, ev.BRK})

# How the machine may disagree with the recording.
REFUSED: Final = "refused"  # it failed a call that had succeeded
ALLOWED: Final = "allowed"  # it performed a call that had failed half-way
ELSEWHERE: Final = "elsewhere"  # it answered with another address


class Lane:
    """One policy's machine and what it did.

    system: the machine. records: the merge records of the latest event.
    attempts: merges asked for. merges: those that happened. saved: VMAs that they saved.
    divergences: ``(operation, REFUSED, ALLOWED or ELSEWHERE)`` -> how often the machine and the recording disagreed.
    examples: the first few of them, each as a line of text.
    bad_faults: recorded faults at addresses where this machine allows no access: a signal to the program, or a hole
        in the recording.
    failed_calls: recorded calls that had failed before they changed anything, and so were not repeated.
    """

    __slots__ = (
        "attempts",
        "bad_faults",
        "divergences",
        "examples",
        "failed_calls",
        "merges",
        "policy",
        "saved",
        "system",
        "tracepoints",
    )

    def __init__(self, policy: Policy, max_map_count: int, *, overcommit_never: bool, thp: str) -> None:
        self.policy = policy
        self.tracepoints = Tracepoints()
        self.system = System(
            policy, trace=self.tracepoints, max_map_count=max_map_count, overcommit_never=overcommit_never, thp=thp
        )
        self.attempts = 0
        self.merges = 0
        self.saved = 0
        self.divergences: Counter[tuple[str, str]] = Counter()
        self.examples: list[str] = []
        self.bad_faults = 0
        self.failed_calls = 0

    @property
    def records(self) -> list[MergeRecord]:
        """The merge records of the latest event."""
        return self.tracepoints.records

    def space(self, pid: int) -> AddressSpace | None:
        """The address space of `pid`, None where there is no such process."""
        return self.system.processes.get(pid)

    def apply(self, event: Event, number: int) -> None:
        """Let event `number` happen here; a disagreement with the recording is counted."""
        records = self.tracepoints.records
        if records:
            records.clear()
        recorded = event.result
        if recorded is not None:
            if event.op == ev.BRK:
                if event.addr and recorded != event.addr:  # brk answers with the old break where it fails
                    self.failed_calls += 1
                    return
            elif recorded < 0 and not self._fails_half_way(event, -recorded):
                self.failed_calls += 1
                return
        try:
            result = self.system.apply(event)
        except LinuxError as error:
            self._failed(event, number, error)
            result = -error.errno
        else:
            if recorded is not None and result != recorded:
                self._answered(event, number, result)
        if records:
            self.attempts += len(records)
            for record in records:
                if record.case:
                    self.merges += 1
                    self.saved += record.saved

    def _failed(self, event: Event, number: int, error: LinuxError) -> None:
        if event.op in (ev.WRITE, ev.READ):
            self.bad_faults += 1
        elif event.result is None or event.result >= 0:
            self._diverged(event, number, REFUSED, str(error))

    def _answered(self, event: Event, number: int, result: int) -> None:
        recorded = event.result
        assert recorded is not None
        if recorded < 0:
            self._diverged(event, number, ALLOWED, f"the recording says {errno.errorcode.get(-recorded, recorded)}")
        elif event.op == ev.BRK:
            self._diverged(event, number, REFUSED, f"the break stays at {result:#x}")
        elif event.op in _ANSWERS_WITH_ADDRESS:
            self._diverged(event, number, ELSEWHERE, f"at {result:#x}")

    def _diverged(self, event: Event, number: int, how: str, why: str) -> None:
        self.divergences[event.op, how] += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"event {number}: {how}: {event!r}: {why}")

    def _fails_half_way(self, event: Event, number: int) -> bool:
        """True if a call that failed with errno `number` has changed part of its range, as it will here.

        That is so where it came to a hole. All other failures come before any change (EINVAL, EBADF, EPERM, the
        limits on locked memory), or for reasons the machine does not know, as a file that was opened read-only.
        """
        if event.op not in _CHANGES_A_PREFIX or number not in (errno.ENOMEM, errno.EFAULT):
            return False
        space = self.system.space(event.pid)
        if len(space.vmas) + 1 >= space.machine.max_map_count:
            return True
        position = event.addr
        end = event.addr + page_align_up(event.length)
        vma = space.vmas.find(position)
        while position < end:
            if vma is None or vma.start > position:
                return True
            position = vma.end
            vma = vma.next
        return False


class Replayer:
    """Machines under several policies, fed with the same events.

    lanes: in the order of `policies`.
    programs: pid -> the program it runs: the path that its latest exec named, inherited through fork, "" unknown.
    events: how many have happened.

    >>> from vmaweld.policy import parse_policy
    >>> replayer = Replayer([parse_policy("linux-5.17"), parse_policy("linux-5.17+series")])
    >>> replayer.apply(Event("mmap", 1, addr=0x10000, length=4096, prot=3, flags=0x32, result=0x10000))
    >>> [len(lane.system.space(1).vmas) for lane in replayer.lanes]
    [1, 1]
    """

    __slots__ = ("events", "lanes", "programs")

    def __init__(
        self,
        policies: Iterable[Policy],
        *,
        max_map_count: int = UNLIMITED,
        overcommit_never: bool = False,
        thp: str = "madvise",
    ) -> None:
        self.lanes = [Lane(policy, max_map_count, overcommit_never=overcommit_never, thp=thp) for policy in policies]
        self.programs: dict[int, str] = {}
        self.events = 0

    def apply(self, event: Event) -> None:
        """Let `event` happen in every lane."""
        op = event.op
        if op == ev.EXEC:
            self.programs[event.pid] = event.file
        elif op == ev.FORK:
            self.programs[event.child] = self.programs.get(event.pid, "")
        number = self.events
        for lane in self.lanes:
            lane.apply(event, number)
        self.events = number + 1
