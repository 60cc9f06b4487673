"""VMA: one virtual memory area (``struct vm_area_struct``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmaweld.abi import PAGE_SHIFT, VM_MAYSHARE
from vmaweld.model.anon_vma import AnonVma

if TYPE_CHECKING:
    from vmaweld.model.address_space import AddressSpace


class VMA:
    """The range ``[start, end)`` of one address space.

    start, end: bytes, page aligned.      flags: ``VM_*``.
    pgoff: ``vm_pgoff``, pages: the offset in the file, or for anonymous memory where the VMA was born.
    file: identity of the open file, "" for anonymous memory.
    close: its file's ``vm_ops`` have ``close``, as System V segments do.
    name, mempolicy, uffd: anonymous name, memory policy as text, userfaultfd context (0 none).
    anon_vma: where new anonymous pages of this VMA belong; None until the first write fault.
    chain: all linked anon_vmas, oldest first, its own among them; () while `anon_vma` is None.
    prev, next: the neighbours in order of address, touching or not.
    """

    __slots__ = (
        "anon_vma",
        "chain",
        "close",
        "end",
        "file",
        "flags",
        "mempolicy",
        "name",
        "next",
        "pgoff",
        "prev",
        "space",
        "start",
        "uffd",
    )

    def __init__(
        self,
        space: AddressSpace,
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
        self.space: AddressSpace = space
        self.start: int = start
        self.end: int = end
        self.flags: int = flags
        self.pgoff: int = pgoff
        self.file: str = file
        self.mempolicy: str = mempolicy
        self.uffd: int = uffd
        self.name: str = name
        self.close: bool = close
        self.anon_vma: AnonVma | None = None
        self.chain: tuple[AnonVma, ...] = ()
        self.prev: VMA | None = None
        self.next: VMA | None = None

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
