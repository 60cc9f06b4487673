# SPDX-License-Identifier: GPL-2.0-or-later
"""VMA counts over time, bounded however long the recording is."""

from vmaweld.study.timeline import BUCKETS, Clock, Timeline


def test_a_series_keeps_peaks_and_carries_counts_on() -> None:
    timeline = Timeline()
    timeline.add(2, [5, 1])
    timeline.add(2, [9, 2])
    timeline.add(2, [4, 3])
    timeline.add(5, [6, 6])
    assert (timeline.first, timeline.last) == (2, 5)
    assert timeline.series(0) == [9, 4, 4, 6]
    assert timeline.series(1) == [3, 3, 3, 6]


def test_an_empty_timeline_has_no_series() -> None:
    assert Timeline().series(0) == []


def test_all_times_fall_into_the_buckets() -> None:
    for duration in (0, 1, BUCKETS - 1, BUCKETS, BUCKETS + 1, 10**12):
        clock = Clock(1000, duration)
        assert clock.bucket(1000) == 0
        assert 0 <= clock.bucket(1000 + duration) < BUCKETS
        assert clock.bucket(0) == 0
        assert clock.bucket(10**18) == BUCKETS - 1


def test_seconds_are_those_of_the_buckets_beginning() -> None:
    clock = Clock(0, 400 * 10**9 - 1)
    assert clock.seconds(clock.bucket(5 * 10**9)) == 5.0
