# SPDX-License-Identifier: GPL-2.0-or-later
"""True snapshots of the recorded processes while they run, each with the window of time in which it was taken.

Nothing is stopped for them. Whoever reads the recording afterwards knows what each process did and when, and keeps a
snapshot only where its process did nothing from a little before the window to its end: then its place among the events
is exact. The command's main process is also taken while it stands still, right after exec and right before its end.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmaweld.kernel import procfs, snapshots
from vmaweld.kernel.errors import KernelError
from vmaweld.snapshot import Snapshot

MARGIN: Final = 100_000
"""Nanoseconds for which a process must have been at rest before the window: a fault that was announced takes effect
within."""

_TICK: Final = 0.025
"""Seconds between looks for new processes."""
_FIRST_INTERVAL: Final = 4  # ticks
_MAX_ROWS: Final = 200_000
_MAX_SHARE: Final = 0.1  # of one CPU


@dataclass(slots=True, frozen=True)
class Sample:
    """A snapshot that was taken between `begin` and `end`, nanoseconds of the sampler's clock."""

    begin: int
    end: int
    snapshot: Snapshot


class Sampler:
    """Takes snapshots of `root` and its descendants, each process at ever longer intervals, within bounds.

    clock: nanoseconds of the clock that the recorder stamps its records with.
    """

    def __init__(self, root: int, clock: Callable[[], int]) -> None:
        # Asked once: a refused BPF program costs more time than many short-lived processes have.
        self._exact = snapshots.bpf_available()[0]
        self._root = root
        self._clock = clock
        self._samples: list[Sample] = []
        self._rows = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vmaweld-sampler", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> list[Sample]:
        """End; all that was taken, in order of the windows' ends."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        return sorted(self._samples, key=lambda sample: sample.end)

    def take(self, pid: int) -> None:
        """Take one now, beyond the schedule: `pid` stands still. Its other threads get a moment to be gone.

        The last event of `pid` may be only microseconds old. The margin passes before the window begins, so that no
        such snapshot is dropped for having come too soon.
        """
        deadline = time.monotonic() + 0.05
        while _threads(pid) > 1 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(MARGIN / 1e9)
        self._take(pid)

    def _take(self, pid: int) -> bool:
        """Take one now; False where the process was busy meanwhile."""
        faults = _faults(pid)
        begin = self._clock()
        try:
            snapshot = snapshots.take(pid) if self._exact else procfs.read_maps(pid)
        except (KernelError, OSError):
            return True
        end = self._clock()
        busy = not snapshot.consistent or faults != _faults(pid)
        if not busy:
            with self._lock:
                self._samples.append(Sample(begin, end, snapshot))
                self._rows += len(snapshot.rows)
        return not busy

    def _run(self) -> None:
        due: dict[tuple[int, str], tuple[float, float]] = {}  # pid and program -> (when next, interval after that)
        while not self._stop.is_set() and self._rows < _MAX_ROWS:
            began = time.monotonic()
            for pid in descendants(self._root):
                key = pid, _program(pid)
                when, interval = due.get(key, (began, _FIRST_INTERVAL * _TICK))
                if when > began:
                    continue
                if self._take(pid):
                    due[key] = began + interval, 2 * interval
                else:
                    due[key] = began, interval
            spent = time.monotonic() - began
            self._stop.wait(max(_TICK, spent / _MAX_SHARE))


def _faults(pid: int) -> list[bytes]:
    """How many page faults all threads of `pid` have taken: minor ones, major ones."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            fields = stream.read().rpartition(b") ")[2].split()
    except OSError:
        return []
    return [fields[7], fields[9]]


def _program(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def _threads(pid: int) -> int:
    try:
        return sum(1 for tid in os.listdir(f"/proc/{pid}/task") if not _gone(f"/proc/{pid}/task/{tid}/stat"))
    except OSError:
        return 0


def _gone(stat: str) -> bool:
    try:
        with open(stat, "rb") as stream:
            return stream.read().rpartition(b") ")[2][:1] in b"ZX"
    except OSError:
        return True


def descendants(root: int) -> Iterator[int]:
    """`root` and its living descendants, as /proc shows them; those that init adopted are not found."""
    pending = [root]
    while pending:
        pid = pending.pop()
        yield pid
        try:
            for task in os.scandir(f"/proc/{pid}/task"):
                pending += map(int, Path(task.path, "children").read_bytes().split())
        except OSError:
            continue
