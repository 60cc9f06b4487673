# SPDX-License-Identifier: GPL-2.0-or-later
"""Missed merges: which they are under the stock kernel, and what became of them under another policy.

A missed merge is a pair of a request and a neighbour in which everything but the page offset or the anon_vmas allows
the merge. It leaves a border between two VMAs. Another policy has recovered it if, right after the same event, the
address of that border lies inside one VMA. A border that is still there is put down to what holds it open.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from vmaweld.abi import VM_GROWSDOWN
from vmaweld.model.address_space import AddressSpace
from vmaweld.model.anon_vma import why_shared
from vmaweld.model.merge import ANON_VMA, PGOFF
from vmaweld.model.tracepoints import MergeRecord
from vmaweld.model.vma import VMA
from vmaweld.policy import Policy

# What holds a border open under a policy.
SHARED: Final = "shared"  # memory is shared with a parent or child: the limitation of the series
OFFSET: Final = "page_offset"  # the policy does not change page offsets
OWNER: Final = "anon_vma"  # the policy does not merge distinct anon_vmas
UNFAULTED: Final = "unfaulted"  # one side was never written to, the other was (until 6.15 that forbids it)
OTHER: Final = "other"
CAUSES: Final = (SHARED, OFFSET, OWNER, UNFAULTED, OTHER)


class MissedMerge:
    """One missed merge. address: of the border. obstacles: PGOFF and ANON_VMA bits. record: the attempt."""

    __slots__ = ("address", "obstacles", "record")

    def __init__(self, address: int, obstacles: int, record: MergeRecord) -> None:
        self.address = address
        self.obstacles = obstacles
        self.record = record

    def __repr__(self) -> str:
        return f"<missed at {self.address:#x} by {self.record!r}>"


def border_at(space: AddressSpace | None, address: int) -> tuple[VMA, VMA] | None:
    """The two VMAs that touch at `address`, or None."""
    if space is None:
        return None
    right = space.vmas.find(address)
    if right is None or right.start != address:
        return None
    left = right.prev
    return (left, right) if left is not None and left.end == address else None


def inside_one(space: AddressSpace | None, address: int) -> bool:
    """True if one VMA spans `address`."""
    if space is None:
        return False
    vma = space.vmas.find(address)
    return vma is not None and vma.start < address


def missed_merges(records: Iterable[MergeRecord]) -> list[MissedMerge]:
    """The missed merges among the merge records of one event, each border once."""
    found: dict[int, MissedMerge] = {}
    for record in records:
        for address in record.missed():
            if address in found:
                continue
            obstacles = record.prev_obstacles if address == record.start else record.next_obstacles
            # No obstacle of its own: each neighbour goes with the range, but not with the other one's anon_vma.
            found[address] = MissedMerge(address, obstacles & (PGOFF | ANON_VMA) or ANON_VMA, record)
    return list(found.values())


def is_file_offset(left: VMA, right: VMA, obstacles: int) -> bool:
    """True if two parts of a file do not follow each other: other contents, which no kernel could ever merge."""
    return bool(obstacles & PGOFF) and bool(left.file) and bool(right.file)


def what_holds(policy: Policy, left: VMA, right: VMA) -> tuple[str, str]:
    """What holds the border of two VMAs open under `policy`: one of `CAUSES`, and the reason in words.

    Under patch 2 an anonymous VMA whose page offset is not its address's was moved while it was shared: every other
    move would have changed it. That is how a move of long ago is known.
    """
    if (left.flags ^ right.flags) & ~policy.ignored_flags or left.file != right.file:
        return OTHER, "the sides differ in flags or file here"
    if (left.name, left.mempolicy, left.uffd) != (right.name, right.mempolicy, right.uffd):
        return OTHER, "the sides differ in name, memory policy or userfaultfd here"
    if left.pgoff + left.pages != right.pgoff:
        if not policy.update_pgoff:
            return OFFSET, "the page offset, which this policy never changes"
        if left.anonymous and not left.flags & VM_GROWSDOWN:
            return SHARED, "moved while shared, so the page offset was kept"
        return OTHER, "the page offset"
    if left.anon_vma is None or right.anon_vma is None:
        if len(left.chain) > 1 or len(right.chain) > 1:
            return SHARED, "one side was inherited through fork"
        if left.anon_vma is right.anon_vma or policy.unfaulted_takes_faulted:
            return OTHER, "could merge, but nothing asked"
        return UNFAULTED, "only one side was ever written to (forbidden until 6.15)"
    if left.anon_vma is right.anon_vma:
        return OTHER, "could merge, but nothing asked"
    if not policy.merge_anon_vmas:
        return OWNER, "distinct anon_vmas, which this policy never merges"
    shared = why_shared(left.anon_vma) or why_shared(right.anon_vma)
    if shared:
        return SHARED, shared
    return OTHER, "could merge, but nothing asked"
