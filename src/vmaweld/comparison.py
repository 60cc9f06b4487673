# SPDX-License-Identifier: GPL-2.0-or-later
"""How a row of the model is held against a true row: the one place where it is told.

A true row comes from a kernel, and its source may not show everything. What the source does not show is not compared.
Soft-dirty is never compared, since the kernel sets it on its own account.
"""

from typing import Final

from vmaweld.abi import VM_EXEC, VM_MAYSHARE, VM_READ, VM_SOFTDIRTY, VM_WRITE, flag_names
from vmaweld.snapshot import Row

_VISIBLE: Final = VM_READ | VM_WRITE | VM_EXEC | VM_MAYSHARE
"""The flags that /proc/PID/maps shows."""

# Causes: what differs in two rows of the same range.
FLAGS: Final = "flags"
OFFSET: Final = "page offset"
FILE: Final = "file"
FAULTED: Final = "anon_vma present"
CHAIN: Final = "chain"
MEMPOLICY: Final = "memory policy"


class Names:
    """A one-to-one renaming, built as pairs are met: identities mean nothing but their equality."""

    __slots__ = ("_back", "_there")

    def __init__(self) -> None:
        self._there: dict[object, object] = {}
        self._back: dict[object, object] = {}

    def same(self, ours: object, theirs: object) -> bool:
        """True if `ours` may be called `theirs` without contradicting an earlier pair."""
        return self._there.setdefault(ours, theirs) == theirs and self._back.setdefault(theirs, ours) == ours


def row_difference(ours: Row, theirs: Row, *, exact: bool) -> tuple[str, str] | None:
    """(cause, what the model and the kernel have) of the first difference of two rows of one range; None: they agree.

    Identities are left to the caller, who has `Names` for the extent in which they must correspond.
    exact: every bit of the true row's flags is the kernel's (`Snapshot.flags_exact`).
    """
    changed = (ours.flags ^ theirs.flags) & (~VM_SOFTDIRTY if exact else _VISIBLE)
    if changed:
        only_ours = " ".join(flag_names(ours.flags & changed)) or "nothing"
        only_theirs = " ".join(flag_names(theirs.flags & changed)) or "nothing"
        return FLAGS, f"only the model: {only_ours}; only the kernel: {only_theirs}"
    if theirs.pgoff is not None and ours.pgoff != theirs.pgoff:
        return OFFSET, f"model: {ours.pgoff:#x}, kernel: {theirs.pgoff:#x}"
    if bool(ours.file) != bool(theirs.file):
        return FILE, f"model: {ours.file or 'none'}, kernel: {theirs.file or 'none'}"
    if theirs.anon_vma is not None and bool(ours.anon_vma) != bool(theirs.anon_vma):
        return FAULTED, "only the model has an anon_vma" if ours.anon_vma else "only the kernel has an anon_vma"
    if theirs.chain is not None and (ours.chain or 0) != theirs.chain:
        return CHAIN, f"chain of {ours.chain} in the model, of {theirs.chain} in the kernel"
    if theirs.mempolicy is not None and bool(ours.mempolicy) != bool(theirs.mempolicy):
        return MEMPOLICY, f"model: {ours.mempolicy or 'none'}, kernel: {theirs.mempolicy or 'none'}"
    return None
