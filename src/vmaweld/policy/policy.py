# SPDX-License-Identifier: GPL-2.0-or-later
"""Policy: the rules that hold, as the machine reads them."""

from typing import Final

from vmaweld.abi import VM_MAYBE_GUARD, VM_SOFTDIRTY
from vmaweld.policy.rules import RULES


class Policy:
    """The rules that hold, each as a plain attribute: the name of the rule with underscores.

    name: as `parse_policy` took it.
    rules: the names of the rules that hold.
    ignored_flags: flags in which a request and its neighbour may differ (``VM_IGNORE_MERGE``).
    """

    anon_names: bool
    brk_merges_next: bool
    close_never_merges: bool
    dontunmap_accounts_next: bool
    dontunmap_any: bool
    dontunmap_keeps_two: bool
    dontunmap_resets_pgoff: bool
    dontunmap_skips_merge: bool
    dontunmap_splits_locked: bool
    dontunmap_unaccounts: bool
    dontunmap_unlinks: bool
    droppable: bool
    fork_reuses_by_degree: bool
    guard_any_mapping: bool
    guard_flag: bool
    guard_needs_anon_vma: bool
    madv_collapse: bool
    madv_dontneed_locked: bool
    madv_guard: bool
    madv_populate: bool
    madvise_eagain: bool
    map_stack_no_huge_pages: bool
    merge_after_grow: bool
    merge_anon_vmas: bool
    mmap_asks_next_first: bool
    mremap_checks_first: bool
    mremap_headroom_exact: bool
    mremap_moves_many: bool
    mremap_needs_vma: bool
    mseal: bool
    names_shared_anon: bool
    onfault_checks_access: bool
    populate_stops_at_hole: bool
    remove_needs_write: bool
    shared_uffd_wp: bool
    stack_gap_stays: bool
    thp_aligned_mmap: bool
    thp_aligns_multiples: bool
    uffd_move: bool
    uffd_moves_apart: bool
    uffd_unregister_own: bool
    unaccount_unfaulted: bool
    unfaulted_takes_faulted: bool
    update_pgoff: bool

    def __init__(self, name: str, rules: frozenset[str]) -> None:
        self.name: Final = name
        self.rules: Final = rules
        for rule in RULES:
            setattr(self, rule.attribute, rule.name in rules)
        self.ignored_flags: Final = VM_SOFTDIRTY | (VM_MAYBE_GUARD if "guard-flag" in rules else 0)

    def __repr__(self) -> str:
        return f"<policy {self.name}>"
