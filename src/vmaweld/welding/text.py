# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans and welds, for people and as JSON. What a finished weld is as JSON, `report` tells."""

from collections.abc import Iterator, Sequence

from vmaweld import abi
from vmaweld.welding.plan import Left, Plan
from vmaweld.welding.report import Report, left_as_json
from vmaweld.words import count_text, printable


def _amount(pages: int) -> str:
    size = pages * abi.PAGE_SIZE
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size >= scale:
            return f"{count_text(pages, 'page')} ({size / scale:.1f} {unit})"
    return f"{count_text(pages, 'page')} ({size >> 10} KiB)"


def plan_lines(pid: int, name: str, vmas: int, plan: Plan, unshare: bool) -> Iterator[str]:
    """What a weld of process `pid`, called `name`, would do, one fact a line."""
    left = sum(entry.seams for entry in plan.left)
    yield (
        f"process {pid} ({printable(name)}): {count_text(vmas, 'VMA')}, {count_text(plan.seams + left, 'open seam')}"
    )
    if plan.candidates:
        move = "moves" if plan.pages == 1 else "move"
        yield f"  {count_text(plan.seams, 'seam')} can be welded: {_amount(plan.pages)} {move}"
        if unshare:
            yield f"  --unshare: {_amount(plan.shared)} will be copied, for others map them too"
    yield from left_lines(plan.left, "stay")


def left_lines(left: Sequence[Left], verb: str) -> Iterator[str]:
    """The seams that `verb` ("stay", "left open"), a line for each reason, the most frequent first."""
    by_reason: dict[str, tuple[int, int]] = {}
    for entry in left:
        seams, pages = by_reason.get(entry.reason, (0, 0))
        by_reason[entry.reason] = seams + entry.seams, pages + entry.pages
    for reason, (seams, pages) in sorted(by_reason.items(), key=lambda item: -item[1][0]):
        shared = f" ({_amount(pages)})" if pages else ""
        yield f"  {count_text(seams, 'seam')} {verb}: {reason}{shared}"


def report_lines(report: Report) -> Iterator[str]:
    """What a weld has done, one fact a line, but for its warnings and what it has left open."""
    if report.repaired:
        yield f"repaired: {report.repaired}"
    if not report.pauses:
        yield "nothing to weld"
        return
    yield (
        f"closed {count_text(report.closed, 'seam')}: "
        f"{report.vmas_before:,} -> {count_text(report.vmas_after, 'VMA')}; moved {_amount(report.pages)}"
    )
    if report.copied:
        yield f"copied {_amount(report.copied)} that others map too"
    pauses = sorted(report.pauses)
    if len(pauses) == 1:
        yield f"all threads stood still for {pauses[0] * 1e3:.1f} ms"
    else:
        yield (
            f"all threads stood still {len(pauses)} times, for {pauses[len(pauses) // 2] * 1e3:.1f} ms as a rule, "
            f"{pauses[-1] * 1e3:.1f} ms at most"
        )
    if report.pauses_over and report.max_pause is not None:
        yield (
            f"  {count_text(report.pauses_over, 'pause')} longer than the {report.max_pause * 1e3:g} ms asked for: a "
            "look at all VMAs, or --verify, takes that long by itself"
        )


def interrupted_line(vmas: int, plan: Plan, vmas_now: int, rest: Plan) -> str:
    """What an interrupted weld has done. vmas, plan: how it was before. vmas_now, rest: how it is."""
    return (
        f"interrupted: {vmas:,} -> {count_text(vmas_now, 'VMA')}, "
        f"{count_text(rest.seams, 'seam')} of {plan.seams:,} can still be welded"
    )


def interrupted_as_json(pid: int, vmas: int, plan: Plan, vmas_now: int, rest: Plan) -> dict[str, object]:
    """The same for ``vmaweld weld --json``; the keys are stable."""
    before = plan.seams + sum(left.seams for left in plan.left)
    left = rest.seams + sum(entry.seams for entry in rest.left)
    return {
        "pid": pid,
        "interrupted": True,
        "vmas": {"before": vmas, "after": vmas_now},
        "seams": {"before": before, "closed": before - left, "left": left},
    }


def plan_as_json(pid: int, vmas: int, plan: Plan, unshare: bool) -> dict[str, object]:
    """The keys of ``vmaweld weld --dry-run --json``; stable."""
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
