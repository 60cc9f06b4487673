"""Two snapshots of the same moment: the model's and the kernel's. What, first, is different?"""

from vmaweld.abi import (
    VM_EXEC,
    VM_MAYSHARE,
    VM_READ,
    VM_SOFTDIRTY,
    VM_WRITE,
    flag_names,
)
from vmaweld.snapshot import Row, Snapshot
from vmaweld.words import count_text

_VISIBLE_FLAGS = VM_READ | VM_WRITE | VM_EXEC | VM_MAYSHARE


class Names:
    """A one-to-one renaming, built as pairs are met: identities mean nothing but their equality."""

    __slots__ = ("_back", "_there")

    def __init__(self) -> None:
        self._there: dict[object, object] = {}
        self._back: dict[object, object] = {}

    def same(self, ours: object, theirs: object) -> bool:
        """True if `ours` may be called `theirs` without contradicting an earlier pair."""
        return self._there.setdefault(ours, theirs) == theirs and self._back.setdefault(theirs, ours) == ours


def difference(model: Snapshot, real: Snapshot) -> str | None:
    """The first row in which the two differ, in words, or None.

    Compares start, end, flags (all the source shows, soft-dirty aside), page offset, file, and up to renaming the
    anon_vma, the userfaultfd and the memory policy; whatever `real` does not show is not compared.
    """
    for number, (ours, theirs) in enumerate(zip(model.rows, real.rows, strict=False)):
        if ours.start != theirs.start or ours.end != theirs.end:
            return f"row {number}: model {_range(ours)}, kernel {_range(theirs)}"
    if len(model.rows) != len(real.rows):
        longer, who = (model, "model") if len(model.rows) > len(real.rows) else (real, "kernel")
        row = longer.rows[min(len(model.rows), len(real.rows))]
        rows = count_text(len(model.rows), "row")
        return f"{rows} in the model, {len(real.rows)} in the kernel; only the {who} has {row!r}"
    anon_vmas, files, contexts = Names(), Names(), Names()
    for ours, theirs in zip(model.rows, real.rows, strict=True):
        what = _row_difference(ours, theirs, real.flags_exact)
        if what is None and theirs.anon_vma is not None and not anon_vmas.same(ours.anon_vma, theirs.anon_vma):
            what = f"anon_vma {ours.anon_vma} in the model is not {theirs.anon_vma:#x} elsewhere"
        if what is None and theirs.uffd is not None and not contexts.same(ours.uffd, theirs.uffd):
            what = "userfaultfd"
        if what is None and theirs.mempolicy is not None:
            equal = bool(ours.mempolicy) == bool(theirs.mempolicy)
            what = (
                None if equal else f"memory policy {ours.mempolicy!r} in the model, {theirs.mempolicy!r} in the kernel"
            )
        if what is None and not files.same(ours.file, theirs.file):
            what = f"file {ours.file!r} in the model, {theirs.file!r} in the kernel"
        if what is not None:
            return f"{_range(ours)}: {what}"
    return None


def _range(row: Row) -> str:
    return f"{row.start:x}-{row.end:x}"


def _row_difference(ours: Row, theirs: Row, flags_exact: bool) -> str | None:
    mask = ~VM_SOFTDIRTY if flags_exact else _VISIBLE_FLAGS
    changed = (ours.flags ^ theirs.flags) & mask
    if changed:
        only_ours = flag_names(ours.flags & changed)
        only_theirs = flag_names(theirs.flags & changed)
        return f"flags: only the model has {only_ours}, only the kernel {only_theirs}"
    if theirs.pgoff is not None and ours.pgoff != theirs.pgoff:
        return f"page offset {ours.pgoff:#x} in the model, {theirs.pgoff:#x} in the kernel"
    if theirs.anon_vma is not None and bool(ours.anon_vma) != bool(theirs.anon_vma):
        return "has an anon_vma only in the " + ("model" if ours.anon_vma else "kernel")
    if theirs.chain is not None and min(ours.chain or 0, 2) != min(theirs.chain, 2):
        return f"chain of {ours.chain} in the model, {theirs.chain} in the kernel"
    return None


def names_of_anon_vmas(snapshots: list[tuple[Snapshot, Snapshot]]) -> str | None:
    """Do anon_vmas correspond across all processes at once? None, or the first contradiction in words."""
    names = Names()
    for model, real in snapshots:
        for ours, theirs in zip(model.rows, real.rows, strict=True):
            if theirs.anon_vma is not None and not names.same(ours.anon_vma, theirs.anon_vma):
                return (
                    f"process {model.pid}, {_range(ours)}: anon_vma {ours.anon_vma} of the model is another elsewhere"
                )
    return None
