"""The merge: may a range become one VMA with its neighbours, and making it so.

The range is about to exist (mmap, brk, a moved mapping) or about to change (mprotect and its kin). `decide` asks the
three questions (the predecessor? the successor? both?) and picks a case; it changes nothing but the state it is
given. `apply_merge` carries the case out. That split is patch 1 of the series, upstream since 6.0.

The eight cases (P predecessor, A the range, N successor, X the one after A's own VMA; before -> after):

    the range is new                         the range is part of the VMA M
    1  PPPP AAAA NNNN -> PPPPPPPPPPPP        4  MM[AA] NNNN -> MMNNNNNN     A ends M
    2  PPPP AAAA .... -> PPPPPPPP            5  PPPP [AA]MM -> PPPPPPMM     A begins M
    3  .... AAAA NNNN ->     NNNNNNNN        6  PPPP [AA] XXXX -> PPPPPPPPPP A is all of M
                                             7  PPPP [AA] .... -> PPPPPP
                                             8  .... [AA] XXXX ->     XXXXXX

Sources of the rules: ``vma_merge`` (until 6.11), ``vma_merge_new_range`` and ``vma_merge_existing_range`` (since
6.12), the series' patches 2 and 3 where they are named.
"""

from __future__ import annotations

from typing import Final

from vmaweld.abi import PAGE_SHIFT, VM_MAYBE_GUARD, VM_SPECIAL
from vmaweld.model.anon_vma import AnonVma, clone_chain, unlink_chain
from vmaweld.model.pages import PageTable
from vmaweld.model.vma import VMA
from vmaweld.model.vma_tree import VmaTree
from vmaweld.policy import Policy

# What forbids a merge with a neighbour: bits. NOT_ADJACENT to CLOSE are hard; a merge that only PGOFF or ANON_VMA
# forbids is a missed one.
NOT_ADJACENT: Final = 1
SPECIAL: Final = 2
FLAGS: Final = 4
FILE: Final = 8
MEMPOLICY: Final = 16
UFFD: Final = 32
NAME: Final = 64
CLOSE: Final = 128
PGOFF: Final = 256
ANON_VMA: Final = 512
SOFT: Final = PGOFF | ANON_VMA

OBSTACLE_NAMES: Final[dict[int, str]] = {
    NOT_ADJACENT: "no neighbour",
    SPECIAL: "special mapping",
    FLAGS: "flags",
    FILE: "file",
    MEMPOLICY: "memory policy",
    UFFD: "userfaultfd",
    NAME: "anonymous name",
    CLOSE: "close operation",
    PGOFF: "page offset",
    ANON_VMA: "anon_vma",
}

# The answers of the series' trace event vm_av_merge.
MERGE_FAILED: Final = 0
AV_MERGE_FAILED: Final = 1
AV_MERGE_NULL: Final = 2
AV_MERGE_SAME: Final = 3
AV_MERGE_DIFFERENT: Final = 4
ANSWER_NAMES: Final = ("MERGE_FAILED", "AV_MERGE_FAILED", "AV_MERGE_NULL", "AV_MERGE_SAME", "AV_MERGE_DIFFERENT")


class MergeState:
    """One attempted merge, from request to result; the kernel's ``struct vma_merge_struct``.

    The request, made by one of the named initialisers:
    start, end: the range, as it is to be.
    flags, pgoff, file, mempolicy, uffd, name, anon_vma: what the range is to have.
    prev, next: the VMAs before and after the range.
    middle: the VMA that holds the range now, None for a range that is new.
    source: the VMA that an mremap is moving.
    updated: the moving range was faulted, and takes the page offset of its new address.
    shared: why patch 2 does not let it, in words; "" where it need not say.
    only_prev: the successor is not asked.
    next_first: the successor has the first word (`Policy.mmap_asks_next_first`).

    The answers, by `decide`:
    case: 1-8, 0 none.
    prev_obstacles, next_obstacles: what forbids the merge with the one and the other, bits.
    prev_answer, next_answer, both_answer: the answers of the trace event.
    """

    __slots__ = (
        "anon_vma",
        "both_answer",
        "case",
        "end",
        "file",
        "flags",
        "mempolicy",
        "middle",
        "name",
        "next",
        "next_answer",
        "next_first",
        "next_obstacles",
        "only_prev",
        "pgoff",
        "prev",
        "prev_answer",
        "prev_obstacles",
        "shared",
        "source",
        "start",
        "uffd",
        "updated",
    )

    def __init__(
        self, start: int, end: int, flags: int, pgoff: int, prev: VMA | None, next: VMA | None, like: VMA | None
    ) -> None:
        """A request for a range that is like the VMA `like`; like plain unfaulted anonymous memory if that is None."""
        self.start: int = start
        self.end: int = end
        self.flags: int = flags
        self.pgoff: int = pgoff
        self.prev: VMA | None = prev
        self.next: VMA | None = next
        self.file: str = "" if like is None else like.file
        self.mempolicy: str = "" if like is None else like.mempolicy
        self.uffd: int = 0 if like is None else like.uffd
        self.name: str = "" if like is None else like.name
        self.anon_vma: AnonVma | None = None if like is None else like.anon_vma
        self.middle: VMA | None = None
        self.source: VMA | None = None
        self.updated: bool = False
        self.shared: str = ""
        self.only_prev: bool = False
        self.next_first: bool = False
        self.case: int = 0
        self.prev_obstacles: int = NOT_ADJACENT
        self.next_obstacles: int = NOT_ADJACENT
        self.prev_answer: int = MERGE_FAILED
        self.next_answer: int = MERGE_FAILED
        self.both_answer: int = MERGE_FAILED

    @staticmethod
    def mapped(start: int, end: int, flags: int, pgoff: int, prev: VMA | None, next: VMA | None) -> MergeState:
        """A range is about to be mapped (mmap, brk)."""
        return MergeState(start, end, flags, pgoff, prev, next, None)

    @staticmethod
    def grown(vma: VMA, end: int) -> MergeState:
        """`vma` is about to grow up to `end`: the request is for what is added (mremap in place)."""
        return MergeState(vma.end, end, vma.flags, vma.pgoff_at(vma.end), vma, vma.next, vma)

    @staticmethod
    def moved(vma: VMA, start: int, end: int, pgoff: int, prev: VMA | None, next: VMA | None) -> MergeState:
        """``[start, end)`` is about to hold what `vma`, or a part of it, holds now (mremap elsewhere)."""
        m = MergeState(start, end, vma.flags, pgoff, prev, next, vma)
        m.source = vma
        return m

    @staticmethod
    def changed(vma: VMA, start: int, end: int, flags: int) -> MergeState:
        """``[start, end)`` of `vma` is about to have other `flags`, or what else the caller sets in the request."""
        prev = vma.prev if start == vma.start else None
        next = vma.next if end == vma.end else None
        m = MergeState(start, end, flags, vma.pgoff_at(start), prev, next, vma)
        m.middle = vma
        return m


def anon_vmas_answer(policy: Policy, first: AnonVma | None, second: AnonVma | None) -> int:
    """Whether two anon_vmas that are both present, or both absent, are compatible.

    Patch 3: distinct ones are when the first is its own root and has no children; its pages are those that change.
    """
    if first is second:
        return AV_MERGE_NULL if first is None else AV_MERGE_SAME
    if policy.merge_anon_vmas and first is not None and first.unshared():
        return AV_MERGE_DIFFERENT
    return AV_MERGE_FAILED


def _forked(vma: VMA | None) -> bool:
    """``vma_is_fork_child``: linked with a parent's anon_vma too, so nobody's chain should take it over."""
    return vma is not None and len(vma.chain) > 1


def _neighbour_answer(policy: Policy, m: MergeState, neighbour: VMA) -> int:
    """``is_mergeable_anon_vma`` for one neighbour."""
    theirs = neighbour.anon_vma
    mine = m.anon_vma
    if theirs is None and mine is not None:
        if policy.unfaulted_takes_faulted:
            return AV_MERGE_FAILED if _forked(m.middle) or _forked(m.source) else AV_MERGE_NULL
        # Until 6.15 the neighbour's chain had to be singular, which an empty one is not.
        return AV_MERGE_FAILED
    if theirs is not None and mine is None:
        return AV_MERGE_NULL if len(neighbour.chain) == 1 else AV_MERGE_FAILED
    return anon_vmas_answer(policy, mine, theirs)


def _hard_obstacle(policy: Policy, m: MergeState, neighbour: VMA) -> int:
    """The first thing other than page offset and anon_vma that forbids the merge (``is_mergeable_vma``), or 0."""
    if (neighbour.flags ^ m.flags) & ~policy.ignored_flags:
        return FLAGS
    if neighbour.file != m.file:
        return FILE
    if neighbour.mempolicy != m.mempolicy:
        return MEMPOLICY
    if neighbour.uffd != m.uffd:
        return UFFD
    if neighbour.name != m.name:
        return NAME
    if neighbour.close and policy.close_never_merges:
        return CLOSE
    return 0


def decide(m: MergeState, policy: Policy) -> int:
    """Fill in the answers of `m` and return its case, 0 where nothing merges. Changes nothing else."""
    if m.flags & VM_SPECIAL:
        m.prev_obstacles = m.next_obstacles = SPECIAL
        return 0
    middle = m.middle
    prev = m.prev
    next = m.next
    merge_prev = False
    merge_next = False

    # The predecessor? It must end where the range begins; inside a VMA there is none.
    if prev is not None and prev.end == m.start:
        obstacles = _hard_obstacle(policy, m, prev)
        if not obstacles:
            answer = _neighbour_answer(policy, m, prev)
            if answer == AV_MERGE_FAILED:
                obstacles = ANON_VMA
            if prev.pgoff + ((prev.end - prev.start) >> PAGE_SHIFT) != m.pgoff:
                obstacles |= PGOFF
            else:
                m.prev_answer = answer
            merge_prev = not obstacles
        m.prev_obstacles = obstacles

    # The successor?
    if next is not None and next.start == m.end and not m.only_prev:
        obstacles = _hard_obstacle(policy, m, next)
        if not obstacles:
            answer = _neighbour_answer(policy, m, next)
            if answer == AV_MERGE_FAILED:
                obstacles = ANON_VMA
            if m.pgoff + ((m.end - m.start) >> PAGE_SHIFT) != next.pgoff:
                obstacles |= PGOFF
            else:
                m.next_answer = answer
            merge_next = not obstacles
        m.next_obstacles = obstacles

    if not merge_prev and not merge_next:
        return 0

    # Both? Each may go with the range and yet not with the other.
    merge_both = False
    if merge_prev and merge_next:
        assert prev is not None
        assert next is not None
        if m.next_first and prev.anon_vma is None and next.anon_vma is not None:
            m.both_answer = AV_MERGE_FAILED
        elif prev.anon_vma is None or next.anon_vma is None:
            m.both_answer = AV_MERGE_NULL
        else:
            m.both_answer = anon_vmas_answer(policy, next.anon_vma, prev.anon_vma)
        # Since 6.12 what cannot be removed is left beside the rest.
        merge_both = m.both_answer != AV_MERGE_FAILED and not next.close
        merge_prev = not m.next_first  # where not both, then the one that was asked first

    if middle is None:
        m.case = 1 if merge_both else 2 if merge_prev else 3
        return m.case
    whole = m.start == middle.start and m.end == middle.end
    if whole and middle.close:
        return 0
    if merge_both:
        m.case = 6
    elif merge_prev:
        m.case = 7 if whole else 5
    else:
        m.case = 8 if whole else 4
    return m.case


def apply_merge(m: MergeState, vmas: VmaTree, pages: PageTable) -> VMA:
    """Carry out ``m.case`` and return the VMA that now holds the range. Its flags are the caller's to set."""
    case = m.case
    survivor = m.next if case in (3, 4, 8) else m.prev
    assert survivor is not None
    middle = m.middle
    survivor.flags |= m.flags & VM_MAYBE_GUARD  # flags that may differ stick (VM_STICKY)

    # What the survivor takes over: the range's pages, and in cases 1 and 6 the successor's.
    if case in (1, 6):
        gone = m.next
        assert gone is not None
        survivor.flags |= gone.flags & VM_MAYBE_GUARD
        if gone.anon_vma is not None:
            if survivor.anon_vma is None:
                clone_chain(survivor, gone)
            elif survivor.anon_vma is not gone.anon_vma:  # patch 3
                pages.give(gone.start, gone.end, gone.anon_vma, survivor.anon_vma)
    giver = middle if middle is not None else m.source
    if giver is not None and giver.anon_vma is not None:
        if survivor.anon_vma is None:
            clone_chain(survivor, giver)
        elif survivor.anon_vma is not giver.anon_vma:  # patch 3; what moves is given as it moves
            pages.give(m.start, m.end, giver.anon_vma, survivor.anon_vma)

    end = survivor.end
    if case in (1, 6):
        assert m.next is not None
        end = m.next.end
        _remove(m.next, vmas)
    elif case in (2, 5, 7):
        end = m.end
    if case in (6, 7, 8):
        assert middle is not None
        _remove(middle, vmas)
    elif case == 5:
        assert middle is not None
        _move_start(middle, m.end, vmas)
    elif case == 4:
        assert middle is not None
        middle.end = m.start
    survivor.end = end
    if case in (3, 4, 8):
        _move_start(survivor, m.start, vmas)
    return survivor


def _remove(vma: VMA, vmas: VmaTree) -> None:
    if vma.anon_vma is not None:
        unlink_chain(vma)
    vmas.remove(vma)


def _move_start(vma: VMA, start: int, vmas: VmaTree) -> None:
    """Move the lower end of `vma`; its pages keep their offsets."""
    vma.pgoff += (start - vma.start) >> PAGE_SHIFT
    vmas.set_start(vma, start)
