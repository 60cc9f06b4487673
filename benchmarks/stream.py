# SPDX-License-Identifier: GPL-2.0-or-later
"""A trace of millions of events: written, filtered by process and replayed as a stream, in bounded memory.

    python benchmarks/stream.py [--events N]

Makes a trace of N events (10 million unless told otherwise) and one of a tenth of that, then reads and replays each in
a process of its own. Bounded means: the peak of memory does not grow with the trace.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from model import COMPILED, ROOT
from workloads import BASE, FIXED, PAGE, READ_WRITE

from vmaweld import events as ev
from vmaweld.events import Event
from vmaweld.policy import parse_policy
from vmaweld.study.tally import replay
from vmaweld.trace.store import Metadata, TraceWriter, open_trace

PROCESSES = 200
ROUND = 50
"""Events that a process makes in one turn: maps, faults, protects, moves and unmaps, and is where it was before."""


def turn(pid: int, number: int, clock: int) -> list[Event]:
    """One turn of process `pid`."""
    addr = BASE + (pid << 32) + number % 97 * 512 * PAGE
    events = [Event(ev.MMAP, pid, addr=addr, length=256 * PAGE, prot=READ_WRITE, flags=FIXED, result=addr, time=clock)]
    for i in range(ROUND - 4):
        events.append(Event(ev.WRITE, pid, addr=addr + i * 4 * PAGE, length=PAGE, time=clock))
    events.append(Event(ev.MPROTECT, pid, addr=addr + 8 * PAGE, length=8 * PAGE, prot=1, result=0, time=clock))
    events.append(Event(ev.MPROTECT, pid, addr=addr + 8 * PAGE, length=8 * PAGE, prot=3, result=0, time=clock))
    events.append(Event(ev.MUNMAP, pid, addr=addr, length=256 * PAGE, result=0, time=clock))
    return events


def write(path: Path, count: int) -> None:
    with TraceWriter(path, Metadata(command=["benchmark"], recorder="benchmark")) as writer:
        for number in range(count // ROUND):
            for event in turn(1 + number % PROCESSES, number // PROCESSES, number * 1000):
                writer.append(event)


def peak() -> int:
    """Bytes: the most memory that this process has used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read(path: Path) -> dict[str, float]:
    """Filter, then replay; seconds and peaks of memory."""
    begin = time.perf_counter()
    with open_trace(path) as trace:
        mine = sum(1 for _ in trace.events([7]))
    filtered, filter_peak = time.perf_counter() - begin, peak()
    begin = time.perf_counter()
    with open_trace(path) as trace:
        answer = replay(trace, [parse_policy("linux-5.17")])
    return {
        "events": answer.events,
        "of one process": mine,
        "filter": filtered,
        "filter peak": filter_peak,
        "replay": time.perf_counter() - begin,
        "replay peak": peak(),
    }


def inside(source: Path, *arguments: str) -> Any:
    """What this program prints with `arguments`, in a process of its own that runs the build under `source`."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**os.environ, "PYTHONPATH": str(source)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description="A trace of millions of events, in bounded memory.")
    parser.add_argument("--events", type=int, default=10_000_000, help="in the larger trace (default 10,000,000)")
    parser.add_argument("--write", nargs=2, metavar=("FILE", "N"), help=argparse.SUPPRESS)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        begin = time.perf_counter()
        write(Path(options.write[0]), int(options.write[1]))
        print(json.dumps({"seconds": time.perf_counter() - begin, "peak": peak()}))
        return
    if options.read:
        print(json.dumps(read(options.read)))
        return
    source = COMPILED if list(COMPILED.glob("vmaweld/model/merge.*.so")) else ROOT / "src"
    print(f"the {'compiled' if source == COMPILED else 'pure Python'} build; peaks are of the whole process")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "large.trace"
        for count in (options.events // 10, options.events):
            written = inside(source, "--write", str(path), str(count))
            done = inside(source, "--read", str(path))
            print(
                f"{done['events']:>10,} events, {path.stat().st_size / 1e6:.0f} MB:"
                f" written in {written['seconds']:.1f} s (peak {written['peak'] / 1e6:.0f} MB),"
                f" filtered by process in {done['filter']:.1f} s (peak {done['filter peak'] / 1e6:.0f} MB),"
                f" replayed in {done['replay']:.1f} s (peak {done['replay peak'] / 1e6:.0f} MB)",
                flush=True,
            )


if __name__ == "__main__":
    main()
