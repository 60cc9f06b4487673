# SPDX-License-Identifier: GPL-2.0-or-later
"""Shrinking: a long program that differs becomes a short one that still does."""

from collections.abc import Callable

from vmaweld import events as ev
from vmaweld.abi import PAGE_SIZE
from vmaweld.events import EVENT_FIELDS, Event

Fails = Callable[[list[Event]], bool]


def shrink(program: list[Event], fails: Fails, *, budget: int = 600) -> list[Event]:
    """The smallest program found that still `fails`, in at most `budget` trials.

    First whole stretches of events go (delta debugging), then ranges and processes become simpler.
    """
    trials = _Trials(fails, budget)
    smaller = _fewer_events(program, trials)
    return _fewer_events(_simpler_events(smaller, trials), trials)


class _Trials:
    """Counts the trials, and refuses programs that mean nothing."""

    def __init__(self, fails: Fails, budget: int) -> None:
        self._fails = fails
        self._left = budget

    def fails(self, program: list[Event]) -> bool:
        if self._left <= 0 or not _sound(program):
            return False
        self._left -= 1
        return self._fails(program)


def _sound(program: list[Event]) -> bool:
    """True if every process has been forked before it acts, and none acts after its end."""
    alive = {1}
    for event in program:
        if event.pid not in alive:
            return False
        if event.op == ev.FORK:
            alive.add(event.child)
        elif event.op == ev.EXIT:
            alive.discard(event.pid)
    return bool(program)


def _fewer_events(program: list[Event], trials: _Trials) -> list[Event]:
    """Drop ever smaller stretches while what is left still fails; the last event is the one that shows it."""
    size = max(len(program) // 2, 1)
    while True:
        position = 0
        while position < len(program):
            candidate = program[:position] + program[position + size :]
            if trials.fails(candidate):
                program = candidate
            else:
                position += size
        if size == 1:
            return program
        size = max(size // 2, 1)


def _simpler_events(program: list[Event], trials: _Trials) -> list[Event]:
    """Make single events plainer: one page long, without rare flags."""
    for position in range(len(program)):
        for simpler in _simpler(program[position]):
            candidate = [*program[:position], simpler, *program[position + 1 :]]
            if trials.fails(candidate):
                program = candidate
    return program


def _simpler(event: Event) -> list[Event]:
    choices = []
    for length in (PAGE_SIZE, event.length // 2 // PAGE_SIZE * PAGE_SIZE):
        if 0 < length < event.length:
            new_length = length if event.new_length == event.length else event.new_length
            choices.append(_with(event, length=length, new_length=new_length))
    if event.op == ev.MMAP and event.flags & ~0x33:
        choices.append(_with(event, flags=event.flags & 0x33))
    return choices


def _with(event: Event, **changes: int) -> Event:
    """`event` with some fields changed."""
    fields = {name: getattr(event, name) for name in EVENT_FIELDS if name not in ("op", "pid")}
    return Event(event.op, event.pid, **(fields | changes))
