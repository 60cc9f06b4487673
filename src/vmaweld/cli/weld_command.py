"""``vmaweld weld PID``: merge the open seams of a running process."""

import sys
from collections.abc import Sequence

import click

from vmaweld import abi
from vmaweld.cli.common import DONE, INTERRUPTED, NO, PID, UNSUPPORTED, USAGE, Number, fail, fail_for, print_json
from vmaweld.kernel import procfs
from vmaweld.kernel.errors import KernelError
from vmaweld.welding import guardian, remote
from vmaweld.welding.errors import HalfDone, Refused
from vmaweld.welding.plan import GAIN, Left, Plan
from vmaweld.welding.report import Report, left_as_json
from vmaweld.words import count_text, printable

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
            _tell_plan(pid, len(snapshot.rows), plan, unshare)
        if dry_run:
            if as_json:
                print_json(_plan_as_json(pid, len(snapshot.rows), plan, unshare))
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
        _tell_report(report)
    if ended.interrupted:
        fail("interrupted, but the weld was done by then", INTERRUPTED)
    raise SystemExit(NO if any(left.reason != GAIN for left in report.left) else DONE)


def _progress(report: Report) -> None:
    if len(report.pauses) > 1:
        click.echo(f"\r{report.closed:,} of {count_text(report.seams, 'seam')} closed\x1b[K", nl=False, err=True)


def _amount(pages: int) -> str:
    size = pages * abi.PAGE_SIZE
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size >= scale:
            return f"{count_text(pages, 'page')} ({size / scale:.1f} {unit})"
    return f"{count_text(pages, 'page')} ({size >> 10} KiB)"


def _tell_plan(pid: int, vmas: int, plan: Plan, unshare: bool) -> None:
    name = procfs.status(pid).name
    left = sum(entry.seams for entry in plan.left)
    click.echo(
        f"process {pid} ({printable(name)}): {count_text(vmas, 'VMA')}, {count_text(plan.seams + left, 'open seam')}"
    )
    if plan.candidates:
        move = "moves" if plan.pages == 1 else "move"
        click.echo(f"  {count_text(plan.seams, 'seam')} can be welded: {_amount(plan.pages)} {move}")
        if unshare:
            click.echo(f"  --unshare: {_amount(plan.shared)} will be copied, for others map them too")
    _tell_left(plan.left, "stay")


def _tell_left(left: Sequence[Left], verb: str) -> None:
    by_reason: dict[str, tuple[int, int]] = {}
    for entry in left:
        seams, pages = by_reason.get(entry.reason, (0, 0))
        by_reason[entry.reason] = seams + entry.seams, pages + entry.pages
    for reason, (seams, pages) in sorted(by_reason.items(), key=lambda item: -item[1][0]):
        shared = f" ({_amount(pages)})" if pages else ""
        click.echo(f"  {count_text(seams, 'seam')} {verb}: {reason}{shared}")


def _tell_report(report: Report) -> None:
    if sys.stderr.isatty() and len(report.pauses) > 1:
        click.echo("\r\x1b[K", nl=False, err=True)
    if report.repaired:
        click.echo(f"repaired: {report.repaired}")
    if not report.pauses:
        click.echo("nothing to weld")
        return
    click.echo(
        f"closed {count_text(report.closed, 'seam')}: "
        f"{report.vmas_before:,} -> {count_text(report.vmas_after, 'VMA')}; moved {_amount(report.pages)}"
    )
    if report.copied:
        click.echo(f"copied {_amount(report.copied)} that others map too")
    pauses = sorted(report.pauses)
    if len(pauses) == 1:
        click.echo(f"all threads stood still for {pauses[0] * 1e3:.1f} ms")
    else:
        click.echo(
            f"all threads stood still {len(pauses)} times, for {pauses[len(pauses) // 2] * 1e3:.1f} ms as a rule, "
            f"{pauses[-1] * 1e3:.1f} ms at most"
        )
    if report.pauses_over and report.max_pause is not None:
        click.echo(
            f"  {count_text(report.pauses_over, 'pause')} longer than the {report.max_pause * 1e3:g} ms asked for: a "
            "look at all VMAs, or --verify, takes that long by itself"
        )
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)
    _tell_left(report.left, "left open")


def _tell_interrupted(pid: int, vmas: int, plan: Plan, options: remote.Options, as_json: bool) -> None:
    """What is done and what is left, by another look at the process: that is true whatever the weld was about to do.

    vmas, plan: how it was before.
    """
    snapshot, rest = remote.survey(pid, options)
    if as_json:
        before = plan.seams + sum(left.seams for left in plan.left)
        left = rest.seams + sum(entry.seams for entry in rest.left)
        data: dict[str, object] = {
            "pid": pid,
            "interrupted": True,
            "vmas": {"before": vmas, "after": len(snapshot.rows)},
            "seams": {"before": before, "closed": before - left, "left": left},
        }
        print_json(data)
        return
    fail(
        f"interrupted: {vmas:,} -> {count_text(len(snapshot.rows), 'VMA')}, "
        f"{count_text(rest.seams, 'seam')} of {plan.seams:,} can still be welded",
        INTERRUPTED,
    )


def _plan_as_json(pid: int, vmas: int, plan: Plan, unshare: bool) -> dict[str, object]:
    return {
        "pid": pid,
        "dry_run": True,
        "vmas": {"before": vmas, "after": vmas - plan.seams},
        "seams": {"weldable": plan.seams, "left": sum(left.seams for left in plan.left)},
        "pages_to_move": plan.pages,
        "pages_to_copy": plan.shared if unshare else 0,
        "runs": [
            {
                "start": f"{candidate.rows[0].start:#x}",
                "end": f"{candidate.rows[-1].end:#x}",
                "seams": candidate.seams,
            }
            for candidate in plan.candidates
        ],
        "left": left_as_json(plan.left),
    }
