# SPDX-License-Identifier: GPL-2.0-or-later
"""One turn of one program, in a process of its own that the harness starts.

Start it, make seams, weld with options at random, kill welders at random, until the time is over; then weld without
disturbing, and look what is left. The result goes to a file as JSON.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from weld_crack import crack

from vmaweld.kernel import syscalls
from vmaweld.kernel.errors import KernelError
from vmaweld.welding import support
from vmaweld.welding.alone import Alone
from vmaweld.welding.errors import WeldError

from .programs import BY_NAME, Program
from .running import STALL, Running, has_workshop
from .table import Result
from .welder import Kill, Welder, options_at_random

_SET_CHILD_SUBREAPER = 36
_WELD_LASTS = 120.0
_PAUSE_AFTER = 15.0
"""Seconds of welding without a line of the program, after which it is given time."""

_Event = tuple[float, Callable[[], None]]


class Turn:
    """A turn of `program`, `seconds` long, with the choices of `rng`."""

    def __init__(
        self, program: Program, rng: random.Random, seconds: float, kill_rate: float, folder: Path, stem: str
    ) -> None:
        self.result = Result(program.name, turns=1)
        self._rng, self._seconds, self._kill_rate = rng, seconds, kill_rate
        self._folder, self._stem = folder, stem
        self._program = program
        self._running = Running(program, folder, stem)
        self._log = (folder / f"{stem}.log").open("w")
        self._began = time.monotonic()

    def work(self) -> Result:
        """All of it. Whatever happens, nothing that was started here is left."""
        try:
            self._work()
        finally:
            self.result.beats = self._running.beats
            if self.result.anomalies:
                self._note("anomalies", self.result.anomalies)
                (self._folder / f"{self._stem}.proc").write_text(self._running.picture())
            self._running.end()
            self._log.close()
        return self.result

    def _note(self, *what: object) -> None:
        self._log.write(f"{time.monotonic() - self._began:9.4f} {' '.join(map(str, what))}\n")
        self._log.flush()

    def _wrong(self, what: str) -> None:
        self.result.anomalies.append(what)
        self._note("anomaly", what)

    def _work(self) -> None:
        if not self._running.await_beats(2):
            self._wrong(f"it does not begin: {self._running.fault() or 'no line'}")
            return
        end = time.monotonic() + self._seconds
        heard, beats = time.monotonic(), self._running.beats
        while time.monotonic() < end and not self._is_faulty():
            if self._running.beats > beats:
                heard, beats = time.monotonic(), self._running.beats
            elif time.monotonic() > heard + _PAUSE_AFTER:
                self._note("silent: waiting")
                if not self._await_beats(1):
                    return
            self._round()
        if not self._is_faulty():
            self._finish()

    def _is_faulty(self) -> bool:
        fault = self._running.fault()
        if fault:
            self._wrong(fault)
        cores = self._running.cores()
        for core in cores:
            self._wrong(f"a core: {core.name}")
        return bool(fault or cores)

    def _await_beats(self, count: int) -> bool:
        self._running.look()
        if self._running.await_beats(count):
            return True
        self._wrong(self._running.fault() or f"silent for {STALL:.0f} s in which it could work, though nobody welds it")
        return False

    def _round(self) -> None:
        """Seams, then welders: one or two at once, on one process or two; signals between."""
        rng = self._rng
        targets = self._running.targets()
        if not targets:
            time.sleep(0.02)
            return
        pid = rng.choice(targets)
        if self._program.crack:
            self._crack(pid)
        welders = [self._weld(pid, options_at_random(rng, pid), self._kill())]
        events: list[_Event] = []
        if rng.random() < 0.35:
            second = pid if rng.random() < 0.8 else rng.choice(targets)
            options, kill = options_at_random(rng, second), self._kill()
            events.append((rng.uniform(0, 1.2), lambda: welders.append(self._weld(second, options, kill))))
        if rng.random() < 0.15:
            stop = rng.uniform(0.1, 0.9)
            events.append((stop, lambda: self._send(pid, signal.SIGSTOP)))
            events.append((stop + rng.choice((0.0, 0.002, 0.05, 0.3)), lambda: self._send(pid, signal.SIGCONT)))
        if rng.random() < 0.15:
            events.append((rng.uniform(0.1, 0.9), lambda: self._send(pid, signal.SIGWINCH)))
        self._watch(welders, events)

    def _kill(self) -> Kill | None:
        return Kill.at_random(self._rng) if self._rng.random() < self._kill_rate else None

    def _send(self, pid: int, number: signal.Signals) -> None:
        self._note(number.name, pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def _crack(self, pid: int) -> None:
        """Make seams, but never beside what an earlier welder has left: its batch may be on its way."""
        if has_workshop(pid):
            return
        count, pages = self._rng.randint(10, 200), self._rng.choice((1, 1, 2, 4, 4, 16))
        try:
            support.check_other(pid)
            Alone(pid).check()
            made = crack(pid, count, pages)
        except (KernelError, WeldError, OSError) as error:
            self._note("no seams in", pid, repr(error))
            return
        self._note("seams in", pid, made)
        self.result.cracked += made

    def _weld(self, pid: int, options: list[str], kill: Kill | None) -> Welder:
        self.result.welds += 1
        number = self.result.welds
        self._note("weld", number, pid, *options, kill or "")
        return Welder(pid, options, kill, self._folder / f"{self._stem}.weld-{number}")

    def _watch(self, welders: list[Welder], events: list[_Event]) -> bool:
        """Until the events are over and the welders have ended; whether all have welded."""
        began = time.monotonic()
        waiting = sorted(events, key=lambda event: event[0])  # stable: SIGSTOP comes before its SIGCONT
        left = welders
        try:
            while left or waiting:
                if waiting and time.monotonic() - began >= waiting[0][0]:
                    waiting.pop(0)[1]()
                left = [welder for welder in welders if welder.watch()]
                if left and time.monotonic() - began > _WELD_LASTS:
                    self._wrong(f"a welder does not come to an end: {left[0].options}")
                    break
                time.sleep(0.002)
        finally:
            for welder in left:
                welder.end()
        kinds = [self._judge(welder) for welder in welders]
        return set(kinds) == {"welded"}

    def _judge(self, welder: Welder) -> str:
        kind, why = welder.judge()
        if kind != "anomaly":
            welder.forget()
        self._note("->", kind, f"{welder.closed} of {welder.seams}", why)
        result = self.result
        result.seams += welder.seams
        result.closed += welder.closed
        if kind in ("refused", "gone", "interrupted"):
            setattr(result, kind, getattr(result, kind) + 1)
        result.killed += welder.killed
        if kind == "refused":
            result.reasons[why] += 1
        if kind == "anomaly":
            self._wrong(f"a welder: {why}")
        return kind

    def _finish(self) -> None:
        """Weld each process once more, undisturbed; nothing of a weld may be left, the program goes on."""
        for pid in self._running.targets():
            for _attempt in range(3):
                if self._watch([self._weld(pid, [], None)], []):
                    break
                time.sleep(0.5)
        for trace in self._running.left_behind():
            self._wrong(f"after the last weld {trace}")
        self._await_beats(3)
        self._is_faulty()


def main() -> None:
    """The harness's call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=BY_NAME)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--kill-rate", type=float, default=0.3)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--stem", default="turn")
    arguments = parser.parse_args()
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGTERM)
    syscalls.prctl(_SET_CHILD_SUBREAPER, 1)

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    os.umask(0o022)
    rng = random.Random(arguments.seed)
    program = BY_NAME[arguments.program]
    result = Turn(program, rng, arguments.seconds, arguments.kill_rate, arguments.folder, arguments.stem).work()
    (arguments.folder / f"{arguments.stem}.result").write_text(json.dumps(result.as_json()))


if __name__ == "__main__":
    main()
