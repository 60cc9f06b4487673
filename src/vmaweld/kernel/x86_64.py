# SPDX-License-Identifier: GPL-2.0-or-later
"""The numbers of x86-64's system calls (``arch/x86/entry/syscalls/syscall_64.tbl``): the one table of them.

Two programs that run apart from the package keep the few they need themselves: `executor.child` and `guests.init`. A
test compares those with this table.
"""

from typing import Final

NR_READ: Final = 0
NR_WRITE: Final = 1
NR_OPEN: Final = 2
NR_CLOSE: Final = 3
NR_MMAP: Final = 9
NR_MPROTECT: Final = 10
NR_MUNMAP: Final = 11
NR_BRK: Final = 12
NR_RT_SIGPROCMASK: Final = 14
NR_IOCTL: Final = 16
NR_PWRITE64: Final = 18
NR_READV: Final = 19
NR_WRITEV: Final = 20
NR_SELECT: Final = 23
NR_MREMAP: Final = 25
NR_MADVISE: Final = 28
NR_SHMGET: Final = 29
NR_SHMAT: Final = 30
NR_SHMCTL: Final = 31
NR_DUP: Final = 32
NR_DUP2: Final = 33
NR_SENDFILE: Final = 40
NR_CONNECT: Final = 42
NR_ACCEPT: Final = 43
NR_SENDTO: Final = 44
NR_RECVFROM: Final = 45
NR_SENDMSG: Final = 46
NR_RECVMSG: Final = 47
NR_CLONE: Final = 56
NR_FORK: Final = 57
NR_VFORK: Final = 58
NR_EXECVE: Final = 59
NR_SEMOP: Final = 65
NR_SHMDT: Final = 67
NR_FCNTL: Final = 72
NR_CREAT: Final = 85
NR_PTRACE: Final = 101
NR_RT_SIGTIMEDWAIT: Final = 128
NR_MLOCK: Final = 149
NR_MUNLOCK: Final = 150
NR_MLOCKALL: Final = 151
NR_MUNLOCKALL: Final = 152
NR_PRCTL: Final = 157
NR_ARCH_PRCTL: Final = 158
NR_FUTEX: Final = 202
NR_IO_SETUP: Final = 206
NR_IO_DESTROY: Final = 207
NR_IO_GETEVENTS: Final = 208
NR_REMAP_FILE_PAGES: Final = 216
NR_RESTART_SYSCALL: Final = 219
NR_SEMTIMEDOP: Final = 220
NR_EPOLL_WAIT: Final = 232
NR_MBIND: Final = 237
NR_OPENAT: Final = 257
NR_PSELECT6: Final = 270
NR_PPOLL: Final = 271
NR_UNSHARE: Final = 272
NR_SET_ROBUST_LIST: Final = 273
NR_GET_ROBUST_LIST: Final = 274
NR_SPLICE: Final = 275
NR_TEE: Final = 276
NR_EPOLL_PWAIT: Final = 281
NR_ACCEPT4: Final = 288
NR_DUP3: Final = 292
NR_PWRITEV: Final = 296
NR_RECVMMSG: Final = 299
NR_SENDMMSG: Final = 307
NR_PROCESS_VM_READV: Final = 310
NR_PROCESS_VM_WRITEV: Final = 311
NR_KCMP: Final = 312
NR_FINIT_MODULE: Final = 313
NR_MEMFD_CREATE: Final = 319
NR_BPF: Final = 321
NR_EXECVEAT: Final = 322
NR_USERFAULTFD: Final = 323
NR_MLOCK2: Final = 325
NR_PREADV2: Final = 327
NR_PWRITEV2: Final = 328
NR_PKEY_MPROTECT: Final = 329
NR_PKEY_ALLOC: Final = 330
NR_PKEY_FREE: Final = 331
NR_IO_PGETEVENTS: Final = 333
NR_RSEQ: Final = 334
NR_IO_URING_ENTER: Final = 426
NR_PIDFD_OPEN: Final = 434
NR_CLONE3: Final = 435
NR_CLOSE_RANGE: Final = 436
NR_OPENAT2: Final = 437
NR_PIDFD_GETFD: Final = 438
NR_PROCESS_MADVISE: Final = 440
NR_EPOLL_PWAIT2: Final = 441
NR_SET_MEMPOLICY_HOME_NODE: Final = 450
NR_MSEAL: Final = 462

NUMBERS: Final[dict[str, int]] = {
    name.removeprefix("NR_").lower(): number for name, number in globals().items() if name.startswith("NR_")
}
"""All of the above by name."""


def numbers_of(*names: str) -> dict[int, str]:
    """These calls by their numbers.

    >>> numbers_of("mmap", "mremap")
    {9: 'mmap', 25: 'mremap'}
    """
    return {NUMBERS[name]: name for name in names}
