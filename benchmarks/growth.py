# SPDX-License-Identifier: GPL-2.0-or-later
"""How the model's cost grows: with VMAs, with processes, with memory touched; and what each thing weighs.

    python benchmarks/growth.py [--quick] [--json FILE] [--plots FOLDER]

Every measurement runs in a process of its own, once as plain Python and, where ``make compiled`` has built it,
compiled. Times are the fastest of many passes over the same events; the events of a pass undo each other, so that
every pass finds the same machine.
"""

import argparse
import gc
import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from charts import Chart, Series
from workloads import BASE, FIXED, PAGE, PID, READ_WRITE

from vmaweld import abi, build
from vmaweld import events as ev
from vmaweld.events import Event
from vmaweld.model.system import System
from vmaweld.policy import parse_policy

ROOT = Path(__file__).resolve().parent.parent
COMPILED = ROOT / "build" / "compiled"
POLICY = "linux-6.18"
PASSES = 20
SAMPLE = 500
"""Places that a pass visits, drawn at random with a fixed seed."""

VMAS = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
PROCESSES = (1, 10, 100, 1_000, 10_000, 100_000)
TOUCHED = tuple(4096 << shift for shift in range(0, 30, 4))
WEIGHED = 100_000


def _system() -> System:
    system = System(parse_policy(POLICY), max_map_count=1 << 40)
    system.add_process(PID)
    return system


def _map(addr: int, pages: int, pid: int = PID) -> Event:
    return Event(ev.MMAP, pid, addr=addr, length=pages * PAGE, prot=READ_WRITE, flags=FIXED)


def _fastest(system: System, events: Sequence[Event]) -> float:
    """Nanoseconds an event, of the fastest pass."""
    best = 0
    for _ in range(PASSES):
        gc.collect()
        begin = perf_counter_ns()
        for event in events:
            system.apply(event)
        took = perf_counter_ns() - begin
        best = took if not best else min(best, took)
    return best / len(events)


def with_vmas(count: int) -> float:
    """Nanoseconds an event in an address space of `count` VMAs: split and merge one, map and unmap beside it."""
    system = _system()
    stride = 16 * PAGE
    for i in range(count):
        system.apply(_map(BASE + i * stride, 3))
    chooser = random.Random(count)
    events = []
    for _ in range(SAMPLE):
        addr = BASE + chooser.randrange(count) * stride
        events.append(Event(ev.MPROTECT, PID, addr=addr + PAGE, length=PAGE, prot=abi.PROT_READ))
        events.append(Event(ev.MPROTECT, PID, addr=addr + PAGE, length=PAGE, prot=READ_WRITE))
        events.append(_map(addr + 8 * PAGE, 2))
        events.append(Event(ev.MUNMAP, PID, addr=addr + 8 * PAGE, length=2 * PAGE))
    return _fastest(system, events)


def with_processes(count: int) -> float:
    """Nanoseconds an event among `count` processes forked from one: map, write, unmap in one of them."""
    system = _system()
    for i in range(4):
        system.apply(_map(BASE + i * 64 * PAGE, 16))
        system.apply(Event(ev.WRITE, PID, addr=BASE + i * 64 * PAGE, length=16 * PAGE))
    for pid in range(PID + 1, PID + count):
        system.apply(Event(ev.FORK, PID, child=pid))
    chooser = random.Random(count)
    events = []
    for _ in range(SAMPLE):
        pid = PID + chooser.randrange(count)
        addr = BASE + 1024 * PAGE
        events.append(_map(addr, 4, pid))
        events.append(Event(ev.WRITE, pid, addr=addr, length=2 * PAGE))
        events.append(Event(ev.WRITE, pid, addr=BASE + 64 * PAGE, length=PAGE))
        events.append(Event(ev.MUNMAP, pid, addr=addr, length=4 * PAGE))
    return _fastest(system, events)


def touching(size: int) -> float:
    """Nanoseconds a write when `size` bytes are written in order, in a thousand steps at most."""
    steps = min(1000, size // PAGE)
    step = size // steps & abi.PAGE_MASK
    events = [_map(BASE, size // PAGE)]
    events += [Event(ev.WRITE, PID, addr=BASE + i * step, length=step) for i in range(steps)]
    return _fastest(_system(), events)


def _resident() -> int:
    """Bytes of memory that this process uses now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _weigh(make: Callable[[System], object], count: int) -> float:
    """Bytes that each of the `count` things takes that `make` adds to a system."""
    system = _system()
    gc.collect()
    before = _resident()
    make(system)
    gc.collect()
    return (_resident() - before) / count


def weights(_: int) -> dict[str, float]:
    """Bytes a VMA, an anon_vma and a page run, beyond what they hang on."""

    def vmas(system: System) -> None:
        for i in range(WEIGHED):
            system.apply(_map(BASE + i * 4 * PAGE, 2))

    def written(system: System) -> None:
        for i in range(WEIGHED):
            system.apply(_map(BASE + i * 4 * PAGE, 2))
            system.apply(Event(ev.WRITE, PID, addr=BASE + i * 4 * PAGE, length=PAGE))

    def runs(system: System) -> None:
        system.apply(_map(BASE, 2 * WEIGHED))
        for i in range(WEIGHED):
            system.apply(Event(ev.WRITE, PID, addr=BASE + i * 2 * PAGE, length=PAGE))

    vma = _weigh(vmas, WEIGHED)
    run = _weigh(runs, WEIGHED)
    return {"VMA": vma, "page run": run, "anon_vma": _weigh(written, WEIGHED) - vma - run}


def tebibyte(_: int) -> dict[str, float]:
    """1 TiB written in order and forked ten times: bytes it takes beyond an empty model, and peak of the process."""
    system = _system()
    before = _resident()
    size = 1 << 40
    step = size >> 16
    system.apply(_map(BASE, size // PAGE))
    for at in range(0, size, step):
        system.apply(Event(ev.WRITE, PID, addr=BASE + at, length=step))
    for child in range(10):
        system.apply(Event(ev.FORK, PID, child=PID + 1 + child))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"growth": _resident() - before, "peak": peak}


MEASUREMENTS: dict[str, Callable[[int], Any]] = {
    "vmas": with_vmas,
    "processes": with_processes,
    "touched": touching,
    "weights": weights,
    "tebibyte": tebibyte,
}


def measure(source: Path, name: str, size: int) -> Any:
    """The result of one measurement in a fresh process that runs the model under `source`."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", name, str(size)],
        env={**os.environ, "PYTHONPATH": str(source)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    runs, value = json.loads(done.stdout)
    wanted = "compiled" if source == COMPILED else "pure Python"
    if runs != wanted:
        raise SystemExit(f"{source} should hold the {wanted} model, but {runs} runs from there")
    return value


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.0f} TiB"


def _number(count: float) -> str:
    return f"{count:,.0f}"


CURVES: dict[str, tuple[Sequence[int], str, Callable[[float], str]]] = {
    "vmas": (VMAS, "VMAs in the address space", _number),
    "processes": (PROCESSES, "processes", _number),
    "touched": (TOUCHED, "memory written, in order", _size),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="How the model's cost grows, and what each thing weighs.")
    parser.add_argument("--quick", action="store_true", help="leave out the largest sizes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw growth-*.svg there")
    parser.add_argument("--measure", nargs=2, metavar=("NAME", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, size = options.measure
        print(json.dumps([build.describe(), MEASUREMENTS[name](int(size))]))
        return

    builds = {"pure Python": ROOT / "src"}
    if list(COMPILED.glob("vmaweld/model/merge.*.so")):
        builds["compiled"] = COMPILED
    results: dict[str, Any] = {}
    for name, (sizes, axis, label) in CURVES.items():
        chosen = sizes[:-1] if options.quick else sizes
        print(f"microseconds an event, by {axis}\n{'':14}" + "".join(f"{label(size):>11}" for size in chosen))
        results[name] = {"sizes": list(chosen)}
        for title, source in builds.items():
            values = [measure(source, name, size) for size in chosen]
            results[name][title] = values
            print(f"{title:14}" + "".join(f"{value / 1000:11.2f}" for value in values), flush=True)
        if name == "vmas" and len(chosen) > 5:
            for title in builds:
                ratio = results[name][title][5] / results[name][title][2]
                print(f"{title}: at 1,000,000 VMAs {ratio:.2f} times the cost at 1,000 (target: at most 3)")
        print()
    for title, source in builds.items():
        weighed = measure(source, "weights", 0)
        large = measure(source, "tebibyte", 0)
        results.setdefault("weights", {})[title] = weighed
        results.setdefault("tebibyte", {})[title] = large
        print(f"{title}: bytes " + ", ".join(f"a {thing} {value:.0f}" for thing, value in weighed.items()))
        print(
            f"{title}: 1 TiB written in order and forked ten times takes {large['growth'] / 1e6:.2f} MB,"
            f" the whole process {large['peak'] / 1e6:.0f} MB (target: under 50)"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.plots:
        for name, (_, axis, label) in CURVES.items():
            curves = [
                Series(title, list(zip(results[name]["sizes"], results[name][title], strict=True))) for title in builds
            ]
            chart = Chart(f"Cost of an event by {axis}", axis, "microseconds an event", curves, label)
            (options.plots / f"growth-{name}.svg").write_text(chart.svg(scale=1e-3))


if __name__ == "__main__":
    main()
