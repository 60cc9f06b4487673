"""The command line: one module a command, each thin: parse, call, print."""

import importlib
import sys

import click

from vmaweld import __version__, build

COMMANDS = {
    "study": "Record a command, replay it under the stock kernel and the series, say what merges.",
    "record": "Record what a command does to memory, into a trace file.",
    "replay": "Replay a trace under one or more policies.",
    "report": "Write the HTML report of a trace.",
    "inspect": "Show why a live process has so many VMAs, and which of them could be one.",
    "top": "All processes, live: VMAs, share of the limit, open seams.",
    "export": "Serve VMA counts and open seams to Prometheus.",
    "weld": "Merge the open seams of a running process.",
    "verify": "Hold the model against a kernel, on programs at random.",
    "explain": "Draw one scenario before and after.",
    "doctor": "Tell what this machine allows, and how to get the rest.",
}
"""Each command's module is `vmaweld.cli.<name>_command`, its click command `command`."""


class _Lazy(click.Group):
    """Imports a command's module when it is called: `vmaweld inspect` never waits for pyarrow."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"vmaweld.cli.{cmd_name}_command")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "--version", message=f"%(prog)s %(version)s ({build.describe()})")
def cli() -> None:
    """How Linux merges virtual memory areas, why it often cannot, and what to do about it.

    Exit status: 0 done, 1 the answer is "no" or partial, 2 bad usage, 3 not permitted or not supported here.
    """


def main() -> None:
    """Entry point of the `vmaweld` program."""
    try:
        cli(prog_name="vmaweld")
    except BrokenPipeError:  # the reader of our output (head, less) has gone: nothing left to say
        sys.stderr.close()
        raise SystemExit(0) from None
