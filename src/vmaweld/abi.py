# SPDX-License-Identifier: GPL-2.0-or-later
"""Constants and page arithmetic of the Linux memory interface on x86-64; nothing else.

Values are those of the kernel's uapi headers (``mman.h``, ``mman-common.h``, ``prctl.h``, ``mempolicy.h``,
``userfaultfd.h``) and of ``include/linux/mm.h`` for the ``VM_*`` flags, which no uapi header holds.
Where a flag moved between releases, the comment beside it says so.
"""

from typing import Final

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 4096
PAGE_MASK: Final = ~4095
HUGE_PAGE_SIZE: Final = 2 << 20

TASK_SIZE: Final = 0x7FFF_FFFF_F000
"""First address past user space with four-level page tables (``TASK_SIZE_MAX``)."""
MMAP_MIN_ADDR: Final = 65536
"""Default of ``vm.mmap_min_addr``."""
DEFAULT_MAX_MAP_COUNT: Final = 65530
"""Default of ``vm.max_map_count``: an ELF core dump holds at most 65535 segments."""
STACK_GUARD_GAP: Final = 256 << 12
"""Bytes kept free below a stack (``stack_guard_gap``, 4.12)."""


def page_align_down(address: int) -> int:
    """The start of the page that holds `address`."""
    return address & PAGE_MASK


def page_align_up(address: int) -> int:
    """`address` rounded up to a page boundary (``PAGE_ALIGN``)."""
    return (address + (PAGE_SIZE - 1)) & PAGE_MASK


# mmap(2), mprotect(2)
PROT_NONE: Final = 0
PROT_READ: Final = 1
PROT_WRITE: Final = 2
PROT_EXEC: Final = 4
PROT_SEM: Final = 8
PROT_GROWSDOWN: Final = 0x0100_0000
PROT_GROWSUP: Final = 0x0200_0000

MAP_SHARED: Final = 0x01
MAP_PRIVATE: Final = 0x02
MAP_SHARED_VALIDATE: Final = 0x03
MAP_DROPPABLE: Final = 0x08  # 6.11
MAP_TYPE: Final = 0x0F
MAP_FIXED: Final = 0x10
MAP_ANONYMOUS: Final = 0x20
MAP_32BIT: Final = 0x40
MAP_GROWSDOWN: Final = 0x0100
MAP_DENYWRITE: Final = 0x0800
MAP_LOCKED: Final = 0x2000
MAP_NORESERVE: Final = 0x4000
MAP_POPULATE: Final = 0x8000
MAP_NONBLOCK: Final = 0x1_0000
MAP_STACK: Final = 0x2_0000
MAP_HUGETLB: Final = 0x4_0000
MAP_SYNC: Final = 0x8_0000
MAP_FIXED_NOREPLACE: Final = 0x10_0000

# mremap(2)
MREMAP_MAYMOVE: Final = 1
MREMAP_FIXED: Final = 2
MREMAP_DONTUNMAP: Final = 4  # 5.7

# mlock2(2), mlockall(2)
MLOCK_ONFAULT: Final = 1
MCL_CURRENT: Final = 1
MCL_FUTURE: Final = 2
MCL_ONFAULT: Final = 4

# madvise(2)
MADV_NORMAL: Final = 0
MADV_RANDOM: Final = 1
MADV_SEQUENTIAL: Final = 2
MADV_WILLNEED: Final = 3
MADV_DONTNEED: Final = 4
MADV_FREE: Final = 8
MADV_REMOVE: Final = 9
MADV_DONTFORK: Final = 10
MADV_DOFORK: Final = 11
MADV_MERGEABLE: Final = 12
MADV_UNMERGEABLE: Final = 13
MADV_HUGEPAGE: Final = 14
MADV_NOHUGEPAGE: Final = 15
MADV_DONTDUMP: Final = 16
MADV_DODUMP: Final = 17
MADV_WIPEONFORK: Final = 18
MADV_KEEPONFORK: Final = 19
MADV_COLD: Final = 20
MADV_PAGEOUT: Final = 21
MADV_POPULATE_READ: Final = 22  # 5.14
MADV_POPULATE_WRITE: Final = 23  # 5.14
MADV_DONTNEED_LOCKED: Final = 24  # 5.18
MADV_COLLAPSE: Final = 25  # 6.1
MADV_GUARD_INSTALL: Final = 102  # 6.13
MADV_GUARD_REMOVE: Final = 103  # 6.13

# clone(2)
CLONE_VM: Final = 0x0100
CLONE_VFORK: Final = 0x4000
CLONE_THREAD: Final = 0x1_0000

# userfaultfd(2): bits of uffdio_register.mode
UFFDIO_REGISTER_MODE_MISSING: Final = 1
UFFDIO_REGISTER_MODE_WP: Final = 2  # 5.7
UFFDIO_REGISTER_MODE_MINOR: Final = 4  # 5.13

# vm_flags (include/linux/mm.h, x86-64)
VM_READ: Final = 0x1
VM_WRITE: Final = 0x2
VM_EXEC: Final = 0x4
VM_SHARED: Final = 0x8
VM_MAYREAD: Final = 0x10
VM_MAYWRITE: Final = 0x20
VM_MAYEXEC: Final = 0x40
VM_MAYSHARE: Final = 0x80
VM_GROWSDOWN: Final = 0x100
VM_UFFD_MISSING: Final = 0x200
VM_PFNMAP: Final = 0x400
VM_MAYBE_GUARD: Final = 0x800  # 6.19; VM_DENYWRITE until 5.15
VM_UFFD_WP: Final = 0x1000
VM_LOCKED: Final = 0x2000
VM_IO: Final = 0x4000
VM_SEQ_READ: Final = 0x8000
VM_RAND_READ: Final = 0x1_0000
VM_DONTCOPY: Final = 0x2_0000
VM_DONTEXPAND: Final = 0x4_0000
VM_LOCKONFAULT: Final = 0x8_0000
VM_ACCOUNT: Final = 0x10_0000
VM_NORESERVE: Final = 0x20_0000
VM_HUGETLB: Final = 0x40_0000
VM_SYNC: Final = 0x80_0000
VM_PAT: Final = 0x100_0000
VM_WIPEONFORK: Final = 0x200_0000
VM_DONTDUMP: Final = 0x400_0000
VM_SOFTDIRTY: Final = 0x800_0000
VM_MIXEDMAP: Final = 0x1000_0000
VM_HUGEPAGE: Final = 0x2000_0000
VM_NOHUGEPAGE: Final = 0x4000_0000
VM_MERGEABLE: Final = 0x8000_0000
VM_PKEY_SHIFT: Final = 32
VM_PKEY_MASK: Final = 0xF_0000_0000
EXECUTE_ONLY_PKEY: Final = 1
"""The protection key that Linux takes for memory that may only be executed, where the program has taken none."""
VM_SHADOW_STACK: Final = 1 << 37
VM_DROPPABLE: Final = 1 << 40  # 6.11
VM_UFFD_MINOR: Final = 1 << 41
VM_SEALED: Final = 1 << 42
EARLIER_BITS: Final = (
    ((5, 13), (6, 5), 1 << 37, VM_UFFD_MINOR),
    ((6, 6), (6, 14), 1 << 38, VM_UFFD_MINOR),
    ((6, 10), (6, 16), 1 << 63, VM_SEALED),
)
"""Flags that lay elsewhere: (first release, last release, the bit there, the bit today)."""

VM_ACCESS_FLAGS: Final = VM_READ | VM_WRITE | VM_EXEC
VM_SPECIAL: Final = VM_IO | VM_DONTEXPAND | VM_PFNMAP | VM_MIXEDMAP
"""Mappings that never merge (``VM_SPECIAL``)."""
VM_UFFD_ANY: Final = VM_UFFD_MISSING | VM_UFFD_WP | VM_UFFD_MINOR
VM_LOCKED_MASK: Final = VM_LOCKED | VM_LOCKONFAULT

VM_FLAG_NAMES: Final[dict[int, str]] = {
    VM_READ: "read",
    VM_WRITE: "write",
    VM_EXEC: "exec",
    VM_SHARED: "shared",
    VM_MAYREAD: "mayread",
    VM_MAYWRITE: "maywrite",
    VM_MAYEXEC: "mayexec",
    VM_MAYSHARE: "mayshare",
    VM_GROWSDOWN: "growsdown",
    VM_UFFD_MISSING: "uffd-missing",
    VM_PFNMAP: "pfnmap",
    VM_MAYBE_GUARD: "maybe-guard",
    VM_UFFD_WP: "uffd-wp",
    VM_LOCKED: "locked",
    VM_IO: "io",
    VM_SEQ_READ: "sequential",
    VM_RAND_READ: "random",
    VM_DONTCOPY: "dontfork",
    VM_DONTEXPAND: "dontexpand",
    VM_LOCKONFAULT: "lockonfault",
    VM_ACCOUNT: "account",
    VM_NORESERVE: "noreserve",
    VM_HUGETLB: "hugetlb",
    VM_SYNC: "sync",
    VM_PAT: "pat",
    VM_WIPEONFORK: "wipeonfork",
    VM_DONTDUMP: "dontdump",
    VM_SOFTDIRTY: "softdirty",
    VM_MIXEDMAP: "mixedmap",
    VM_HUGEPAGE: "hugepage",
    VM_NOHUGEPAGE: "nohugepage",
    VM_MERGEABLE: "ksm",
    VM_SHADOW_STACK: "shadow-stack",
    VM_DROPPABLE: "droppable",
    VM_UFFD_MINOR: "uffd-minor",
    VM_SEALED: "sealed",
}
"""A short name for every flag, after the madvise(2) or mmap(2) word where there is one."""


def flag_names(flags: int) -> list[str]:
    """Names of the set bits of `flags`, lowest first; a protection key as ``pkey=N``, unknown bits in hex.

    >>> flag_names(VM_READ | VM_DONTDUMP)
    ['read', 'dontdump']
    """
    names = [name for bit, name in VM_FLAG_NAMES.items() if flags & bit]
    known = VM_PKEY_MASK
    for bit in VM_FLAG_NAMES:
        known |= bit
    if flags & VM_PKEY_MASK:
        names.append(f"pkey={(flags & VM_PKEY_MASK) >> VM_PKEY_SHIFT}")
    if flags & ~known:
        names.append(hex(flags & ~known))
    return names
