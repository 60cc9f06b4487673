# SPDX-License-Identifier: GPL-2.0-or-later
"""Random events on the model under every kernel and change, every invariant checked after each, for as long as told.

    python benchmarks/check_random.py --minutes 10
    python benchmarks/check_random.py --minutes 1 --policy linux-6.18+series --seed 4000

Each seed is run under every policy before the next one begins. Ctrl-C ends the run and prints the counts so far.
Exit status: 0 no violation, 1 a violation (printed with its seed and the shortest program found that shows it).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from random_events import POLICIES, Violation, run

from vmaweld.policy import PolicyError, parse_policy

_LENGTH = 200
"""Events of a program; `check` looks at everything after each, so programs are short and many."""
_REPORT_EVERY = 10.0


def main() -> int:
    options = _options()
    policies = [options.policy] if options.policy else POLICIES
    end = time.monotonic() + options.minutes * 60
    counts: Counter[str] = Counter()
    seed = options.seed
    reported = time.monotonic()
    try:
        while time.monotonic() < end:
            for policy in policies:
                counts += run(policy, seed, _LENGTH)
                if time.monotonic() >= end:
                    break
            else:
                counts["seeds"] += 1
                seed += 1
            if time.monotonic() - reported > _REPORT_EVERY and sys.stderr.isatty():
                reported = time.monotonic()
                print(f"seed {seed}: {counts['events']:,} events, {counts['merged']:,} merges", file=sys.stderr)
    except Violation as violation:
        _print(counts, policies, options.seed, seed)
        print(f"VIOLATION under {violation}")
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    _print(counts, policies, options.seed, seed)
    print("no violation")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="example: python benchmarks/check_random.py --minutes 10",
    )
    parser.add_argument("--minutes", type=float, default=2.0, help="how long (2)")
    parser.add_argument(
        "--seed", type=int, default=0, help="the first seed (0); a run prints where a later one goes on"
    )
    parser.add_argument("--policy", default="", help="only this one, such as linux-5.17+series (all)")
    options = parser.parse_args()
    if options.policy:
        try:
            parse_policy(options.policy)
        except PolicyError as error:
            parser.error(str(error))
    return options


def _print(counts: Counter[str], policies: list[str], first: int, last: int) -> None:
    print(f"seeds {first} to {last} under {len(policies)} kinds of kernel; go on with --seed {last}")
    print(f"{counts['events']:,} events, {counts['failed']:,} of them failed as Linux would have it")
    print(f"{counts['attempts']:,} attempts to merge, {counts['merged']:,} merges:")
    print("  " + ", ".join(f"case {case}: {counts[f'case {case}']:,}" for case in range(1, 9)))


if __name__ == "__main__":
    sys.exit(main())
