"""`vmaweld doctor`: what this machine allows, and how to get the rest."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Final

import click
from rich.text import Text

from vmaweld.cli.common import console, print_json
from vmaweld.doctor import Capability, examine

EXAMPLES = """\b
Examples:
  vmaweld doctor                 what works here, and what would make the rest work
  vmaweld doctor --json | jq '.capabilities[] | select(.ok == false)'
"""

_MARKS: Final[dict[bool | None, tuple[str, str]]] = {None: ("- ", "dim"), True: ("ok", "green"), False: ("no", "red")}
_LEAST: Final = 40
"""Columns that a description needs beside the names. On a terminal without them it goes below."""


@click.command(epilog=EXAMPLES, context_settings={"max_content_width": 100})
@click.option("--json", "as_json", is_flag=True, help="JSON; keys in docs/recording.md.")
def command(as_json: bool) -> None:
    """Tell what this machine allows, and how to get the rest.

    Each thing is tried, not guessed: recording with perf or strace, exact snapshots through BPF, ptrace, userfaultfd.

    Exit status: 0 done, whatever was found; 2 bad usage; 130 interrupted.
    """
    found = list(examine())
    if as_json:
        print_json({"capabilities": [each.as_json() for each in found]})
        return
    out = console()
    for line in _lines(found, out.width):
        out.print(line, soft_wrap=True)
    missing = [each.name for each in found if each.ok is False]
    click.echo()
    click.echo(f"Missing here: {', '.join(missing)}." if missing else "Everything works here.")


def _lines(found: Sequence[Capability], width: int) -> Iterator[Text]:
    """What was found, at most `width` wide but for the commands to copy: each of those is one line, however long."""
    names = max(len(each.name) for each in found)
    beside = width - names - 6 >= _LEAST
    indent = " " * (names + 6 if beside else 4)
    for each in found:
        mark, style = _MARKS[each.ok]
        text = textwrap.wrap(_description(each), width - len(indent), break_long_words=False, break_on_hyphens=False)
        if beside:
            yield Text.assemble(each.name.ljust(names), "  ", (mark, style), "  ", text.pop(0))
        else:
            yield Text.assemble((mark, style), "  ", each.name)
        for line in text:
            yield Text(indent + line)
        if each.how:
            yield Text(f"{indent}{'get it' if each.ok is False else 'change it'}: {each.how}")


def _description(each: Capability) -> str:
    return each.means if each.value in ("works", "no") else f"{each.value}: {each.means}"
