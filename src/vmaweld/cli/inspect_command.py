# SPDX-License-Identifier: GPL-2.0-or-later
"""`vmaweld inspect`: why a live process has so many VMAs, and which of them could be one."""

import gc
import json
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import click

from vmaweld.cli.common import DONE, NO, OUTPUT, PID, USAGE, Number, console, fail, fail_for, print_json
from vmaweld.inspect.as_json import census_data, maps_data, report_data, watch_data
from vmaweld.inspect.collect import inspect_process
from vmaweld.inspect.text import map_lines, print_report, summary_line, warning_line, watch_line
from vmaweld.kernel.errors import KernelError, ProcessGone
from vmaweld.output import Output

EXAMPLES = """\b
Examples:
  vmaweld inspect 1234                      counts, seams by reason, what could be one
  vmaweld inspect 1234 --maps | less        the address space row by row, every border explained
  vmaweld inspect --all                     which process is nearest to the limit
  vmaweld inspect 1234 --html picture.html  a picture to zoom into
  vmaweld inspect 1234 --watch 10 --warn 80% || page-someone
"""


class _Percent(click.ParamType[float]):
    """``80%`` or ``80``, as a share of one."""

    name = "PERCENT"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            share = float(str(value).removesuffix("%")) / 100
        except ValueError:
            self.fail(f"{value!r} is no percentage, such as 80%", param, ctx)
        if not 0 < share <= 1:
            self.fail(f"{value!r} is not between 0% and 100%", param, ctx)
        return share


@click.command(epilog=EXAMPLES)
@click.argument("pid", type=PID, required=False)
@click.option("--all", "everything", is_flag=True, help="Rank every process of the system by its VMAs.")
@click.option("--maps", is_flag=True, help="The address space as rows, each border annotated with what holds it.")
@click.option("--json", "as_json", is_flag=True, help="JSON; keys in docs/inspect.md. With --maps the VMAs too.")
@click.option("--html", type=OUTPUT, help="Write a picture to zoom into.")
@click.option("--svg", type=OUTPUT, help="Write a picture for documents.")
@click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True, help="Rows to list at most.")
@click.option("--watch", type=Number(0.05), metavar="SECONDS", help="One line every SECONDS until the process ends.")
@click.option("--warn", type=_Percent(), help="Exit with status 1 at this share of vm.max_map_count.")
def command(
    pid: int | None,
    everything: bool,
    maps: bool,
    as_json: bool,
    html: Path | None,
    svg: Path | None,
    limit: int,
    watch: float | None,
    warn: float | None,
) -> None:
    """Show why the process PID is made of so many VMAs, and which of them could be one.

    A seam is the border between two VMAs that touch; an open seam is one that nothing but the page offset or the
    anon_vma holds open. As root the answer is exact, for one's own processes it is by elimination.

    Exit status: 0 done; with --watch: the process has ended and --warn was not reached. 1 there is no such process, it
    has no memory, or --warn was reached. 2 bad usage, a thread's id among it. 3 not permitted. 130
    interrupted.
    """
    if everything == (pid is not None):
        fail("give a PID or --all, one of the two", USAGE)
    if everything and (maps or html or svg or watch is not None or warn is not None):
        fail("--all ranks; --maps, --html, --svg, --watch and --warn need a PID", USAGE)
    if watch is not None and (maps or html or svg):
        fail("--watch prints lines; --maps, --html and --svg show one moment: give them without it", USAGE)
    if pid is None:
        _rank(as_json, limit)
        return
    if html and svg and os.path.realpath(html) == os.path.realpath(svg):
        fail("--html and --svg name the same file: give each its own", USAGE)
    try:
        if watch is not None:
            raise SystemExit(_watch(pid, watch, warn, as_json))
        gc.disable()  # from here to the end nothing becomes garbage, but a collection would visit 300,000 objects
        with _output(html) as html_output, _output(svg) as svg_output:
            report = inspect_process(pid)
            # The drawing modules are imported only where they are asked for: starting is a third of what inspect takes.
            if html_output is not None:
                from vmaweld.inspect.html import picture

                html_output.write(picture(report).encode("utf-8"))
            if svg_output is not None:
                from vmaweld.inspect.svg import strip

                svg_output.write(strip(report).encode("utf-8"))
    except KernelError as error:
        fail_for(error)
    if as_json:
        data = report_data(report)
        if maps:
            data["maps"] = maps_data(report.snapshot, {seam.index: seam.reasons for seam in report.seams})
        print_json(data)
    elif maps:
        for line in map_lines(report):
            click.echo(line)
    elif html or svg:
        for path in (html, svg):
            if path is not None:
                click.echo(f"{path}: {summary_line(report)}")
    else:
        print_report(report, console(), limit)
    if warn is not None and report.vmas >= warn * report.limit:
        click.echo(f"vmaweld: {warning_line(report, warn)}", err=True)
        raise SystemExit(NO)


def _output(path: Path | None) -> Output | nullcontext[None]:
    return nullcontext() if path is None else Output(path, stream=True)


def _watch(pid: int, seconds: float, warn: float | None, as_json: bool) -> int:
    """One line a time until the process ends (0) or `warn` is reached (1)."""
    before: int | None = None
    at = time.monotonic()
    while True:
        try:
            report = inspect_process(pid, pages=False)
        except ProcessGone:
            if before is None:
                raise
            return DONE
        now = time.monotonic()
        growth = 0.0 if before is None else (report.vmas - before) / (now - at)
        before, at = report.vmas, now
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        if as_json:
            click.echo(json.dumps(watch_data(report, stamp, growth)))
        else:
            click.echo(watch_line(report, stamp, growth))
        sys.stdout.flush()
        if warn is not None and report.vmas >= warn * report.limit:
            click.echo(f"vmaweld: {warning_line(report, warn)}", err=True)
            return NO
        time.sleep(seconds)


def _rank(as_json: bool, limit: int) -> None:
    from vmaweld.inspect.census import Census
    from vmaweld.inspect.ranking import print_census

    census = Census()
    counted = census.take()
    if as_json:
        print_json(census_data(census, counted))
        return
    print_census(census, counted, console(), limit)
