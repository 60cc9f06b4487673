# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m tests.torture``: weld real programs that check their data, and kill the welders.

The programs run in turns, some at once. In its turn each gets seams while it runs, and is welded
without pause with options at random, by one welder or two. Welders get SIGINT, SIGTERM and SIGKILL
at random: the command as well as the child that does the work. The program is stopped and
continued meanwhile. At the end of its turn it is welded once more, undisturbed.

An anomaly is: data that differs, an end of the program, a core, a program that is silent, a thread
left stopped, a mapping or a descriptor of ours left behind, a welder that hangs or ends with a
traceback, a complaint of the kernel. There is one: exit status 1, and its evidence is kept.
"""

import argparse
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

from .harness import Harness
from .programs import BY_NAME, PROGRAMS, Program
from .table import table


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60, help="how long (60)")
    parser.add_argument("--seed", type=int, help="the choices; at random if not given, and printed")
    parser.add_argument("--programs", metavar="LIST", help="only these, separated by commas")
    parser.add_argument("--sample", action="store_true", help="only the programs of the sample that CI runs")
    parser.add_argument("--kill-rate", type=float, default=0.3, help="the share of welders that get a signal (0.3)")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="turns at the same time (one a CPU)")
    parser.add_argument("--evidence", type=Path, default=Path("build/torture"), help="where evidence goes")
    parser.add_argument("--list", action="store_true", help="only tell the programs, and what they lack here")
    return parser.parse_args()


def _chosen(arguments: argparse.Namespace) -> list[Program]:
    """The programs asked for. One that was named must be able to run; of all, those that can."""
    if arguments.programs or arguments.sample:
        names = arguments.programs.split(",") if arguments.programs else [p.name for p in PROGRAMS if p.sample]
        unknown = [name for name in names if name not in BY_NAME]
        lacking = {name: BY_NAME[name].missing() for name in names if name in BY_NAME}
        if unknown or any(lacking.values()):
            what = [f"no program is called {name}" for name in unknown]
            what += [f"{name} needs apt install {' '.join(packages)}" for name, packages in lacking.items() if packages]
            raise SystemExit("; ".join(what))
        return [BY_NAME[name] for name in names]
    for program in PROGRAMS:
        if program.missing():
            print(f"left out: {program.name}, it needs apt install {' '.join(program.missing())}")
    return [program for program in PROGRAMS if not program.missing()]


def main() -> None:
    arguments = _parse()
    if arguments.list:
        for program in PROGRAMS:
            lacks = " ".join(program.missing())
            print(f"{program.name:22} {'sample' if program.sample else '':7} {f'needs {lacks}' if lacks else ''}")
        return
    if os.geteuid():
        raise SystemExit("welding other processes is tested as root")
    programs = _chosen(arguments)
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    print(f"{len(programs)} programs, {arguments.minutes:g} minutes, --seed {seed}", flush=True)

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)
    status = 0
    with Harness(
        programs,
        minutes=arguments.minutes,
        seed=seed,
        kill_rate=arguments.kill_rate,
        at_once=arguments.at_once,
        evidence=arguments.evidence.absolute(),
        tell=lambda line: print(line, flush=True),
    ) as harness:
        try:
            harness.run()
        except KeyboardInterrupt:
            print("interrupted; so far:")
            status = 130
        results = harness.results.values()
    print(f"\n{table(results)}")
    for result in results:
        for anomaly, count in Counter(result.anomalies).most_common():
            print(f"\nANOMALY, {count} x, in {result.program}: {anomaly}")
            status = status or 1
    if harness.kept:
        print("\nEvidence:", *harness.kept, sep="\n  ")
    sys.exit(status)


if __name__ == "__main__":
    main()
