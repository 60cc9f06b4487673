# SPDX-License-Identifier: GPL-2.0-or-later
"""What every recorder keeps: the class it derives from, and the two errors it may raise.

A recorder is one file in this folder with one class. It enters the class in `table`, and `vmaweld record`,
`vmaweld study` and `vmaweld doctor` know it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from vmaweld.trace.progress import Progress
from vmaweld.trace.sampler import Sample
from vmaweld.trace.store import TraceWriter


class RecorderError(Exception):
    """The recorder does not work here; one line: what, why, what to do."""


class NoRoomError(Exception):
    """The disk is full on which a recorder keeps what it sees; one line."""


class Recorder(ABC):
    """Observes one command and all that it forks, and makes events of what it has seen.

    The calls come in this order: `command`, `attach`, then the command runs, `stop`, `convert`.

    Attributes:
        name: what users call it.
        means: what it is good for, for the doctor.
        faults: "seen" or "assumed", as a trace's metadata says it.
        seizes: the command's main process may be traced with ptrace meanwhile. False where the recorder is itself the
            tracer.
        losses: what may be missing from its recordings, a sentence for each cause with a place for the count.

    """

    name: ClassVar[str]
    means: ClassVar[str]
    faults: ClassVar[str]
    seizes: ClassVar[bool]
    losses: ClassVar[Mapping[str, str]]

    @abstractmethod
    def __init__(self, directory: Path) -> None:
        """directory: where it may keep what it sees until `convert`. Nothing else writes there."""

    @classmethod
    @abstractmethod
    def available(cls) -> tuple[bool, str]:
        """(whether it can be expected to record here, else the reason and the remedy as a line for the user)."""

    @staticmethod
    @abstractmethod
    def clock() -> int:
        """Now, in nanoseconds of the clock with which it stamps what it sees."""

    def command(self, command: list[str]) -> list[str]:
        """What is to be run in place of `command`; without a reason to do otherwise, `command` itself."""
        return command

    def target(self, pid: int) -> int:
        """The recorded command's own process, where `pid` is the process that runs what `command` gave."""
        return pid

    @abstractmethod
    def attach(self, pid: int) -> None:
        """Begin to record process `pid`, which waits meanwhile. Raises RecorderError, NoRoomError."""

    @abstractmethod
    def stop(self) -> None:
        """End the recording; safe to call where `attach` has failed. Raises NoRoomError."""

    @abstractmethod
    def convert(self, writer: TraceWriter, root: int, samples: list[Sample], progress: Progress) -> None:
        """Turn what was recorded into `writer`'s events, and its losses into `writer`'s metadata.

        root: the process that `attach` was given.
        samples: snapshots in order of time. Those whose place among the events is certain become the trace's.
        Raises RecorderError where nothing was recorded that can be read, NoRoomError.
        """
