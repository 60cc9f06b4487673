# SPDX-License-Identifier: GPL-2.0-or-later
"""Replays a trace once for each line of stdin and prints the nanoseconds: which build runs is told by its PYTHONPATH.

Arguments: the trace, then the policies.
"""

import sys
import time

from vmaweld import build
from vmaweld.policy import parse_policy
from vmaweld.study.tally import replay
from vmaweld.trace.store import open_trace


def main() -> None:
    path, *names = sys.argv[1:]
    print(build.describe(), flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter_ns()
        with open_trace(path) as trace:
            answer = replay(trace, [parse_policy(name) for name in names])
        print(time.perf_counter_ns() - begin, answer.events, flush=True)


if __name__ == "__main__":
    main()
