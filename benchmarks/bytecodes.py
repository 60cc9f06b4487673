# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the pure Python model spends its work on a workload: bytecodes and calls of every function, for each event.

    python benchmarks/bytecodes.py [NAME ...]

Counted, not timed: the same on every machine with the same Python, however busy it is.
"""

import sys
from collections import Counter
from types import FrameType
from typing import Any

from workloads import PID, WORKLOADS, Workload, workload

from vmaweld import build
from vmaweld.model.system import System
from vmaweld.policy import parse_policy

EVENTS = 200


def count(load: Workload) -> tuple[Counter[str], Counter[str]]:
    """Bytecodes and calls by function while the first events of `load` are applied."""
    system = System(parse_policy("linux-6.18"))
    system.add_process(PID)
    for event in load.setup:
        system.apply(event)
    bytecodes: Counter[str] = Counter()
    calls: Counter[str] = Counter()

    def trace(frame: FrameType, what: str, _: Any) -> Any:
        name = frame.f_code.co_qualname
        if what == "call":
            frame.f_trace_lines = False
            frame.f_trace_opcodes = True
            calls[name] += 1
        elif what == "opcode":
            bytecodes[name] += 1
        return trace

    measured = load.measured[:EVENTS]
    sys.settrace(trace)
    for event in measured:
        system.apply(event)
    sys.settrace(None)
    return bytecodes, calls


def main() -> None:
    if build.compiled():
        raise SystemExit("the compiled build has no bytecodes: run this with the pure Python one")
    for load in [workload(name) for name in sys.argv[1:]] or [make() for make in WORKLOADS]:
        bytecodes, calls = count(load)
        events = min(EVENTS, len(load.measured))
        print(
            f"{load.name}: {bytecodes.total() / events:.0f} bytecodes and {calls.total() / events:.1f} calls an event"
        )
        for name, number in bytecodes.most_common(12):
            print(f"  {number / bytecodes.total():5.1%} {number / events:7.1f} {calls[name] / events:6.2f}  {name}")


if __name__ == "__main__":
    main()
