# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshot: an address space as rows, whoever made it: the model, procfs or the BPF iterator."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Final

from vmaweld.abi import PAGE_SHIFT, VM_EXEC, VM_MAYSHARE, VM_READ, VM_WRITE

ROW_FIELDS: Final[tuple[str, ...]] = (
    "start",
    "end",
    "flags",
    "pgoff",
    "anon_vma",
    "file",
    "name",
    "mempolicy",
    "uffd",
    "chain",
    "file_id",
    "close",
)
"""The fields of a `Row` in order; the compiled class has no ``__slots__`` that would tell."""


class Row:
    """One VMA.

    start, end: the range ``[start, end)`` in bytes, page aligned.
    flags: ``VM_*`` bits. All of them when `Snapshot.flags_exact`, else only those that /proc/PID/maps shows
        (read, write, exec, shared).
    pgoff: ``vm_pgoff`` in pages, or None where the source does not show it (an anonymous VMA in procfs).
    anon_vma: an identity that is equal for two VMAs when and only when they have the same anon_vma; 0 for none,
        None where the source does not show it.
    file: identity of the mapped file ("" for anonymous memory): a path where that is all there is.
    name: what the kernel calls the VMA: ``[heap]``, ``[stack]``, ``[vdso]``, ``[anon:...]`` or "".
    mempolicy: memory policy as text ("bind:0"), "" for none, None where the source does not show it.
    uffd: identity of the userfaultfd context, 0 for none, None where the source does not show it.
    chain: number of anon_vmas on ``anon_vma_chain`` (counted up to 255); None where the source does not show it.
    file_id: identity of the open file (``struct file``), 0 for none: mappings of one path merge only if it was
        opened once. From procfs the identity of the inode: there equal ids may still be two opens. None where the
        source shows neither.
    close: ``vm_ops->close`` is set; None where the source does not show it.
    """

    __slots__ = (
        "start",
        "end",
        "flags",
        "pgoff",
        "anon_vma",
        "file",
        "name",
        "mempolicy",
        "uffd",
        "chain",
        "file_id",
        "close",
    )

    def __init__(
        self,
        start: int,
        end: int,
        flags: int,
        pgoff: int | None = None,
        anon_vma: int | None = None,
        file: str = "",
        name: str = "",
        mempolicy: str | None = None,
        uffd: int | None = None,
        chain: int | None = None,
        file_id: int | None = None,
        close: bool | None = None,
    ) -> None:
        self.start = start
        self.end = end
        self.flags = flags
        self.pgoff = pgoff
        self.anon_vma = anon_vma
        self.file = file
        self.name = name
        self.mempolicy = mempolicy
        self.uffd = uffd
        self.chain = chain
        self.file_id = file_id
        self.close = close

    @property
    def size(self) -> int:
        """Bytes from start to end."""
        return self.end - self.start

    @property
    def pages(self) -> int:
        """Pages from start to end."""
        return (self.end - self.start) >> PAGE_SHIFT

    @property
    def anonymous(self) -> bool:
        """True where no file is mapped and nothing shared: memory that only anonymous pages can fill."""
        return not self.file and not self.flags & VM_MAYSHARE

    def below(self, end: int) -> "Row":
        """The part of this row below `end`, alike in all else. (``copy.copy`` does not know the compiled class.)"""
        return Row(
            self.start,
            end,
            self.flags,
            pgoff=self.pgoff,
            anon_vma=self.anon_vma,
            file=self.file,
            name=self.name,
            mempolicy=self.mempolicy,
            uffd=self.uffd,
            chain=self.chain,
            file_id=self.file_id,
            close=self.close,
        )

    def perms(self) -> str:
        """The protection as /proc/PID/maps writes it: ``rw-p``."""
        return (
            ("r" if self.flags & VM_READ else "-")
            + ("w" if self.flags & VM_WRITE else "-")
            + ("x" if self.flags & VM_EXEC else "-")
            + ("s" if self.flags & VM_MAYSHARE else "p")
        )

    def __repr__(self) -> str:
        pgoff = "?" if self.pgoff is None else f"{self.pgoff:#x}"
        anon = "?" if self.anon_vma is None else f"{self.anon_vma:#x}" if self.anon_vma else "-"
        what = self.name or self.file
        return f"{self.start:x}-{self.end:x} {self.perms()} pgoff={pgoff} av={anon}{' ' + what if what else ''}"


class AnonVma:
    """What the kernel keeps about one anon_vma (include/linux/rmap.h).

    root, parent: identities as in `Row.anon_vma`; its own where it was not made by fork.
    num_children: anon_vmas whose parent it is (a root counts itself).
    num_active_vmas: VMAs whose `Row.anon_vma` it is, in every process.
    """

    __slots__ = ("root", "parent", "num_children", "num_active_vmas")

    def __init__(self, root: int, parent: int, num_children: int, num_active_vmas: int) -> None:
        self.root = root
        self.parent = parent
        self.num_children = num_children
        self.num_active_vmas = num_active_vmas

    def __repr__(self) -> str:
        return (
            f"AnonVma(root={self.root:#x}, parent={self.parent:#x}, "
            f"num_children={self.num_children}, num_active_vmas={self.num_active_vmas})"
        )


class Snapshot:
    """The VMAs of one address space, in order of address.

    source: "model", "procfs" or "bpf".
    flags_exact: every bit of `Row.flags` is the kernel's (BPF, model; smaps shows most of them).
    hidden: pgoff and anon_vma of anonymous VMAs are known.
    consistent: nothing changed while the rows were read. A reader that cannot promise it sets False.
    anon_vmas: the anon_vmas that rows name, by identity; empty where the source does not show them.
    """

    __slots__ = ("pid", "rows", "source", "flags_exact", "hidden", "consistent", "anon_vmas")

    def __init__(
        self,
        pid: int,
        rows: Sequence[Row],
        *,
        source: str,
        flags_exact: bool,
        hidden: bool,
        consistent: bool = True,
        anon_vmas: Mapping[int, AnonVma] | None = None,
    ) -> None:
        self.pid = pid
        self.rows = rows
        self.source = source
        self.flags_exact = flags_exact
        self.hidden = hidden
        self.consistent = consistent
        self.anon_vmas: Mapping[int, AnonVma] = {} if anon_vmas is None else anon_vmas

    def between(self, low: int, high: int) -> "Snapshot":
        """The same with those rows only that overlap ``[low, high)``. O(log rows + result)."""
        first = bisect_right(self.rows, low, key=_end)
        last = bisect_left(self.rows, high, first, key=_start)
        return Snapshot(
            self.pid,
            self.rows[first:last],
            source=self.source,
            flags_exact=self.flags_exact,
            hidden=self.hidden,
            consistent=self.consistent,
            anon_vmas=self.anon_vmas,
        )


def _start(row: Row) -> int:
    return row.start


def _end(row: Row) -> int:
    return row.end
