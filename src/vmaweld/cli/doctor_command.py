# SPDX-License-Identifier: GPL-2.0-or-later
"""`vmaweld doctor`: what this machine allows, and how to get the rest."""

import click

from vmaweld import doctor
from vmaweld.cli.common import console, print_json

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

    Exit status: 0 done, whatever was found; 2 bad usage; 130 interrupted.
    """
    found = list(doctor.examine())
    if as_json:
        print_json(doctor.as_json(found))
        return
    out = console()
    for line in doctor.as_text(found, out.width):
        out.print(line, soft_wrap=True)
