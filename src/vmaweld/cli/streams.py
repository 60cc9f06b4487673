# SPDX-License-Identifier: GPL-2.0-or-later
"""The standard streams as commands need them: open, and their failures known for what they are."""

import contextlib
import io
import os
import sys


class StdoutError(Exception):
    """stdout takes nothing more; one line. gone: its reader has left, so there is nobody to tell.

    Not an OSError, so that nobody takes it for an error of a file of his own.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to stdout: {error.strerror}")
        self.gone = isinstance(error, BrokenPipeError)


# Text streams and not the raw ones below them: an interrupt may come anywhere in Python code, and between a raw write
# and its return it would make the buffer write the same again.


class _Stdout(io.TextIOWrapper):
    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise StdoutError(error) from None

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise StdoutError(error) from None


class _Stderr(io.TextIOWrapper):
    """What cannot be told to anybody must not end the work that it tells of."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def prepare() -> bool:
    """Make the streams fit for use; False where stdout is closed.

    A closed stdin or stderr becomes /dev/null: else the next file that is opened would get its number, and be written
    to by whoever writes to stderr.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one, for those below are open. Children inherit it like any other stdin.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    closed = sys.stdout is None
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = _like(sys.stdout, _Stdout, 1)
    sys.stderr = _like(sys.stderr, _Stderr, 2)
    return not closed


def _like(old: object, kind: type[io.TextIOWrapper], number: int) -> io.TextIOWrapper:
    """A stream of that `kind` to the descriptor `number`, otherwise like the stream `old`, where there was one."""
    like = old if isinstance(old, io.TextIOWrapper) else io.TextIOWrapper(io.BytesIO(), errors="backslashreplace")
    return kind(
        io.BufferedWriter(io.FileIO(number, "w", closefd=False)),
        encoding=like.encoding,
        errors=like.errors,
        line_buffering=like.line_buffering,
        write_through=like.write_through,
    )


def abandon() -> None:
    """Let what is still buffered for stdout go nowhere: Python would try to write it again at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
