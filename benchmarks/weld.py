# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast a weld is, against the same system calls in C, plain mremap and memcpy; all in one run.

``python -m benchmarks.weld [--repeat 5] [--json]``. Compiles ``weld_reference.c`` on the spot. Every measurement makes
its fragments anew, in a process of its own, and checks every page afterwards; the table shows medians.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SHAPES = ((10_000, 16), (30_000, 4))
PAGE = 4096
TIMEOUT = 300.0

OWN = """
import ctypes, sys, time
from tests.weld_target import content, fragments
from vmaweld.welding import local
count, pages = int(sys.argv[1]), int(sys.argv[2])
start = fragments(count, pages)
local.weld(fragments(2, 1), 8192)  # whatever is loaded once, is
began = time.perf_counter()
report = local.weld(start, count * pages * 4096)
total = time.perf_counter() - began
assert report.closed == count - 1, report
for index in range(count):
    for page in range(pages):
        at = start + (index * pages + page) * 4096 + 8
        assert ctypes.c_uint64.from_address(at).value == content(1, index, page)
print(total, report.work)
"""


class Row(NamedTuple):
    """One line of the table. seconds: the median. reference: what its last column compares it with."""

    name: str
    seconds: float
    reference: float


def compile_reference(folder: str) -> str:
    program = str(Path(folder) / "weld_reference")
    subprocess.run(["cc", "-O2", "-o", program, str(HERE / "weld_reference.c")], check=True, timeout=TIMEOUT)
    return program


def run_reference(program: str, mode: str, count: int, pages: int) -> float:
    done = subprocess.run(
        [program, mode, str(count), str(pages)], capture_output=True, text=True, check=True, timeout=TIMEOUT
    )
    return float(done.stdout)


def run_own(count: int, pages: int) -> tuple[float, float]:
    """(whole call, batch) in a fresh Python process that welds itself."""
    done = subprocess.run(
        [sys.executable, "-c", OWN, str(count), str(pages)],
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT,
        cwd=HERE.parent,
    )
    total, work = done.stdout.split()
    return float(total), float(work)


def run_other(program: str, count: int, pages: int) -> tuple[float, float]:
    """(standstill, batch) for the C process with its fragments, welded from here."""
    from vmaweld.welding import remote

    with subprocess.Popen(
        [program, "hold", str(count), str(pages)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        start = int(process.stdout.readline(), 16)
        report = remote.weld(process.pid, remote.Options(start, start + count * pages * PAGE))
        out, _ = process.communicate("\n", timeout=TIMEOUT)
    assert out == "ok\n"
    assert report.closed == count - 1
    return report.pauses[0], report.work


def measure(program: str, count: int, pages: int, repeat: int) -> list[Row]:
    """All of them, one after the other in each round, so that what disturbs one round disturbs them all."""
    seen: dict[str, list[float]] = {}
    for _ in range(repeat):
        for mode in ("run", "seam", "mremap", "memcpy"):
            seen.setdefault(mode, []).append(run_reference(program, mode, count, pages))
        total, work = run_own(count, pages)
        seen.setdefault("own", []).append(total)
        seen.setdefault("own batch", []).append(work)
        if os.geteuid() == 0:
            pause, work = run_other(program, count, pages)
            seen.setdefault("pause", []).append(pause)
            seen.setdefault("other batch", []).append(work)
    names = {
        "run": "C, the same calls in one pass",
        "seam": "C, seam by seam",
        "own": "vmaweld.weld(), whole call",
        "own batch": "  of it the batch",
        "pause": "vmaweld weld PID, the pause",
        "other batch": "  of it the batch",
        "mremap": "plain mremap, nothing welded",
        "memcpy": "memcpy of the same bytes",
    }
    reference = statistics.median(seen["run"])
    return [Row(name, statistics.median(seen[key]), reference) for key, name in names.items() if key in seen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    answers = []
    with tempfile.TemporaryDirectory() as folder:
        program = compile_reference(folder)
        for count, pages in SHAPES:
            rows = measure(program, count, pages, arguments.repeat)
            size = count * pages * PAGE
            answers.append({"fragments": count, "pages": pages, "rows": [row._asdict() for row in rows]})
            if arguments.json:
                continue
            print(f"{count:,} fragments of {pages} pages, {size / 1e6:.0f} MB, Linux {platform.release()}:")
            for row in rows:
                print(
                    f"  {row.name:<32}{row.seconds * 1e3:9.1f} ms{size / row.seconds / 1e9:8.1f} GB/s"
                    f"{row.seconds / row.reference:8.2f} x C"
                )
    if arguments.json:
        json.dump(answers, sys.stdout, indent=2)
        print()


if __name__ == "__main__":
    main()
