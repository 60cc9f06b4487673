# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of rules: what kernels do differently, each told once, with its releases and its commit."""

from typing import Final, NamedTuple

from vmaweld.policy.release import Release

NEVER: Final = Release(1 << 16, 0)
"""In place of the mainline release: only stable releases, or the series of patches, have the rule."""


class Rule(NamedTuple):
    """Something that some kernels do and others do not.

    name: the name that documents and `Policy.rules` use; with underscores, the attribute of `Policy`.
    text: what is so where the rule holds.
    since: the first mainline release where it holds; None: it holds in 5.10 already.
    commit: the mainline commit that brought it; "" where it is older than 5.10, or not known.
    until: the first mainline release where it does not hold any more; None: it holds still.
    ended: the mainline commit that ended it; "" where there is none, or it is not known.
    taken: stable releases that began with it, each for its series from that patch level on.
    dropped: stable releases that ended it in the same way.
    """

    name: str
    text: str
    since: Release | None = None
    commit: str = ""
    until: Release | None = None
    ended: str = ""
    taken: tuple[Release, ...] = ()
    dropped: tuple[Release, ...] = ()

    @property
    def attribute(self) -> str:
        """The attribute of `Policy` that tells whether it holds."""
        return self.name.replace("-", "_")

    def holds(self, release: Release) -> bool:
        """Whether it holds in that release."""
        return _reached(release, self.since, self.taken) and not (
            self.until is not None and _reached(release, self.until, self.dropped)
        )

    def span(self) -> str:
        """When it holds, as a phrase: ``since 7.0 (and 6.1.191, 6.12.112)``."""
        parts = []
        if self.since == NEVER:
            parts.append(f"only in {_listed(self.taken)}" if self.taken else "only in the series of patches")
        elif self.since is not None:
            parts.append(f"since {self.since}{_also(self.taken)}")
        if self.until is not None:
            parts.append(f"until {self.until}{_also(self.dropped)}")
        return ", ".join(parts) or "always"


def _reached(release: Release, mainline: Release | None, stable: tuple[Release, ...]) -> bool:
    return (
        mainline is None
        or release.series >= mainline.series
        or any(release.series == other.series and release.patch >= other.patch for other in stable)
    )


def _listed(releases: tuple[Release, ...]) -> str:
    return ", ".join(str(release) for release in releases)


def _also(releases: tuple[Release, ...]) -> str:
    return f" (and {_listed(releases)})" if releases else ""


RULES: Final[tuple[Rule, ...]] = (
    Rule(
        "update-pgoff",
        "mremap gives a moved VMA that has pages of its own, and those pages, the page offset of the new "
        "address, unless something of it is shared (patch 2 of the series).",
        since=NEVER,
    ),
    Rule(
        "merge-anon-vmas",
        "VMAs of different anon_vmas may merge where the pages that change owner are not shared (patch 3 of the "
        "series).",
        since=NEVER,
    ),
    Rule(
        "merge-after-grow",
        "mremap that grows a VMA in place merges it with the VMA that it comes to touch (from a later version of the "
        "series).",
        since=Release(6, 1),
        commit="ca3d76b0aa80",
    ),
    Rule(
        "fork-reuses-by-degree",
        "fork reuses an ancestor's anon_vma whose degree is below 2. Later kernels count its VMAs and its children "
        "apart.",
        until=Release(6, 0),
        ended="2555283eb40d",
        dropped=(Release(5, 10, 141), Release(5, 15, 65), Release(5, 19, 7)),
    ),
    Rule(
        "brk-merges-next",
        "brk asks vma_merge(), which may join the VMA above too. Later kernels only extend the one below.",
        until=Release(6, 1),
        ended="2e7ce7d354f2",
    ),
    Rule(
        "mmap-asks-next-first",
        "mmap asks the VMA above first, then the one below with the anon_vma of that. Where the two cannot go "
        "together, the range goes up, and an unfaulted VMA below stays apart from a faulted one above.",
        since=Release(6, 1),
        until=Release(6, 12),
        ended="cacded5e42b9",
        commit="4dd1b84140c1",
    ),
    Rule(
        "close-never-merges",
        "A VMA whose vm_ops have close never merges. Later kernels refuse only to remove one.",
        until=Release(6, 4),
        ended="714965ca8252",
    ),
    Rule(
        "unfaulted-takes-faulted",
        "A neighbour without an anon_vma may take a request that has one, unless that one came from a fork.",
        since=Release(6, 16),
        commit="879bca0a2c4f",
    ),
    Rule(
        "mremap-moves-many",
        "One mremap(MREMAP_FIXED) that keeps the size may move several VMAs.",
        since=Release(6, 17),
        commit="d23cb648e365",
    ),
    Rule(
        "mremap-checks-first",
        "mremap checks its addresses before it looks for the VMA, so EINVAL comes before EFAULT.",
        since=Release(6, 17),
        commit="3215eaceca87",
    ),
    Rule(
        "dontunmap-any",
        "MREMAP_DONTUNMAP takes file and shared mappings too.",
        since=Release(5, 13),
        commit="a4609387859f",
    ),
    Rule(
        "dontunmap-resets-pgoff",
        "A VMA emptied by MREMAP_DONTUNMAP takes the page offset of its address.",
        since=Release(7, 3),
        taken=(Release(6, 1, 191), Release(6, 12, 112), Release(7, 2, 6)),
        commit="35b0fb391b0d",
    ),
    Rule(
        "dontunmap-splits-locked",
        "MREMAP_DONTUNMAP of part of an mlocked VMA unlocks that part alone. Earlier kernels unlock all of the VMA.",
        since=Release(7, 3),
        taken=(Release(6, 1, 191), Release(6, 12, 114), Release(7, 2, 11)),
        commit="597e4b9ab48a",
    ),
    Rule(
        "dontunmap-keeps-two",
        "MREMAP_DONTUNMAP never merges the target with its own source.",
        since=Release(7, 3),
        taken=(Release(6, 1, 191), Release(6, 12, 114), Release(7, 2, 11)),
        commit="838bb60dc215",
    ),
    Rule(
        "dontunmap-skips-merge",
        "The form of dontunmap-keeps-two that 6.1 took: a target next to its source does not merge with its other "
        "neighbour either.",
        since=NEVER,
        taken=(Release(6, 1, 191),),
    ),
    Rule(
        "unaccount-unfaulted",
        "mprotect takes VM_ACCOUNT away from an unfaulted anonymous VMA that it makes unwritable.",
        since=Release(6, 7),
        commit="9b9143298585",
    ),
    Rule(
        "thp-aligned-mmap",
        "Anonymous mappings of 2 MiB or more are placed at a multiple of 2 MiB.",
        since=Release(6, 7),
        commit="efa7df3e3bb5",
    ),
    Rule(
        "thp-aligns-multiples",
        "Only mappings that are a multiple of 2 MiB are placed so.",
        since=Release(6, 12),
        commit="d4148aeab412",
        taken=(Release(6, 11, 7),),
    ),
    Rule(
        "map-stack-no-huge-pages",
        "MAP_STACK sets VM_NOHUGEPAGE, so glibc's thread stacks do not merge with other memory.",
        since=Release(6, 7),
    ),
    Rule(
        "dontunmap-unaccounts",
        "MREMAP_DONTUNMAP takes VM_ACCOUNT, by mistake, from the VMA that it empties. Seen in 6.16.12, and neither in "
        "6.12 nor in 6.17.13; it may have begun with the mremap of 6.15.",
        since=Release(6, 15),
        until=Release(6, 17),
    ),
    Rule(
        "mremap-headroom-exact",
        "mremap counts the VMAs that it may need. Earlier kernels keep 3, and 5 for a fixed target, below the limit.",
        since=Release(7, 1),
    ),
    Rule(
        "madv-populate",
        "MADV_POPULATE_READ and MADV_POPULATE_WRITE exist.",
        since=Release(5, 14),
        commit="4ca9b3859dac",
    ),
    Rule(
        "madv-dontneed-locked",
        "MADV_DONTNEED_LOCKED exists.",
        since=Release(5, 18),
        commit="9457056ac426",
    ),
    Rule("madv-collapse", "MADV_COLLAPSE exists.", since=Release(6, 1), commit="7d8faaf15545"),
    Rule(
        "madv-guard",
        "MADV_GUARD_INSTALL and MADV_GUARD_REMOVE exist.",
        since=Release(6, 13),
        commit="662df3e5c376",
    ),
    Rule(
        "guard-flag",
        "MADV_GUARD_INSTALL sets VM_MAYBE_GUARD, which sticks to merged VMAs and never hinders a merge.",
        since=Release(6, 19),
        taken=(Release(6, 18, 37),),
        commit="64212ba02e66",
    ),
    Rule(
        "guard-any-mapping",
        "MADV_GUARD_INSTALL takes mappings of files and memory that can never be written to. Earlier kernels take "
        "anonymous memory only that may be written to.",
        since=Release(6, 15),
    ),
    Rule(
        "guard-needs-anon-vma",
        "MADV_GUARD_INSTALL gives every VMA an anon_vma, so that fork copies the markers. Where the guard flag tells "
        "fork, only anonymous memory gets one.",
        since=Release(6, 13),
        until=Release(6, 19),
        dropped=(Release(6, 18, 37),),
    ),
    Rule(
        "madvise-eagain",
        "madvise that would need more VMAs than vm.max_map_count fails with EAGAIN. Earlier kernels say ENOMEM.",
        since=Release(5, 17),
        commit="ac1e9acc5acf",
    ),
    Rule(
        "anon-names",
        "prctl(PR_SET_VMA_ANON_NAME) names anonymous memory, where the kernel is configured for it.",
        since=Release(5, 17),
        commit="9a10064f5625",
    ),
    Rule(
        "names-shared-anon",
        "Shared anonymous memory and memfds can be named too. Earlier kernels name no VMA that has a file.",
        since=Release(6, 2),
        commit="d09e8ca6cb93",
    ),
    Rule("mseal", "mseal() exists.", since=Release(6, 10), commit="8be7258aad44"),
    Rule("droppable", "MAP_DROPPABLE exists.", since=Release(6, 11), commit="9651fcedf7b9"),
    Rule(
        "shared-uffd-wp",
        "userfaultfd write-protects shared and file memory too.",
        since=Release(5, 19),
        commit="b1f9e876862d",
    ),
    Rule(
        "uffd-unregister-own",
        "A userfaultfd cannot unregister what another one has registered.",
        since=Release(6, 17),
        commit="23ec90eb122f",
    ),
    Rule(
        "populate-stops-at-hole",
        "MADV_POPULATE_* end with ENOMEM at a hole. Earlier kernels go on behind it, as other advice does.",
        since=Release(6, 9),
        commit="631426ba1d45",
        taken=(Release(6, 8, 8),),
    ),
    Rule(
        "mremap-needs-vma",
        "mremap finds a VMA at the old address before anything else. Earlier kernels need none where it only shrinks.",
        since=Release(5, 16),
        commit="550a7d60bd5e",
    ),
    Rule(
        "dontunmap-unlinks",
        "A VMA emptied by MREMAP_DONTUNMAP loses its anon_vma.",
        since=Release(5, 12),
        commit="1583aa278f5f",
    ),
    Rule(
        "dontunmap-accounts-next",
        "MREMAP_DONTUNMAP of the middle of an accounted VMA sets VM_ACCOUNT, by mistake, on the VMA above it.",
        until=Release(5, 13),
        ended="fdbef6149135",
    ),
    Rule(
        "onfault-checks-access",
        "mlock2(MLOCK_ONFAULT) of memory without access is ENOMEM. Later kernels do not even look at its pages.",
        until=Release(5, 18),
        ended="b67bf49ce7aa",
    ),
    Rule(
        "stack-gap-stays",
        "A stack keeps the gap below it free and no more. With the maple tree, a search that meets a stack goes on "
        "below its gap and passes what lies in between.",
        until=Release(6, 1),
        ended="3499a13168da",
    ),
    Rule(
        "remove-needs-write",
        "MADV_REMOVE takes only shared mappings that are writable. Later kernels take those too that may become so.",
        until=Release(6, 7),
        ended="e8e17ee90eaf",
        dropped=(Release(5, 10, 241), Release(6, 1, 149), Release(6, 6, 103)),
    ),
    Rule(
        "uffd-moves-apart",
        "A VMA watched by a userfaultfd that does not ask for remap events merges with none where mremap moves it, for "
        "it leaves the userfaultfd then.",
        since=NEVER,
        taken=(Release(6, 12, 118), Release(7, 3, 4)),
    ),
    Rule("uffd-move", "UFFDIO_MOVE exists.", since=Release(6, 8), commit="adef440691ba"),
)
"""Every rule. The model reads them as attributes of `Policy`; docs/policies.md shows where each holds."""

NAMES: Final = frozenset(rule.name for rule in RULES)
