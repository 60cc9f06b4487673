"""What stands in the way of welding an open seam.

Welding moves the right side away, grows the left side over the hole and moves the pages back with UFFDIO_MOVE
(6.8); what follows are the conditions of mremap(2) and of ``validate_move_areas()``, ``vma_can_userfault()``
(``mm/userfaultfd.c``) and ``check_prep_vma()`` (``mm/mremap.c``).
"""

from typing import Final

from vmaweld.abi import (
    VM_DROPPABLE,
    VM_GROWSDOWN,
    VM_LOCKED_MASK,
    VM_MAYSHARE,
    VM_MERGEABLE,
    VM_SEALED,
    VM_SHADOW_STACK,
    VM_UFFD_ANY,
    VM_WRITE,
)
from vmaweld.seams import Seam

OBSTACLES: Final[dict[str, str]] = {
    "file": "maps a file: UFFDIO_MOVE moves anonymous memory only",
    "shared-memory": "shared memory: UFFDIO_MOVE moves private memory only",
    "stack": "the stack grows by itself and must stay where it is",
    "userfaultfd": "the program watches it with a userfaultfd of its own",
    "sealed": "sealed with mseal(2): mremap refuses",
    "shadow-stack": "a shadow stack: userfaultfd refuses",
    "droppable": "droppable memory: userfaultfd refuses",
    "shared-pages": "some pages are shared, with a child, a parent or by KSM: they must be copied or written first",
    "read-only": "not writable: its protection must be changed for the move and put back",
    "locked": "mlocked: counts against RLIMIT_MEMLOCK while it moves",
    "ksm": "KSM may share its pages at any time: they are unshared first",
}
"""Every obstacle with what it means; the names are stable and appear in JSON."""

PREVENTS: Final = frozenset(
    {
        "file",
        "shared-memory",
        "stack",
        "userfaultfd",
        "sealed",
        "shadow-stack",
        "droppable",
    }
)
"""Those that no weld gets past; the others cost a step more, and may fail."""

_REMARKABLE: Final = (
    VM_MAYSHARE
    | VM_GROWSDOWN
    | VM_UFFD_ANY
    | VM_SEALED
    | VM_SHADOW_STACK
    | VM_DROPPABLE
    | VM_LOCKED_MASK
    | VM_MERGEABLE
)


def obstacles(seam: Seam, shared_pages: int = 0) -> tuple[str, ...]:
    """What stands in the way at `seam`, in the order of `OBSTACLES`; () where nothing does.

    shared_pages: pages of its right side that are not this process's alone (they are the ones that move).
    """
    left, right = seam.left, seam.right
    flags = left.flags | right.flags
    plain = not (flags & _REMARKABLE or left.file or right.file or left.name or right.name or shared_pages)
    if plain and right.flags & VM_WRITE:
        return ()  # nearly all of them, and there may be tens of thousands
    found = []
    if left.file or right.file:
        found.append("shared-memory" if right.flags & VM_MAYSHARE else "file")
    elif flags & VM_MAYSHARE:
        found.append("shared-memory")
    if flags & VM_GROWSDOWN or right.name == "[stack]" or left.name == "[stack]":
        found.append("stack")
    if flags & VM_UFFD_ANY:
        found.append("userfaultfd")
    if flags & VM_SEALED:
        found.append("sealed")
    if flags & VM_SHADOW_STACK:
        found.append("shadow-stack")
    if flags & VM_DROPPABLE:
        found.append("droppable")
    if shared_pages:
        found.append("shared-pages")
    if not right.flags & VM_WRITE:
        found.append("read-only")
    if flags & VM_LOCKED_MASK:
        found.append("locked")
    if flags & VM_MERGEABLE:
        found.append("ksm")
    return tuple(found)


def prevents(found: tuple[str, ...]) -> bool:
    """True where one of `found` rules a weld out."""
    return not PREVENTS.isdisjoint(found)
