# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory system calls of x86-64 Linux, typed and thin; `userfaultfd` has a room of its own.

They go through syscall(2), not through libc's wrappers: what the kernel answers is what the caller gets, calls that
libc does not know yet work, and nothing is rounded or remembered on the way. Every function raises OSError with
the kernel's errno and a message that names the call and its arguments; numbers are those of
``arch/x86/entry/syscalls/syscall_64.tbl``.
"""

import ctypes
import os
import struct
from typing import Final

from vmaweld import mempolicy
from vmaweld.kernel import x86_64

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_THP_DISABLE: Final = 41
PR_SET_VMA: Final = 0x53564D41
PR_SET_VMA_ANON_NAME: Final = 0

_libc: Final = ctypes.CDLL(None, use_errno=True)
_syscall: Final = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_ulong] * 7


def raw(number: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, e: int = 0, f: int = 0) -> int:
    """System call `number`: what it returns, or ``-errno``. Never raises for what the kernel says."""
    result: int = _syscall(number, a, b, c, d, e, f)
    return -ctypes.get_errno() if result == -1 else result


def check(result: int, call: str) -> int:
    """`result` unless it is ``-errno``; then OSError with the errno and `call` in its message."""
    if -4096 < result < 0:
        raise OSError(-result, f"{call}: {os.strerror(-result)}")
    return result


def mmap(addr: int, length: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
    """``mmap``(2); returns the address."""
    return check(
        raw(x86_64.NR_MMAP, addr, length, prot, flags, fd & 0xFFFF_FFFF_FFFF_FFFF, offset),
        f"mmap({addr:#x}, {length:#x}, prot={prot}, flags={flags:#x}, fd={fd}, offset={offset:#x})",
    )


def munmap(addr: int, length: int) -> None:
    """``munmap``(2)."""
    check(raw(x86_64.NR_MUNMAP, addr, length), f"munmap({addr:#x}, {length:#x})")


def mprotect(addr: int, length: int, prot: int) -> None:
    """``mprotect``(2)."""
    check(raw(x86_64.NR_MPROTECT, addr, length, prot), f"mprotect({addr:#x}, {length:#x}, {prot:#x})")


def pkey_mprotect(addr: int, length: int, prot: int, pkey: int) -> None:
    """``pkey_mprotect``(2), 4.9."""
    check(
        raw(x86_64.NR_PKEY_MPROTECT, addr, length, prot, pkey & 0xFFFF_FFFF_FFFF_FFFF),
        f"pkey_mprotect({addr:#x}, {length:#x}, {prot:#x}, pkey={pkey})",
    )


def mremap(addr: int, length: int, new_length: int, flags: int = 0, new_addr: int = 0) -> int:
    """``mremap``(2); returns the new address. flags: MREMAP_*."""
    return check(
        raw(x86_64.NR_MREMAP, addr, length, new_length, flags, new_addr),
        f"mremap({addr:#x}, {length:#x}, {new_length:#x}, flags={flags}, new_addr={new_addr:#x})",
    )


def madvise(addr: int, length: int, advice: int) -> None:
    """``madvise``(2). advice: MADV_*."""
    check(raw(x86_64.NR_MADVISE, addr, length, advice), f"madvise({addr:#x}, {length:#x}, {advice})")


def process_madvise(pidfd: int, addr: int, length: int, advice: int) -> int:
    """``process_madvise``(2), 5.10, for one range; returns the bytes advised."""
    vector = ctypes.create_string_buffer(struct.pack("<QQ", addr, length), 16)
    return check(
        raw(x86_64.NR_PROCESS_MADVISE, pidfd, ctypes.addressof(vector), 1, advice),
        f"process_madvise(pidfd={pidfd}, {addr:#x}, {length:#x}, {advice})",
    )


def mlock(addr: int, length: int, flags: int = 0) -> None:
    """``mlock``(2), or mlock2(2) where `flags` (MLOCK_ONFAULT) is set."""
    if flags:
        check(raw(x86_64.NR_MLOCK2, addr, length, flags), f"mlock2({addr:#x}, {length:#x}, {flags})")
    else:
        check(raw(x86_64.NR_MLOCK, addr, length), f"mlock({addr:#x}, {length:#x})")


def munlock(addr: int, length: int) -> None:
    """``munlock``(2)."""
    check(raw(x86_64.NR_MUNLOCK, addr, length), f"munlock({addr:#x}, {length:#x})")


def mlockall(flags: int) -> None:
    """``mlockall``(2). flags: MCL_*."""
    check(raw(x86_64.NR_MLOCKALL, flags), f"mlockall({flags})")


def munlockall() -> None:
    """``munlockall``(2)."""
    check(raw(x86_64.NR_MUNLOCKALL), "munlockall()")


def mseal(addr: int, length: int) -> None:
    """``mseal``(2), 6.10. Sealed memory stays as it is until the process ends."""
    check(raw(x86_64.NR_MSEAL, addr, length), f"mseal({addr:#x}, {length:#x})")


def remap_file_pages(addr: int, length: int, pgoff: int, flags: int = 0) -> None:
    """``remap_file_pages``(2). pgoff: pages into the file that is mapped there (shared)."""
    check(
        raw(x86_64.NR_REMAP_FILE_PAGES, addr, length, 0, pgoff, flags),
        f"remap_file_pages({addr:#x}, {length:#x}, {pgoff})",
    )


def prctl(option: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> int:
    """``prctl``(2)."""
    return check(raw(x86_64.NR_PRCTL, option, a, b, c, d), f"prctl({option:#x}, {a:#x}, {b:#x}, {c:#x}, {d:#x})")


def set_anon_name(addr: int, length: int, name: str | None) -> None:
    """Name anonymous memory (5.17, CONFIG_ANON_VMA_NAME), at most 79 bytes; None or "" takes the name off."""
    buffer = ctypes.create_string_buffer(name.encode()) if name else None
    check(
        raw(x86_64.NR_PRCTL, PR_SET_VMA, PR_SET_VMA_ANON_NAME, addr, length, ctypes.addressof(buffer) if buffer else 0),
        f"prctl(PR_SET_VMA_ANON_NAME, {addr:#x}, {length:#x}, {name!r})",
    )


def mbind(addr: int, length: int, policy: str, flags: int = 0) -> None:
    """``mbind``(2) with `policy` as `Row.mempolicy` writes it; "" is the default policy. At most 64 nodes."""
    mode, nodes = mempolicy.parse_policy(policy)
    mask = ctypes.c_ulong(nodes)
    check(
        raw(x86_64.NR_MBIND, addr, length, mode, ctypes.addressof(mask) if nodes else 0, 65 if nodes else 0, flags),
        f"mbind({addr:#x}, {length:#x}, {policy!r}, flags={flags})",
    )


def shmat(shmid: int, addr: int, flags: int) -> int:
    """``shmat``(2); returns the address. flags: SHM_RDONLY 0o10000, SHM_REMAP 0o40000, SHM_EXEC 0o100000."""
    return check(raw(x86_64.NR_SHMAT, shmid, addr, flags), f"shmat({shmid}, {addr:#x}, {flags:#o})")


def shmdt(addr: int) -> None:
    """``shmdt``(2)."""
    check(raw(x86_64.NR_SHMDT, addr), f"shmdt({addr:#x})")


def pidfd_open(pid: int) -> int:
    """``pidfd_open``(2), 5.3; returns a descriptor."""
    return check(raw(x86_64.NR_PIDFD_OPEN, pid), f"pidfd_open({pid})")


def _transfer(number: int, name: str, pid: int, addr: int, local: int, length: int) -> int:
    vectors = ctypes.create_string_buffer(struct.pack("<QQQQ", local, length, addr, length), 32)
    here = ctypes.addressof(vectors)
    return check(raw(number, pid, here, 1, here + 16, 1, 0), f"{name}({pid}, {addr:#x}, {length:#x})")


def read_memory(pid: int, addr: int, length: int) -> bytes:
    """``process_vm_readv``(2): up to `length` bytes of `pid` at `addr`; fewer where memory ends that can be read."""
    buffer = ctypes.create_string_buffer(length)
    got = _transfer(x86_64.NR_PROCESS_VM_READV, "process_vm_readv", pid, addr, ctypes.addressof(buffer), length)
    return buffer.raw[:got]


def write_memory(pid: int, addr: int, data: bytes) -> int:
    """``process_vm_writev``(2): bytes written; fewer than given where memory ends that can be written."""
    buffer = ctypes.create_string_buffer(data, len(data))
    return _transfer(x86_64.NR_PROCESS_VM_WRITEV, "process_vm_writev", pid, addr, ctypes.addressof(buffer), len(data))
