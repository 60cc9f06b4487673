# SPDX-License-Identifier: GPL-2.0-or-later
"""Replaying real programs: how long the replay takes, against how long the program itself ran.

    python benchmarks/recorded.py [--rounds N] [--full] [--json]

A command is run a few times without recording and recorded once; then both builds of the model replay the trace, all on
one and the same processor, the fastest round of each. Timed is the replay from opening the file to the answer, without
the start of Python. A ratio of 0.1 says: the replay takes a tenth of the time that the program took.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from model import COMPILED, ROOT, Contender

from vmaweld.trace.recorders.protocol import RecorderError
from vmaweld.trace.recording import record

STOCK = ("linux-5.17",)
FOUR = ("linux-5.17", "linux-5.17+pgoff", "linux-5.17+anon-vma", "linux-5.17+series")
PAGE = """<!doctype html><title>work</title><p id=out><script>
const rows = Array.from({length: 20000}, (_, i) => ({key: i * 7919 % 20011, text: "row " + i}));
rows.sort((a, b) => a.key - b.key);
document.getElementById("out").textContent = rows.slice(0, 500).map(row => row.text).join(", ");
</script>
"""


def compile_command(folder: Path) -> list[str]:
    """Compile the small C project's files, each under ten names: 40 compilations, 10 programs linked."""
    project = ROOT / "examples" / "small_c_project"
    script = folder / "compile.sh"
    script.write_text(
        f"cd '{project}' && for n in 1 2 3 4 5 6 7 8 9 10; do\n"
        f"  for f in main queue text words; do cc -O2 -c -o '{folder}'/$f-$n.o $f.c || exit; done\n"
        f"  cc -o '{folder}'/out-$n '{folder}'/*-$n.o || exit\n"
        "done\n"
    )
    return ["sh", str(script)]


def chromium_command(folder: Path) -> list[str] | None:
    """Load a page that computes, without a window; None where there is no Chromium."""
    browser = shutil.which("chromium")
    if browser is None:
        return None
    page = folder / "page.html"
    page.write_text(PAGE)
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile", "--dump-dom"]
    return [browser, *options, page.as_uri()]


def run(command: list[str]) -> int:
    """Nanoseconds that `command` takes."""
    begin = time.perf_counter_ns()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)
    return time.perf_counter_ns() - begin


def record_quietly(command: list[str], trace: Path) -> str:
    """Record `command`; a line that tells how much there was to record, and how long reading that took."""
    try:
        begin = time.monotonic()
        done = record(["sh", "-c", 'exec "$@" >/dev/null 2>&1', "sh", *command], trace, snapshots=False)
        reading = time.monotonic() - begin - done.seconds
    except RecorderError as error:
        raise SystemExit(str(error)) from None
    metadata = done.metadata
    return (
        f"{metadata.processes:,} processes, {metadata.events:,} events ({metadata.recorder}, faults"
        f" {metadata.faults}); recorded in {done.seconds:.2f} s and read in {reading:.2f} s,"
        f" {reading / done.seconds:.2f} of that (target: at most 1)"
    )


def replay_times(trace: Path, rounds: int) -> dict[str, int]:
    """Fastest nanoseconds by "BUILD, N policies"."""
    builds = {"pure Python": ROOT / "src"}
    if list(COMPILED.glob("vmaweld/model/merge.*.so")):
        builds["compiled"] = COMPILED
    worker = str(Path(__file__).with_name("replay_worker.py"))
    best: dict[str, int] = {}
    for policies in (STOCK, FOUR):
        for build, source in builds.items():
            with Contender([sys.executable, worker, str(trace), *policies], PYTHONPATH=str(source)) as contender:
                if contender.line() != build:
                    raise SystemExit(f"{source} does not hold the {build} model")
                times = [contender.ask("again")[0] for _ in range(rounds)]
            best[f"{build}, {len(policies)} {'policy' if len(policies) == 1 else 'policies'}"] = min(times)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description="Replaying real programs, against running them.")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of which the fastest counts (default 3)")
    parser.add_argument("--full", action="store_true", help="Chromium too")
    parser.add_argument("--json", action="store_true", help="nanoseconds, as JSON")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    results: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = {"compile": compile_command(folder)}
        if options.full:
            browser = chromium_command(folder)
            if browser is None:
                print("Chromium is left out: apt install chromium", file=sys.stderr)
            else:
                commands["chromium"] = browser
        for title, command in commands.items():
            took = min(run(command) for _ in range(options.rounds))
            trace = folder / f"{title}.trace"
            recorded = record_quietly(command, trace)
            results[title] = {"run": took, **replay_times(trace, options.rounds)}
            if options.json:
                continue
            print(f"{title}: {recorded}\n  {'the program itself':33} {took / 1e9:7.3f} s")
            for what, replay in results[title].items():
                if what == "run":
                    continue
                target = "" if (title, what) != ("compile", "compiled, 1 policy") else " (target: at most 0.1)"
                print(f"  replayed {what:24} {replay / 1e9:7.3f} s, ratio {replay / took:.3f}{target}", flush=True)
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
