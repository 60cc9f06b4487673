# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands in the way of welding an open seam: asked of the weld itself, so that the two never disagree."""

from collections.abc import Sequence

from vmaweld.abi import VM_LOCKED_MASK
from vmaweld.seams import SeamRun
from vmaweld.snapshot import Snapshot
from vmaweld.welding import plan, support


def obstacles(snapshot: Snapshot, runs: Sequence[SeamRun], look: plan.Look | None) -> dict[int, str]:
    """The name in `plan.OBSTACLES` of what keeps `vmaweld weld` from an open seam, by the seam's address.

    Seams that it would close are not among them. runs: the runs of open seams. look: finds populated pages; None where
    they cannot be read. Whether a page is pinned, and what a seccomp filter forbids, nobody can see from outside.
    """
    locked = any(row.flags & VM_LOCKED_MASK for run in runs for row in snapshot.rows[run.first : run.last + 1])
    relock = support.relock_reason(snapshot.pid) if locked else ""
    limits = plan.Limits(relock=relock, zero_stays=support.zero_stays())
    found: dict[int, str] = {}
    for part in plan.parts(snapshot, [(run.first, run.last) for run in runs], look, limits):
        if part.reason:
            found.update(dict.fromkeys([row.start for row in part.rows[1:]], plan.NAMES[part.reason]))
    return found
