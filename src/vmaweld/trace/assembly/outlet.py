# SPDX-License-Identifier: GPL-2.0-or-later
"""The way out of the assembly: events in their final order, each with its time."""

from collections.abc import Callable

from vmaweld.events import Event

Emit = Callable[[Event], None]


class Outlet:
    """Gives events to `emit`. begin: the time that becomes 0."""

    __slots__ = ("_begin", "_emit", "_emitted")

    def __init__(self, emit: Emit, begin: int) -> None:
        self._emit = emit
        self._begin = begin
        self._emitted = 0

    def send(self, event: Event) -> None:
        """Give out `event`, behind all that has been given out."""
        # The order is what is true; an event that had to wait takes the time at which it could be told.
        if event.time < self._emitted:
            event.time = self._emitted
        else:
            self._emitted = event.time
        event.time -= self._begin
        self._emit(event)
