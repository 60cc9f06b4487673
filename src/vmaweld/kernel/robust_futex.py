# SPDX-License-Identifier: GPL-2.0-or-later
"""A lock that lives exactly as long as the thread that holds it: a robust futex (set_robust_list(2)).

The word holds the owner's thread id. When the owner ends, however it ends, the kernel itself takes the id out and sets
FUTEX_OWNER_DIED (``exit_robust_list()``, ``kernel/futex/core.c``). Whoever can read the word knows whether the owner
lives, in whatever pid or network namespace it is.
"""

import ctypes
import struct
import threading
from typing import Final

from vmaweld.kernel import syscalls, x86_64

TID_MASK: Final = 0x3FFF_FFFF
WAITERS: Final = 0x8000_0000

_HEAD_SIZE: Final = 24


class RobustFutex:
    """A futex word in memory that others can read, held by the calling thread until `drop` or its end.

    alive: what the word holds meanwhile. It says that somebody waits, so that the owner's end wakes one who does
    (``handle_futex_death()``).
    The list of robust futexes is the thread's own and lies in private memory, so that whoever shares the word cannot
    lead the kernel or this process astray by it. It takes the place of the C library's list meanwhile: the thread
    must not hold a robust mutex of that.
    """

    def __init__(self, address: int) -> None:
        """Prepare for the lock whose word will lie at that address, from `hold` on."""
        self._address = address
        self.alive = threading.get_native_id() | WAITERS
        before = ctypes.create_string_buffer(16)
        at = ctypes.addressof(before)
        syscalls.check(syscalls.raw(x86_64.NR_GET_ROBUST_LIST, 0, at, at + 8), "get_robust_list()")
        self._before = struct.unpack("<QQ", before.raw)
        # struct robust_list_head: the first entry, the distance from an entry to its word, the entry on its way;
        # behind it the only entry, which points back to the head.
        self._list = ctypes.create_string_buffer(_HEAD_SIZE + 8)
        head = ctypes.addressof(self._list)
        entry = head + _HEAD_SIZE
        struct.pack_into("<QqQQ", self._list, 0, entry, address - entry, 0, head)
        syscalls.check(syscalls.raw(x86_64.NR_SET_ROBUST_LIST, head, _HEAD_SIZE), "set_robust_list()")

    def hold(self) -> None:
        """Take the lock for the thread that prepared it. Any thread may call this; nobody else may try to take it."""
        self._set(self.alive)

    def drop(self) -> None:
        """Give the lock back; its word must still be mapped."""
        self._set(0)

    def close(self) -> None:
        """Give the thread that prepared it, and calls this, its own list back."""
        syscalls.raw(x86_64.NR_SET_ROBUST_LIST, *self._before)

    def _set(self, value: int) -> None:
        ctypes.c_uint32.from_address(self._address).value = value


def held(word: int) -> bool:
    """Whether a word with that value has an owner, and the owner lives."""
    return word & TID_MASK != 0
