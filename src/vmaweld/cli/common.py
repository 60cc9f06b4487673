# SPDX-License-Identifier: GPL-2.0-or-later
"""What every command shares: exit statuses, one-line failures, numbers, JSON and tables on a terminal or a pipe."""

import json
import math
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

import click
from rich.console import Console

from vmaweld.kernel.errors import KernelError, NotAProcess, NotPermitted, NotSupported
from vmaweld.words import printable

DONE = 0
NO = 1
USAGE = 2
UNSUPPORTED = 3
INTERRUPTED = 128 + 2
"""As shells tell of who was ended by Ctrl-C."""

OUTPUT = click.Path(path_type=Path, readable=False)
"""A file to be written. `vmaweld.output` knows which it may be; click would refuse a pipe that only takes data."""

PID: Final = click.IntRange(1, (1 << 31) - 1)
"""The number of a process: what the kernel's pid_t holds."""


class Number(click.FloatRange):
    """A finite number in a range. click's own range lets NaN through, since no comparison with it is true.

    most: without a better reason 1,000,000,000. As seconds that is 31 years, and no clock or timer overflows.
    """

    name = "number"

    def __init__(self, least: float, most: float = 1e9, *, min_open: bool = False) -> None:
        super().__init__(least, most, min_open=min_open)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; click's usage error where it is none or out of range."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


class Failure(click.ClickException):
    """Ends the command with one clear line (what, why, what to do) and `exit_code`.

    The line may hold names that a process gave itself: nothing in it is obeyed by the terminal.
    """

    def __init__(self, message: str, exit_code: int = NO) -> None:
        super().__init__(message)
        vars(self)["exit_code"] = exit_code  # typed as a class variable, read from the instance by click's main()

    def show(self, file: object = None) -> None:
        """Print the line to stderr; newlines would break the promise of one line."""
        click.echo(f"vmaweld: {printable(' '.join(self.message.split()))}", err=True)


def fail(message: str, exit_code: int = NO) -> NoReturn:
    """Raise `Failure`."""
    raise Failure(message, exit_code)


def fail_for(error: KernelError) -> NoReturn:
    """Raise `Failure` with the message of `error` and the exit status that goes with its kind."""
    if isinstance(error, NotAProcess):
        fail(str(error), USAGE)
    fail(str(error), UNSUPPORTED if isinstance(error, NotPermitted | NotSupported) else NO)


def print_json(value: object) -> None:
    """`value` as JSON on stdout: of an object a line for each key, and for each element of a list of objects.

    Indenting every value would keep json from its fast encoder: with tens of thousands of elements that is seconds.
    """
    click.echo(_json_lines(value) if isinstance(value, dict) else json.dumps(value, indent=2))


def _json_lines(value: dict[str, object]) -> str:
    lines = []
    for key, part in value.items():
        if isinstance(part, list) and part and isinstance(part[0], dict):
            elements = ",\n    ".join(json.dumps(element) for element in part)
            lines.append(f"  {json.dumps(key)}: [\n    {elements}\n  ]")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(part)}")
    return "{\n" + ",\n".join(lines) + "\n}"


def console(*, stderr: bool = False) -> Console:
    """A rich console that colours and fits to width on a terminal only; a pipe gets 100 columns, no colour."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 100, highlight=False, emoji=False)
