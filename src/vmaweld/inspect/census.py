# SPDX-License-Identifier: GPL-2.0-or-later
"""Every process of the system, counted: for ranking, for `top` and for the exporter."""

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from vmaweld.inspect.words import user_name
from vmaweld.kernel import procfs, snapshots
from vmaweld.kernel.errors import KernelError, NotPermitted
from vmaweld.seams import OPEN_MASK, Seam, mask_counts, reason_counts, seams
from vmaweld.snapshot import Snapshot


class Counted:
    """One process at one moment.

    seams, open_seams, reasons (of the open ones, by name): as at the last time they were looked at.
    growth: VMAs a second since the count before; 0.0 where there was none.
    exact: nothing was hidden.
    """

    __slots__ = ("pid", "name", "uid", "vmas", "seams", "open_seams", "reasons", "exact", "growth")

    def __init__(self, pid: int, name: str, uid: int, snapshot: Snapshot, found: Iterable[Seam]) -> None:
        self.pid = pid
        self.name = name
        self.uid = uid
        self.vmas = len(snapshot.rows)
        all_seams = list(found)
        opened = {mask: count for mask, count in mask_counts(all_seams).items() if not mask & ~OPEN_MASK}
        self.seams = len(all_seams)
        self.open_seams = sum(opened.values())
        self.reasons = {name: count for name, count in reason_counts(opened).items() if count}
        self.exact = snapshot.hidden and snapshot.flags_exact
        self.growth = 0.0


class Census:
    """All processes, counted again and again.

    Where BPF is not permitted the seams need smaps, for which the kernel walks page tables; it is read again only
    for processes whose number of VMAs has changed.

    limit: vm.max_map_count at the last count. refused: processes that the caller may not read.
    """

    def __init__(self) -> None:
        self.limit = procfs.max_map_count()
        self.refused = 0
        self.exact, self.why_not_exact = snapshots.bpf_available()
        self._before: dict[int, Counted] = {}
        self._at = 0.0

    def take(self) -> list[Counted]:
        """Every process that has an address space and may be read, most VMAs first."""
        self.limit = procfs.max_map_count()
        self.refused = 0
        now = time.monotonic()
        found: dict[int, Counted] = {}
        for pid in procfs.pids():
            try:
                found[pid] = self._count(pid, now)
            except NotPermitted:
                self.refused += 1
            except KernelError:
                continue  # ended meanwhile, a zombie, or a kernel thread
        self._before = found
        self._at = now
        return sorted(found.values(), key=lambda one: (-one.vmas, one.pid))

    def _count(self, pid: int, now: float) -> Counted:
        before = self._before.get(pid)
        status = procfs.status(pid)
        if not status.memory:
            raise KernelError("no address space")
        if before is not None and before.name != status.name:
            before = None  # exec, or another process of that number
        if self.exact:
            snapshot = snapshots.take(pid)
        else:
            snapshot = snapshots.take(pid, flags=False)
            if before is None or before.vmas != len(snapshot.rows):
                snapshot = snapshots.take(pid)
            else:
                before.growth = 0.0
                return before
        counted = Counted(pid, status.name, status.uid, snapshot, seams(snapshot))
        if before is not None and now > self._at:
            counted.growth = (counted.vmas - before.vmas) / (now - self._at)
        return counted


SORTS: Final[dict[str, Callable[[Counted], tuple[Any, ...]]]] = {
    "vmas": lambda one: (-one.vmas, one.pid),
    "open": lambda one: (-one.open_seams, -one.vmas, one.pid),
    "growth": lambda one: (-one.growth, -one.vmas, one.pid),
    "pid": lambda one: (one.pid,),
    "name": lambda one: (one.name.lower(), one.pid),
}
"""Orders by name, each the useful way round."""


def choose(counted: Iterable[Counted], sort: str, only: str = "", *, turned: bool = False) -> list[Counted]:
    """Those of `counted` that are wanted, in the order wanted.

    sort: a key of `SORTS`. only: a text that the name or user must contain, or a pid. turned: the other way round.
    """
    wanted = only.lower()
    chosen = [
        one
        for one in counted
        if not wanted or wanted in one.name.lower() or wanted in user_name(one.uid).lower() or wanted == str(one.pid)
    ]
    return sorted(chosen, key=SORTS[sort], reverse=turned)
