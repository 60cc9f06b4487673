# SPDX-License-Identifier: GPL-2.0-or-later
"""How Linux merges virtual memory areas, why it often cannot, and what to do about it.

`weld` and `mremap`, which merge the memory of the calling process, are imported when they are first asked for.
"""

TYPE_CHECKING = False  # not imported from typing, which would cost more than all the rest
if TYPE_CHECKING:
    from vmaweld.welding import mremap, weld

__version__ = "0.1.0"
__all__ = ["mremap", "weld"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from vmaweld import welding

        return getattr(welding, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
