# SPDX-License-Identifier: GPL-2.0-or-later
"""Shared by the tests of welding: what they need to run, and a process to be welded."""

import contextlib
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from conftest import require

from vmaweld import seams
from vmaweld.kernel import snapshots, userfaultfd
from vmaweld.welding.pace import Pace

HERE = Path(__file__).parent
TIMEOUT = 60.0


def require_own() -> None:
    """This process may weld its own memory."""
    require(platform.machine() == "x86_64", "welding is for x86-64")
    fine, reason = userfaultfd.available(userfaultfd.FEATURE_MOVE)
    require(fine, reason)


def require_other() -> None:
    """This process may weld others."""
    require_own()
    require(os.geteuid() == 0, "welding other processes is tested as root")


def no_allowance(_self: Pace, pause: float, _spent: float) -> float:
    """In place of `Pace.budget`: a slice gets no more time because the machine was busy before it."""
    return pause


def open_seams(pid: int, start: int = 0, end: int = 1 << 47) -> int:
    """Open seams of `pid` inside that range."""
    found = seams.open_seams(seams.seams(snapshots.take(pid)))
    return sum(1 for seam in found if start < seam.address < end)


def vmas(pid: int, start: int, end: int) -> int:
    """VMAs of `pid` that overlap that range."""
    return sum(1 for row in snapshots.take(pid).rows if row.start < end and row.end > start)


class Target:
    """``weld_target.py`` or another program of its kind, running. Use it in a `with`.

    "eintr": its epoll_wait may be interrupted. through: a command that executes it.
    """

    def __init__(self, *arguments: str, program: str = "weld_target.py", through: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [*through, sys.executable, str(HERE / program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        self.expect("ready")

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """The next line; nothing where the process ends, which it must when it stays silent for too long."""
        assert self.process.stdout is not None
        patience = threading.Timer(TIMEOUT, self.process.kill)
        patience.start()
        try:
            return self.process.stdout.readline().strip()
        finally:
            patience.cancel()

    def expect(self, start: str) -> str:
        """The next line, which must begin so."""
        line = self.hear()
        assert line.startswith(start), f"{line!r} where {start!r} was expected; status {self.process.poll()}"
        return line.removeprefix(start).strip()

    def build(self, count: int, pages: int, how: str = "") -> tuple[int, int]:
        """Lay out fragments; returns where they begin and end. how: "quiet": no thread touches them."""
        self.tell(f"build {count} {pages} {how}")
        start = int(self.expect("built"), 16)
        return start, start + count * pages * 4096

    def check(self) -> int:
        """Every byte is what it should be; returns how many rounds the threads went."""
        self.tell("check")
        return int(self.expect("ok"))

    def __enter__(self) -> "Target":
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
