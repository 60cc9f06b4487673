# SPDX-License-Identifier: GPL-2.0-or-later
"""Releases of Linux: their numbers, and the series that they belong to."""

import re
from typing import Final, NamedTuple


class Release(NamedTuple):
    """A release as numbers. ``Release(6, 12)`` is the first of its series, 6.12 itself."""

    major: int
    minor: int
    patch: int = 0

    @property
    def series(self) -> tuple[int, int]:
        """The series whose stable releases it belongs to: ``(6, 12)``."""
        return self.major, self.minor

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}" if self.patch else f"{self.major}.{self.minor}"


NEWEST_PATCH: Final = 1 << 16
"""The patch level of the newest stable release of a series, whichever that is."""

SERIES: Final[tuple[tuple[int, int], ...]] = (
    *((5, minor) for minor in range(10, 20)),
    *((6, minor) for minor in range(20)),
    *((7, minor) for minor in range(4)),
)
"""Every series of mainline releases that the table of rules covers, in order."""


def release_numbers(release: str) -> Release:
    """The numbers of a kernel release as uname(2) tells it; those that it leaves out are 0.

    >>> release_numbers("6.12.117+deb13-amd64"), release_numbers("7.3-rc1")
    (Release(major=6, minor=12, patch=117), Release(major=7, minor=3, patch=0))
    """
    numbers = [int(number) for number in re.findall(r"\d+", release.partition("-")[0])[:3]]
    numbers += [0] * (3 - len(numbers))
    return Release(*numbers)
