# SPDX-License-Identifier: GPL-2.0-or-later
"""How much memory the cgroups of a process still allow: beyond that the kernel swaps, or kills.

Files: the kernel's ``Documentation/admin-guide/cgroup-v2.rst`` and ``cgroup-v1/memory.rst``.
"""

import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from vmaweld.kernel import cgroups


class _Files(NamedTuple):
    """The names that one version of the interface gives. clean: in memory.stat, what is easily reclaimed."""

    limit: str
    usage: str
    clean: tuple[bytes, ...]


_V1: Final = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", (b"total_inactive_file", b"total_active_file"))
_V2: Final = _Files("memory.max", "memory.current", (b"inactive_file", b"active_file"))


class FreeMemory(NamedTuple):
    """free: bytes until `cgroup`, the tightest above the process, is full; pages of files count as free."""

    free: int
    cgroup: str


def room(pid: int) -> FreeMemory | None:
    """The room of process `pid`; None where nothing limits it, or the limits cannot be read. Raises ProcessGone.

    Swap is not counted: a process whose cgroup is full may be killed although there is swap (seen on 6.18, when many
    of its pages were read back through /proc/PID/mem).
    """
    return min((FreeMemory(_free(path, files), path) for path, files in _limited(pid)), default=None)


def _limited(pid: int) -> Iterator[tuple[str, _Files]]:
    """Every cgroup above `pid` that has a limit."""
    for path, unified in cgroups.above(pid, "memory"):
        files = _V2 if unified else _V1
        limit = _number(path, files.limit)
        if limit is not None and limit < 1 << 60:
            yield path, files


def _free(path: str, files: _Files) -> int:
    return (_number(path, files.limit) or 0) - (_number(path, files.usage) or 0) + _clean(path, files.clean)


def _clean(path: str, names: tuple[bytes, ...]) -> int:
    try:
        with open(os.path.join(path, "memory.stat"), "rb") as file:
            stat = dict(line.split() for line in file)
    except OSError:
        return 0
    return sum(int(stat.get(name, b"0")) for name in names)


def _number(path: str, name: str) -> int | None:
    """The number in that file; a large one for "max", None where there is none."""
    try:
        with open(os.path.join(path, name), encoding="ascii") as file:
            text = file.read().strip()
    except OSError:
        return None
    return (1 << 62) if text == "max" else int(text)
