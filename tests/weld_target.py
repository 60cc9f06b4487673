# SPDX-License-Identifier: GPL-2.0-or-later
"""A process to be welded: fragments that threads read and write all the time, losing nothing.

Commands on stdin, one a line, each answered on stdout: ``build COUNT PAGES [quiet] [hollow]`` lays out fragments
anew (hollow: many without a page, until ``touch`` writes to them; ``guard`` and
``unguard`` give them guard pages) and, unless quiet, starts threads on them;
``check`` stops these and compares every page; ``fork`` makes a child; ``fill N``
makes VMAs until N more may be made; ``quit``. It ends with status 3 at the first byte that is not what it should be, 4
where a wait ended that should not have.
"""

import ctypes
import errno
import os
import select
import signal
import sys
import threading
import time

from vmaweld import abi
from vmaweld.kernel import syscalls, x86_64

PAGE = abi.PAGE_SIZE
ANON = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS
RW = abi.PROT_READ | abi.PROT_WRITE


def fragments(count: int, pages: int, *, seed: int = 1, at: int = 0, hollow: bool = False) -> int:
    """Make `count` VMAs of `pages` pages side by side, each with an anon_vma of its own; returns the address.

    hollow: every other one of the upper half has neither pages nor an anon_vma.
    """
    size = pages * PAGE
    if not at:
        reserved = syscalls.mmap(0, count * size + 4 * abi.HUGE_PAGE_SIZE, 0, ANON | abi.MAP_NORESERVE)
        at = (reserved + abi.HUGE_PAGE_SIZE) & -abi.HUGE_PAGE_SIZE
    for index in range(count):
        if hollow and index in untouched(count):
            syscalls.mmap(at + index * size, size, RW, ANON | abi.MAP_FIXED)
            continue
        guards = syscalls.mmap(0, size + 2 * PAGE, abi.PROT_NONE, ANON | abi.MAP_NORESERVE)
        place = syscalls.mmap(guards + PAGE, size, RW, ANON | abi.MAP_FIXED)
        write(place, pages, seed, index)
        syscalls.mremap(place, size, size, abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED, at + index * size)
        syscalls.munmap(guards, size + 2 * PAGE)
    return at


def untouched(count: int) -> range:
    """Fragments without a page, where they are hollow."""
    return range(count // 2, count, 2)


def write(place: int, pages: int, seed: int, index: int) -> None:
    for page in range(pages):
        ctypes.c_uint64.from_address(place + page * PAGE + 8).value = content(seed, index, page)


def content(seed: int, index: int, page: int) -> int:
    return (seed << 48) + (index << 24) + page + 1


class Fragments:
    """Fragments and the threads at work on them."""

    def __init__(self, count: int, pages: int, seed: int, quiet: bool, hollow: bool) -> None:
        self.count, self.pages, self.seed = count, pages, seed
        self.start = fragments(count, pages, seed=seed, hollow=hollow)
        self.size = pages * PAGE
        self.stop = False
        self.rounds = 0
        self.threads = [threading.Thread(target=self._work, args=(k,), daemon=True) for k in range(2)]
        self.threads.append(threading.Thread(target=self._nap, daemon=True))
        if quiet:
            self.threads = []
        for thread in self.threads:
            thread.start()

    def _work(self, which: int) -> None:
        expected: dict[int, int] = {}
        while not self.stop:
            for index in range(which, self.count, 2):
                at = self.start + index * self.size + (self.rounds % self.pages) * PAGE
                slot = ctypes.c_uint64.from_address(at)
                if slot.value != expected.get(at, 0):
                    fail(f"fragment {index}: {slot.value} where {expected.get(at, 0)} was written")
                slot.value = expected[at] = slot.value + 1
            self.rounds += 1

    def _nap(self) -> None:
        while not self.stop:
            time.sleep(0.05)

    def touch(self) -> str:
        for index in untouched(self.count):
            write(self.start + index * self.size, self.pages, self.seed, index)
        return "touched"

    def guard(self) -> str:
        """Guard pages (6.13) instead of every fragment that has no page: what touches them is killed."""
        for index in untouched(self.count):
            syscalls.madvise(self.start + index * self.size, self.size, abi.MADV_GUARD_INSTALL)
        return "guarded"

    def unguard(self) -> str:
        """Take the guard pages away and write there; an error where one was not there any more."""
        zeroes = os.open("/dev/zero", os.O_RDONLY)
        for index in untouched(self.count):
            at = self.start + index * self.size
            for page in range(at, at + self.size, PAGE):
                if syscalls.raw(x86_64.NR_READ, zeroes, page, 1) != -errno.EFAULT:
                    fail(f"the guard page at {page:#x} is gone")
            syscalls.madvise(at, self.size, abi.MADV_GUARD_REMOVE)
        return self.touch()

    def check(self) -> str:
        self.stop = True
        for thread in self.threads:
            thread.join(20)
            if thread.is_alive():
                fail("a thread hangs")
        for index in range(self.count):
            for page in range(self.pages):
                at = self.start + index * self.size + page * PAGE
                if ctypes.c_uint64.from_address(at + 8).value != content(self.seed, index, page):
                    fail(f"fragment {index} page {page} differs")
        syscalls.munmap(self.start, self.count * self.size)
        return f"ok {self.rounds}"


def fail(text: str) -> None:
    print(text, flush=True)
    os._exit(3)


def fill(spare: int) -> None:
    """Make VMAs until only `spare` more may be made."""
    with open("/proc/sys/vm/max_map_count", encoding="ascii") as file:
        limit = int(file.read())
    with open("/proc/self/maps", encoding="ascii", errors="replace") as file:
        wanted = limit - spare - sum(1 for _ in file) - 2
    block = syscalls.mmap(0, (wanted + 2) * PAGE, abi.PROT_NONE, ANON | abi.MAP_NORESERVE)
    for at in range(block + PAGE, block + wanted * PAGE, 2 * PAGE):
        syscalls.mprotect(at, PAGE, abi.PROT_READ)
    with open("/proc/self/maps", encoding="ascii", errors="replace") as file:
        print(f"filled {limit - sum(1 for line in file if 'vsyscall' not in line)}", flush=True)


def wait_for_ever() -> None:
    """In epoll_wait with no limit: a stop must not show (but where the one who stopped it was killed: signal(7))."""
    poll = select.epoll()
    keep = os.pipe()
    poll.register(keep[0], select.EPOLLIN)
    libc = ctypes.CDLL(None, use_errno=True)
    while libc.epoll_wait(poll.fileno(), ctypes.create_string_buffer(64), 4, -1) < 0 and "eintr" in sys.argv:
        pass
    print(f"epoll_wait ended with errno {ctypes.get_errno()}", flush=True)
    os._exit(4)


def sleep_exactly() -> None:
    """In nanosleep: it must not return early."""
    libc = ctypes.CDLL(None, use_errno=True)
    wanted = (ctypes.c_long * 2)(0, 300_000_000)
    while True:
        began = time.monotonic()
        if libc.nanosleep(wanted, None):
            print(f"nanosleep ended with errno {ctypes.get_errno()}", flush=True)
            os._exit(4)
        if time.monotonic() - began < 0.3:
            fail("nanosleep returned early")


def tell_signals() -> None:
    """Print SIGUSR1 when it comes, in whichever thread: Python's own handler would wait for the main thread."""
    ends = os.pipe()
    os.set_blocking(ends[1], False)
    signal.set_wakeup_fd(ends[1])
    signal.signal(signal.SIGUSR1, lambda *_: None)

    def tell() -> None:
        while True:
            print(signal.Signals(os.read(ends[0], 1)[0]).name, flush=True)

    threading.Thread(target=tell, daemon=True).start()


def main() -> None:
    sys.setswitchinterval(1e-4)  # or 30,000 system calls beside two busy threads take minutes
    tell_signals()
    # Not in these threads: a handler would rightly end the call in which they wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    for wait in (wait_for_ever, sleep_exactly):
        threading.Thread(target=wait, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    current: Fragments | None = None
    seed = 0
    print("ready", flush=True)
    for line in sys.stdin:
        words = line.split()
        if words[0] == "build":
            seed += 1
            current = Fragments(int(words[1]), int(words[2]), seed, "quiet" in words, "hollow" in words)
            print(f"built {current.start:x}", flush=True)
        elif words[0] == "check" and current is not None:
            print(current.check(), flush=True)
        elif words[0] == "touch":
            assert current is not None
            print(current.touch(), flush=True)
        elif words[0] in ("guard", "unguard"):
            assert current is not None
            print(current.guard() if words[0] == "guard" else current.unguard(), flush=True)
        elif words[0] == "fork":
            pid = os.fork()
            if pid == 0:
                signal.pause()
            print(f"child {pid}", flush=True)
        elif words[0] == "fill":
            fill(int(words[1]))
        elif words[0] == "quit":
            break
    os._exit(0)


if __name__ == "__main__":
    main()
