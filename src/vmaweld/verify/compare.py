# SPDX-License-Identifier: GPL-2.0-or-later
"""Two snapshots of the same moment: the model's and the kernel's. What, first, is different?"""

from vmaweld.comparison import Names, row_difference
from vmaweld.snapshot import Row, Snapshot
from vmaweld.words import count_text


def difference(model: Snapshot, real: Snapshot) -> str | None:
    """The first row in which the two differ, in words, or None.

    Compares the ranges, what `row_difference` compares, and up to renaming the anon_vma, the userfaultfd and the file.
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
        found = row_difference(ours, theirs, exact=real.flags_exact)
        what = None if found is None else ": ".join(found)
        if what is None and theirs.anon_vma is not None and not anon_vmas.same(ours.anon_vma, theirs.anon_vma):
            what = f"anon_vma {ours.anon_vma} in the model is not {theirs.anon_vma:#x} elsewhere"
        if what is None and theirs.uffd is not None and not contexts.same(ours.uffd, theirs.uffd):
            what = "userfaultfd"
        if what is None and not files.same(ours.file, theirs.file):
            what = f"file {ours.file!r} in the model, {theirs.file!r} in the kernel"
        if what is not None:
            return f"{_range(ours)}: {what}"
    return None


def _range(row: Row) -> str:
    return f"{row.start:x}-{row.end:x}"


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
