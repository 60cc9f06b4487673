# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line as a user meets it: run to its end, or interrupted at a moment that the test chooses."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import require

# A test run in the background of a script ignores SIGINT, and what is ignored stays so in children.
PYTHON = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
MAIN = "from vmaweld.cli import main; main()\n"
TIMEOUT = 120


@contextmanager
def mounted(*arguments: str | Path, at: Path) -> Iterator[Path]:
    """Something mounted at `at`; the end of the block unmounts it."""
    require(os.geteuid() == 0, "mounting is for root")
    done = subprocess.run(["mount", *arguments, at], capture_output=True, text=True, check=False, timeout=TIMEOUT)
    require(done.returncode == 0, f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True, timeout=TIMEOUT)


def make_device(path: Path, kind: int, major: int, minor: int) -> None:
    """A device file; kind: stat.S_IFCHR or S_IFBLK."""
    try:
        os.mknod(path, kind | 0o666, os.makedev(major, minor))
    except PermissionError as error:
        require(False, f"no device can be made here: {error}")


def waiting_in(place: str) -> str:
    """Code that puts in place of `place`, "module:name", something that says "waiting" on stderr and waits."""
    module, name = place.split(":")
    return (
        f"import importlib, sys, time\n"
        f"def wait(*_, **__):\n"
        f"    print('waiting', file=sys.stderr, flush=True)\n"
        f"    time.sleep({TIMEOUT})\n"
        f"at = importlib.import_module({module!r})\n"
        f"*path, name = {name!r}.split('.')\n"
        f"for part in path: at = getattr(at, part)\n"
        f"setattr(at, name, wait)\n"
    )


def command(*arguments: str | int | Path, first: str = "") -> list[str]:
    """`vmaweld ...` in this interpreter; `first` is code to be run before."""
    return [sys.executable, "-c", PYTHON + first + MAIN, *map(str, arguments)]


def run(*arguments: str | int | Path, cwd: Path, **options: Any) -> "subprocess.CompletedProcess[str]":
    """`vmaweld ...` to its end."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(
        command(*arguments), cwd=cwd, text=True, check=False, timeout=TIMEOUT, **{**streams, **options}
    )


def interrupted(*arguments: str | int | Path, cwd: Path, first: str, ready: str = "waiting") -> tuple[int, str, str]:
    """`vmaweld ...`, interrupted when it says `ready` on stderr; its status, stdout and the rest of stderr."""
    with subprocess.Popen(
        command(*arguments, first=first), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        seen = []
        for line in process.stderr:
            seen.append(line)
            if line == ready + "\n":
                break
        assert seen[-1:] == [ready + "\n"], seen
        os.kill(process.pid, signal.SIGINT)
        try:
            stdout, stderr = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
        return process.returncode, stdout, stderr
