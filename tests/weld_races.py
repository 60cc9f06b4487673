# SPDX-License-Identifier: GPL-2.0-or-later
"""Races around a weld that rests between its slices: two welders at once, and exec, again and again.

``python -m tests.weld_races --count 1000`` (root) prints a table; status 1 if anything was lost.
"""

import argparse
import collections
import contextlib
import os
import random
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from weld_support import Target

from vmaweld.kernel.bpf import iterator
from vmaweld.kernel.errors import ProcessGone
from vmaweld.welding import pace, remote
from vmaweld.welding.errors import Busy

TARGET = "weld_races_target.py"
SLICES = 1e-3
"""Seconds that a slice may last."""
A_PIECE = 1e-3
"""Seconds that a seam is expected to take, so that slices are small."""
FIXED_ADDRESSES = ("setarch", "-R")
DONE, REFUSED, GONE, FAILED = 0, 3, 4, 9


def start_welder(pid: int, options: remote.Options, delay: float = 0.0, *, rests: bool = False) -> int:
    """A process that welds `pid` after `delay` seconds; returns its id. It ends with one of the statuses above.

    rests: return when it rests for the first time, or has ended.
    """
    ends = os.pipe()
    welder = os.fork()
    if welder:
        os.close(ends[1])
        with os.fdopen(ends[0], "rb") as pipe:
            if rests:
                pipe.read(1)
        return welder
    status = FAILED
    os.close(ends[0])

    def tell(_report: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(ends[1], b".")

    try:
        setattr(pace, "_A_PIECE", A_PIECE)  # noqa: B010 - a constant, but for several slices on a busy machine
        time.sleep(delay)
        remote.weld(pid, options, progress=tell)
        status = DONE
    except Busy:
        status = REFUSED
    except ProcessGone:
        status = GONE
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def end_of(welder: int) -> int:
    """The status with which it ended."""
    return os.waitstatus_to_exitcode(os.waitpid(welder, 0)[1])


def told_ok(target: Target) -> None:
    """The target finds everything as it should be."""
    target.tell("check")
    assert target.hear() == "ok"


def two_welders(count: int, seed: int = 0) -> "collections.Counter[str]":
    """Two welders in slices on one process, `count` times: one of them works, and nothing is lost."""
    rng = random.Random(seed)
    seen: collections.Counter[str] = collections.Counter()
    iterator.available()
    with Target(program=TARGET) as target:
        for _ in range(count):
            start, end = target.build(16, 2)
            options = remote.Options(max_pause=SLICES, low=start, high=end)
            pair = [start_welder(target.pid, options, rng.random() * 0.02) for _ in range(2)]
            ends = [end_of(welder) for welder in pair]
            assert set(ends) <= {DONE, REFUSED}, ends
            assert DONE in ends, ends
            seen["refused"] += ends.count(REFUSED)
            seen["done"] += ends.count(DONE)
            told_ok(target)
            assert "memfd:vmaweld" not in Path(f"/proc/{target.pid}/maps").read_text()
    return seen


def exec_between_slices(
    count: int, seed: int = 0, through: tuple[str, ...] = FIXED_ADDRESSES
) -> "collections.Counter[str]":
    """The process executes its program anew while a weld rests, `count` times; the new image is not touched."""
    rng = random.Random(seed)
    seen: collections.Counter[str] = collections.Counter()
    iterator.available()
    with Target(program=TARGET, through=through) as target:
        for _ in range(count):
            start, end = target.build(800, 1)
            options = remote.Options(max_pause=SLICES, low=start, high=end)
            welder = start_welder(target.pid, options, rests=True)
            time.sleep(rng.random() * 0.05)
            target.tell("exec")
            target.expect("ready")
            ended = end_of(welder)
            assert ended in {DONE, GONE}, ended
            seen["ended by exec" if ended == GONE else "done"] += 1
            target.build(20, 2)
            told_ok(target)
            assert "memfd:vmaweld" not in Path(f"/proc/{target.pid}/maps").read_text()
    return seen


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name, race in (("two welders", two_welders), ("exec between slices", exec_between_slices)):
        began = time.monotonic()
        seen = race(arguments.count, arguments.seed)
        found = ", ".join(f"{number:,} {what}" for what, number in sorted(seen.items()))
        print(
            f"{name}: {arguments.count:,} times in {time.monotonic() - began:.0f} s: {found}; nothing lost", flush=True
        )


if __name__ == "__main__":
    main()
