# SPDX-License-Identifier: GPL-2.0-or-later
"""One process's address space, added up: what `vmaweld inspect` shows in whatever form."""

from collections import Counter
from collections.abc import Mapping, Sequence

from vmaweld.inspect.kinds import KINDS, kind_of
from vmaweld.seams import Seam, SeamRun, mask_counts, open_seams, reason_counts, runs_of_open_seams
from vmaweld.snapshot import Snapshot
from vmaweld.welding.plan import OBSTACLES


class Pages:
    """How many pages of a VMA hold something.

    populated: present or swapped out, the page of zeroes not counted.
    shared: of these, anonymous pages that are not this process's alone: another one maps them too, or did.
    """

    __slots__ = ("populated", "shared")

    def __init__(self, populated: int, shared: int) -> None:
        self.populated = populated
        self.shared = shared


class OpenSeam:
    """An open seam and what a weld of it would meet.

    left_pages, right_pages: None where pagemap could not be read.
    obstacle: the name in `plan.OBSTACLES` of what keeps a weld from it, "" where nothing that can be seen does.
    """

    __slots__ = ("seam", "left_pages", "right_pages", "obstacle")

    def __init__(self, seam: Seam, left_pages: Pages | None, right_pages: Pages | None, obstacle: str) -> None:
        self.seam = seam
        self.left_pages = left_pages
        self.right_pages = right_pages
        self.obstacle = obstacle

    @property
    def populated(self) -> int | None:
        """Populated pages on both sides; None where unknown."""
        if self.left_pages is None or self.right_pages is None:
            return None
        return self.left_pages.populated + self.right_pages.populated

    @property
    def shared(self) -> int | None:
        """Shared pages on both sides; None where unknown."""
        if self.left_pages is None or self.right_pages is None:
            return None
        return self.left_pages.shared + self.right_pages.shared

    @property
    def weldable(self) -> bool:
        """A weld would close it, unless its pages are pinned."""
        return not self.obstacle


class KindTotal:
    """The VMAs of one kind: how many, and their bytes."""

    __slots__ = ("vmas", "size")

    def __init__(self) -> None:
        self.vmas = 0
        self.size = 0


class Inspection:
    """What a snapshot says about a process.

    seams: as `seams.seams` gives them. name: the command's name. uid: its user. limit: vm.max_map_count.
    kinds: every kind that occurs, most VMAs first. reasons: seams by reason, every name present.
    alone: the same, of the seams that have no other reason.
    runs: the runs of open seams. obstacles: as `obstacles.obstacles` gives them.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        found: Sequence[Seam],
        name: str,
        uid: int,
        limit: int,
        pages: Mapping[int, Pages],
        obstacles: Mapping[int, str],
    ) -> None:
        self.snapshot = snapshot
        self.pid = snapshot.pid
        self.name = name
        self.uid = uid
        self.limit = limit
        self.seams = found
        masks = mask_counts(found)
        self.reasons: dict[str, int] = reason_counts(masks)
        self.alone: dict[str, int] = reason_counts({mask: n for mask, n in masks.items() if not mask & (mask - 1)})
        self.runs: Sequence[SeamRun] = runs_of_open_seams(self.seams)
        self.open: Sequence[OpenSeam] = [
            OpenSeam(seam, pages.get(seam.left.start), pages.get(seam.right.start), obstacles.get(seam.right.start, ""))
            for seam in open_seams(self.seams)
        ]
        self.pages_known = bool(pages) or not self.open
        self._obstacles = Counter([one.obstacle for one in self.open])
        # Tens of thousands of VMAs are of a few sorts: ask once for each sort.
        totals = {kind: KindTotal() for kind in KINDS}
        sorts: dict[tuple[int, str, str], KindTotal] = {}
        for row in snapshot.rows:
            sort = (row.flags, row.file, row.name)
            total = sorts.get(sort)
            if total is None:
                total = sorts[sort] = totals[kind_of(row)]
            total.vmas += 1
            total.size += row.end - row.start
        self.kinds: dict[str, KindTotal] = dict(
            sorted(((kind, total) for kind, total in totals.items() if total.vmas), key=lambda item: -item[1].vmas)
        )

    @property
    def vmas(self) -> int:
        """How many VMAs there are."""
        return len(self.snapshot.rows)

    @property
    def exact(self) -> bool:
        """Every field was known; else reasons are by elimination."""
        return self.snapshot.hidden and self.snapshot.flags_exact

    @property
    def weldable(self) -> int:
        """Open seams that a weld would close."""
        return self._obstacles[""]

    @property
    def after_welding(self) -> int:
        """VMAs that would be left were every weldable seam welded."""
        return self.vmas - self.weldable

    def obstacle_counts(self) -> dict[str, int]:
        """How many open seams each obstacle stands at; only those that occur, in the order of `OBSTACLES`."""
        return {name: self._obstacles[name] for name in OBSTACLES if self._obstacles[name]}
