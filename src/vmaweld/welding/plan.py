"""What to weld: from a snapshot to groups for the batch machine, and the reasons for what is left out."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
SHARED: Final = "pages shared with another process, or by KSM: --unshare makes them its own"
ZEROES: Final = "mapped pages of zeroes, which this kernel cannot move: Linux 6.9 to 6.15, and 6.18.21 or later, can"
_OWN: Final = pagemap.EXCLUSIVE | pagemap.FILE | pagemap.ZERO
"""A page that is present and none of these is shared."""
_NEVER: Final[tuple[tuple[int, str], ...]] = (
    (abi.VM_MAYSHARE | abi.VM_SHARED, "shared memory: its pages belong to no one process"),
    (abi.VM_HUGETLB, "hugetlb memory: UFFDIO_MOVE does not take it"),
    (abi.VM_GROWSDOWN, "a stack that grows by itself"),
    (abi.VM_SPECIAL, "a special mapping (device or kernel memory)"),
    (abi.VM_UFFD_ANY, "the program watches it with a userfaultfd of its own"),
    (abi.VM_SEALED, "sealed with mseal(2): the kernel forbids moving it"),
    (abi.VM_SHADOW_STACK, "a shadow stack"),
    (abi.VM_DROPPABLE, "droppable memory (MAP_DROPPABLE): userfaultfd refuses it"),
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


class Limits(NamedTuple):
    """What the caller wants, and what the process allows.

    low, high: weld inside ``[low, high)`` only: every byte that is touched lies in it.
    min_gain: leave runs with fewer open seams than that.
    unshare: make shared pages the process's own first.
    relock: "" where mlocked memory may be unlocked for the moment and locked again, else why not.
    failed: seams that were tried already, by address, with the reason why they stayed open.
    avoid: addresses whose VMAs must not be touched, with the reason.
    zero_stays: the page of zeroes, which a read maps, must not be moved (see `support.zero_stays`).
    """

    low: int = 0
    high: int = abi.TASK_SIZE
    min_gain: int = 1
    unshare: bool = False
    relock: str = ""
    failed: Mapping[int, str] = MappingProxyType({})
    avoid: Mapping[int, str] = MappingProxyType({})
    zero_stays: bool = False


def make(snapshot: Snapshot, pages: PageSource, limits: Limits, *, quick: bool = False) -> Plan:
    """The plan for `snapshot`. O(rows + populated runs).

    quick: suppose that no page is shared, which saves most of the time; where one is, its group will fail.
    """
    look = pages.populated if quick and not limits.unshare else pages.runs
    candidates: list[Candidate] = []
    left: list[Left] = []
    moved = copied = 0
    for rows in _chains(snapshot, limits, left):
        reason = _why_not(rows, snapshot, limits)
        if reason:
            left.append(_left(rows, reason))
            continue
        if len(rows) - 1 < limits.min_gain:
            left.append(_left(rows, GAIN))
            continue
        populated = look(rows[0].start, rows[-1].end)
        for part, held, reason in _split_at_held(rows, populated, limits):
            if held:
                left.append(Left(part[0].end, part[-1].end, len(part) - 1, reason, held))
                continue
            reason = _locked_reason(part, populated, limits.low)
            if reason:
                left.append(_left(part, reason))
                continue
            inside = clip(populated, part[1].start, part[-1].end)
            totals = pagemap.totals(inside)
            moved += totals.populated
            copied += totals.shared
            populate: Sequence[tuple[int, int]] = ()
            if limits.unshare:
                populate = [(start, end) for start, end, kind in inside if not kind & pagemap.ZERO]
            candidates.append(Candidate(part, populated, populate, totals.shared))
    return Plan(candidates, left, moved, copied)


def _left(rows: Sequence[Row], reason: str) -> Left:
    return Left(rows[0].start, rows[-1].end, len(rows) - 1, reason)


def _chains(snapshot: Snapshot, limits: Limits, left: list[Left]) -> Iterator[Sequence[Row]]:
    """Rows with open seams between them, two or more, inside the limits and cut where no weld may be."""
    for start, last in _open_runs(snapshot):
        rows = _within(snapshot.rows, start, last, limits)
        avoid = [(at, why) for at, why in limits.avoid.items() if rows and rows[0].start <= at < rows[-1].end]
        if not limits.failed and not avoid:
            if len(rows) > 1:
                yield rows
            continue
        first = 0
        for at in range(1, len(rows)):
            reason = limits.failed.get(rows[at].start) or next(
                (why for address, why in avoid if rows[at - 1].start <= address < rows[at].end), None
            )
            if reason is not None:
                left.append(Left(rows[at - 1].end, rows[at].end, 1, reason))
                if at - first > 1:
                    yield rows[first:at]
                first = at
        if len(rows) - first > 1:
            yield rows[first:]


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
        return "maps a file: UFFDIO_MOVE takes anonymous memory only"
    for bits, reason in _NEVER:
        if flags & bits:
            return reason
    if any(name.startswith("[stack") for name in {row.name for row in rows}):
        return "the stack"
    if row.close:
        return "a mapping with a close operation never merges"
    if flags & abi.VM_MERGEABLE and not limits.unshare:
        return "KSM may share its pages (MADV_MERGEABLE): --unshare breaks that"
    if not flags & abi.VM_WRITE and not flags & abi.VM_ACCOUNT and not flags & abi.VM_NORESERVE:
        return "never writable until now: making it so would charge it to the commit limit for good"
    if flags & abi.VM_LOCKED_MASK and limits.relock:
        return limits.relock
    if snapshot.source == "procfs" and any(row.mempolicy is None for row in rows):
        return "its memory policy cannot be read"
    return ""


def _locked_reason(rows: Sequence[Row], populated: Sequence[pagemap.Run], low: int) -> str:
    """Locking again populates every hole, so there must be none; MLOCK_ONFAULT leaves them."""
    if rows[0].flags & abi.VM_LOCKED_MASK != abi.VM_LOCKED:
        return ""
    keep = keep_from(rows[0], low)
    there = sum(end - start for start, end, _ in clip(populated, keep, rows[-1].end))
    if there != rows[-1].end - keep:
        return "mlocked, yet with holes: locking it again would fill them"
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
    held = {
        reason: _pages_by_row(rows, populated, mask, kind)
        for reason, mask, kind, holds in (
            (SHARED, _OWN | pagemap.PRESENT, pagemap.PRESENT, not limits.unshare),
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
    locked = -1
    if row.flags & abi.VM_LOCKED_MASK:
        locked = abi.MLOCK_ONFAULT if row.flags & abi.VM_LOCKONFAULT else 0
    inside = [(start, end) for start, end in candidate.populate if start < rows[-1].end and end > rows[1].start]
    return Group(
        keep,
        [(row.start, row.end) for row in rows[1:]],
        room.place(keep, rows[-1].end - keep),
        row.flags & abi.VM_ACCESS_FLAGS,
        locked,
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

    def place(self, keep: int, length: int) -> int:
        """An address in the stretch for `length` bytes, aligned as `keep` modulo 2 MiB. Raises NoRoom."""
        start = (self._low + self._high - length) // 2 & -abi.HUGE_PAGE_SIZE | keep & (abi.HUGE_PAGE_SIZE - 1)
        if start < self._low or start + length > self._high:
            raise NoRoom(f"no {length >> 20} MiB of address space free in one piece")
        return start
