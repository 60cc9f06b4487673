# SPDX-License-Identifier: GPL-2.0-or-later
"""Counting while events are replayed: from lanes to an `Answer`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from vmaweld import events as ev
from vmaweld.events import Event
from vmaweld.model.address_space import AddressSpace
from vmaweld.model.merge import ANON_VMA, PGOFF
from vmaweld.policy import Policy
from vmaweld.study.answer import Answer, Losses, PolicyAnswer, ProcessAnswer
from vmaweld.study.missed import border_at, inside_one, is_file_offset, missed_merges, what_holds
from vmaweld.study.replay import Replayer
from vmaweld.study.timeline import Clock, Timeline
from vmaweld.trace.store import Metadata, Trace

Progress = Callable[[int, int], None]
"""(events done, events in all)."""

_PROGRESS_EVERY: Final = 2000
_OBSTACLES: Final = {PGOFF: "page_offset", ANON_VMA: "anon_vma", PGOFF | ANON_VMA: "both"}
_LAYOUT_KEPT: Final = frozenset({ev.READ, ev.WRITE})


class Tally:
    """Listens to a `Replayer` and counts. The first lane is the base; the others are held against it."""

    def __init__(self, replayer: Replayer, metadata: Metadata) -> None:
        self._replayer = replayer
        self._lanes = replayer.lanes
        count = len(self._lanes)
        self._current: dict[int, ProcessAnswer] = {}
        self._limit = metadata.max_map_count
        self._bucket = -1
        self.answer = Answer(
            metadata,
            [PolicyAnswer(lane.policy) for lane in self._lanes],
            Clock(0, metadata.duration),
            Losses(count),
            {},
            [],
            [Counter() for _ in range(count)],
            Timeline(),
        )
        self._alone = [
            number
            for number in (
                self.answer.index_of(update_pgoff=True, merge_anon_vmas=False),
                self.answer.index_of(update_pgoff=False, merge_anon_vmas=True),
            )
            if number is not None
        ]

    def after(self, event: Event) -> None:
        """Count what the latest event did."""
        answer = self.answer
        if not answer.events:
            answer.clock.first = event.time
        answer.events += 1
        op = event.op
        if op == ev.EXEC or event.pid not in self._current:
            self._begin(event.pid)
        process = self._current[event.pid]
        process.events += 1
        if op in _LAYOUT_KEPT:
            return
        if op == ev.FORK:
            self._begin(event.child)
            self._measure(event.child, self._current[event.child], event.time)
        self._measure(event.pid, process, event.time)
        merges = process.merges
        for number, lane in enumerate(self._lanes):
            for record in lane.tracepoints.records:
                if record.case:
                    merges[number] += 1
        if self._lanes[0].tracepoints.records:
            self._count_missed(event, process)
        if op == ev.EXIT:
            del self._current[event.pid]

    def finish(self) -> Answer:
        """No more events: complete and return the answer."""
        for answer, lane in zip(self.answer.policies, self._lanes, strict=True):
            answer.attempts = lane.attempts
            answer.merges = lane.merges
            answer.saved = lane.saved
            answer.divergences = dict(lane.divergences)
            answer.examples = lane.examples
            answer.bad_faults = lane.bad_faults
            answer.failed_calls = lane.failed_calls
        return self.answer

    def _begin(self, pid: int) -> None:
        count = len(self._lanes)
        process = ProcessAnswer(
            pid, self._replayer.programs.get(pid, ""), Losses(count), [0] * count, Timeline(), merges=[0] * count
        )
        self._current[pid] = process
        self.answer.processes.append(process)

    def _measure(self, pid: int, process: ProcessAnswer, time: int) -> None:
        """The VMA counts of `pid` right now."""
        counts = []
        peak = process.peak
        for number, lane in enumerate(self._lanes):
            space = lane.system.processes.get(pid)
            count = len(space.vmas) if space is not None else 0
            counts.append(count)
            if count > peak[number]:
                peak[number] = count
                top = self.answer.policies[number]
                if count > top.peak:
                    top.peak, top.peak_pid, top.peak_program = count, pid, process.program
            if count > self._limit:
                self.answer.policies[number].over_limit += 1
        bucket = self.answer.clock.bucket(time)
        process.timeline.add(bucket, counts)
        if bucket != self._bucket:
            self._bucket = bucket
            self.answer.totals.add(bucket, [_all_vmas(lane.system.processes.values()) for lane in self._lanes])

    def _count_missed(self, event: Event, process: ProcessAnswer) -> None:
        lanes = self._lanes
        answer = self.answer
        spaces = [lane.system.processes.get(event.pid) for lane in lanes]
        for missed in missed_merges(lanes[0].tracepoints.records):
            border = border_at(spaces[0], missed.address)
            if border is None:
                answer.passing += 1
                continue
            if is_file_offset(*border, missed.obstacles):
                answer.file_offsets += 1
                continue
            fates = []
            for number, lane in enumerate(lanes):
                sides = border_at(spaces[number], missed.address)
                if sides is not None:
                    cause, reason = what_holds(lane.policy, *sides)
                elif inside_one(spaces[number], missed.address):
                    cause = reason = ""
                else:
                    cause, reason = "other", "something else is mapped here"
                fates.append(cause)
                if cause:
                    answer.reasons[number][cause, reason] += 1
            obstacle = _OBSTACLES[missed.obstacles]
            answer.losses.add(obstacle, fates)
            process.losses.add(obstacle, fates)
            call = answer.by_call.get(event.op)
            if call is None:
                call = answer.by_call[event.op] = Losses(len(lanes))
            call.add(obstacle, fates)
            series = answer.series
            if series is not None and not fates[series] and all(fates[number] for number in self._alone):
                answer.needs_both += 1


def _all_vmas(spaces: Iterable[AddressSpace]) -> int:
    """VMAs in all address spaces, each space counted once however many processes share it."""
    return sum(len(space.vmas) for space in dict.fromkeys(spaces))


def replay(
    trace: Trace,
    policies: Sequence[Policy],
    *,
    progress: Progress = lambda done, total: None,
) -> Answer:
    """Replay the events of `trace` under all of `policies` in one pass; the first is what the others are held against.

    No policy meets vm.max_map_count: a count beyond it is reported, not enforced, so that one refusal does not
    distort all that follows. Raises TraceError where the file turns out to be damaged.
    """
    replayer = Replayer(policies, overcommit_never=trace.metadata.overcommit == 2, thp=trace.metadata.thp or "madvise")
    tally = Tally(replayer, trace.metadata)
    total = len(trace)
    for event in trace.events():
        replayer.apply(event)
        tally.after(event)
        if not replayer.events % _PROGRESS_EVERY:
            progress(replayer.events, total)
    progress(total, total)
    return tally.finish()
