# SPDX-License-Identifier: GPL-2.0-or-later
"""Turns of all programs, one after the other and some at once, until the time is over."""

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from vmaweld.kernel import syscalls

from .programs import Program
from .table import Result

_SET_CHILD_SUBREAPER = 36
_TESTS = Path(__file__).parent.parent
_PREFIX = "vmaweld-torture-"
_SHORTEST, _LONGEST = 8.0, 60.0
_AROUND = 6.0
"""Seconds that a turn takes beyond its time, as a rule: to start, and for the last welds."""
OVERTIME = 900.0
"""Seconds that a turn may take beyond its time: to start, to end, to wait for a silent program."""
_MOST_EVIDENCE = 64 << 20
_KERNEL_FAULTS = ("BUG:", "WARNING:", "Oops", "Bad page", "Bad rss-counter", "general protection fault: 0000")
_TOO_BUSY = "workqueue lockup"  # what the watchdog says of a machine that has too much to do


@dataclass
class _Started:
    """A turn on its way."""

    program: Program
    stem: str
    process: "subprocess.Popen[bytes]"
    deadline: float


class Harness:
    """Runs turns of `programs` for `minutes`. Use it in a `with`: nothing that it started is left.

    seed: of all choices. kill_rate: the share of welders that get a signal.
    at_once: turns that run at the same time.
    evidence: the folder that keeps what belongs to an anomaly.
    tell: called with a line after each turn.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        *,
        minutes: float,
        seed: int,
        kill_rate: float,
        at_once: int,
        evidence: Path,
        tell: Callable[[str], None],
    ) -> None:
        self.results = {program.name: Result(program.name) for program in programs}
        self.kept: list[Path] = []
        self._programs = list(programs)
        self._seconds = minutes * 60
        self._seed, self._kill_rate, self._at_once = seed, kill_rate, at_once
        self._evidence, self._tell = evidence, tell
        self._work, self._lock = _folder()
        self._began = time.monotonic()
        self._kernel = _KernelLog()
        syscalls.prctl(_SET_CHILD_SUBREAPER, 1)

    def run(self) -> None:
        """All turns; the results are there after each, also when this is interrupted."""
        rng = random.Random(self._seed)
        waiting: deque[Program] = deque()
        started: list[_Started] = []
        share = self._seconds * self._at_once / len(self._programs)
        length = min(max(share - _AROUND, _SHORTEST), _LONGEST)
        number = 0
        while True:
            left = self._seconds - (time.monotonic() - self._began)
            if not waiting and left > 0:
                waiting.extend(rng.sample(self._programs, len(self._programs)))
            at_work = {turn.program.name for turn in started}
            # In the last seconds no turn begins; but in the first round every program gets one.
            wanted = left >= _SHORTEST / 2 or number < len(self._programs)
            if wanted and waiting and len(started) < self._at_once and waiting[0].name not in at_work:
                number += 1
                seconds = max(min(length, left), _SHORTEST)
                started.append(self._start(waiting.popleft(), number, seconds))
            elif not started and not wanted:
                break
            else:
                started = [turn for turn in started if not self._has_ended(turn)]
                time.sleep(0.05)
        for fault in self._kernel.faults():
            kernel = self.results.setdefault("the kernel", Result("the kernel"))
            kernel.anomalies.append(fault)

    def _start(self, program: Program, number: int, seconds: float) -> _Started:
        folder = self._work / program.name
        if not folder.exists():
            folder.mkdir(mode=0o755)
            environment = os.environ | program.environment()
            subprocess.run(["sh", "-ec", program.prepare], cwd=folder, env=environment, check=True, timeout=300)
        stem = f"turn-{number}"
        with (folder / f"{stem}.harness").open("wb") as out:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "torture.turn", program.name, "--seed", f"{self._seed}/{number}"),
                    *("--seconds", f"{seconds:.1f}", "--kill-rate", str(self._kill_rate)),
                    *("--folder", str(folder), "--stem", stem),
                ],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": os.pathsep.join((str(_TESTS), *filter(None, sys.path)))},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        return _Started(program, stem, process, time.monotonic() + seconds + OVERTIME)

    def _has_ended(self, turn: _Started) -> bool:
        late = time.monotonic() > turn.deadline
        if late:
            _stop(turn.process)
        elif turn.process.poll() is None:
            return False
        result = self._result(turn)
        if late:
            result.anomalies.append("the turn did not come to an end")
        known = self.results[turn.program.name]
        known.add(result)
        if result.anomalies:
            self._keep(turn)
        else:
            for file in self._files(turn):
                file.unlink(missing_ok=True)
        self._tell(
            f"{time.monotonic() - self._began:6.0f} s  {turn.program.name:22} {result.welds:4} welds, "
            f"{result.closed:6,} of {result.seams:6,} seams, {result.killed:3} killed, {result.beats:6,} rounds"
            + "".join(f"\n          ANOMALY: {anomaly}" for anomaly in dict.fromkeys(result.anomalies))
        )
        return True

    def _result(self, turn: _Started) -> Result:
        folder = self._work / turn.program.name
        try:
            return Result.from_json(json.loads((folder / f"{turn.stem}.result").read_text()))
        except (OSError, ValueError):
            said = (folder / f"{turn.stem}.harness").read_text(errors="replace")
            why = f"the test itself failed, status {turn.process.returncode}: {said[-1500:]}"
            return Result(turn.program.name, turns=1, anomalies=[why])

    def _files(self, turn: _Started) -> list[Path]:
        folder = self._work / turn.program.name
        return [*folder.glob(f"{turn.stem}.*"), *folder.glob("core*")]

    def _keep(self, turn: _Started) -> None:
        place = self._evidence / f"seed-{self._seed}" / f"{turn.program.name}-{turn.stem}"
        place.mkdir(parents=True, exist_ok=True)
        for file in self._files(turn):
            if file.stat().st_size <= _MOST_EVIDENCE:
                shutil.copy(file, place)
            file.unlink()
        self.kept.append(place)

    def __enter__(self) -> "Harness":
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        me = psutil.Process()
        for turn in me.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                turn.terminate()
        psutil.wait_procs(me.children(), timeout=20)
        while left := me.children(recursive=True):  # what a killed turn has left is ours now
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=1)
        shutil.rmtree(self._work, ignore_errors=True)
        os.close(self._lock)


def _folder() -> tuple[Path, int]:
    """A new folder to work in, and the descriptor that locks it; those of runs that were killed are removed."""
    for old in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            fd = os.open(old, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old)
            finally:
                os.close(fd)
    made = Path(tempfile.mkdtemp(prefix=_PREFIX))
    fd = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    made.chmod(0o755)  # some programs run as nobody
    return made, fd


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _KernelLog:
    """What the kernel complains of from now on, where its log may be read."""

    def __init__(self) -> None:
        self._fd = -1
        with contextlib.suppress(OSError):
            self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)

    def faults(self) -> list[str]:
        """Lines that tell of a fault of the kernel itself."""
        found = []
        while self._fd >= 0:
            try:
                line = os.read(self._fd, 8192).decode(errors="replace").partition(";")[2].split("\n")[0]
            except BrokenPipeError:  # overwritten before it was read: go on with the next
                continue
            except OSError:
                break
            if any(word in line for word in _KERNEL_FAULTS) and _TOO_BUSY not in line:
                found.append(line)
        return found
