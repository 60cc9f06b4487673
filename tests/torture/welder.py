# SPDX-License-Identifier: GPL-2.0-or-later
"""One ``vmaweld weld`` command with its child, watched, and killed as planned."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

_COMMAND = (sys.executable, "-c", "from vmaweld.cli import main; main()", "weld", "--yes", "--json")
_DEATHLY = ("must never happen", "please report", "half-done", "half done", "Traceback", "at work: run the weld again")
_GONE = ("has ended", "does not exist", "No such process")


@dataclass(frozen=True)
class Kill:
    """A signal for a welder.

    victims: "command", "child" or "both". delay: seconds from when the first of them is there.
    """

    victims: str
    number: signal.Signals
    delay: float

    @classmethod
    def at_random(cls, rng: random.Random) -> "Kill":
        """One that may hit any moment of a weld: its start, its standstills, its rests, its end."""
        victims = rng.choice(("command", "child", "child", "both"))
        number = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM))
        return cls(victims, number, rng.choice((0.0, rng.uniform(0, 0.06), rng.uniform(0, 0.3), rng.uniform(0, 1.5))))

    def __str__(self) -> str:
        return f"{self.number.name} to {self.victims} after {self.delay * 1000:.0f} ms"


def options_at_random(rng: random.Random, pid: int) -> list[str]:
    """Options of a weld of `pid`."""
    options = []
    if rng.random() < 0.6:
        options += ["--max-pause", rng.choice(("0.1", "0.1", "0.5", "2", "10"))]
    if rng.random() < 0.2:
        options.append("--unshare")
    if rng.random() < 0.3:
        options.append("--verify")
    if rng.random() < 0.1:
        options += ["--min-gain", str(rng.randint(2, 6))]
    if rng.random() < 0.15:
        starts = [int(line.split("-")[0], 16) for line in _read(Path(f"/proc/{pid}/maps")).splitlines()]
        if starts:
            low, high = sorted((rng.choice(starts), rng.choice((*starts, 1 << 47))))
            options += ["--range", f"{low:x}-{max(high, low + 4096):x}"]
    return options


class Welder:
    """The command, started. Call `watch` until it says that nothing of it is left.

    Its caller must be a subreaper (PR_SET_CHILD_SUBREAPER), for the child of a killed command is reaped here.
    """

    def __init__(self, pid: int, options: list[str], kill: Kill | None, stem: Path) -> None:
        self.pid, self.options, self.kill = pid, options, kill
        self.killed = self.interrupted = False
        self.signals = 0
        self.seams = self.closed = 0
        self._stem = stem
        with Path(f"{stem}.out").open("wb") as out, Path(f"{stem}.err").open("wb") as err:
            self._command = subprocess.Popen(
                [*_COMMAND, *options, str(pid)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.began = time.monotonic()
        self._children: dict[int, psutil.Process] = {}
        self._armed_at = 0.0

    def watch(self) -> bool:
        """Look for children, send the signal when it is time; whether any process of this welder is left."""
        running = self._command.poll() is None
        if running:
            self._find_children()
        self._reap()
        if self.kill is not None and self.signals == 0:
            self._aim(running)
        return running or bool(self._children)

    def _find_children(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._command.pid).children():
                self._children.setdefault(child.pid, child)

    def _reap(self) -> None:
        for pid, child in list(self._children.items()):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            if not child.is_running():
                del self._children[pid]

    def _aim(self, running: bool) -> None:
        assert self.kill is not None
        victims = [self._command.pid] if running and self.kill.victims != "child" else []
        victims += list(self._children) if self.kill.victims != "command" else []
        if not victims or (self.kill.victims == "both" and not self._children):
            return
        now = time.monotonic()
        self._armed_at = self._armed_at or now
        if now - self._armed_at < self.kill.delay:
            return
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, self.kill.number)
                self.signals += 1
        if self.kill.number == signal.SIGKILL:
            self.killed = True
        else:
            self.interrupted = True

    def end(self) -> None:
        """Kill what is left of it."""
        for child in self._children.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self._command.kill()
        self._command.wait()

    def forget(self) -> None:
        """Remove what it printed."""
        for file in (Path(f"{self._stem}.out"), Path(f"{self._stem}.err")):
            file.unlink()

    def judge(self) -> tuple[str, str]:
        """("welded" | "refused" | "gone" | "interrupted" | "killed" | "anomaly", why), once it has ended."""
        status = self._command.returncode
        err = _read(Path(f"{self._stem}.err"))
        last = err.strip().rpartition("\n")[2]
        if self.interrupted and last == "KeyboardInterrupt" and "weld_command.py" not in err:
            return "interrupted", ""  # Python was still loading the command
        if any(word in err for word in _DEATHLY):
            kind = "a traceback: " if "Traceback" in err else ""
            return "anomaly", f"status {status}{', killed' if self.killed else ''}: {kind}{last}"
        if self.signals and self.kill is not None and status not in (0, 3):
            kind = "killed" if self.killed else "interrupted"
            if status in (1, 130, -self.kill.number, 128 + self.kill.number):
                return kind, ""
            return "anomaly", f"status {status} after {self.kill}: {last}"
        if status in (0, 1) and self._report():
            return "welded", ""
        if any(word in last for word in _GONE):
            return "gone", ""
        if status in (1, 3) and last.startswith("vmaweld: ") and err.count("\n") == 1:
            return "refused", re.sub(r"\b(0x)?[0-9a-f]*\d[0-9a-f,.]*\b", "N", last.removeprefix("vmaweld: "))
        return "anomaly", f"status {status}: {last}"

    def _report(self) -> bool:
        try:
            seams = json.loads(_read(Path(f"{self._stem}.out")))["seams"]
        except ValueError:
            return False
        self.seams, self.closed = seams["before"], seams["closed"]
        return True


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
