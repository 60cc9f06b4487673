# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VMA is for, in nine words."""

from typing import Final

from vmaweld.abi import VM_ACCESS_FLAGS, VM_GROWSDOWN, VM_HUGETLB, VM_MAYSHARE, VM_SPECIAL
from vmaweld.snapshot import Row

KINDS: Final[dict[str, str]] = {
    "anonymous": "private memory with no file: malloc, mmap(MAP_ANONYMOUS)",
    "reserved": "anonymous without access: guard pages and address space kept for later",
    "heap": "what brk() grows",
    "stack": "the main thread's stack",
    "file-private": "a private mapping of a file: programs, libraries",
    "file-shared": "a shared mapping of a file",
    "shared-memory": "tmpfs, memfd, System V and anonymous shared memory",
    "hugetlb": "huge pages from the reserved pool",
    "special": "the kernel's own and devices': vdso, vvar, drivers' memory",
}
"""Every kind with what it means; the names are stable and appear in JSON."""

_SHARED_MEMORY: Final = ("/dev/zero (deleted)", "/memfd:", "/SYSV", "/dev/shm/", "/i915")


def kind_of(row: Row) -> str:
    """The kind of `row`, a key of `KINDS`.

    >>> kind_of(Row(0x1000, 0x2000, 3, name="[heap]"))
    'heap'
    """
    flags = row.flags
    if flags & VM_HUGETLB:
        return "hugetlb"
    if row.file:
        if row.file.startswith(_SHARED_MEMORY):
            return "shared-memory"
        if flags & VM_SPECIAL:
            return "special"
        return "file-shared" if flags & VM_MAYSHARE else "file-private"
    if row.name == "[heap]":
        return "heap"
    if row.name == "[stack]" or flags & VM_GROWSDOWN:
        return "stack"
    if flags & VM_SPECIAL or (row.name.startswith("[v") and row.name.endswith("]")) or row.name == "[uprobes]":
        return "special"
    if flags & VM_MAYSHARE:
        return "shared-memory"
    return "anonymous" if flags & VM_ACCESS_FLAGS else "reserved"
