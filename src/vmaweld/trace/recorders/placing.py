# SPDX-License-Identifier: GPL-2.0-or-later
"""The place of a true snapshot among the events: certain where its process was at rest, else not to be had."""

from collections.abc import Iterable
from typing import Final

from vmaweld.trace.assembly.assembler import Assembler
from vmaweld.trace.sampler import Sample
from vmaweld.trace.store import TraceWriter

_NEVER: Final = 1 << 64  # beyond every time that a record can have


class Placing:
    """Writes each sample where its process was at rest throughout its window, and drops the others.

    Attributes:
        due: the time at which the next sample has its place.

    Args:
        samples: in order of time.
        begin: the time that becomes 0.
        margin: nanoseconds for which the process must have been at rest before the window.

    """

    def __init__(
        self, samples: Iterable[Sample], assembler: Assembler, writer: TraceWriter, begin: int, margin: int
    ) -> None:
        self._waiting = iter(samples)
        self._assembler = assembler
        self._writer = writer
        self._begin = begin
        self._margin = margin
        self._next = next(self._waiting, None)
        self.due = self._next.end if self._next else _NEVER

    def until(self, now: int) -> None:
        """Place the samples that ended before `now`, the time of a record that the assembler has not got yet."""
        while now > self.due:
            sample = self._next
            assert sample is not None
            quiet = self._assembler.quiet_since(sample.snapshot.pid)
            if quiet is not None and quiet < sample.begin - self._margin:
                self._writer.append_snapshot(sample.snapshot, max(0, sample.end - self._begin))
            self._next = next(self._waiting, None)
            self.due = self._next.end if self._next else _NEVER

    def finish(self) -> None:
        """Place the rest: there are no more records."""
        while self._next is not None:
            self.until(self.due + 1)
