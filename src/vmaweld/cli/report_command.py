# SPDX-License-Identifier: GPL-2.0-or-later
"""`vmaweld report`: a trace as an HTML report. Record once, report as often as you like."""

from __future__ import annotations

from pathlib import Path

import click

from vmaweld.cli.common import NO, OUTPUT, USAGE, fail, print_json
from vmaweld.cli.replaying import replay_for_terminal
from vmaweld.output import Output
from vmaweld.study.as_json import report_data
from vmaweld.study.policies import DEFAULT_BASE, known_policies
from vmaweld.study.text import summary_text
from vmaweld.trace.store import TraceError, open_trace

EXAMPLES = """\b
Examples:
  vmaweld report make.trace                            into make.html
  vmaweld report make.trace --html /tmp/make.html --base linux-6.18
"""


@click.command(epilog=EXAMPLES)
@click.argument("trace_file", metavar="TRACE", type=click.Path(path_type=Path))
@click.option("--html", type=OUTPUT, help="The file; default: TRACE's name, .html.")
@click.option(
    "-p", "--policy", "policies", multiple=True, metavar="POLICY", help="A policy to replay under. Repeatable."
)
@click.option("--base", metavar="KERNEL", help=f"The stock kernel: {known_policies()}. Default: {DEFAULT_BASE}.")
@click.option("--json", "as_json", is_flag=True, help="What was written, as JSON; the keys are told in docs/study.md.")
def command(trace_file: Path, html: Path | None, policies: tuple[str, ...], base: str | None, as_json: bool) -> None:
    """Write the HTML report of TRACE: VMA counts over time under each policy, merges missed and recovered.

    The file needs nothing else and opens in any browser.

    Exit status: 0 done; 1 the trace cannot be read or the report cannot be written; 2 bad usage, TRACE itself as the
    file among it; 130 interrupted.
    """
    if base is not None and policies:
        fail("give --base or --policy, one of the two", USAGE)
    path = html or trace_file.with_suffix(".html")
    try:
        with open_trace(trace_file) as trace, Output(path, inputs=[trace_file], stream=True) as output:
            answer = replay_for_terminal(trace, base or DEFAULT_BASE, policies)
            from vmaweld.study.html import page  # plotly takes a second to import: not for a trace that cannot be read

            output.write(page(answer).encode("utf-8"))
    except TraceError as error:
        fail(str(error), NO)
    if as_json:
        print_json(report_data(answer, trace_file, path))
    else:
        click.echo(f"{path}: {summary_text(answer)}")
