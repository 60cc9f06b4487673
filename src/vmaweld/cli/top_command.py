# SPDX-License-Identifier: GPL-2.0-or-later
"""`vmaweld top`: every process, live."""

import sys
import time

import click

from vmaweld.cli.common import USAGE, Number, fail, print_json
from vmaweld.inspect.as_json import top_data
from vmaweld.inspect.census import SORTS, Census, choose

EXAMPLES = """\b
Examples:
  vmaweld top                        all processes, most VMAs first
  vmaweld top --sort growth          who is on the way to the limit
  vmaweld top --filter java          by name, user or pid
  vmaweld top --json --every 10      the table as JSON, growth over ten seconds
"""


@click.command(epilog=EXAMPLES)
@click.option("--every", type=Number(0.2), default=2.0, show_default=True, help="Seconds between counts.")
@click.option("--sort", type=click.Choice(list(SORTS)), default="vmas", show_default=True, help="The order at first.")
@click.option("--filter", "only", default="", help="Show only what has this in its name or user, or this pid.")
@click.option("--json", "as_json", is_flag=True, help="Count twice, print the table as JSON; keys in docs/inspect.md.")
def command(every: float, sort: str, only: str, as_json: bool) -> None:
    """Watch all processes: VMAs, share of vm.max_map_count, growth a second, open seams.

    Keys: v o g p n sort, r reverses, / filters, Enter shows one process, Escape goes back from there, q quits. As root
    all processes are shown and open seams are exact; else one's own, by elimination.

    Exit status: 0 done; 2 bad usage, or there is no terminal; 130 interrupted.
    """
    if as_json:
        census = Census()
        census.take()
        time.sleep(every)
        print_json(top_data(census, choose(census.take(), sort, only)))
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        fail("top needs a terminal; for scripts there are `vmaweld top --json` and `vmaweld export`", USAGE)
    from vmaweld.inspect.top import Top  # textual takes half a second to import: not for JSON

    top = Top(every, only, sort)
    top.run()
    if top.return_code:
        raise SystemExit(top.return_code)
