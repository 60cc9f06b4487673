# SPDX-License-Identifier: GPL-2.0-or-later
"""What reasons mean in a few words, and the colours of seams and kinds, light and dark."""

from typing import Final

from vmaweld.inspect.kinds import KINDS
from vmaweld.seams import (
    ANON_NAME,
    ANON_VMA,
    FILE,
    FILE_OFFSET,
    FLAGS,
    HIDDEN,
    MEMPOLICY,
    NOT_ATTEMPTED,
    OPEN_MASK,
    PAGE_OFFSET,
    PROTECTION,
    REASON_NAMES,
    SPECIAL,
    USERFAULTFD,
    reason_names,
)

MEANINGS: Final[dict[str, str]] = {
    "protection": "read, write or execute differs",
    "flags": "another VM_* flag differs",
    "file": "another file, another open of it, or none",
    "file-offset": "the file does not go on where the left side stops",
    "anon-name": "named apart with PR_SET_VMA_ANON_NAME",
    "mempolicy": "another memory policy",
    "userfaultfd": "another userfaultfd or mode",
    "special": "the kernel's own, a device's, or a driver's",
    "page-offset": "page offsets do not go on (moved with mremap)",
    "anon-vma": "faulted apart, or cloned by fork",
    "page-offset-or-anon-vma": "one of the two, which /proc does not show",
    NOT_ATTEMPTED: "nothing: the kernel has not tried since it could",
}
"""Each reason of a seam."""


class SeamClass:
    """Seams drawn in one colour: a shut one by the first of its reasons, an open one by all of them.

    colours: (on light, on dark) as CSS.
    """

    __slots__ = ("name", "open", "meaning", "colours")

    def __init__(self, name: str, is_open: bool, meaning: str, colours: tuple[str, str]) -> None:
        self.name = name
        self.open = is_open
        self.meaning = meaning
        self.colours = colours


_SHUT: Final = {
    PROTECTION: ("#64788f", "#8aa0b8"),
    FLAGS: ("#7d5ba6", "#a88ad0"),
    FILE: ("#2f7f78", "#5fb3aa"),
    FILE_OFFSET: ("#7aa8a0", "#3f7f78"),
    ANON_NAME: ("#8a6a35", "#c19f63"),
    MEMPOLICY: ("#8f8a20", "#c4be55"),
    USERFAULTFD: ("#3b6fd1", "#7ba3f0"),
    SPECIAL: ("#9aa0a6", "#666d75"),
}
_OPEN: Final = {
    PAGE_OFFSET: ("#e8730c", "#ff9d45"),
    ANON_VMA: ("#cf1f3f", "#ff5c77"),
    PAGE_OFFSET | ANON_VMA: ("#a30f86", "#f06ad6"),
    HIDDEN: ("#e0481a", "#ff7f50"),
    0: ("#1f8f3a", "#5fd07a"),
}

CLASSES: Final[tuple[SeamClass, ...]] = tuple(
    [SeamClass(REASON_NAMES[bit], False, MEANINGS[REASON_NAMES[bit]], colours) for bit, colours in _SHUT.items()]
    + [
        SeamClass(
            " and ".join(reason_names(mask)),
            True,
            "; ".join(MEANINGS[name] for name in reason_names(mask)),
            colours,
        )
        for mask, colours in _OPEN.items()
    ]
)
"""All classes, the shut ones first."""

_OPEN_INDEX: Final = {mask: len(_SHUT) + at for at, mask in enumerate(_OPEN)}


def class_of(mask: int) -> int:
    """The position in `CLASSES` of a seam with the reasons `mask`."""
    shut = mask & ~OPEN_MASK
    if not shut:
        return _OPEN_INDEX[mask]
    return (shut & -shut).bit_length() - 1  # the bits of the shut reasons are the lowest, in the order of _SHUT


KIND_COLOURS: Final[dict[str, tuple[str, str]]] = {
    "anonymous": ("#a9cbef", "#2f5f8f"),
    "reserved": ("#e3e7eb", "#2a3138"),
    "heap": ("#7eb6ea", "#3f7fbf"),
    "stack": ("#c9b8f0", "#5f4a96"),
    "file-private": ("#bfe1c4", "#2f5f3f"),
    "file-shared": ("#8fd0a0", "#3f8055"),
    "shared-memory": ("#f2dc9d", "#7a6425"),
    "hugetlb": ("#f4c6a6", "#8a5432"),
    "special": ("#c9cdd2", "#4a525b"),
}
"""(on light, on dark) for every kind."""

assert KIND_COLOURS.keys() == KINDS.keys()
