# SPDX-License-Identifier: GPL-2.0-or-later
"""How long inspect takes for one process of 60,000 VMAs, beside pmap -X and psutil, in one run.

    python benchmarks/inspect_speed.py [--rounds N]

Every round runs each contender once, one after the other, each a whole program from start to end with its output read
and thrown away; the table gives medians and what each takes for one of inspect's. After `make compiled` the compiled
build takes part too. Run as root for the exact answer.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

TARGET = Path(__file__).parent.parent / "tests" / "inspect_target.py"
COMPILED = Path(__file__).parent.parent / "build" / "compiled"
VMAWELD = str(Path(sys.executable).with_name("vmaweld"))
PSUTIL = "import psutil, sys; print(len(psutil.Process(int(sys.argv[1])).memory_maps(grouped=False)))"
LIBRARY = (
    "import sys, time\n"
    "from vmaweld.inspect.collect import inspect_process\n"
    "began = time.perf_counter(); report = inspect_process(int(sys.argv[1])); print(time.perf_counter() - began)\n"
)


class Contender(NamedTuple):
    """command: to be run. source: what goes before all else on Python's path. tells: it prints its seconds itself."""

    command: list[str]
    source: str = ""
    tells: bool = False


def contenders(pid: int) -> dict[str, Contender]:
    """By name; the command that users type first."""
    inspect = [VMAWELD, "inspect", str(pid)]
    library = [sys.executable, "-c", LIBRARY, str(pid)]
    found = {
        "vmaweld inspect": Contender(inspect),
        "vmaweld inspect --json": Contender([*inspect, "--json"]),
        "inspect_process() alone": Contender(library, tells=True),
    }
    if (COMPILED / "ready").exists():
        compiled = str(COMPILED)
        found |= {
            "compiled: vmaweld inspect": Contender(inspect, compiled),
            "compiled: --json": Contender([*inspect, "--json"], compiled),
            "compiled: inspect_process()": Contender(library, compiled, tells=True),
        }
    return found | {
        "pmap -X": Contender(["pmap", "-X", str(pid)]),
        "psutil memory_maps": Contender([sys.executable, "-c", PSUTIL, str(pid)]),
    }


def timed(contender: Contender) -> float:
    """Seconds it takes."""
    environment = os.environ | {"PYTHONPATH": contender.source} if contender.source else None
    began = time.perf_counter()
    done = subprocess.run(
        contender.command, stdout=subprocess.PIPE, check=True, timeout=120, env=environment, stdin=subprocess.DEVNULL
    )
    return float(done.stdout) if contender.tells else time.perf_counter() - began


def measure(pid: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender, round by round."""
    found: dict[str, list[float]] = {name: [] for name in contenders(pid)}
    for _ in range(rounds):
        for name, contender in contenders(pid).items():
            found[name].append(timed(contender))
    return found


def main() -> None:
    """Start the target, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs (default 5)")
    rounds = parser.parse_args().rounds
    target = subprocess.Popen([sys.executable, str(TARGET), "many"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert target.stdout is not None
        target.stdout.readline()
        told = subprocess.run(
            [VMAWELD, "inspect", str(target.pid), "--json"], capture_output=True, text=True, check=True, timeout=120
        )
        data = json.loads(told.stdout)
        print(f"{data['vmas']:,} VMAs, {data['open']:,} open seams, source {data['source']}, {rounds} rounds")
        found = measure(target.pid, rounds)
    finally:
        target.kill()
        target.wait()
    base = statistics.median(found["vmaweld inspect"])
    print(f"{'':<28}{'median':>9}{'best':>9}{'times inspect':>15}")
    for name, times in found.items():
        middle = statistics.median(times)
        print(f"{name:<28}{middle:>8.2f}s{min(times):>8.2f}s{middle / base:>14.1f}x")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")


if __name__ == "__main__":
    main()
