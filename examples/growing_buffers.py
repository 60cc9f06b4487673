#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Buffers that grow in turns, as a server's connections or a parser's tables do.

Each buffer is a bytearray that is extended a little at a time. Once it is large, the C library keeps it in a mapping of
its own and lets mremap(2) grow it; as its neighbour is in the way, the kernel moves it, page offset and all. What then
lies side by side cannot be merged, though nothing tells the pieces apart but that page offset: open seams.

Every buffer's contents are checked against a checksum at the end, and with --hold again and again until the time is up:
whoever merges the mappings of this process meanwhile must not change a byte.
"""

import argparse
import os
import random
import sys
import time
import zlib


def grow(count: int, kilobytes: int, seed: int) -> tuple[list[bytearray], list[int]]:
    """`count` bytearrays of about `kilobytes` KiB, grown in turns by random amounts; with the CRC-32 of each."""
    generator = random.Random(seed)
    buffers = [bytearray() for _ in range(count)]
    sums = [0] * count
    while unfinished := [i for i in range(count) if len(buffers[i]) < kilobytes << 10]:
        generator.shuffle(unfinished)
        for i in unfinished:
            piece = generator.randbytes(generator.randrange(kilobytes << 6, kilobytes << 8))
            buffers[i] += piece
            sums[i] = zlib.crc32(piece, sums[i])
    return buffers, sums


def damaged(buffers: list[bytearray], sums: list[int]) -> list[int]:
    """The numbers of the buffers whose contents are not what they were."""
    return [i for i, buffer in enumerate(buffers) if zlib.crc32(buffer) != sums[i]]


def vma_count() -> int:
    """How many VMAs this process has."""
    with open("/proc/self/maps", "rb") as maps:
        return sum(1 for _ in maps)


def main() -> int:
    """Grow, check, and hold if asked to; 1 where a byte has changed."""
    parser = argparse.ArgumentParser(description="Grow many buffers in turns and keep an eye on every byte.")
    parser.add_argument("--buffers", type=int, default=200, help="how many (default 200)")
    parser.add_argument("--kilobytes", type=int, default=600, help="size of each at least, in KiB (default 600)")
    parser.add_argument("--seed", type=int, default=1, help="for the same growth every time")
    parser.add_argument("--hold", action="store_true", help="stay, check all contents again and again, tell each time")
    parser.add_argument("--seconds", type=float, default=0, help="with --hold: end after so many (default: never)")
    options = parser.parse_args()

    buffers, sums = grow(options.buffers, options.kilobytes, options.seed)
    bad = damaged(buffers, sums)
    state = f"{len(bad)} damaged" if bad else "all contents ok"
    print(f"pid {os.getpid()}: {len(buffers)} buffers, {vma_count()} VMAs, {state}", flush=True)
    began = time.monotonic()
    rounds = 0
    while options.hold and not bad and not 0 < options.seconds <= time.monotonic() - began:
        time.sleep(0.25)
        bad = damaged(buffers, sums)
        rounds += 1
        state = f"DAMAGED: buffers {bad}" if bad else "ok"
        print(f"check {rounds}: {vma_count()} VMAs, {state}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
