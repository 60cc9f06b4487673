# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that does to a resting weld what it must survive: executes itself, maps over the weld's memory, forks.

Commands on stdin, one a line, each answered on stdout: ``build COUNT PAGES`` lays out fragments; ``exec`` executes this
program anew, which answers "ready"; ``replace ADDRESS LENGTH`` unmaps that range and maps memory of its own there;
``imitate ADDRESS LENGTH`` does so with a memfd named and laid out as the weld's; ``own`` welds its own fragments, for
ever, in a thread; ``fork`` makes a child that waits; ``check`` compares every byte that it has written, and that its
handler of SIGSEGV is there still.
"""

import ctypes
import os
import signal
import sys
import threading
from pathlib import Path

from weld_target import ANON, PAGE, RW, content, fragments

from vmaweld import abi, welding
from vmaweld.kernel import syscalls

CANARY = 32 << 20


class Pattern:
    """Memory in which every page holds its own address."""

    def __init__(self, start: int, length: int) -> None:
        self.pages = range(start, start + length, PAGE)
        for at in self.pages:
            ctypes.c_uint64.from_address(at).value = at

    def differs(self) -> bool:
        return any(ctypes.c_uint64.from_address(at).value != at for at in self.pages)


def weld_for_ever(start: int, count: int, pages: int) -> None:
    while True:
        welding.weld(start, count * pages * PAGE)
        fragments(count, pages, at=start)


def main() -> None:
    signal.signal(signal.SIGSEGV, lambda *_: None)
    # Every other image fills the place where the kernel put the weld's memory in the one before, if addresses are
    # not random.
    full = "full" in sys.argv
    patterns = [Pattern(syscalls.mmap(0, CANARY, RW, ANON), CANARY) for _ in range(3 if full else 1)]
    built = (0, 0, 0)
    print("ready", flush=True)
    for line in sys.stdin:
        words = line.split()
        if words[0] == "build":
            count, pages = int(words[1]), int(words[2])
            if built[0]:
                syscalls.munmap(built[0], built[1] * built[2] * PAGE)
            built = fragments(count, pages), count, pages
            print(f"built {built[0]:x}", flush=True)
        elif words[0] == "exec":
            os.execv(sys.executable, [sys.executable, sys.argv[0], *([] if full else ["full"])])
        elif words[0] == "replace":
            start, length = int(words[1], 16), int(words[2])
            syscalls.munmap(start, length)
            syscalls.mmap(start, length, RW, ANON | abi.MAP_FIXED)
            patterns.append(Pattern(start, length))
            print("replaced", flush=True)
        elif words[0] == "imitate":
            start, length = int(words[1], 16), int(words[2])
            imitation = os.memfd_create("vmaweld-weld")
            os.ftruncate(imitation, length)
            syscalls.munmap(start, length)
            syscalls.mmap(start, length, RW, abi.MAP_SHARED | abi.MAP_FIXED, imitation)
            syscalls.mprotect(start, PAGE, abi.PROT_READ | abi.PROT_EXEC)
            patterns.append(Pattern(start + PAGE, length - PAGE))
            print("imitated", flush=True)
        elif words[0] == "own":
            threading.Thread(target=weld_for_ever, args=(fragments(40, 2), 40, 2), daemon=True).start()
            print("welding", flush=True)
        elif words[0] == "fork":
            pid = os.fork()
            if pid == 0:
                signal.pause()
            print(f"child {pid}", flush=True)
        elif words[0] == "check":
            print(check(patterns, *built), flush=True)


def check(patterns: list[Pattern], start: int, count: int, pages: int) -> str:
    if any(pattern.differs() for pattern in patterns):
        return "a pattern differs"
    for index in range(count):
        for page in range(pages):
            at = start + (index * pages + page) * PAGE
            if ctypes.c_uint64.from_address(at + 8).value != content(1, index, page):
                return f"fragment {index} page {page} differs"
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    caught = int(status.partition("SigCgt:\t")[2].split()[0], 16)
    return "ok" if caught >> (signal.SIGSEGV - 1) & 1 else "the handler of SIGSEGV is gone"


if __name__ == "__main__":
    main()
