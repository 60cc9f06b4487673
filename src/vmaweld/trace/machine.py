# SPDX-License-Identifier: GPL-2.0-or-later
"""What a recording says about the machine it was made on."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from vmaweld.abi import DEFAULT_MAX_MAP_COUNT, PAGE_SIZE
from vmaweld.kernel import snapshots
from vmaweld.kernel.errors import KernelError
from vmaweld.mempolicy import node_mask
from vmaweld.trace.assembly.exec_image import SPECIAL_FLAGS
from vmaweld.trace.store import Metadata


def metadata(command: Sequence[str]) -> Metadata:
    """What the trace's metadata says about this machine, before anything has been recorded of `command`."""
    return Metadata(
        command=list(command),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        kernel=platform.release(),
        machine=platform.machine(),
        page_size=PAGE_SIZE,
        max_map_count=_number("/proc/sys/vm/max_map_count", DEFAULT_MAX_MAP_COUNT),
        overcommit=_number("/proc/sys/vm/overcommit_memory", 0),
        thp=transparent_hugepage(),
        nodes=node_mask(nodes()).bit_count(),
    )


def nodes() -> str:
    """The machine's memory nodes as a list, "0" or "0-3"."""
    try:
        return Path("/sys/devices/system/node/has_memory").read_text().strip() or "0"
    except OSError:
        return "0"


def transparent_hugepage() -> str:
    """The word in brackets of ``always [madvise] never``; "" where the kernel has no such setting."""
    try:
        return Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return ""


def special_flags() -> dict[str, int]:
    """``VM_*`` of this kernel's own mappings (``[vdso]`` ...), read off this very process."""
    try:
        own = snapshots.take(os.getpid())
    except (KernelError, OSError):
        return SPECIAL_FLAGS
    found = {row.name: row.flags for row in own.rows if row.name.startswith("[v")} if own.flags_exact else {}
    return {**SPECIAL_FLAGS, **found}


def _number(path: str, default: int) -> int:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return default
