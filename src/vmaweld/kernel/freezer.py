# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a process is frozen by its cgroup, as ``docker pause`` and ``systemctl freeze`` do it."""

import os
from typing import Final

from vmaweld.kernel import cgroups

_V1_STATE: Final = "freezer.state"
_V2_ORDER: Final = "cgroup.freeze"
_V2_EVENTS: Final = "cgroup.events"


def frozen(pid: int) -> str:
    """The cgroup that freezes process `pid` or is about to; "" where none does. Raises ProcessGone.

    Version 1 tells in ``freezer.state`` of the cgroup itself whether one above it is frozen. Version 2 tells the order
    in ``cgroup.freeze`` of the cgroup that was frozen, and in ``cgroup.events`` when it has been carried out.
    """
    for path, unified in cgroups.above(pid, "freezer"):
        if unified:
            if _read(path, _V2_ORDER).strip() == "1" or "frozen 1" in _read(path, _V2_EVENTS).splitlines():
                return path
        elif _read(path, _V1_STATE).strip() in ("FROZEN", "FREEZING"):
            return path
    return ""


def _read(path: str, name: str) -> str:
    """The text of that file, "" where it does not exist: the root has none of them."""
    try:
        with open(os.path.join(path, name), encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""
