# SPDX-License-Identifier: GPL-2.0-or-later
"""How long the slices of a weld really pause a large process, for the pauses that one asks for.

``python benchmarks/pauses.py [--fragments 12000] [--pages 2] [--json]`` (root). The process is made anew for each line,
and every page is checked afterwards. ``PYTHONPATH`` may lead to the source of another version, to compare with.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from typing import NamedTuple

from weld import PAGE, TIMEOUT, compile_reference

from vmaweld.welding import remote

WISHES = (
    ("all at once", remote.Options()),
    ("--max-pause 5", remote.Options(max_pause=5e-3)),
    ("--max-pause 2", remote.Options(max_pause=2e-3)),
    ("--max-pause 2 --unshare", remote.Options(max_pause=2e-3, unshare=True)),
    ("--max-pause 5 --verify", remote.Options(max_pause=5e-3, verify=True)),
    ("--max-pause 0.1 --verify", remote.Options(max_pause=1e-4, verify=True)),
)


class Line(NamedTuple):
    """Pauses in milliseconds."""

    wish: str
    slices: int
    median: float
    longest: float
    total: float


def measure(program: str, wish: str, options: remote.Options, fragments: int, pages: int) -> Line:
    with subprocess.Popen(
        [program, "hold", str(fragments), str(pages)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        start = int(process.stdout.readline(), 16)
        chosen = remote.Options(
            start,
            start + fragments * pages * PAGE,
            unshare=options.unshare,
            max_pause=options.max_pause,
            verify=options.verify,
        )
        report = remote.weld(process.pid, chosen)
        out, _ = process.communicate("\n", timeout=TIMEOUT)
    assert out == "ok\n"
    assert report.closed == fragments - 1
    pauses = [pause * 1e3 for pause in report.pauses]
    return Line(wish, len(pauses), statistics.median(pauses), max(pauses), sum(pauses))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fragments", type=int, default=12_000)
    parser.add_argument("--pages", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = compile_reference(folder)
        lines = [measure(program, wish, options, arguments.fragments, arguments.pages) for wish, options in WISHES]
    if arguments.json:
        print(json.dumps([line._asdict() for line in lines]))
        return
    print(f"{arguments.fragments:,} fragments of {arguments.pages} pages; pauses in ms:")
    print(f"  {'':<28}{'slices':>8}{'median':>9}{'longest':>9}{'together':>10}")
    for line in lines:
        print(f"  {line.wish:<28}{line.slices:>8}{line.median:>9.2f}{line.longest:>9.2f}{line.total:>10.0f}")


if __name__ == "__main__":
    main()
