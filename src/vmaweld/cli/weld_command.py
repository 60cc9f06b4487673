# SPDX-License-Identifier: GPL-2.0-or-later
"""``vmaweld weld PID``: merge the open seams of a running process."""

import sys

import click

from vmaweld import abi
from vmaweld.cli.common import DONE, INTERRUPTED, NO, PID, UNSUPPORTED, USAGE, Number, fail, fail_for, print_json
from vmaweld.kernel import procfs
from vmaweld.kernel.errors import KernelError
from vmaweld.welding import guardian, remote
from vmaweld.welding.errors import HalfDone, Refused
from vmaweld.welding.plan import GAIN, Plan
from vmaweld.welding.report import Report
from vmaweld.welding.text import (
    interrupted_as_json,
    interrupted_line,
    left_lines,
    plan_as_json,
    plan_lines,
    report_lines,
)
from vmaweld.words import count_text

_EPILOG = """\b
Examples:
  vmaweld weld --dry-run 4321               what it would do; stops nothing
  vmaweld weld 4321                         asks, then welds
  vmaweld weld --yes --json 4321            for scripts
  vmaweld weld --max-pause 5 4321           in slices: threads stand still about 5 ms at a time
  vmaweld weld --unshare 4321               pages shared since a fork, too
  vmaweld weld --range 7f00e0000000-7f00f0000000 4321

\b
Exit status: 0 no open seam is left of those asked for: inside --range, in runs of --min-gain or
more. 1 some are (the output tells why), the process has ended, or nobody said yes. 2 bad usage.
3 refused, nothing changed. 130 interrupted (the output tells what was done). With --dry-run 0 says
only that the plan was told.
"""


def _range(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, int]:
    if value is None:
        return 0, abi.TASK_SIZE
    low, dash, high = value.partition("-")
    try:
        found = int(low, 16), int(high, 16)
    except ValueError:
        dash = ""
    if not dash or found[0] >= found[1]:
        raise click.BadParameter("write START-END, both hexadecimal as in /proc/PID/maps")
    return abi.page_align_down(found[0]), abi.page_align_up(found[1])


@click.command(epilog=_EPILOG)
@click.argument("pid", type=PID)
@click.option("--dry-run", is_flag=True, help="Only tell what would be done.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--min-gain", type=click.IntRange(1), default=1, metavar="N", help="Leave runs of fewer than N seams.")
@click.option("--range", "area", callback=_range, metavar="A-B", help="Weld inside that range only.")
@click.option("--max-pause", type=Number(0, min_open=True), metavar="MS", help="Stop for about MS at a time.")
@click.option("--unshare", is_flag=True, help="Make shared pages the process's own first; may cost memory.")
@click.option("--verify", is_flag=True, help="Compare the contents before and after; makes the pause longer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    pid: int,
    dry_run: bool,
    yes: bool,
    min_gain: int,
    area: tuple[int, int],
    max_pause: float | None,
    unshare: bool,
    verify: bool,
    as_json: bool,
) -> None:
    """Merge the open seams of process PID, while it runs.

    An open seam is a border between two VMAs that nothing but the page offset or the anon_vma keeps apart. All threads
    stop for some milliseconds; addresses, contents and resident memory stay what they are. What cannot be welded is
    left alone and told.
    """
    options = remote.Options(*area, min_gain, unshare, None if max_pause is None else max_pause / 1000, verify)
    try:
        snapshot, plan = remote.survey(pid, options)
        if not as_json:
            for line in plan_lines(pid, procfs.status(pid).name, len(snapshot.rows), plan, unshare):
                click.echo(line)
        if dry_run:
            if as_json:
                print_json(plan_as_json(pid, len(snapshot.rows), plan, unshare))
            return
        if plan.candidates and not yes:
            if as_json or not sys.stdin.isatty():
                fail("nobody is there to ask: say --yes to weld, or --dry-run to look", USAGE)
            if not click.confirm("Weld now?", default=False):
                raise SystemExit(NO)
        ended = guardian.weld(pid, options, _progress if sys.stderr.isatty() else None)
        if ended.report is None:
            _tell_interrupted(pid, len(snapshot.rows), plan, options, as_json)
            raise SystemExit(INTERRUPTED)
    except Refused as error:
        fail(str(error), UNSUPPORTED)
    except HalfDone as error:
        fail(str(error), NO)
    except KernelError as error:
        fail_for(error)
    report = ended.report
    if as_json:
        print_json(report.as_json())
    else:
        _tell(report)
    if ended.interrupted:
        fail("interrupted, but the weld was done by then", INTERRUPTED)
    raise SystemExit(NO if any(left.reason != GAIN for left in report.left) else DONE)


def _progress(report: Report) -> None:
    if len(report.pauses) > 1:
        click.echo(f"\r{report.closed:,} of {count_text(report.seams, 'seam')} closed\x1b[K", nl=False, err=True)


def _tell(report: Report) -> None:
    if sys.stderr.isatty() and len(report.pauses) > 1:
        click.echo("\r\x1b[K", nl=False, err=True)
    for line in report_lines(report):
        click.echo(line)
    if not report.pauses:
        return
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)
    for line in left_lines(report.left, "left open"):
        click.echo(line)


def _tell_interrupted(pid: int, vmas: int, plan: Plan, options: remote.Options, as_json: bool) -> None:
    """What is done and what is left, by another look at the process: that is true whatever the weld was about to do.

    vmas, plan: how it was before.
    """
    snapshot, rest = remote.survey(pid, options)
    if as_json:
        print_json(interrupted_as_json(pid, vmas, plan, len(snapshot.rows), rest))
        return
    fail(interrupted_line(vmas, plan, len(snapshot.rows), rest), INTERRUPTED)
