"""anon_vma: who may map the anonymous pages of a group of VMAs, and the family that fork makes of them.

Follows ``mm/rmap.c``. An anon_vma_chain (AVC) has no fields of its own here: that a VMA is linked with an anon_vma
is told by `Linked.chain` (the VMA's side, newest last) and by `AnonVma.vmas` (the interval tree's side).
"""

from __future__ import annotations


class AnonVma:
    """One ``struct anon_vma``.

    number: identity, unique in its system, from 1.
    root: the oldest ancestor; itself where no fork made it.
    parent: the anon_vma of the VMA this one's VMA was forked from; itself for a root.
    num_children: anon_vmas whose parent this is, a root counting itself.
    num_active_vmas: VMAs whose own `anon_vma` this is.
    vmas: every VMA linked by an AVC, that is, every VMA that may map a page of this anon_vma (insertion order).
    """

    __slots__ = ("num_active_vmas", "num_children", "number", "parent", "root", "vmas")

    def __init__(self, number: int, parent: AnonVma | None = None) -> None:
        self.number: int = number
        self.parent: AnonVma = self if parent is None else parent
        self.root: AnonVma = self if parent is None else parent.root
        self.num_children: int = 1 if parent is None else 0
        self.num_active_vmas: int = 0
        self.vmas: dict[Linked, None] = {}
        if parent is not None:
            parent.num_children += 1

    @property
    def degree(self) -> int:
        """What Linux counted in one field until 5.19: active VMAs plus children."""
        return self.num_active_vmas + self.num_children

    def has_child(self) -> bool:
        """True if a VMA forked from one of this anon_vma's still hangs on it (the series' walk of the tree)."""
        if len(self.vmas) == self.num_active_vmas:  # every linked VMA is an active one: no need to walk
            return False
        return any(vma.anon_vma is not self for vma in self.vmas)

    def unshared(self) -> bool:
        """The series' test: its own root, and no child hangs on it. Only then may its pages be changed."""
        return self.root is self and not self.has_child()

    def __repr__(self) -> str:
        return f"<anon_vma {self.number}>"


class Linked:
    """What of a VMA the anon_vmas know: which of them it is linked with. `vmaweld.model.vma.VMA` is the rest.

    anon_vma: where new anonymous pages of the VMA belong; None until the first write fault.
    chain: all linked anon_vmas, oldest first, its own among them; () while `anon_vma` is None.
    """

    __slots__ = ("anon_vma", "chain")

    def __init__(self) -> None:
        self.anon_vma: AnonVma | None = None
        self.chain: tuple[AnonVma, ...] = ()


def why_shared(anon_vma: AnonVma | None) -> str:
    """Why the series leaves the pages of `anon_vma` alone, in words; "" where it need not."""
    if anon_vma is None:
        return ""
    if anon_vma.root is not anon_vma:
        return "shared with parent"
    if anon_vma.has_child():
        return "shared with child"
    return ""


def link_chain(vma: Linked, chain: tuple[AnonVma, ...]) -> None:
    """Give `vma`, which has none, all the links of `chain` (the linking half of ``anon_vma_clone``)."""
    vma.chain = chain
    for anon_vma in chain:
        anon_vma.vmas[vma] = None


def clone_chain(target: Linked, source: Linked) -> None:
    """Make unlinked `target` share the anon_vma and all links of `source` (``anon_vma_clone``: split, move, merge)."""
    anon_vma = source.anon_vma
    if anon_vma is None:
        return
    link_chain(target, source.chain)
    target.anon_vma = anon_vma
    anon_vma.num_active_vmas += 1


def unlink_chain(vma: Linked) -> None:
    """Sever every link of `vma` (``unlink_anon_vmas``). An anon_vma that no VMA is linked with dies."""
    anon_vma = vma.anon_vma
    if anon_vma is None:
        return
    for linked in reversed(vma.chain):  # newest first, so that the root goes last
        del linked.vmas[vma]
        if not linked.vmas:
            linked.parent.num_children -= 1
    anon_vma.num_active_vmas -= 1
    vma.anon_vma = None
    vma.chain = ()


def fork_chain(child: Linked, parent: Linked, number: int, *, by_degree: bool) -> bool:
    """Link `child` with all of `parent`'s anon_vmas and with one of its own (``anon_vma_fork``).

    An ancestor's anon_vma that has lost its VMAs and has at most one child is reused in place of a new one.
    by_degree: the rule until 5.19, where one count told both (see `Policy.fork_reuses_by_degree`).
    Returns True if the anon_vma `number` was made, False if none was needed.
    """
    own = parent.anon_vma
    if own is None:
        return False
    link_chain(child, parent.chain)
    for anon_vma in parent.chain:  # oldest first, as anon_vma_clone meets them
        if by_degree:
            reusable = anon_vma is not own and anon_vma.degree < 2
        else:
            reusable = anon_vma.num_active_vmas == 0 and anon_vma.num_children <= 1
        if reusable:
            child.anon_vma = anon_vma
            anon_vma.num_active_vmas += 1
            return False
    made = AnonVma(number, own)
    made.num_active_vmas = 1
    made.vmas[child] = None
    child.chain = (*parent.chain, made)
    child.anon_vma = made
    return True
