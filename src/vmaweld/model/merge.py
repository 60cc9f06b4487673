# SPDX-License-Identifier: GPL-2.0-or-later
"""The merge: may a range become one VMA with its neighbours, and making it so.

The range is about to exist (mmap, brk, a moved mapping) or about to change (mprotect and its kin). `decide` asks the
three questions (the predecessor? the successor? both?) and picks a case; it changes nothing but the state it is
given. `apply_merge` carries the case out. That split is patch 1 of the series, upstream since 6.1.

A merge is one of eight cases. The range goes to the VMA before it, to the one after it, or joins both. It is new, or
the tail of the VMA that holds it now, or its head, or the whole of it. `_case` has a drawing of each.

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

# The cases, by the numbers that the comment above ``vma_merge`` gave them.
NEW_TO_BOTH: Final = 1
NEW_TO_PREV: Final = 2
NEW_TO_NEXT: Final = 3
TAIL_TO_NEXT: Final = 4
HEAD_TO_PREV: Final = 5
WHOLE_TO_BOTH: Final = 6
WHOLE_TO_PREV: Final = 7
WHOLE_TO_NEXT: Final = 8

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
        if like is None:
            self.file: str = ""
            self.mempolicy: str = ""
            self.uffd: int = 0
            self.name: str = ""
            self.anon_vma: AnonVma | None = None
        else:
            self.file = like.file
            self.mempolicy = like.mempolicy
            self.uffd = like.uffd
            self.name = like.name
            self.anon_vma = like.anon_vma
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
        m = MergeState(start, end, flags, vma.pgoff + ((start - vma.start) >> PAGE_SHIFT), prev, next, vma)
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


def _ask(policy: Policy, m: MergeState, neighbour: VMA, linear: bool) -> tuple[int, int]:
    """May the range merge with a `neighbour` that it touches? What forbids it (bits), and the trace event's answer.

    linear: the page offsets go on across the border.
    """
    # is_mergeable_vma
    if (neighbour.flags ^ m.flags) & ~policy.ignored_flags:
        return FLAGS, MERGE_FAILED
    if neighbour.file != m.file:
        return FILE, MERGE_FAILED
    if neighbour.mempolicy != m.mempolicy:
        return MEMPOLICY, MERGE_FAILED
    if neighbour.uffd != m.uffd:
        return UFFD, MERGE_FAILED
    if neighbour.name != m.name:
        return NAME, MERGE_FAILED
    if neighbour.close and policy.close_never_merges:
        return CLOSE, MERGE_FAILED
    # can_vma_merge_before, can_vma_merge_after
    answer = _neighbour_answer(policy, m, neighbour)
    obstacle = ANON_VMA if answer == AV_MERGE_FAILED else 0
    if not linear:
        return obstacle | PGOFF, MERGE_FAILED
    return obstacle, answer


def _both_answer(policy: Policy, m: MergeState, prev: VMA, next: VMA) -> int:
    """Are the anon_vmas of the neighbours compatible with each other? Each is with that of the range."""
    if m.next_first and prev.anon_vma is None and next.anon_vma is not None:
        return AV_MERGE_FAILED
    if prev.anon_vma is None or next.anon_vma is None:
        return AV_MERGE_NULL
    return anon_vmas_answer(policy, next.anon_vma, prev.anon_vma)


def decide(m: MergeState, policy: Policy) -> int:
    """Fill in the answers of `m` and return its case, 0 where nothing merges. Changes nothing else."""
    if m.flags & VM_SPECIAL:
        m.prev_obstacles = m.next_obstacles = SPECIAL
        return 0
    prev = m.prev
    next = m.next
    # A neighbour must touch the range. Where the range begins or ends inside a VMA there is none on that side.
    if prev is not None and prev.end == m.start:
        linear = prev.pgoff + ((prev.end - prev.start) >> PAGE_SHIFT) == m.pgoff
        m.prev_obstacles, m.prev_answer = _ask(policy, m, prev, linear)
    if next is not None and next.start == m.end and not m.only_prev:
        linear = m.pgoff + ((m.end - m.start) >> PAGE_SHIFT) == next.pgoff
        m.next_obstacles, m.next_answer = _ask(policy, m, next, linear)
    to_prev = not m.prev_obstacles
    to_next = not m.next_obstacles
    if not to_prev and not to_next:
        return 0
    if to_prev and to_next:  # each may go with the range, and yet perhaps not with the other
        assert prev is not None
        assert next is not None
        m.both_answer = _both_answer(policy, m, prev, next)
        # Since 6.12 what cannot be removed is left beside the rest.
        if m.both_answer == AV_MERGE_FAILED or next.close:
            to_prev = not m.next_first  # the one that was asked first
            to_next = m.next_first
    m.case = _case(m, to_prev, to_next)
    return m.case


def _case(m: MergeState, to_prev: bool, to_next: bool) -> int:
    """The case of a range that goes to the VMA before it, to the one after it, or joins both.

    In the drawings P is the predecessor, N the successor, A the range, and M what else the VMA has that holds it now.
    """
    middle = m.middle
    if middle is None:
        if to_prev and to_next:
            # PPPP AAAA NNNN  ->  PPPPPPPPPPPP    N goes
            return NEW_TO_BOTH
        if to_prev:
            # PPPP AAAA ....  ->  PPPPPPPP
            return NEW_TO_PREV
        # .... AAAA NNNN  ->      NNNNNNNN
        return NEW_TO_NEXT
    if m.start == middle.start and m.end == middle.end:
        if middle.close:  # it cannot be removed
            return 0
        if to_prev and to_next:
            # PPPP[AAAA]NNNN  ->  PPPPPPPPPPPP    A's VMA and N go
            return WHOLE_TO_BOTH
        if to_prev:
            # PPPP[AAAA]....  ->  PPPPPPPP        A's VMA goes
            return WHOLE_TO_PREV
        # ....[AAAA]NNNN  ->      NNNNNNNN        A's VMA goes
        return WHOLE_TO_NEXT
    if to_prev:
        # PPPP[AAMM]      ->  PPPPPPMM
        return HEAD_TO_PREV
    #     [MMAA]NNNN  ->      MMNNNNNN
    return TAIL_TO_NEXT


def apply_merge(m: MergeState, vmas: VmaTree, pages: PageTable) -> VMA:
    """Carry out ``m.case`` and return the VMA that now holds the range. Its flags are the caller's to set."""
    case = m.case
    downwards = case in (NEW_TO_NEXT, TAIL_TO_NEXT, WHOLE_TO_NEXT)
    survivor = m.next if downwards else m.prev
    assert survivor is not None
    gone = m.next if case in (NEW_TO_BOTH, WHOLE_TO_BOTH) else None
    middle = m.middle

    # What the survivor takes over. Flags that may differ stick (VM_STICKY).
    survivor.flags |= m.flags & VM_MAYBE_GUARD
    if gone is not None:
        survivor.flags |= gone.flags & VM_MAYBE_GUARD
        _hand_over(gone, survivor, gone.start, gone.end, pages)
    giver = middle if middle is not None else m.source
    if giver is not None:  # where an mremap moves to, there are no pages yet: they are given as they move
        _hand_over(giver, survivor, m.start, m.end, pages)

    # Make room, then extend the survivor.
    end = m.end
    if gone is not None:
        end = gone.end
        _remove(gone, vmas)
    if middle is not None:
        if case == HEAD_TO_PREV:
            _move_start(middle, m.end, vmas)
        elif case == TAIL_TO_NEXT:
            middle.end = m.start
        else:
            _remove(middle, vmas)
    if downwards:
        _move_start(survivor, m.start, vmas)
    else:
        survivor.end = end
    return survivor


def _hand_over(giver: VMA, survivor: VMA, start: int, end: int, pages: PageTable) -> None:
    """Link `survivor` with the anon_vmas of `giver`; if it has its own, patch 3 gives it the pages of the range."""
    if giver.anon_vma is None:
        return
    if survivor.anon_vma is None:
        clone_chain(survivor, giver)
    elif survivor.anon_vma is not giver.anon_vma:
        pages.give(start, end, giver.anon_vma, survivor.anon_vma)


def _remove(vma: VMA, vmas: VmaTree) -> None:
    if vma.anon_vma is not None:
        unlink_chain(vma)
    vmas.remove(vma)


def _move_start(vma: VMA, start: int, vmas: VmaTree) -> None:
    """Move the lower end of `vma`; its pages keep their offsets."""
    vma.pgoff += (start - vma.start) >> PAGE_SHIFT
    vmas.set_start(vma, start)
