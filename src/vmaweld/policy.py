"""Policy: what a kernel allows. Every difference between kernels is one named row here, never a test of versions.

A policy is a kernel, optionally followed by changes: ``linux-5.17+series``, ``linux-6.18+pgoff``. The changes are
the patches of the series under the names of `CHANGES`.
"""

import re

from vmaweld.abi import VM_MAYBE_GUARD, VM_SOFTDIRTY

# The rows. `until` or `since` tells the release whose change made the difference.
UPDATE_PGOFF = "update-pgoff"
"""Series, patch 2: mremap gives a moved, faulted, unshared VMA and its pages the offset of the new address."""
MERGE_ANON_VMAS = "merge-anon-vmas"
"""Series, patch 3: distinct anon_vmas are compatible where the pages that change owner are unshared."""
MERGE_AFTER_GROW = "merge-after-grow"
"""Since 6.0 (and a later version of the series): mremap growing in place merges with the VMA it comes to touch."""
FORK_REUSES_BY_DEGREE = "fork-reuses-by-degree"
"""Until 5.19: fork reuses an ancestor's anon_vma of degree < 2. Since 6.0 (and in stable releases) VMAs and children
are counted apart."""
BRK_MERGES_NEXT = "brk-merges-next"
"""Until 5.19: brk asks vma_merge(), which may join the VMA above too. Since 6.0 it only extends the one below."""
MMAP_ASKS_NEXT_FIRST = "mmap-asks-next-first"
"""6.1 to 6.11: mmap asks the VMA above first, then the one below with the anon_vma of that; so where the two cannot go
together the range goes up, and an unfaulted VMA below stays apart from a faulted one above."""
CLOSE_NEVER_MERGES = "close-never-merges"
"""Until 6.4: a VMA whose vm_ops have close never merges. Since then only its removal is refused (degrading, 6.12)."""
UNFAULTED_TAKES_FAULTED = "unfaulted-takes-faulted"
"""Since 6.16: a neighbour without anon_vma may take a request that has one, unless that came from a fork."""
MREMAP_MOVES_MANY = "mremap-moves-many"
"""Since 6.17: one mremap(MREMAP_FIXED) that keeps the size may move several VMAs."""
MREMAP_CHECKS_FIRST = "mremap-checks-first"
"""Since 6.17: mremap checks its addresses before it looks for the VMA, so EINVAL comes before EFAULT."""
DONTUNMAP_ANY = "dontunmap-any"
"""Since 5.13: MREMAP_DONTUNMAP takes file and shared mappings too."""
DONTUNMAP_RESETS_PGOFF = "dontunmap-resets-pgoff"
"""Since 7.0 (and stable releases of 6.1 to 6.18): a VMA emptied by MREMAP_DONTUNMAP takes the offset of its address."""
DONTUNMAP_SPLITS_LOCKED = "dontunmap-splits-locked"
"""Since 7.1 (and stable releases of 6.1 and 6.12): MREMAP_DONTUNMAP of part of an mlocked VMA unlocks that part alone;
before, all of the VMA."""
DONTUNMAP_KEEPS_TWO = "dontunmap-keeps-two"
"""Since 6.19 (and stable releases of 6.1 to 6.18): MREMAP_DONTUNMAP never merges the target with its own source."""
UNACCOUNT_UNFAULTED = "unaccount-unfaulted"
"""Since 6.5: mprotect takes VM_ACCOUNT away from an unfaulted anonymous VMA that it makes unwritable."""
THP_ALIGNED_MMAP = "thp-aligned-mmap"
"""Since 6.7: anonymous mappings that are a multiple of 2 MiB are placed at a multiple of 2 MiB."""
MREMAP_HEADROOM_EXACT = "mremap-headroom-exact"
"""Since 7.1: mremap counts the VMAs that it may need; before, it kept 3 (and 5 for a fixed target) below the limit."""
MADV_POPULATE = "madv-populate"
"""Since 5.14: MADV_POPULATE_READ and MADV_POPULATE_WRITE."""
MADV_DONTNEED_LOCKED_ROW = "madv-dontneed-locked"
"""Since 5.18: MADV_DONTNEED_LOCKED."""
MADV_COLLAPSE_ROW = "madv-collapse"
"""Since 6.1: MADV_COLLAPSE."""
MADV_GUARD = "madv-guard"
"""Since 6.13: MADV_GUARD_INSTALL and MADV_GUARD_REMOVE."""
GUARD_FLAG = "guard-flag"
"""Since 6.19 (and stable releases of 6.18): MADV_GUARD_INSTALL sets VM_MAYBE_GUARD, which sticks to merged VMAs and
never hinders a merge."""
MADVISE_EAGAIN = "madvise-eagain"
"""Since 5.17: madvise that would need more VMAs than vm.max_map_count fails with EAGAIN; before, with ENOMEM."""
ANON_NAMES = "anon-names"
"""Since 5.17: prctl(PR_SET_VMA_ANON_NAME), where the kernel is configured for it (see `System`)."""
NAMES_SHARED_ANON = "names-shared-anon"
"""Since 6.2: shared anonymous memory and memfds can be named too; before, no VMA that has a file."""
MSEAL = "mseal"
"""Since 6.10: mseal()."""
DROPPABLE = "droppable"
"""Since 6.11: MAP_DROPPABLE."""
SHARED_UFFD_WP = "shared-uffd-wp"
"""Since 5.19: userfaultfd write protection of shared and file memory."""
UFFD_UNREGISTER_OWN = "uffd-unregister-own"
"""Since 6.17: a userfaultfd cannot unregister what another one has registered."""
POPULATE_STOPS_AT_HOLE = "populate-stops-at-hole"
"""Since 6.9: MADV_POPULATE_* end with ENOMEM at a hole; before, they went on behind it, as other advice does."""
MREMAP_NEEDS_VMA = "mremap-needs-vma"
"""Since 5.16: mremap finds a VMA at the old address before anything else; before, one that only shrinks needed none."""
DONTUNMAP_UNLINKS = "dontunmap-unlinks"
"""Since 5.13: a VMA emptied by MREMAP_DONTUNMAP loses its anon_vma."""
DONTUNMAP_ACCOUNTS_NEXT = "dontunmap-accounts-next"
"""Until 5.12, by mistake: MREMAP_DONTUNMAP of the middle of an accounted VMA sets VM_ACCOUNT on the VMA above it."""
DONTUNMAP_SKIPS_MERGE = "dontunmap-skips-merge"
"""6.1.y's form of dontunmap-keeps-two: a target next to its source does not merge with its other neighbour either."""
ONFAULT_CHECKS_ACCESS = "onfault-checks-access"
"""Until 5.17: mlock2(MLOCK_ONFAULT) of memory without access is ENOMEM; since 5.18 it is not even looked at."""
STACK_GAP_STAYS = "stack-gap-stays"
"""Until 6.0: a stack keeps the gap below it free and no more; since the maple tree (6.1) a search that meets a stack
goes on below its gap, passing what lies in between."""
REMOVE_NEEDS_WRITE = "remove-needs-write"
"""Until 6.6 (not in stable releases of 5.10 and 6.1): MADV_REMOVE takes shared mappings that are writable; since then
those too that may become so."""
UFFD_MOVE = "uffd-move"
"""Since 6.8: UFFDIO_MOVE."""

_5_10 = frozenset(
    {
        DONTUNMAP_ACCOUNTS_NEXT,
        FORK_REUSES_BY_DEGREE,
        BRK_MERGES_NEXT,
        CLOSE_NEVER_MERGES,
        ONFAULT_CHECKS_ACCESS,
        STACK_GAP_STAYS,
    }
)
_5_17 = (_5_10 - {DONTUNMAP_ACCOUNTS_NEXT}) | {
    DONTUNMAP_ANY,
    MADV_POPULATE,
    ANON_NAMES,
    MADVISE_EAGAIN,
    MREMAP_NEEDS_VMA,
    DONTUNMAP_UNLINKS,
    REMOVE_NEEDS_WRITE,
}
_GONE_BY_6_1 = frozenset(
    {FORK_REUSES_BY_DEGREE, BRK_MERGES_NEXT, ONFAULT_CHECKS_ACCESS, STACK_GAP_STAYS, REMOVE_NEEDS_WRITE}
)
_6_1 = (_5_17 - _GONE_BY_6_1) | {
    MERGE_AFTER_GROW,
    MMAP_ASKS_NEXT_FIRST,
    MADV_DONTNEED_LOCKED_ROW,
    MADV_COLLAPSE_ROW,
    SHARED_UFFD_WP,
    DONTUNMAP_RESETS_PGOFF,
    DONTUNMAP_SPLITS_LOCKED,
    DONTUNMAP_KEEPS_TWO,
    DONTUNMAP_SKIPS_MERGE,
}
_6_12 = (_6_1 - {CLOSE_NEVER_MERGES, MMAP_ASKS_NEXT_FIRST, DONTUNMAP_SKIPS_MERGE}) | {
    UNACCOUNT_UNFAULTED,
    THP_ALIGNED_MMAP,
    NAMES_SHARED_ANON,
    MSEAL,
    DROPPABLE,
    UFFD_MOVE,
    POPULATE_STOPS_AT_HOLE,
}
_STABLE_FIXES = frozenset({DONTUNMAP_RESETS_PGOFF, DONTUNMAP_SPLITS_LOCKED, DONTUNMAP_KEEPS_TWO})
"""Of 7.x; the newest stable releases of 6.1 and 6.12 have them too, 6.18.44 does not yet."""
_6_18 = (_6_12 - _STABLE_FIXES) | {
    UNFAULTED_TAKES_FAULTED,
    MREMAP_MOVES_MANY,
    MREMAP_CHECKS_FIRST,
    MADV_GUARD,
    UFFD_UNREGISTER_OWN,
    GUARD_FLAG,
}
_7_2 = _6_18 | _STABLE_FIXES | {MREMAP_HEADROOM_EXACT}

KERNELS: dict[str, frozenset[str]] = {
    "linux-5.10": _5_10 - {FORK_REUSES_BY_DEGREE},  # 5.10.y took 6.0's fork rule as a fix
    "linux-5.17": _5_17,
    "linux-6.1": _6_1,
    "linux-6.12": _6_12,
    "linux-6.18": _6_18,
    "linux-7.2": _7_2,
}
"""The rows of every kernel that has been held against the real one."""

CHANGES: dict[str, frozenset[str]] = {
    "pgoff": frozenset({UPDATE_PGOFF}),
    "anon-vma": frozenset({MERGE_ANON_VMAS}),
    "series": frozenset({UPDATE_PGOFF, MERGE_ANON_VMAS}),
    "grow": frozenset({MERGE_AFTER_GROW}),
}
"""The series as switches. Patch 1 (the refactor) is the shape of `model/merge.py`; patch 4 its tracepoints."""


class Policy:
    """The rows that hold, as plain attributes that the machine reads.

    name: as `parse_policy` took it.     rows: the names above.
    """

    __slots__ = (
        "anon_names",
        "brk_merges_next",
        "close_never_merges",
        "dontunmap_accounts_next",
        "dontunmap_any",
        "dontunmap_keeps_two",
        "dontunmap_resets_pgoff",
        "dontunmap_skips_merge",
        "dontunmap_splits_locked",
        "dontunmap_unlinks",
        "droppable",
        "fork_reuses_by_degree",
        "guard_flag",
        "ignored_flags",
        "madv_collapse",
        "madv_dontneed_locked",
        "madv_guard",
        "madv_populate",
        "madvise_eagain",
        "merge_after_grow",
        "merge_anon_vmas",
        "mmap_asks_next_first",
        "mremap_checks_first",
        "mremap_headroom_exact",
        "mremap_moves_many",
        "mremap_needs_vma",
        "mseal",
        "name",
        "names_shared_anon",
        "onfault_checks_access",
        "populate_stops_at_hole",
        "remove_needs_write",
        "rows",
        "shared_uffd_wp",
        "stack_gap_stays",
        "thp_aligned_mmap",
        "uffd_move",
        "uffd_unregister_own",
        "unaccount_unfaulted",
        "unfaulted_takes_faulted",
        "update_pgoff",
    )

    def __init__(self, name: str, rows: frozenset[str]) -> None:
        self.name: str = name
        self.rows: frozenset[str] = rows
        self.update_pgoff: bool = UPDATE_PGOFF in rows
        self.merge_anon_vmas: bool = MERGE_ANON_VMAS in rows
        self.merge_after_grow: bool = MERGE_AFTER_GROW in rows
        self.fork_reuses_by_degree: bool = FORK_REUSES_BY_DEGREE in rows
        self.brk_merges_next: bool = BRK_MERGES_NEXT in rows
        self.mmap_asks_next_first: bool = MMAP_ASKS_NEXT_FIRST in rows
        self.close_never_merges: bool = CLOSE_NEVER_MERGES in rows
        self.unfaulted_takes_faulted: bool = UNFAULTED_TAKES_FAULTED in rows
        self.mremap_moves_many: bool = MREMAP_MOVES_MANY in rows
        self.mremap_checks_first: bool = MREMAP_CHECKS_FIRST in rows
        self.mremap_headroom_exact: bool = MREMAP_HEADROOM_EXACT in rows
        self.dontunmap_any: bool = DONTUNMAP_ANY in rows
        self.dontunmap_resets_pgoff: bool = DONTUNMAP_RESETS_PGOFF in rows
        self.dontunmap_splits_locked: bool = DONTUNMAP_SPLITS_LOCKED in rows
        self.dontunmap_keeps_two: bool = DONTUNMAP_KEEPS_TWO in rows
        self.unaccount_unfaulted: bool = UNACCOUNT_UNFAULTED in rows
        self.thp_aligned_mmap: bool = THP_ALIGNED_MMAP in rows
        self.madv_populate: bool = MADV_POPULATE in rows
        self.madv_dontneed_locked: bool = MADV_DONTNEED_LOCKED_ROW in rows
        self.madv_collapse: bool = MADV_COLLAPSE_ROW in rows
        self.madv_guard: bool = MADV_GUARD in rows
        self.guard_flag: bool = GUARD_FLAG in rows
        self.madvise_eagain: bool = MADVISE_EAGAIN in rows
        self.anon_names: bool = ANON_NAMES in rows
        self.names_shared_anon: bool = NAMES_SHARED_ANON in rows
        self.mseal: bool = MSEAL in rows
        self.droppable: bool = DROPPABLE in rows
        self.shared_uffd_wp: bool = SHARED_UFFD_WP in rows
        self.uffd_move: bool = UFFD_MOVE in rows
        self.uffd_unregister_own: bool = UFFD_UNREGISTER_OWN in rows
        self.populate_stops_at_hole: bool = POPULATE_STOPS_AT_HOLE in rows
        self.mremap_needs_vma: bool = MREMAP_NEEDS_VMA in rows
        self.dontunmap_unlinks: bool = DONTUNMAP_UNLINKS in rows
        self.dontunmap_accounts_next: bool = DONTUNMAP_ACCOUNTS_NEXT in rows
        self.dontunmap_skips_merge: bool = DONTUNMAP_SKIPS_MERGE in rows
        self.onfault_checks_access: bool = ONFAULT_CHECKS_ACCESS in rows
        self.remove_needs_write: bool = REMOVE_NEEDS_WRITE in rows
        self.stack_gap_stays: bool = STACK_GAP_STAYS in rows
        self.ignored_flags: int = VM_SOFTDIRTY | (VM_MAYBE_GUARD if self.guard_flag else 0)
        """Flags in which a request and its neighbour may differ (``VM_IGNORE_MERGE``)."""

    def __repr__(self) -> str:
        return f"<policy {self.name}>"


class PolicyError(ValueError):
    """A policy name that means nothing; str() is one line that says what would."""


def parse_policy(name: str) -> Policy:
    """The policy called `name`: a kernel, then any number of ``+change``.

    Raises PolicyError.

    >>> parse_policy("linux-5.17+series").update_pgoff
    True
    """
    kernel, *changes = name.split("+")
    if kernel not in KERNELS:
        raise PolicyError(f"no kernel called {kernel!r}; there are {', '.join(KERNELS)}")
    rows = KERNELS[kernel]
    for change in changes:
        if change not in CHANGES:
            raise PolicyError(f"no change called {'+' + change!r}; there are {', '.join('+' + c for c in CHANGES)}")
        rows |= CHANGES[change]
    return Policy(name, rows)


def release_numbers(release: str) -> tuple[int, int, int]:
    """The numbers of a kernel release; those that it leaves out are 0.

    >>> release_numbers("6.12.117+deb13-amd64"), release_numbers("7.3-rc1")
    ((6, 12, 117), (7, 3, 0))
    """
    numbers = [int(number) for number in re.findall(r"\d+", release.partition("-")[0])[:3]]
    numbers += [0] * (3 - len(numbers))
    return numbers[0], numbers[1], numbers[2]


def policy_for_release(release: str) -> Policy:
    """The policy nearest below a kernel release such as ``6.18.44-x`` (the oldest for anything older).

    >>> policy_for_release("6.6.1").name
    'linux-6.1'
    """
    version = release_numbers(release)[:2]
    best = ""
    for kernel in KERNELS:
        major, minor = kernel.removeprefix("linux-").split(".")
        if (int(major), int(minor)) <= version or not best:
            best = kernel
    return parse_policy(best)
