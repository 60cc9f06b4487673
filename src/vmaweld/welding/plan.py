# SPDX-License-Identifier: GPL-2.0-or-later
"""What to weld: from a snapshot to groups for the batch machine, and the reasons for what is left out."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from vmaweld import abi
from vmaweld.kernel import pagemap
from vmaweld.seams import seam_between
from vmaweld.snapshot import Row, Snapshot
from vmaweld.welding.program import Group

GROUP_BYTES: Final = 1 << 30
"""Most bytes folded in one pass: as much address space (and commit charge) is needed twice for the moment."""
ROOM_GUARD: Final = 16 << 20
"""Left free on either side of the room that is used, so that stacks and neighbours may grow."""

GAIN: Final = "fewer seams together than --min-gain asks for"
OBSTACLES: Final[dict[str, str]] = {
    "file": "maps a file: UFFDIO_MOVE takes anonymous memory only",
    "shared-memory": "shared memory: its pages belong to no one process",
    "hugetlb": "hugetlb memory: UFFDIO_MOVE does not take it",
    "stack": "a stack: it grows by itself and must stay where it is",
    "special": "a special mapping (device or kernel memory, or with a close operation), which never merges",
    "userfaultfd": "the program watches it with a userfaultfd of its own",
    "sealed": "sealed with mseal(2): the kernel forbids moving it",
    "shadow-stack": "a shadow stack",
    "droppable": "droppable memory (MAP_DROPPABLE): userfaultfd refuses it",
    "ksm": "KSM may share its pages (MADV_MERGEABLE): --unshare breaks that",
    "never-writable": "never writable until now: making it so would charge it to the commit limit for good",
    "locked-swap": "mlocked, and swap is on: unlocked for the moment of the move, it might be written to disk",
    "locked-limit": "mlocked beyond what RLIMIT_MEMLOCK allows now: it could not be locked again",
    "locked-holes": "mlocked, yet with holes: locking it again would fill them",
    "mempolicy-unknown": "its memory policy cannot be read",
    "shared-pages": "pages shared with another process, or by KSM: --unshare makes them its own",
    "marked-pages": "pages marked as shared since a fork, though nobody else maps them now: --unshare clears that mark",
    "zeroes": "mapped pages of zeroes, which this kernel cannot move: Linux 6.9 to 6.15, and 6.18.21 or later, can",
}
"""What keeps a weld from an open seam, by a name that is stable and appears in JSON."""
NAMES: Final = {reason: name for name, reason in OBSTACLES.items()}
SHARED: Final = OBSTACLES["shared-pages"]
MARKED: Final = OBSTACLES["marked-pages"]
ZEROES: Final = OBSTACLES["zeroes"]
_OWN: Final = pagemap.EXCLUSIVE | pagemap.FILE | pagemap.ZERO
"""A page that is present and none of these is shared."""
_NEVER: Final[tuple[tuple[int, str], ...]] = (
    (abi.VM_MAYSHARE | abi.VM_SHARED, "shared-memory"),
    (abi.VM_HUGETLB, "hugetlb"),
    (abi.VM_GROWSDOWN, "stack"),
    (abi.VM_SPECIAL, "special"),
    (abi.VM_UFFD_ANY, "userfaultfd"),
    (abi.VM_SEALED, "sealed"),
    (abi.VM_SHADOW_STACK, "shadow-stack"),
    (abi.VM_DROPPABLE, "droppable"),
)


class Left(NamedTuple):
    """Seams that stay open.

    start, end: the range they lie in. seams: how many. reason: one line, the same for all of its kind. pages: shared
    pages that are the reason.
    """

    start: int
    end: int
    seams: int
    reason: str
    pages: int = 0


class Part(NamedTuple):
    """Neighbouring rows with open seams between them, all with the same fate.

    runs: populated pages, of these rows and perhaps of more. reason: why the seams stay, "" where a weld can close
    them. pages: how many pages are that reason.
    """

    rows: Sequence[Row]
    runs: Sequence[pagemap.Run]
    reason: str = ""
    pages: int = 0


class Candidate(NamedTuple):
    """Neighbouring rows that can become one.

    runs: their populated pages. populate: ranges to write to first (with unshare). shared: pages that this will copy.
    cut: the last row is but the front of a VMA.
    """

    rows: Sequence[Row]
    runs: Sequence[pagemap.Run]
    populate: Sequence[tuple[int, int]] = ()
    shared: int = 0
    cut: bool = False

    @property
    def seams(self) -> int:
        """VMAs that will be gone."""
        return len(self.rows) - 1


class Plan(NamedTuple):
    """candidates: what will be welded. left: what will not, and why. pages: populated pages that will move.
    shared: pages that `unshare` will copy (each costs a page of memory).
    """

    candidates: Sequence[Candidate]
    left: Sequence[Left]
    pages: int
    shared: int

    @property
    def seams(self) -> int:
        """VMAs that will be gone."""
        return sum(candidate.seams for candidate in self.candidates)

    @property
    def all_seams(self) -> int:
        """All open seams, those that stay included."""
        return self.seams + sum(left.seams for left in self.left)


class PageSource(Protocol):
    """What a plan wants to know about pages; `pagemap.Pagemap` knows it."""

    def runs(self, start: int, end: int) -> list[pagemap.Run]:
        """Populated pages of ``[start, end)`` as runs."""
        ...

    def populated(self, start: int, end: int) -> list[pagemap.Run]:
        """The same, but whether pages are exclusive is not looked at."""
        ...

    def closely(self, start: int, end: int) -> list[pagemap.Run]:
        """The same as `runs`, with the marks that a fork has left."""
        ...


Look = Callable[[int, int], Sequence[pagemap.Run]]
"""Finds the populated pages of a range."""


class Limits(NamedTuple):
    """What the caller wants, and what the process allows.

    low, high: weld inside ``[low, high)`` only: every byte that is touched lies in it.
    min_gain: leave runs with fewer open seams than that.
    unshare: make shared pages the process's own first.
    relock: "" where mlocked memory may be unlocked for the moment and locked again, else why not.
    failed: seams that were tried already, by address, with the reason why they stayed open.
    avoid: addresses whose VMAs must not be touched, with the reason.
    zero_stays: the page of zeroes, which a read maps, must not be moved (see `support.zero_stays`).
    guard: of `Group.prot` and `Group.locked`, why memory with these must be left out, "" where it need not.
    """

    low: int = 0
    high: int = abi.TASK_SIZE
    min_gain: int = 1
    unshare: bool = False
    relock: str = ""
    failed: Mapping[int, str] = MappingProxyType({})
    avoid: Mapping[int, str] = MappingProxyType({})
    zero_stays: bool = False
    guard: Callable[[int, int], str] = lambda _prot, _locked: ""


def make(snapshot: Snapshot, pages: PageSource, limits: Limits, *, quick: bool = False, closely: bool = False) -> Plan:
    """The plan for `snapshot`. O(rows + populated runs).

    quick: suppose that no page is shared, which saves most of the time; where one is, its group will fail.
    closely: look at the marks of a fork as well (see `pagemap.Pagemap.closely`), for an answer, not for a weld.
    """
    full: Look = pages.closely if closely else pages.runs
    look: Look = pages.populated if quick and not limits.unshare else full
    candidates: list[Candidate] = []
    left: list[Left] = []
    moved = copied = 0
    for rows, runs, reason, held in parts(snapshot, _open_runs(snapshot), look, limits, full):
        if reason:
            left.append(Left(rows[0].end, rows[-1].end, len(rows) - 1, reason, held))
            continue
        inside = clip(runs, rows[1].start, rows[-1].end)
        totals = pagemap.totals(inside)
        moved += totals.populated
        copied += totals.shared
        populate: Sequence[tuple[int, int]] = ()
        if limits.unshare:
            populate = [(start, end) for start, end, kind in inside if not kind & pagemap.ZERO]
        candidates.append(Candidate(rows, runs, populate, totals.shared))
    return Plan(candidates, left, moved, copied)


def parts(
    snapshot: Snapshot,
    open_runs: Iterable[tuple[int, int]],
    look: Look | None,
    limits: Limits,
    look_at_locked: Look | None = None,
) -> Iterator[Part]:
    """What a weld can close of `snapshot` and what it must leave: the one place that decides it.

    open_runs: (first, last) of the rows of each run of open seams. look: finds the populated pages of a range; None:
    they cannot be read, and no page stands in the way as far as is known. look_at_locked: the same for mlocked memory:
    after a group of it that failed for shared pages, to lock it again would copy them.
    """
    for rows, reason in _chains(snapshot, open_runs, limits):
        reason = reason or _why_not(rows, snapshot, limits)
        if not reason and len(rows) - 1 < limits.min_gain:
            reason = GAIN
        if reason or look is None:
            yield Part(rows, (), reason)
            continue
        start, end = keep_from(rows[0], limits.low), rows[-1].end  # a first row of gigabytes stays where it is
        if rows[0].flags & abi.VM_LOCKED_MASK and look_at_locked is not None:
            populated = look_at_locked(start, end)
        else:
            populated = look(start, end)
        for part, held, reason in _split_at_held(rows, populated, limits):
            yield Part(part, populated, reason or _locked_reason(part, populated, limits.low), held)


def guarded(made: Plan, limits: Limits) -> bool:
    """Whether `made` holds what the guard of `limits`, unknown when it was made, wants left out."""
    rows = (candidate.rows[0] for candidate in made.candidates)
    return any(limits.guard(row.flags & abi.VM_ACCESS_FLAGS, _lock(row)) for row in rows)


def _chains(
    snapshot: Snapshot, open_runs: Iterable[tuple[int, int]], limits: Limits
) -> Iterator[tuple[Sequence[Row], str]]:
    """Rows with open seams between them, two or more, inside the limits; cut where no weld may be, with the reason."""
    for start, last in open_runs:
        rows = _within(snapshot.rows, start, last, limits)
        avoid = [(at, why) for at, why in limits.avoid.items() if rows and rows[0].start <= at < rows[-1].end]
        if not limits.failed and not avoid:
            if len(rows) > 1:
                yield rows, ""
            continue
        first = 0
        for at in range(1, len(rows)):
            reason = limits.failed.get(rows[at].start) or next(
                (why for address, why in avoid if rows[at - 1].start <= address < rows[at].end), None
            )
            if reason is not None:
                yield rows[at - 1 : at + 1], reason
                if at - first > 1:
                    yield rows[first:at], ""
                first = at
        if len(rows) - first > 1:
            yield rows[first:], ""


def _open_runs(snapshot: Snapshot) -> Iterator[tuple[int, int]]:
    """(first, last) of rows with nothing but open seams between them: what `seams` would find, most of it without it.

    Two plain rows that agree in all that they show can differ in nothing but the page offset and the anon_vma.
    """
    rows, exact, hidden = snapshot.rows, snapshot.flags_exact, snapshot.hidden
    first = 0
    for at in range(1, len(rows) + 1):
        if at < len(rows):
            left, right = rows[at - 1], rows[at]
            if left.end == right.start:
                if (
                    left.flags == right.flags
                    and not (left.flags & abi.VM_SPECIAL or left.file or right.file or left.name or right.name)
                    and left.mempolicy == right.mempolicy is not None
                    and left.uffd == right.uffd
                    and not left.close
                    and not right.close
                ):
                    continue
                if seam_between(at - 1, left, right, exact, hidden).open:
                    continue
        if at - first > 1:
            yield first, at - 1
        first = at


def _end(row: Row) -> int:
    return row.end


def _within(rows: Sequence[Row], start: int, end: int, limits: Limits) -> Sequence[Row]:
    """The rows of `run` that lie inside the limits; the first may begin before them, for only its end is touched."""
    first = bisect_right(rows, limits.low, start, end + 1, key=_end)
    last = bisect_right(rows, limits.high, first, end + 1, key=_end)
    return rows[first:last]


def _why_not(rows: Sequence[Row], snapshot: Snapshot, limits: Limits) -> str:
    """Why nothing of `rows` can be welded, "" where it can. The rows differ in nothing that is asked here."""
    row = rows[0]
    flags = row.flags
    if row.file:
        return OBSTACLES["shared-memory" if flags & abi.VM_MAYSHARE else "file"]
    for bits, name in _NEVER:
        if flags & bits:
            return OBSTACLES[name]
    if any(name.startswith("[stack") for name in {row.name for row in rows}):
        return OBSTACLES["stack"]
    if row.close:
        return OBSTACLES["special"]
    if flags & abi.VM_MERGEABLE and not limits.unshare:
        return OBSTACLES["ksm"]
    if not flags & abi.VM_WRITE and not flags & abi.VM_ACCOUNT and not flags & abi.VM_NORESERVE:
        return OBSTACLES["never-writable"]
    if flags & abi.VM_LOCKED_MASK and limits.relock:
        return limits.relock
    if snapshot.source == "procfs" and any(row.mempolicy is None for row in rows):
        return OBSTACLES["mempolicy-unknown"]
    return limits.guard(flags & abi.VM_ACCESS_FLAGS, _lock(row))


def _lock(row: Row) -> int:
    """`Group.locked` of a group that begins with `row`."""
    if not row.flags & abi.VM_LOCKED_MASK:
        return -1
    return abi.MLOCK_ONFAULT if row.flags & abi.VM_LOCKONFAULT else 0


def _locked_reason(rows: Sequence[Row], populated: Sequence[pagemap.Run], low: int) -> str:
    """Locking again populates every hole, so there must be none; MLOCK_ONFAULT leaves them."""
    if rows[0].flags & abi.VM_LOCKED_MASK != abi.VM_LOCKED:
        return ""
    keep = keep_from(rows[0], low)
    there = sum(end - start for start, end, _ in clip(populated, keep, rows[-1].end))
    if there != rows[-1].end - keep:
        return OBSTACLES["locked-holes"]
    return ""


def clip(runs: Sequence[pagemap.Run], start: int, end: int) -> list[pagemap.Run]:
    """What of `runs` (ascending) lies in ``[start, end)``."""
    first = bisect_right(runs, start, key=lambda run: run.end)
    last = bisect_left(runs, end, key=lambda run: run.start)
    return [pagemap.Run(max(run.start, start), min(run.end, end), run.kind) for run in runs[first:last]]


def _split_at_held(
    rows: Sequence[Row], populated: Sequence[pagemap.Run], limits: Limits
) -> Iterator[tuple[Sequence[Row], int, str]]:
    """Parts of `rows`: those that can be folded into their first (0, ""), and those held by pages (how many, why).

    A VMA with such pages can keep, for its pages stay as they are, but cannot be folded into another. Parts overlap by
    a row: the last of one is the first of the next.
    """
    # To lock memory again is to write to its pages, which takes the mark off for the second try.
    marks = not limits.unshare and rows[0].flags & abi.VM_LOCKED_MASK != abi.VM_LOCKED
    held = {
        reason: _pages_by_row(rows, populated, mask, kind)
        for reason, mask, kind, holds in (
            (SHARED, _OWN | pagemap.PRESENT, pagemap.PRESENT, not limits.unshare),
            (MARKED, pagemap.MARKED, pagemap.MARKED, marks),
            (ZEROES, pagemap.ZERO, pagemap.ZERO, limits.zero_stays),
        )
        if holds
    }
    if not any(held.values()):
        yield rows, 0, ""
        return
    why = [next((reason for reason, counts in held.items() if counts.get(at)), "") for at in range(len(rows))]
    first = 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or why[at] != why[first + 1]:
            reason = why[first + 1]
            yield rows[first:at], sum(held[reason].get(one, 0) for one in range(first + 1, at)) if reason else 0, reason
            first = at - 1


def _pages_by_row(rows: Sequence[Row], populated: Sequence[pagemap.Run], mask: int, kind: int) -> dict[int, int]:
    """How many pages, by the index of the row they lie in, are of that kind as far as `mask` looks."""
    runs = [(start, end) for start, end, bits in populated if bits & mask == kind]
    counts: dict[int, int] = {}
    starts = [row.start for row in rows] if runs else []
    for start, end in runs:
        at = bisect_left(starts, start + 1) - 1
        while at < len(rows) and rows[at].start < end:
            pages = (min(end, rows[at].end) - max(start, rows[at].start)) >> abi.PAGE_SHIFT
            counts[at] = counts.get(at, 0) + pages
            at += 1
    return counts


def keep_from(row: Row, low: int) -> int:
    """Where the kept stretch of `row` begins: its last huge page's room, so that no huge page is cut."""
    return max(row.start, low, (row.end - 1) & -abi.HUGE_PAGE_SIZE)


def groups(
    candidates: Iterable[Candidate],
    room: "Room",
    *,
    low: int = 0,
    pieces: int = 1 << 30,
    group_bytes: int = GROUP_BYTES,
) -> Iterator[tuple[Group, Candidate]]:
    """Groups for all of `candidates`, each with its own share of the candidate.

    pieces: at most so many in a group; with 1 every seam stands or falls alone.
    Each group's kept stretch is the end of the group before, so a group that fails does no harm to the next.
    """
    for candidate in candidates:
        rows = candidate.rows
        first = 0
        while first + 1 < len(rows):
            keep = keep_from(rows[first], low)
            most = min(first + pieces, len(rows) - 1)
            last = max(first + 1, bisect_right(rows, keep + group_bytes, first, most + 1, key=_end) - 1)
            part = candidate._replace(rows=rows[first : last + 1]) if last - first + 1 < len(rows) else candidate
            yield _group(part.rows, keep, candidate, room), part
            first = last


def _group(rows: Sequence[Row], keep: int, candidate: Candidate, room: "Room") -> Group:
    row = rows[0]
    inside = [(start, end) for start, end in candidate.populate if start < rows[-1].end and end > rows[1].start]
    return Group(
        keep,
        [(row.start, row.end) for row in rows[1:]],
        room.place(keep, rows[-1].end - keep),
        row.flags & abi.VM_ACCESS_FLAGS,
        _lock(row),
        [(max(start, rows[1].start), min(end, rows[-1].end)) for start, end in inside],
        _hole(keep, row.end, clip(candidate.runs, keep, row.end)) if not row.anon_vma else (0, 0),
    )


def _hole(start: int, end: int, runs: Sequence[pagemap.Run]) -> tuple[int, int]:
    """A hole of ``[start, end)`` (a mapped zero page, if need be), whole; (0, 0) if there is a page of its own."""
    if any(not kind & pagemap.ZERO for _, _, kind in runs):
        return (0, 0)
    for first, last, _ in runs:
        if first > start:
            return start, first
        start = last
    return (start, end) if start < end else (runs[0].start, runs[0].start + abi.PAGE_SIZE)


class NoRoom(Exception):
    """The address space has no free stretch that is large enough."""


class Room:
    """The largest free stretch of an address space, from whose middle each group borrows what it needs.

    rows: all VMAs, in order. The stretch below the first and above the last is not used: the kernel places
    new mappings by rules of its own there.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._low = self._high = 0
        if len(rows) > 1:
            starts, ends = [row.start for row in rows[1:]], [row.end for row in rows[:-1]]
            gaps = [start - end for start, end in zip(starts, ends, strict=True)]
            at = gaps.index(max(gaps))
            self._low, self._high = ends[at], starts[at]
        self._low += ROOM_GUARD
        self._high -= ROOM_GUARD

    def is_free(self, rows: Sequence[Row]) -> bool:
        """Whether none of `rows`, later ones of the same process, reaches into the stretch. O(log rows)."""
        at = bisect_right(rows, self._low, key=_end)
        return at == len(rows) or rows[at].start >= self._high

    def place(self, keep: int, length: int) -> int:
        """An address in the stretch for `length` bytes, aligned as `keep` modulo 2 MiB. Raises NoRoom."""
        start = (self._low + self._high - length) // 2 & -abi.HUGE_PAGE_SIZE | keep & (abi.HUGE_PAGE_SIZE - 1)
        if start < self._low or start + length > self._high:
            raise NoRoom(f"no {length >> 20} MiB of address space free in one piece")
        return start
