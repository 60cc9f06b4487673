# SPDX-License-Identifier: GPL-2.0-or-later
"""The processes of the system by their VMAs, as a table for people."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from vmaweld.inspect.census import Census, Counted
from vmaweld.inspect.words import percent_text
from vmaweld.words import count_text, printable


def print_census(census: Census, counted: Sequence[Counted], out: Console, limit: int) -> None:
    """`counted`, in this order, `limit` processes at most; and what `census` could not see."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("PID", "UID", "VMAs", "of limit", "seams", "open"):
        table.add_column(head, justify="right")
    table.add_column("name", overflow="fold")
    for one in counted[:limit]:
        share = percent_text(one.vmas, census.limit)
        table.add_row(
            str(one.pid),
            str(one.uid),
            f"{one.vmas:,}",
            share,
            f"{one.seams:,}",
            f"{one.open_seams:,}",
            printable(one.name),
        )
    out.print(table)
    if len(counted) > limit:
        out.print(f"... and {len(counted) - limit:,} more (--limit {len(counted)} lists them all)")
    out.print(f"{count_text(len(counted), 'process', 'processes')}; vm.max_map_count is {census.limit:,}.", style="dim")
    if census.refused:
        others = count_text(census.refused, "process of another user", "processes of other users")
        out.print(f"{others} cannot be read: run as root.", soft_wrap=True)
    if not census.exact:
        out.print(f"Open seams are by elimination: {census.why_not_exact}.", style="dim", soft_wrap=True)
