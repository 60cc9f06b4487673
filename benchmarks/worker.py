# SPDX-License-Identifier: GPL-2.0-or-later
"""The model's side of a benchmark, in a process of its own: which build it runs is told by its PYTHONPATH.

Reads the name of a workload from every line of stdin and prints the nanoseconds that its calls took and how many VMAs
the model has afterwards. The first line printed tells the build.
"""

import gc
import platform
import sys
import time

from workloads import PID, workload

from vmaweld import build
from vmaweld.model.system import System
from vmaweld.policy import policy_for_release


def measure(name: str) -> tuple[int, int]:
    load = workload(name)
    system = System(policy_for_release(platform.release()))
    system.add_process(PID)
    apply = system.apply
    for event in load.setup:
        apply(event)
    measured = load.measured
    gc.collect()  # and then left on: users have it on, too
    begin = time.perf_counter_ns()
    for event in measured:
        apply(event)
    took = time.perf_counter_ns() - begin
    return took, len(system.space(PID).vmas)


def main() -> None:
    print(build.describe(), flush=True)
    for line in sys.stdin:
        took, rows = measure(line.strip())
        print(took, rows, flush=True)


if __name__ == "__main__":
    main()
