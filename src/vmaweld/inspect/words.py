# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes and names as a person reads them."""

import pwd
from functools import cache

from vmaweld.abi import PAGE_SIZE
from vmaweld.seams import FLAGS, Seam


def size_text(size: int) -> str:
    """Bytes in the largest unit that keeps them above one, to three digits.

    >>> size_text(4096), size_text(1536 * 1024), size_text(17 << 40)
    ('4 KiB', '1.5 MiB', '17 TiB')
    """
    value = size / 1024
    for unit in ("KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.3g} TiB" if value < 1000 else f"{value:.0f} TiB"


def pages_text(pages: int) -> str:
    """Pages as a size."""
    return size_text(pages * PAGE_SIZE)


@cache
def user_name(uid: int) -> str:
    """The user's name, or the number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def percent_text(part: int, whole: int) -> str:
    """`part` of `whole` in percent, to one digit below ten."""
    if not whole:
        return "0 %"
    share = 100 * part / whole
    return f"{share:.1f} %" if share < 10 else f"{share:.0f} %"


def reasons_text(seam: Seam) -> str:
    """The reasons of `seam` joined by commas, other flags by name: ``protection, flags (account dontdump)``."""
    names = list(seam.reasons)
    if seam.mask & FLAGS:
        names[names.index("flags")] = f"flags ({' '.join(seam.flag_names)})"
    return ", ".join(names)
