#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A parent that fills memory, then forks workers that write to some of what they inherited, as pre-forking servers do.

Pages that parent and worker share may not change their anon_vma or page offset: this is the memory that merging has to
leave alone. Parent and workers keep growing buffers of their own meanwhile, which are nobody else's.
"""

import argparse
import os
import sys
import zlib

PAGE = 4096


def grow(buffers: list[bytearray], rounds: int, step: int) -> None:
    """Extend `buffers` in turns."""
    for number in range(rounds):
        for i, buffer in enumerate(buffers):
            buffer += bytes([(number + i) % 256]) * step


def work(inherited: list[bytearray], number: int) -> int:
    """A worker: touch every third inherited page, grow some buffers, check that the rest is untouched."""
    untouched = [zlib.crc32(buffer) for buffer in inherited[1::2]]
    for buffer in inherited[::2]:
        for place in range(number * PAGE, len(buffer), 3 * PAGE):
            buffer[place] = number
    own = [bytearray() for _ in range(8)]
    grow(own + inherited[::4], 6, 48 << 10)
    return 0 if [zlib.crc32(buffer) for buffer in inherited[1::2]] == untouched else 1


def main() -> int:
    """Fill, fork, wait; 1 where a worker found its memory changed."""
    parser = argparse.ArgumentParser(description="Fork workers that touch inherited memory.")
    parser.add_argument("--workers", type=int, default=4, help="how many (default 4)")
    parser.add_argument("--buffers", type=int, default=40, help="buffers the parent fills first (default 40)")
    options = parser.parse_args()
    buffers = [bytearray() for _ in range(options.buffers)]
    grow(buffers, 8, 40 << 10)
    workers = []
    for number in range(options.workers):
        pid = os.fork()
        if pid == 0:
            os._exit(work(buffers, number))
        workers.append(pid)
        grow(buffers[number :: options.workers], 2, 40 << 10)
    failed = sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in workers)
    print(f"pid {os.getpid()}: {len(workers)} workers, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
