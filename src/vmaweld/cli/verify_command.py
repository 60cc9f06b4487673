# SPDX-License-Identifier: GPL-2.0-or-later
"""``vmaweld verify``: the model held against a kernel, on programs at random."""

import os
import sys
import time
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vmaweld.cli.common import INTERRUPTED, NO, UNSUPPORTED, USAGE, Number, console, fail, print_json
from vmaweld.kernel.errors import KernelError
from vmaweld.policy import PolicyError, parse_policy
from vmaweld.verify import run as verify_run
from vmaweld.verify.run import Verification
from vmaweld.verify.scenario import as_test
from vmaweld.verify.text import outcome_lines

_GUEST_TIMEOUT = 3600.0
"""Seconds for a guest's boot and verification; emulated, 50,000 events take some ten minutes."""


@click.command(
    epilog="""\b
Examples:
  vmaweld verify                              100,000 events on the running kernel
  vmaweld verify --events 1000000 --seed 50   more of them, beginning with seed 50
  vmaweld verify --policy linux-6.12          another kernel's rules: expect a difference
  vmaweld verify --guest 6.1 --events 50000   on a 6.1 kernel, in a virtual machine
  vmaweld verify --program 1048579            one program again, by the number a difference gave
"""
)
@click.option(
    "--events", type=click.IntRange(1), default=100_000, show_default=True, metavar="N", help="How many events."
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="S",
    help="The first seed; a run says where to go on.",
)
@click.option("--program", type=click.IntRange(0), metavar="P", help="Only this program (seed * 2^20 + its number).")
@click.option("--policy", "policy_name", metavar="NAME", help="Rules to hold against the kernel [its own].")
@click.option("--seconds", type=Number(0), default=0.0, metavar="T", help="Stop after T seconds, whatever is left.")
@click.option("--guest", metavar="VERSION", help="Verify a kernel of that version (5.10, 5.17, 6.1, ...).")
@click.option("--test", "as_test_name", metavar="NAME", help="Print the shrunk difference as a test of that name.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON (docs/verify.md tells the keys).")
def command(
    events: int,
    seed: int,
    program: int | None,
    policy_name: str | None,
    seconds: float,
    guest: str | None,
    as_test_name: str | None,
    as_json: bool,
) -> None:
    """Hold the model against a kernel: random programs run on both, compared after every event.

    Compared are each call's result, every row (range, flags, page offset, file) and, as root, the anon_vmas up to
    renaming. The programs run in a sacrificial process of their own.

    Exit status: 0 nothing differs; 1 something does; 2 bad usage; 3 no programs can be run here, or no guest; 130
    interrupted, and the output says where to go on.
    """
    try:
        policy = parse_policy(policy_name) if policy_name else None
    except PolicyError as error:
        fail(str(error), USAGE)
    if guest is not None:
        if program is not None or as_test_name:
            fail("--program and --test are for the running kernel: give them without --guest", USAGE)
        _verify_guest(guest, events, seed, seconds, policy_name, as_json)
        return
    try:
        bench = verify_run.make_bench(policy)
    except (KernelError, OSError) as error:
        fail(f"cannot run programs here: {error}", UNSUPPORTED)
    with bench.executor:
        if program is not None:
            outcome = verify_run.run_one(bench, program)
        else:
            with _progress(events, quiet=as_json) as progress:
                outcome = verify_run.run(
                    bench, events=events, first_seed=seed, progress=progress, seconds=seconds, clock=time.monotonic
                )
    _tell(outcome, bench.executor.low, as_test_name, as_json)


class _progress:
    """A bar on a terminal's stderr, nothing elsewhere."""

    def __init__(self, events: int, *, quiet: bool) -> None:
        out = console(stderr=True)
        self._bar = Progress(
            TextColumn("verify"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("events, seed {task.fields[seed]}"),
            TimeElapsedColumn(),
            console=out,
            disable=quiet or not out.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=events, seed=0)

    def __enter__(self) -> Any:
        self._bar.start()
        return lambda outcome: self._bar.update(self._task, completed=outcome.events, seed=outcome.next_seed)

    def __exit__(self, *_exception: object) -> None:
        self._bar.stop()


def _tell(outcome: Verification, low: int, as_test_name: str | None, as_json: bool) -> None:
    found = outcome.difference
    if as_json:
        print_json(outcome.as_json())
    else:
        for line in outcome_lines(outcome, low):
            print(line)
    if found is not None and as_test_name:
        print("\n" + "\n".join(as_test(found, outcome.policy, as_test_name)))
    if outcome.interrupted:
        raise SystemExit(INTERRUPTED)
    if found is not None:
        raise SystemExit(NO)


def _verify_guest(version: str, events: int, seed: int, seconds: float, policy_name: str | None, as_json: bool) -> None:
    """The same verification inside a guest; what it prints and its exit status are ours."""
    from vmaweld.guests.guest import Guest, GuestError

    out = console(stderr=True)

    def say(line: str) -> None:
        if out.is_terminal:
            out.print(line)

    words = ["verify", "--events", str(events), "--seed", str(seed), "--seconds", str(seconds)]
    words += ["--policy", policy_name] if policy_name else []  # else that of the kernel that runs there
    words += ["--json"] if as_json else []
    try:
        finished = Guest(version, progress=say).run(
            [sys.executable, "-m", "vmaweld", *words],
            timeout=_GUEST_TIMEOUT,
            environment={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
    except GuestError as error:
        fail(str(error), UNSUPPORTED)
    except KeyboardInterrupt:
        fail(f"interrupted; what the guest had done by then is not known: begin again with --seed {seed}", INTERRUPTED)
    print(finished.stdout, end="")
    if finished.status:
        print(finished.stderr, end="", file=sys.stderr)
        raise SystemExit(finished.status)
