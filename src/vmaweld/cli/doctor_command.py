"""`vmaweld doctor`: what this machine allows, and how to get the rest."""

import click
from rich.table import Table

from vmaweld.cli.common import console, print_json
from vmaweld.trace.capabilities import Capability, examine

EXAMPLES = """\b
Examples:
  vmaweld doctor                 what works here, and what would make the rest work
  vmaweld doctor --json | jq '.capabilities[] | select(.ok == false)'
"""


@click.command(epilog=EXAMPLES, context_settings={"max_content_width": 100})
@click.option("--json", "as_json", is_flag=True, help="JSON; keys in docs/recording.md.")
def command(as_json: bool) -> None:
    """Tell what this machine allows, and how to get the rest.

    Each thing is tried, not guessed: recording with perf or strace, exact snapshots through BPF, ptrace, userfaultfd.

    Exit status: 0, whatever was found.
    """
    found = list(examine())
    if as_json:
        print_json({"capabilities": [each.as_json() for each in found]})
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for each in found:
        table.add_row(each.name, _mark(each), _text(each))
    console().print(table)
    missing = [each.name for each in found if each.ok is False]
    click.echo()
    click.echo(f"Missing here: {', '.join(missing)}." if missing else "Everything works here.")


def _mark(each: Capability) -> str:
    if each.ok is None:
        return "[dim]-[/dim]"
    return "[green]ok[/green]" if each.ok else "[red]no[/red]"


def _text(each: Capability) -> str:
    value = "" if each.value in ("works", "no") else f"{each.value}: "
    text = f"{value}{each.means}"
    if not each.how:
        return text
    return f"{text} ({'get it' if each.ok is False else 'change it'}: {each.how})"
