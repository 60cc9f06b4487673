# SPDX-License-Identifier: GPL-2.0-or-later
"""A report in words and tables, for a terminal or a pipe."""

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vmaweld.abi import (
    PAGE_SHIFT,
    VM_ACCESS_FLAGS,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_SHARED,
    VM_SOFTDIRTY,
    flag_names,
)
from vmaweld.inspect.as_json import Numbering
from vmaweld.inspect.kinds import KINDS, kind_of
from vmaweld.inspect.legend import MEANINGS
from vmaweld.inspect.report import Inspection
from vmaweld.inspect.words import percent_text, reasons_text, size_text
from vmaweld.seams import NOT_ATTEMPTED, OPEN_MASK, REASON_NAMES, Seam
from vmaweld.snapshot import Row
from vmaweld.welding.plan import OBSTACLES
from vmaweld.words import count_text, printable

OPEN_REASONS = (*[name for bit, name in REASON_NAMES.items() if bit & OPEN_MASK], NOT_ATTEMPTED)
_USUAL = VM_ACCESS_FLAGS | VM_SHARED | VM_MAYSHARE | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC | VM_SOFTDIRTY
"""Flags that the permissions tell, or that nearly every VMA has."""


def summary_line(report: Inspection) -> str:
    """The one line to read if only one is read."""
    return (
        f"{printable(report.name)} (pid {report.pid}, uid {report.uid}): {count_text(report.vmas, 'VMA')}, "
        f"{percent_text(report.vmas, report.limit)} of vm.max_map_count {report.limit:,}; "
        f"{len(report.open):,} of {count_text(len(report.seams), 'seam')} open"
    )


def watch_line(report: Inspection, stamp: str, growth: float) -> str:
    """What `inspect --watch` prints at time `stamp`. growth: VMAs a second."""
    return (
        f"{stamp} {printable(report.name)} pid={report.pid} vmas={report.vmas} limit={report.limit} "
        f"share={100 * report.vmas / report.limit:.1f}% open={len(report.open)} growth={growth:+.1f}/s"
    )


def warning_line(report: Inspection, warn: float) -> str:
    """That the process has the share `warn` of vm.max_map_count, or more."""
    return (
        f"{printable(report.name)} (pid {report.pid}) has {count_text(report.vmas, 'VMA')}, "
        f"{percent_text(report.vmas, report.limit)} of vm.max_map_count {report.limit:,}, "
        f"{warn * 100:.4g} % or more"
    )


def source_line(report: Inspection) -> str:
    """How far the answer can be trusted."""
    if report.exact:
        line = "Exact: page offsets, anon_vmas and all flags as the kernel holds them."
    else:
        line = (
            "By elimination: page offsets and anon_vmas are hidden from this user, so an open seam is one that "
            "nothing visible explains. As root (or with CAP_BPF and CAP_PERFMON) the answer is exact."
        )
    if not report.snapshot.consistent:
        line += " The process changed its memory while it was read."
    return line


def print_report(report: Inspection, console: Console, limit: int) -> None:
    """The report as tables; at most `limit` open seams are listed."""
    console.print(f"[bold]{escape(summary_line(report))}[/]", soft_wrap=True)
    console.print(source_line(report), style="dim", soft_wrap=True)
    console.print()
    console.print(_kinds(report))
    console.print()
    console.print(_reasons(report))
    console.print()
    if not report.open:
        console.print("No open seam: there is nothing to weld.")
        return
    console.print(_outcome(report), soft_wrap=True)
    console.print()
    console.print(_open_seams(report, limit))
    if len(report.open) > limit:
        console.print(f"... and {len(report.open) - limit:,} more (--limit {len(report.open)} lists them all)")
    counts = report.obstacle_counts()
    if counts:
        console.print()
        table = _table("in the way of welding", "seams", "", right=(1,))
        for name, count in counts.items():
            table.add_row(name, f"{count:,}", OBSTACLES[name])
        console.print(table)


def _table(*heads: str, right: Iterable[int] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    numbers = set(right)
    for at, head in enumerate(heads):
        table.add_column(head, justify="right" if at in numbers else "left", overflow="fold")
    return table


def _kinds(report: Inspection) -> Table:
    table = _table("VMAs by kind", "VMAs", "size", "", right=(1, 2))
    for kind, total in report.kinds.items():
        table.add_row(kind, f"{total.vmas:,}", size_text(total.size), f"[dim]{KINDS[kind]}[/]")
    return table


def _reasons(report: Inspection) -> Table:
    table = _table("seams by reason", "seams", "alone", "", right=(1, 2))
    for name, count in report.reasons.items():
        if count:
            shown = f"[yellow]{name}[/]" if name in OPEN_REASONS else name
            table.add_row(shown, f"{count:,}", f"{report.alone[name]:,}", f"[dim]{MEANINGS[name]}[/]")
    return table


def _outcome(report: Inspection) -> str:
    text = (
        f"[bold]{count_text(len(report.open), 'open seam')}[/] in {count_text(len(report.runs), 'run')}. "
        f"Welding them leaves [bold]{count_text(report.after_welding, 'VMA')}[/] of {report.vmas:,}"
    )
    barred = len(report.open) - report.weldable
    if barred:
        text += f"; {barred:,} cannot be welded, see below"
    if not report.pages_known:
        text += " (populated pages are unknown: /proc/PID/pagemap cannot be read)"
    return text + "."


def _open_seams(report: Inspection, limit: int) -> Table:
    table = _table("open seam at", "left", "right", "populated", "shared", "held by", "in the way", right=(1, 2, 3, 4))
    for one in report.open[:limit]:
        seam = one.seam
        table.add_row(
            f"{seam.address:x}",
            size_text(seam.left.size),
            size_text(seam.right.size),
            _number(one.populated),
            _number(one.shared),
            ", ".join(seam.reasons),
            one.obstacle or "nothing",
        )
    return table


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def map_lines(report: Inspection) -> Iterator[str]:
    """The address space as rows, low to high, each border between touching VMAs annotated."""
    number = Numbering()
    after: dict[int, Seam] = {seam.index: seam for seam in report.seams}
    width = len(f"{report.snapshot.rows[-1].end:x}") if report.snapshot.rows else 0
    previous: Row | None = None
    for index, row in enumerate(report.snapshot.rows):
        if previous is not None and previous.end != row.start:
            yield f"{'':>{width}}  ...  {size_text(row.start - previous.end)} unmapped"
        yield f"{row.start:0{width}x}-{row.end:0{width}x} {_row_text(row, number)}"
        seam = after.get(index)
        if seam is not None:
            mark = "~~~ open:" if seam.open else "---"
            yield f"{'':>{width}}  {mark} {reasons_text(seam)}"
        previous = row


def _row_text(row: Row, number: Numbering) -> str:
    parts = [row.perms(), f"{size_text(row.size):>8}", f"{kind_of(row):<13}"]
    if row.pgoff is None:
        parts.append("offset ?")
    elif row.file or row.pgoff == row.start >> PAGE_SHIFT:
        parts.append(f"offset {row.pgoff:x}")
    else:
        moved = row.pgoff - (row.start >> PAGE_SHIFT)
        parts.append(f"offset {row.pgoff:x} ({moved:+} pages from its address)")
    anon_vma = number(row.anon_vma)
    parts.append("anon_vma ?" if anon_vma is None else f"anon_vma #{anon_vma}" if anon_vma else "anon_vma -")
    if row.chain is not None and row.chain > 1:
        parts.append(f"chain {row.chain}")
    flags = flag_names(row.flags & ~_USUAL)
    if flags:
        parts.append(" ".join(flags))
    if row.mempolicy:
        parts.append(row.mempolicy)
    if row.name or row.file:
        parts.append(printable(row.name or row.file))
    return "  ".join(parts)
