# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: one module a command, each thin: parse, call, print."""

import importlib
import signal
import sys

import click

from vmaweld import __version__, build
from vmaweld.cli import streams
from vmaweld.cli.common import DONE, INTERRUPTED, NO, USAGE, Failure
from vmaweld.output import OutputError

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

    def invoke(self, ctx: click.Context) -> object:
        """Run the command, with what any of them may meet as a one-line failure."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Failure("interrupted", INTERRUPTED) from None
        except click.Abort as abort:  # at a question: Ctrl-C, or the end of the input, which is no "yes"
            ended = isinstance(abort.__context__, EOFError)
            raise Failure("not confirmed" if ended else "interrupted", NO if ended else INTERRUPTED) from None
        except OutputError as error:
            raise Failure(str(error), USAGE if error.refused else NO) from None
        except OSError as error:
            raise Failure(str(error)) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "--version", message=f"%(prog)s %(version)s ({build.describe()})")
def cli() -> None:
    """How Linux merges virtual memory areas, why it often cannot, and what to do about it.

    Exit status: 0 done, 1 the answer is "no" or partial, 2 bad usage, 3 not permitted or not supported here, 130
    interrupted by Ctrl-C.
    """


def main() -> None:
    """Entry point of the `vmaweld` program."""
    if not streams.prepare():
        Failure("stdout is closed, so nothing can be told; > /dev/null throws it away").show()
        raise SystemExit(NO)
    status: object = DONE
    try:
        try:
            status = cli.main(prog_name="vmaweld", standalone_mode=False)
        except SystemExit as ended:
            status = ended.code
        except click.ClickException as failure:
            failure.show()
            status = failure.exit_code
        except (KeyboardInterrupt, click.Abort):  # outside of any command
            Failure("interrupted").show()
            status = INTERRUPTED
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to be undone
        sys.stdout.flush()
    except streams.StdoutError as error:
        streams.abandon()
        if not error.gone:  # the reader of our output (head, less) has gone: nothing left to say
            Failure(str(error)).show()
            status = NO
    raise SystemExit(status)
