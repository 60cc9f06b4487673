"""`vmaweld top`: every process, live."""

import sys

import click

from vmaweld.cli.common import USAGE, fail
from vmaweld.inspect.top import SORTS, Top

EXAMPLES = """\b
Examples:
  vmaweld top                        all processes, most VMAs first
  vmaweld top --sort growth          who is on the way to the limit
  vmaweld top --filter java          by name, user or pid
"""


@click.command(epilog=EXAMPLES)
@click.option("--every", type=click.FloatRange(min=0.2), default=2.0, show_default=True, help="Seconds between counts.")
@click.option("--sort", type=click.Choice(list(SORTS)), default="vmas", show_default=True, help="The order at first.")
@click.option("--filter", "only", default="", help="Show only what has this in its name or user, or this pid.")
def command(every: float, sort: str, only: str) -> None:
    """Watch all processes: VMAs, share of vm.max_map_count, growth a second, open seams.

    Keys: v o g p n sort, r reverses, / filters, Enter shows one process, q quits. As root all processes are shown
    and open seams are exact; else one's own, by elimination.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        fail("top needs a terminal; for scripts there are `vmaweld inspect --all --json` and `vmaweld export`", USAGE)
    top = Top(every, only, sort)
    top.run()
    if top.return_code:
        raise SystemExit(top.return_code)
