# SPDX-License-Identifier: GPL-2.0-or-later
"""Python programs that check their own data, a line "ok" a round: dicts, threads, asyncio, multiprocessing, sqlite."""

import asyncio
import hashlib
import multiprocessing
import random
import sqlite3
import sys
import threading
import time
import zlib
from collections.abc import Callable


class Blocks:
    """Bytearrays that grow, shrink, come and go, each with its checksum, found again through a dict of tuples."""

    def __init__(self, seed: int, most: int) -> None:
        self.rng = random.Random(seed)
        self.most = most
        self.kept: dict[tuple[int, str], tuple[bytearray, int]] = {}
        self.next = 0

    def turn(self) -> None:
        """Add and drop some; then every one must be what it was."""
        for _ in range(20):
            block = bytearray(self.rng.randbytes(self.rng.randrange(1, 3000)) * self.rng.randrange(1, 12))
            self.kept[self.next, f"block {self.next}"] = block, zlib.crc32(block)
            self.next += 1
        while len(self.kept) > self.most:
            del self.kept[self.rng.choice(list(self.kept))]
        key = self.rng.choice(list(self.kept))
        block = self.kept[key][0]
        block += self.rng.randbytes(5000)
        self.kept[key] = block, zlib.crc32(block)
        for (number, name), (block, checksum) in self.kept.items():
            if zlib.crc32(block) != checksum or name != f"block {number}":
                bad(f"block {number} differs")


def bad(why: str) -> None:
    print("bad:", why, flush=True)
    sys.exit(3)


def beat(number: int) -> None:
    print("ok", number, flush=True)


def data() -> None:
    blocks = Blocks(1, 1000)
    for number in range(1 << 60):
        blocks.turn()
        beat(number)
        time.sleep(0.01)


def threads() -> None:
    done = [0] * 4
    failed = []

    def work(which: int) -> None:
        try:
            blocks = Blocks(which, 200)
            while True:
                blocks.turn()
                done[which] += 1
                time.sleep(0.001)
        except BaseException as error:
            failed.append(repr(error))
            raise

    for which in range(len(done)):
        threading.Thread(target=work, args=(which,), daemon=True).start()
    least = 0
    while not failed:
        time.sleep(0.02)
        if min(done) > least:
            least = min(done)
            beat(least)
    bad(failed[0])


def asynchronous() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
        writer.close()

    async def client(path: str, which: int) -> None:
        rng = random.Random(which)
        reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
        for number in range(1 << 60):
            line = rng.randbytes(rng.randrange(1, 60000)).hex().encode() + b"\n"
            writer.write(line)
            await writer.drain()
            if await asyncio.wait_for(reader.readline(), 120) != line:
                bad("the echo differs")
            began = time.monotonic()
            await asyncio.sleep(0.01)
            if time.monotonic() - began < 0.009:
                bad("a sleep ended early")
            if which == 0:
                beat(number)

    async def main() -> None:
        path = "asyncio.socket"
        async with await asyncio.start_unix_server(echo, path, limit=1 << 20):
            await asyncio.gather(*(client(path, which) for which in range(5)))

    asyncio.run(main())


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def processes() -> None:
    rng = random.Random(1)
    context = multiprocessing.get_context("fork")
    for number in range(1 << 60):
        # Short-lived pools: workers are forked from a parent with seams of its own.
        with context.Pool(3) as pool:
            for _ in range(10):
                blocks = [rng.randbytes(30000) for _ in range(12)]
                if pool.map(_digest, blocks) != [_digest(block) for block in blocks]:
                    bad("a worker's answer differs")
                beat(number)


def database() -> None:
    rng = random.Random(1)
    base = sqlite3.connect("check.db", isolation_level=None)
    base.execute("PRAGMA journal_mode=WAL")
    base.execute("PRAGMA mmap_size=33554432")
    base.execute("PRAGMA cache_size=-16000")
    base.execute("CREATE TABLE IF NOT EXISTS blocks (id INTEGER PRIMARY KEY, data BLOB, checksum INT, name TEXT)")
    base.execute("CREATE INDEX IF NOT EXISTS names ON blocks (name)")
    for number in range(1 << 60):
        with base:
            base.execute("BEGIN")
            for _ in range(40):
                data = rng.randbytes(rng.randrange(1, 9000))
                row = rng.randrange(1500), data, zlib.crc32(data), data[:9].hex()
                base.execute("INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?)", row)
        for identity, data, checksum in base.execute("SELECT id, data, checksum FROM blocks ORDER BY name"):
            if zlib.crc32(data) != checksum:
                bad(f"row {identity} differs")
        if base.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
            bad("integrity_check")
        beat(number)


MODES: dict[str, Callable[[], None]] = {
    "data": data,
    "threads": threads,
    "asyncio": asynchronous,
    "multiprocessing": processes,
    "sqlite": database,
}

if __name__ == "__main__":
    MODES[sys.argv[1]]()
