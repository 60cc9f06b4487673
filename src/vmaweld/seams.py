# SPDX-License-Identifier: GPL-2.0-or-later
"""Seams: why two VMAs that touch are two.

A seam is the border between two VMAs where one ends at the address at which the next begins. The kernel keeps
them apart for one or more reasons; `seams` lists all of them, by the rules of the kernel's own merge test
(``is_mergeable_vma()``, ``is_mergeable_anon_vma()``, ``can_vma_merge_before()`` and ``can_vma_merge_after()``
in ``mm/vma.c``; in ``mm/mmap.c`` before 6.11). An open seam is one that nothing but the page offset or the
anon_vma holds open.

The rule is read symmetrically: a reason counts when no request on either side could merge across the border.
Up to 6.15 the kernel also refused a faulted request beside an unfaulted neighbour, though the same pair merged
when the request came from the unfaulted side; such a pair is mergeable here.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from vmaweld.abi import (
    PAGE_SHIFT,
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_MAYBE_GUARD,
    VM_MAYSHARE,
    VM_SOFTDIRTY,
    VM_SPECIAL,
    VM_UFFD_ANY,
    VM_WRITE,
    flag_names,
)
from vmaweld.snapshot import Row, Snapshot

# One bit a reason, in the order in which they are named.
PROTECTION: Final = 1 << 0  # read, write or execute differs
FLAGS: Final = 1 << 1  # another flag differs; `Seam.flag_names` tells which
FILE: Final = 1 << 2  # another file (or another open of it), or a file beside none
FILE_OFFSET: Final = 1 << 3  # the same file, but the right side does not go on where the left one stops
ANON_NAME: Final = 1 << 4  # another name given with PR_SET_VMA_ANON_NAME
MEMPOLICY: Final = 1 << 5  # another memory policy
USERFAULTFD: Final = 1 << 6  # another userfaultfd, or another mode of it
SPECIAL: Final = 1 << 7  # one side is VM_SPECIAL, the kernel's own or has vm_ops->close: never disappears
PAGE_OFFSET: Final = 1 << 8  # anonymous memory whose page offsets do not go on
ANON_VMA: Final = 1 << 9  # two anon_vmas, or one that came through a fork beside none
HIDDEN: Final = 1 << 10  # page offset or anon_vma: the snapshot shows neither, and nothing else differs

OPEN_MASK: Final = PAGE_OFFSET | ANON_VMA | HIDDEN
"""A seam held by no other reason than these is open."""

NOT_ATTEMPTED: Final = "not-attempted"
"""The reason of a seam that nothing holds: no request has come by on which the kernel would have tried to merge."""

REASON_NAMES: Final[dict[int, str]] = {
    PROTECTION: "protection",
    FLAGS: "flags",
    FILE: "file",
    FILE_OFFSET: "file-offset",
    ANON_NAME: "anon-name",
    MEMPOLICY: "mempolicy",
    USERFAULTFD: "userfaultfd",
    SPECIAL: "special",
    PAGE_OFFSET: "page-offset",
    ANON_VMA: "anon-vma",
    HIDDEN: "page-offset-or-anon-vma",
}
"""The name of each reason; these are stable and appear in JSON."""

REASONS: Final[tuple[str, ...]] = (*REASON_NAMES.values(), NOT_ATTEMPTED)
"""All names, in order."""

IGNORED_FLAGS: Final = VM_SOFTDIRTY | VM_MAYBE_GUARD
"""Flags that may differ across a merge: soft-dirty always, maybe-guard since 6.19 (``VMA_IGNORE_MERGE_FLAGS``)."""

_OTHER_FLAGS: Final = ~(IGNORED_FLAGS | VM_ACCESS_FLAGS | VM_UFFD_ANY)
_KERNEL_NAMES: Final = ("[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]", "[uprobes]", "[sigpage]")
_NAMED_PREFIX: Final = "[anon"  # "[anon:x]" and "[anon_shmem:x]": "[heap]" and "[stack]" are no names of a VMA


class Seam:
    """The border between two VMAs that touch.

    index: position of the left VMA in ``snapshot.rows``; the right one is at ``index + 1``.
    address: where they meet.
    mask: the reasons as bits, 0 where nothing holds the seam.
    exact: every field that the kernel would compare was known. Where it is False the reasons are those that
        could be seen, and an open seam is open by elimination.
    """

    __slots__ = ("index", "address", "left", "right", "mask", "exact")

    def __init__(self, index: int, left: Row, right: Row, mask: int, exact: bool) -> None:
        self.index = index
        self.address = right.start
        self.left = left
        self.right = right
        self.mask = mask
        self.exact = exact

    @property
    def open(self) -> bool:
        """True where nothing but the page offset or the anon_vma holds the seam, or nothing at all."""
        return not self.mask & ~OPEN_MASK

    @property
    def reasons(self) -> tuple[str, ...]:
        """All reasons by name, in the order of `REASONS`; ``("not-attempted",)`` where nothing holds the seam."""
        return reason_names(self.mask)

    @property
    def flag_names(self) -> list[str]:
        """The flags other than access that one side has and the other lacks.

        >>> seam_between(0, Row(0x1000, 0x2000, 3), Row(0x2000, 0x3000, 3 | 0x4000000), True, False).flag_names
        ['dontdump']
        """
        return flag_names((self.left.flags ^ self.right.flags) & ~(IGNORED_FLAGS | VM_ACCESS_FLAGS))

    def __repr__(self) -> str:
        return f"{self.address:x} {'open' if self.open else 'shut'} {'+'.join(self.reasons)}"


class SeamRun:
    """Neighbouring VMAs with nothing but open seams between them: what could be one VMA.

    first, last: positions in ``snapshot.rows``, both included; always ``last > first``.
    start, end: the range in bytes.
    """

    __slots__ = ("first", "last", "start", "end")

    def __init__(self, first: int, last: int, start: int, end: int) -> None:
        self.first = first
        self.last = last
        self.start = start
        self.end = end

    @property
    def saved(self) -> int:
        """VMAs that would be gone were the run one."""
        return self.last - self.first

    def __repr__(self) -> str:
        return f"{self.start:x}-{self.end:x} rows {self.first}..{self.last}"


def reason_names(mask: int) -> tuple[str, ...]:
    """The names of the bits of `mask`.

    >>> reason_names(PAGE_OFFSET | ANON_VMA)
    ('page-offset', 'anon-vma')
    >>> reason_names(0)
    ('not-attempted',)
    """
    if not mask:
        return (NOT_ATTEMPTED,)
    return tuple([name for bit, name in REASON_NAMES.items() if mask & bit])


def anon_name(row: Row) -> str:
    """The name that PR_SET_VMA_ANON_NAME gave, "" for none: ``[heap]`` is where a VMA lies, not what it is called."""
    return row.name if row.name.startswith(_NAMED_PREFIX) else ""


def seam_between(index: int, left: Row, right: Row, flags_exact: bool, hidden: bool) -> Seam:
    """The seam between two rows that touch (``left.end == right.start``, not checked).

    flags_exact, hidden: as in `Snapshot`.
    """
    mask = 0
    exact = flags_exact and hidden
    difference = left.flags ^ right.flags
    if difference:
        if difference & VM_ACCESS_FLAGS:
            mask |= PROTECTION
        if difference & VM_UFFD_ANY:
            mask |= USERFAULTFD
        if difference & _OTHER_FLAGS:
            mask |= FLAGS
    # A VMA with a close operation may not be deleted by a merge, so a seam beside it stays (up to 6.11 the neighbour
    # was asked whether it has one, since 6.12 the one that would go; both sides map the same file, so it is the same).
    if (left.flags | right.flags) & VM_SPECIAL or left.close or right.close:
        mask |= SPECIAL
    if left.name or right.name:
        if left.name in _KERNEL_NAMES or right.name in _KERNEL_NAMES:
            mask |= SPECIAL
        if anon_name(left) != anon_name(right):
            mask |= ANON_NAME
    policy, other_policy = left.mempolicy, right.mempolicy
    if policy is None or other_policy is None:
        exact = False
    elif policy != other_policy:
        mask |= MEMPOLICY
    uffd, other_uffd = left.uffd, right.uffd
    if uffd is None or other_uffd is None:
        # A VMA has a context when and only when it has one of the flags (vma_can_userfault, userfaultfd_set_vm_flags).
        exact = exact and not (left.flags | right.flags) & VM_UFFD_ANY
    elif uffd != other_uffd:
        mask |= USERFAULTFD

    # The kernel compares open files, not paths. Offsets say something only where both sides map the same.
    file, other_file = left.file_id, right.file_id
    pgoff, other_pgoff = left.pgoff, right.pgoff
    if left.file != right.file if file is None or other_file is None else file != other_file:
        mask |= FILE
    elif pgoff is not None and other_pgoff is not None:
        if pgoff + ((left.end - left.start) >> PAGE_SHIFT) != other_pgoff:
            mask |= FILE_OFFSET if left.file or right.flags & VM_MAYSHARE else PAGE_OFFSET
    else:
        exact = False

    anon_vma, other_anon_vma = left.anon_vma, right.anon_vma
    if anon_vma is not None and other_anon_vma is not None:
        if anon_vma != other_anon_vma:
            if anon_vma and other_anon_vma:
                mask |= ANON_VMA
            else:
                chain = left.chain if anon_vma else right.chain
                if chain is None:
                    exact = False
                elif chain != 1:
                    mask |= ANON_VMA
    else:
        exact = False

    if not mask and not hidden:
        mask = _by_elimination(left, right)
    return Seam(index, left, right, mask, exact)


def _by_elimination(left: Row, right: Row) -> int:
    """The likeliest reason where the snapshot shows none: what it cannot show for this kind of memory."""
    if not left.file and not right.flags & VM_MAYSHARE:
        if left.pgoff is None or right.pgoff is None:
            return HIDDEN
        return ANON_VMA
    # Only private memory that was once writable (accounted then) can have copied pages, hence an anon_vma; else
    # the path is the same but the file was opened twice.
    writable = VM_WRITE | VM_ACCOUNT
    if not right.flags & VM_MAYSHARE and left.flags & writable and right.flags & writable:
        return ANON_VMA
    return FILE


def seams(snapshot: Snapshot) -> list[Seam]:
    """Every seam of `snapshot`, in order of address. O(rows), about a microsecond and a half each.

    >>> rows = [Row(0x1000, 0x2000, 3, pgoff=1, anon_vma=7), Row(0x2000, 0x3000, 3, pgoff=2, anon_vma=8)]
    >>> seams(Snapshot(1, rows, source="model", flags_exact=True, hidden=True))
    [2000 open anon-vma]
    """
    rows = snapshot.rows
    flags_exact = snapshot.flags_exact
    hidden = snapshot.hidden
    found: list[Seam] = []
    for index in range(len(rows) - 1):
        left = rows[index]
        right = rows[index + 1]
        if left.end == right.start:
            found.append(seam_between(index, left, right, flags_exact, hidden))
    return found


def open_seams(found: Iterable[Seam]) -> list[Seam]:
    """Those of `found` that are open."""
    return [seam for seam in found if not seam.mask & ~OPEN_MASK]


def runs_of_open_seams(found: Sequence[Seam]) -> list[SeamRun]:
    """The runs of `found` (as `seams` gives them: in order of address), each as long as it can be."""
    runs: list[SeamRun] = []
    last: SeamRun | None = None
    for seam in found:
        if seam.mask & ~OPEN_MASK:
            continue
        if last is not None and last.last == seam.index:
            last.last = seam.index + 1
            last.end = seam.right.end
        else:
            last = SeamRun(seam.index, seam.index + 1, seam.left.start, seam.right.end)
            runs.append(last)
    return runs


def mask_counts(found: Iterable[Seam]) -> dict[int, int]:
    """How many seams have each mask: few are ever different."""
    return Counter([seam.mask for seam in found])


def reason_counts(masks: Mapping[int, int]) -> dict[str, int]:
    """How many seams each reason holds, of `mask_counts`, every name present, in the order of `REASONS`.

    A seam with two reasons counts for both, so the sum may exceed the number of seams.
    """
    counts = dict.fromkeys(REASONS, 0)
    for mask, count in masks.items():
        for name in reason_names(mask):
            counts[name] += count
    return counts
