# SPDX-License-Identifier: GPL-2.0-or-later
"""A process under a guard, to be welded: ``python weld_guarded.py GUARD [THREAD]``.

It lays out fragments of each protection, puts the guard on, says where they are and waits for a line: then it checks
every page and says so. GUARD is the name of a function below. With "thread" a second thread is there before the guard,
which therefore does not hold it.
"""

import ctypes
import os
import struct
import sys
import threading

sys.path.insert(0, os.path.dirname(__file__))

from weld_target import PAGE, content, fragments

from vmaweld import abi
from vmaweld.kernel import syscalls, x86_64

COUNT, PAGES = 4, 2
SIZE = COUNT * PAGES * PAGE
WX = abi.PROT_WRITE | abi.PROT_EXEC
RX = abi.PROT_READ | abi.PROT_EXEC
ERRNO, TRAP, TRACE, KILL_PROCESS, KILL_THREAD = 0x0005_0001, 0x0003_0000, 0x7FF0_0000, 0x8000_0000, 0
ALLOW = 0x7FFF_0000
PKEY_MPROTECT, SHMAT = 329, 30
SHM_EXEC = 0o100000
# How systemd.exec(5) describes MemoryDenyWriteExecute=: (system call, argument, mask, forbidden value).
MEMORY_DENY_WRITE_EXECUTE = (
    (x86_64.NR_MMAP, 2, WX, WX),
    (x86_64.NR_MPROTECT, 2, abi.PROT_EXEC, abi.PROT_EXEC),
    (PKEY_MPROTECT, 2, abi.PROT_EXEC, abi.PROT_EXEC),
    (SHMAT, 2, SHM_EXEC, SHM_EXEC),
)
Rule = tuple[int, int, int, int]

KEPT: list[int] = []
AREAS: dict[str, int] = {}
SELECTOR = ctypes.create_string_buffer(b"\1")  # SYSCALL_DISPATCH_FILTER_BLOCK

libc = ctypes.CDLL(None, use_errno=True)


def filter_of(rules: tuple[Rule, ...], action: int) -> list[tuple[int, int, int, int]]:
    """Classic BPF that answers `action` to calls of `rules` and allows all others."""
    found = []
    for number, argument, mask, value in rules:
        found += [
            *((0x20, 0, 0, 0), (0x15, 0, 4, number)),  # not that number: past this rule
            *((0x20, 0, 0, 16 + 8 * argument), (0x54, 0, 0, mask), (0x15, 0, 1, value), (0x06, 0, 0, action)),
        ]
    return [*found, (0x06, 0, 0, ALLOW)]


def install(rules: tuple[Rule, ...], action: int) -> None:
    code = b"".join(struct.pack("<HBBI", *one) for one in filter_of(rules, action))
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("<HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    check(libc.prctl(38, 1, 0, 0, 0))  # PR_SET_NO_NEW_PRIVS
    check(libc.prctl(22, 2, program, 0, 0))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def none() -> None:
    pass


def systemd() -> None:
    install(MEMORY_DENY_WRITE_EXECUTE, ERRNO)


def systemd_kills() -> None:
    install(MEMORY_DENY_WRITE_EXECUTE, KILL_PROCESS)


def write_and_execute() -> None:
    """Only both at once are forbidden."""
    install(((x86_64.NR_MMAP, 2, WX, WX), (x86_64.NR_MPROTECT, 2, WX, WX)), TRAP)


def executable_maps() -> None:
    """No mapping may be executable at all."""
    install(((x86_64.NR_MMAP, 2, abi.PROT_EXEC, abi.PROT_EXEC),), ERRNO)


def mprotect() -> None:
    install(((x86_64.NR_MPROTECT, 2, 0, 0),), TRACE)


def munlock() -> None:
    install(((x86_64.NR_MUNLOCK, 0, 0, 0),), KILL_PROCESS)


def mremap_in_place() -> None:
    """mremap without any flag: what lets the memory on its way grow."""
    install(((x86_64.NR_MREMAP, 3, 0xFFFF_FFFF, 0),), KILL_THREAD)


def munmap() -> None:
    install(((x86_64.NR_MUNMAP, 0, 0, 0),), KILL_PROCESS)


def mdwe() -> None:
    """PR_SET_MDWE with PR_MDWE_REFUSE_EXEC_GAIN, Linux 6.3."""
    check(libc.prctl(65, 1, 0, 0, 0))


def dispatch() -> None:
    """Syscall User Dispatch on this thread: every system call from outside the C library would raise SIGSYS."""
    with open("/proc/self/maps", encoding="ascii", errors="replace") as file:
        lines = [line.split() for line in file if "/libc.so.6" in line]
    low, high = int(lines[0][0].split("-")[0], 16), int(lines[-1][0].split("-")[1], 16)
    check(
        libc.prctl(59, 1, ctypes.c_ulong(low), ctypes.c_ulong(high - low), ctypes.c_void_p(ctypes.addressof(SELECTOR)))
    )


def fork() -> None:
    """A child that ends at once: who wrote to no page since shares it still, as far as the kernel knows."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def fork_and_wait() -> None:
    """A child that lives as long as we do."""
    ours = os.pipe()
    if os.fork() == 0:
        os.close(ours[1])
        os.read(ours[0], 1)
        os._exit(0)
    KEPT.append(ours[1])


def twin() -> None:
    """A copy of the first area elsewhere, both for KSM to merge."""
    copy = syscalls.mmap(0, SIZE, abi.PROT_READ | abi.PROT_WRITE, abi.MAP_PRIVATE | abi.MAP_ANONYMOUS)
    ctypes.memmove(copy, AREAS["rw-"], SIZE)
    for start in (copy, AREAS["rw-"]):
        check(libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(SIZE), 12))  # MADV_MERGEABLE


def lay_out() -> None:
    for seed, (name, prot) in enumerate((("rw-", 3), ("r--", 1), ("r-x", 5), ("rwx", 7)), 1):
        AREAS[name] = fragments(COUNT, PAGES, seed=seed)
        if prot != 3:
            syscalls.mprotect(AREAS[name], SIZE, prot)
    AREAS["locked"] = fragments(COUNT, PAGES, seed=5)
    syscalls.check(syscalls.raw(x86_64.NR_MLOCK2, AREAS["locked"], SIZE, 0), "mlock2")


def main() -> None:
    lay_out()
    if "thread" in sys.argv:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    globals()[sys.argv[1]]()
    print(*(f"{name}={start:x}" for name, start in AREAS.items()), flush=True)
    for line in sys.stdin:
        if line.strip():  # another guard, or another act
            globals()[line.strip()]()
            print("on", flush=True)
            continue
        for seed, start in enumerate(AREAS.values(), 1):
            for index in range(COUNT):
                for page in range(PAGES):
                    at = start + (index * PAGES + page) * PAGE + 8
                    assert ctypes.c_uint64.from_address(at).value == content(seed, index, page)
        print("fine", flush=True)


if __name__ == "__main__":
    main()
