# SPDX-License-Identifier: GPL-2.0-or-later
"""Real programs under study: what they miss, what the series recovers, and how exact the model is on them.

    python benchmarks/real_programs.py [--only NAME ...] [--base KERNEL] [--json] [--keep DIRECTORY]

Each workload is recorded once, replayed under the stock kernel, patch 2 alone, patch 3 alone and both, and its true
snapshots are compared with the model under the running kernel's policy. Prints a Markdown table. Run as root, with
perf; a workload whose program is not installed is left out, and said so. Takes about two minutes.
"""

import argparse
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from vmaweld.study.fidelity import check
from vmaweld.study.policies import DEFAULT_BASE, study_policies
from vmaweld.study.tally import replay
from vmaweld.trace.recording import record
from vmaweld.trace.store import open_trace

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
C_FILES = 120
JAVA = """import java.util.*;
public class Lists {
  public static void main(String[] arguments) {
    List<byte[]> kept = new ArrayList<>();
    Map<Integer, String> names = new HashMap<>();
    for (int i = 0; i < 200000; i++) { names.put(i, "name" + i); if (i % 100 == 0) kept.add(new byte[20000]); }
    System.out.println(names.size() + kept.size());
  }
}
"""
PAGE = """<html><body><canvas id="c" width="800" height="600"></canvas><script>
let items = [];
for (let i = 0; i < 200000; i++) items.push({number: i, name: "item" + i});
const g = document.getElementById("c").getContext("2d");
for (let i = 0; i < 2000; i++) { g.fillStyle = `rgb(${i % 255},0,0)`; g.fillRect(i % 800, i % 600, 10, 10); }
document.title = items.length;
</script></body></html>
"""
REDIS = """redis-server --port {port} --save "" --dir {directory} --logfile {directory}/redis.log &
server=$!
sleep 1
redis-benchmark -p {port} -q -n 30000 -d 200 -r 20000 -t set,get,lpush,hset
redis-cli -p {port} bgsave
sleep 1
redis-benchmark -p {port} -q -n 20000 -d 2000 -r 20000 -t set
redis-cli -p {port} shutdown nosave
wait $server
"""


@dataclass(slots=True)
class Row:
    """A line of the table. shared: still missed under both patches because memory is shared."""

    workload: str
    processes: int
    events: int
    missed: int
    by_pgoff: int
    by_anon_vma: int
    by_series: int
    shared: int
    most_vmas: int
    most_vmas_series: int
    snapshots: int
    rows: int
    exact: int
    lost: int
    diverged: int


def growing(directory: Path) -> list[str]:
    return [sys.executable, str(EXAMPLES / "growing_buffers.py")]


def forking(directory: Path) -> list[str]:
    return [sys.executable, str(EXAMPLES / "forking_workers.py")]


def compile_many(directory: Path) -> list[str]:
    """Many small C files under make: hundreds of processes."""
    for number in range(C_FILES):
        (directory / f"file{number}.c").write_text(
            f"#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n"
            f"int function{number}(const char *text)\n"
            f"{{ char *copy = strdup(text); int sum = {number};\n"
            f"  for (size_t i = 0; copy && copy[i]; i++) sum = sum * 31 + copy[i];\n"
            f'  printf("%d\\n", sum); free(copy); return sum; }}\n'
        )
    (directory / "main.c").write_text('int function0(const char *);\nint main(void) { return !function0("x"); }\n')
    names = " ".join(f"file{number}.o" for number in range(C_FILES))
    (directory / "Makefile").write_text(f"program: main.o {names}\n\t$(CC) -o $@ $^\n")
    return ["make", "-s", "-j2", "-C", str(directory)]


def redis(directory: Path) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return ["sh", "-c", REDIS.format(port=port, directory=directory)]


def chromium(directory: Path) -> list[str]:
    page = directory / "page.html"
    page.write_text(PAGE)
    browser = shutil.which("chromium") or "chromium"
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={directory / 'profile'}", "--dump-dom"]
    return ["timeout", "60", browser, *options, page.as_uri()]


def java(directory: Path) -> list[str]:
    (directory / "Lists.java").write_text(JAVA)
    return ["java", "-Xmx256m", str(directory / "Lists.java")]


def node(directory: Path) -> list[str]:
    script = "let a=[]; for (let i=0; i<3e5; i++) a.push({i, s: 'x'+i}); console.log(a.length)"
    return ["node", "-e", script]


WORKLOADS: dict[str, tuple[str, Callable[[Path], list[str]]]] = {
    "growing buffers (Python)": (sys.executable, growing),
    "forking workers (Python)": (sys.executable, forking),
    f"compile of {C_FILES} C files": ("make", compile_many),
    "redis-server, redis-benchmark, bgsave": ("redis-server", redis),
    "headless Chromium on a local page": ("chromium", chromium),
    "Java: lists and maps": ("java", java),
    "Node.js: an array of objects": ("node", node),
}
"""Name -> (the program it needs, what gives the command)."""


def measure(name: str, command: list[str], trace_file: Path, base: str) -> Row:
    """Record, replay, compare. The workload's own output goes to stderr."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        record(command, trace_file)
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    with open_trace(trace_file) as trace:
        answer = replay(trace, study_policies(base))
        fidelity = check(trace)
        losses = answer.losses
        _, pgoff, anon_vma, series = range(4)
        return Row(
            name,
            answer.pids,
            answer.events,
            losses.missed,
            losses.recovered[pgoff],
            losses.recovered[anon_vma],
            losses.recovered[series],
            losses.shared(series),
            answer.policies[0].peak,
            answer.policies[series].peak,
            fidelity.snapshots,
            fidelity.rows,
            fidelity.exact,
            trace.metadata.lost,
            fidelity.lane.divergences.total(),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Study real programs and check the model on them.")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[""], help="workloads whose name contains this")
    parser.add_argument("--base", default=DEFAULT_BASE, help=f"the stock kernel (default {DEFAULT_BASE})")
    parser.add_argument("--json", action="store_true", help="a list of rows as JSON")
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="keep the traces there")
    options = parser.parse_args()
    if not options.json:
        print("| workload | processes | events | missed | patch 2 | patch 3 | both | shared | most VMAs | rows exact |")
        print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    rows: list[Row] = []
    for name, (program, make) in WORKLOADS.items():
        if not any(part.lower() in name.lower() for part in options.only):
            continue
        if shutil.which(program) is None:
            print(f"{name}: {program} is not installed, left out", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory(prefix="vmaweld-") as directory:
            trace_file = Path(directory, "run.trace")
            if options.keep:
                trace_file = options.keep / f"{name.split(' ')[0].strip(':,').lower()}.trace"
            work = Path(directory, "work")
            work.mkdir()
            rows.append(row := measure(name, make(work), trace_file, options.base))
        if not options.json:
            share = f"{100 * row.shared / row.missed:.1f} %" if row.missed else "-"
            exact = f"{row.exact:,} of {row.rows:,}"
            print(
                f"| {name} | {row.processes:,} | {row.events:,} | {row.missed:,} | {row.by_pgoff:,} | "
                f"{row.by_anon_vma:,} | {row.by_series:,} | {row.shared:,} ({share}) | "
                f"{row.most_vmas:,} -> {row.most_vmas_series:,} | {exact} |",
                flush=True,
            )
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
