"""How much memory the cgroups of a process still allow: beyond that the kernel reclaims, and then kills.

Files: the kernel's ``Documentation/admin-guide/cgroup-v2.rst`` and ``cgroup-v1/memory.rst``.
"""

import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from vmaweld.kernel import procfs


class _Files(NamedTuple):
    """The names that one version of the interface gives. also: where memory and swap together are limited."""

    limit: str
    usage: str
    also_limit: str
    also_usage: str
    clean: tuple[bytes, ...]


_V1: Final = _Files(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.memsw.usage_in_bytes",
    (b"total_inactive_file", b"total_active_file"),
)
_V2: Final = _Files(
    "memory.max", "memory.current", "memory.swap.max", "memory.swap.current", (b"inactive_file", b"active_file")
)


class Room(NamedTuple):
    """free: bytes until `cgroup`, the tightest above the process, is full, counting what the kernel could reclaim."""

    free: int
    cgroup: str


def room(pid: int) -> Room | None:
    """The room of process `pid`; None where nothing limits it, or the limits cannot be read. Raises ProcessGone.

    Reclaimable: pages of files, and what there is swap for.
    """
    swap = _free_swap()
    found = [Room(_free(path, files, swap), path) for path, files in _limited(pid)]
    return min(found, default=None)


def _limited(pid: int) -> Iterator[tuple[str, _Files]]:
    """Every cgroup above `pid` that has a limit."""
    for line in procfs.read_file(pid, "cgroup").decode(errors="surrogateescape").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        files = _V1 if controllers else _V2
        top = _mounted("cgroup" if controllers else "cgroup2")
        while top and path.startswith("/"):
            here = os.path.join(top, path.strip("/"))
            limit = _number(here, files.limit)
            if limit is not None and limit < 1 << 60:
                yield here, files
            if path == "/":
                break
            path = os.path.dirname(path)


def _mounted(kind: str) -> str:
    """Where the hierarchy lies that may hold the memory controller, "" for nowhere.

    One mounted from below its root (a container's) shows its own part of it at the same paths in its own cgroup
    namespace; elsewhere the paths do not exist, and nothing is known.
    """
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                place, _, what = line.partition(" - ")
                fields = what.split()
                if fields[0] == kind and (kind == "cgroup2" or "memory" in fields[2].split(",")):
                    return place.split()[4]
    except OSError:
        pass
    return ""


def _free(path: str, files: _Files, swap: int) -> int:
    limit, usage = _number(path, files.limit) or 0, _number(path, files.usage) or 0
    also_limit, also_usage = _number(path, files.also_limit), _number(path, files.also_usage)
    left = limit - usage
    if also_limit is not None and also_usage is not None:
        # The second version limits swap for itself, the first one memory and swap together.
        swap = max(min(swap, also_limit - also_usage - (left if files is _V1 else 0)), 0)
    return left + swap + _clean(path, files.clean)


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


def _free_swap() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        return next((int(line.split()[1]) << 10 for line in file if line.startswith("SwapFree:")), 0)
