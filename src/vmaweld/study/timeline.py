# SPDX-License-Identifier: GPL-2.0-or-later
"""VMA counts over time, in a fixed number of buckets, whatever the length of the recording."""

from __future__ import annotations

from typing import Final

BUCKETS: Final = 400


class Timeline:
    """For each bucket in which something happened, the highest and the last count of each lane.

    Memory is bounded by the buckets that were touched: a process that lived for a moment costs one.
    """

    __slots__ = ("_last", "_top")

    def __init__(self) -> None:
        self._top: dict[int, list[int]] = {}
        self._last: dict[int, list[int]] = {}

    def add(self, bucket: int, counts: list[int]) -> None:
        """The lanes' counts are now `counts`; buckets only rise. The list is kept."""
        top = self._top.get(bucket)
        if top is None:
            self._top[bucket] = list(counts)
        else:
            for lane, count in enumerate(counts):
                if count > top[lane]:
                    top[lane] = count
        self._last[bucket] = counts

    @property
    def first(self) -> int:
        """The first bucket, 0 where there is none."""
        return min(self._top, default=0)

    @property
    def last(self) -> int:
        """The last bucket, 0 where there is none."""
        return max(self._top, default=0)

    def series(self, lane: int) -> list[int]:
        """The counts of `lane` from the first bucket to the last, none left out: what was highest in each."""
        values: list[int] = []
        current = 0
        for bucket in range(self.first, self.last + 1):
            top = self._top.get(bucket)
            if top is None:
                values.append(current)
            else:
                values.append(top[lane])
                current = self._last[bucket][lane]
        return values if self._top else []


class Clock:
    """Turns times into buckets. first, duration: nanoseconds."""

    __slots__ = ("first", "width")

    def __init__(self, first: int, duration: int) -> None:
        self.first = first
        self.width = max(1, -(-(duration + 1) // BUCKETS))

    def bucket(self, time: int) -> int:
        """The bucket of `time`, from 0 to BUCKETS - 1."""
        return min(max((time - self.first) // self.width, 0), BUCKETS - 1)

    def seconds(self, bucket: int) -> float:
        """When `bucket` begins, in seconds since the first event."""
        return bucket * self.width / 1e9
