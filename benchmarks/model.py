# SPDX-License-Identifier: GPL-2.0-or-later
"""The model against the running kernel: the very same calls on both, side by side in one run.

    python benchmarks/model.py [--rounds N] [--json] [NAME ...]

A C program, compiled on the spot, performs each workload on the running kernel; the model performs it as plain Python
and, where ``make compiled`` has built it, compiled. The three take turns, round by round, so that whatever else the
machine does meets all of them; the fastest round of each counts. A ratio says how many times as fast as the kernel the
model is: above 1 the model is the faster one.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from workloads import WORKLOADS, Workload, write_for_kernel

ROOT = Path(__file__).resolve().parent.parent
COMPILED = ROOT / "build" / "compiled"
TARGETS = {
    "mmap+munmap": (2.0, 0.5),
    "mprotect": (1.0, 0.5),
    "mprotect faulted": (1.0, 0.5),
    "mremap merging": (1.0, 0.5),
    "mremap there and back": (1.0, 0.5),
}
"""Ratios to the kernel that the project wants of the compiled and of the pure model."""


class Contender:
    """A process that answers a line with its time (nanoseconds) and its number of VMAs."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )

    def line(self) -> str:
        """The next line that it prints; ends the benchmark if there is none."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"benchmark process ended early (status {self._process.wait()}), see above")
        return line.strip()

    def ask(self, question: str) -> tuple[int, int]:
        """Its answer to `question`."""
        assert self._process.stdin is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        took, rows = self.line().split()
        return int(took), int(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compile_reference(folder: Path) -> Path:
    program = folder / "kernel_reference"
    source = Path(__file__).with_name("kernel_reference.c")
    try:
        subprocess.run([os.environ.get("CC", "cc"), "-O2", "-o", program, source], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"cannot compile {source.name} ({error}): apt install gcc libc6-dev") from None
    return program


def worker(source: Path, build: str) -> Contender:
    contender = Contender([sys.executable, str(Path(__file__).with_name("worker.py"))], PYTHONPATH=str(source))
    runs = contender.line()
    if runs != build:
        raise SystemExit(f"{source} should hold the {build} model, but {runs} runs from there")
    return contender


def measure(load: Workload, rounds: int, folder: Path, models: dict[str, Contender]) -> dict[str, int]:
    """Fastest nanoseconds of every contender by name, "kernel" among them."""
    calls = folder / "calls"
    write_for_kernel(load, calls)
    best: dict[str, int] = {}
    with Contender([str(folder / "kernel_reference"), str(calls)]) as kernel:
        for _ in range(rounds):
            rows: dict[str, int] = {}
            for name, contender in {"kernel": kernel, **models}.items():
                took, rows[name] = contender.ask(load.name)
                best[name] = min(took, best.get(name, took))
            if len(set(rows.values())) != 1:
                raise SystemExit(f"{load.name}: model and kernel do not end with the same VMAs: {rows}")
    return best


def report(load: Workload, best: dict[str, int]) -> str:
    wanted = dict(zip(("compiled", "pure Python"), TARGETS.get(load.name, (0.0, 0.0)), strict=True))
    cells = [f"{load.name:22} {load.unit:5} {best['kernel'] / load.units / 1000:9.3f}"]
    for name in ("compiled", "pure Python"):
        if name not in best:
            cells.append(f"{'-':>9} {'-':>9}       ")
            continue
        ratio = best["kernel"] / best[name]
        mark = "      " if not wanted[name] else f"{'>=' if ratio >= wanted[name] else ' <'}{wanted[name]:4}"
        cells.append(f"{best[name] / load.units / 1000:9.3f} {ratio:8.2f}x {mark}")
    return " ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description="The model against the running kernel, the same calls on both.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="workloads to run (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="turns that every contender takes (default 5)")
    parser.add_argument("--json", action="store_true", help="nanoseconds a unit, as JSON")
    options = parser.parse_args()
    loads = [make() for make in WORKLOADS]
    unknown = set(options.names) - {load.name for load in loads}
    if unknown:
        parser.error(f"no workload called {unknown.pop()!r}; there are {', '.join(load.name for load in loads)}")
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compile_reference(folder)
        models = {}
        if list(COMPILED.glob("vmaweld/model/merge.*.so")):
            models["compiled"] = worker(COMPILED, "compiled")
        models["pure Python"] = worker(ROOT / "src", "pure Python")
        if not options.json:
            print(f"Linux {platform.release()}, Python {platform.python_version()}, best of {options.rounds} rounds;")
            print("microseconds a unit, and how many times as fast as the kernel the model is (with the target)\n")
            print(f"{'':22} {'unit':5} {'kernel':>9} {'compiled':>9} {'ratio':>9}        {'pure':>9} {'ratio':>9}")
        for load in loads:
            if options.names and load.name not in options.names:
                continue
            best = measure(load, options.rounds, folder, models)
            results[load.name] = {contender: took / load.units for contender, took in best.items()}
            if not options.json:
                print(report(load, best), flush=True)
        for contender in models.values():
            contender.__exit__(None, None, None)
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
