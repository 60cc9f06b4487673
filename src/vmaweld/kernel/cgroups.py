# SPDX-License-Identifier: GPL-2.0-or-later
"""Which cgroups a process lies in, and where their files are.

Formats: cgroups(7), and the kernel's ``Documentation/admin-guide/cgroup-v2.rst`` and ``cgroup-v1/``.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

from vmaweld.kernel import procfs


class Cgroup(NamedTuple):
    """path: its directory. unified: it belongs to version 2 of the interface, whose files have other names."""

    path: str
    unified: bool


def above(pid: int, controller: str) -> Iterator[Cgroup]:
    """The cgroups of process `pid` from its own upwards: those of `controller` (version 1) and those of version 2.

    A hierarchy that is not mounted here, or that is mounted from below the process's cgroup, yields nothing.
    Raises ProcessGone.
    """
    for line in procfs.read_file(pid, "cgroup").decode(errors="surrogateescape").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = _mounted(controller if controllers else "")
        while top and path.startswith("/"):
            yield Cgroup(os.path.join(top, path.strip("/")), not controllers)
            if path == "/":
                break
            path = os.path.dirname(path)


def _mounted(controller: str) -> str:
    """Where the hierarchy with that controller lies ("": version 2), "" for nowhere.

    A container's hierarchy is mounted from below its root. In the cgroup namespace of the container it shows its part
    at the same paths; elsewhere the paths do not exist, and nothing is known.
    """
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                place, _, what = line.partition(" - ")
                fields = what.split()
                if fields[0] == "cgroup2" and not controller:
                    return place.split()[4]
                if fields[0] == "cgroup" and controller in fields[2].split(","):
                    return place.split()[4]
    except OSError:
        pass
    return ""
