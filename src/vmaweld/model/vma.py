# SPDX-License-Identifier: GPL-2.0-or-later
"""VMA: one virtual memory area (``struct vm_area_struct``)."""

from __future__ import annotations

from vmaweld.abi import PAGE_SHIFT, VM_MAYSHARE
from vmaweld.model.anon_vma import Linked
from vmaweld.model.pages import PageTable


class VMA(Linked):
    """The range ``[start, end)`` of one address space.

    page_table: that of its address space, where its anonymous pages are.
    start, end: bytes, page aligned.      flags: ``VM_*``.
    pgoff: ``vm_pgoff``, pages: the offset in the file, or for anonymous memory where the VMA was born.
    file: identity of the open file, "" for anonymous memory.
    close: its file's ``vm_ops`` have ``close``, as System V segments do.
    name, mempolicy, uffd: anonymous name, memory policy as text, userfaultfd context (0 none).
    anon_vma, chain: what it is linked with (`Linked`).
    prev, next: the neighbours in order of address, touching or not.
    """

    __slots__ = (
        "close",
        "end",
        "file",
        "flags",
        "mempolicy",
        "name",
        "next",
        "pgoff",
        "page_table",
        "prev",
        "start",
        "uffd",
    )

    def __init__(
        self,
        page_table: PageTable,
        start: int,
        end: int,
        flags: int,
        pgoff: int,
        file: str = "",
        mempolicy: str = "",
        uffd: int = 0,
        name: str = "",
        close: bool = False,
    ) -> None:
        self.page_table: PageTable = page_table
        self.start: int = start
        self.end: int = end
        self.flags: int = flags
        self.pgoff: int = pgoff
        self.file: str = file
        self.mempolicy: str = mempolicy
        self.uffd: int = uffd
        self.name: str = name
        self.close: bool = close
        self.anon_vma = None  # as Linked.__init__ does; a call would cost plain Python more
        self.chain = ()
        self.prev: VMA | None = None
        self.next: VMA | None = None

    def duplicate(self, page_table: PageTable) -> VMA:
        """A VMA of `page_table` that is alike, and linked with no anon_vma yet (``vm_area_dup``)."""
        return VMA(
            page_table,
            self.start,
            self.end,
            self.flags,
            self.pgoff,
            self.file,
            self.mempolicy,
            self.uffd,
            self.name,
            self.close,
        )

    @property
    def pages(self) -> int:
        """Pages from start to end (``vma_pages``)."""
        return (self.end - self.start) >> PAGE_SHIFT

    @property
    def anonymous(self) -> bool:
        """Private memory without a file (``vma_is_anonymous``)."""
        return not self.file and not self.flags & VM_MAYSHARE

    def pgoff_at(self, address: int) -> int:
        """The page offset of the page at `address` (``linear_page_index``)."""
        return self.pgoff + ((address - self.start) >> PAGE_SHIFT)

    def address_of(self, index: int) -> int:
        """The address where this VMA would map the page with offset `index` (``vma_address``)."""
        return self.start + ((index - self.pgoff) << PAGE_SHIFT)

    def __repr__(self) -> str:
        owner = f" {self.anon_vma!r}" if self.anon_vma is not None else ""
        return f"<VMA {self.start:x}-{self.end:x} {self.flags:#x} pgoff={self.pgoff:#x}{owner}>"
