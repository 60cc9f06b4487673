# SPDX-License-Identifier: GPL-2.0-or-later
"""Records with strace where perf is not permitted: no privilege needed, but page faults are not seen.

So every page of a private mapping counts as written from the moment it is writable (`AssumeWrites`), and what exec
itself maps is taken from a look at the new program while strace holds it (`strace_pipe`).
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from vmaweld import abi, events
from vmaweld.abi import PAGE_SHIFT
from vmaweld.events import Event
from vmaweld.mempolicy import policy_text
from vmaweld.snapshot import Row, Snapshot
from vmaweld.trace.assembly.assembler import Assembler
from vmaweld.trace.calls import NUMBERS
from vmaweld.trace.progress import Progress
from vmaweld.trace.recorders import strace_log
from vmaweld.trace.recorders.assumed_writes import AssumeWrites
from vmaweld.trace.recorders.placing import Placing
from vmaweld.trace.recorders.protocol import NoRoomError, Recorder
from vmaweld.trace.recorders.strace_pipe import COLUMNS, LogPipe
from vmaweld.trace.sampler import Sample
from vmaweld.trace.store import TraceWriter

_TASKS: Final = ("clone", "clone3", "fork", "vfork")
_EXECS: Final = ("execve", "execveat")
_TRACED: Final = (*NUMBERS.values(), *_TASKS, *_EXECS, "userfaultfd", "ioctl")
_UFFDIO_REGISTER: Final = 0xC020_AA00
_UFFDIO_UNREGISTER: Final = 0x8010_AA01
_MARGIN: Final = 5_000_000
"""Nanoseconds: strace stamps a call's line with its beginning, and is slow itself."""


class StraceRecorder(Recorder):
    """strace around the command: `command` gives what is to be run in its place.

    directory: where the log grows. looks: by process, what each of its execs had mapped, in their order; None where
    the process was gone before.
    """

    name = "strace"
    means = "record without privilege: page faults are assumed, not seen"
    faults = "assumed"
    seizes = False  # strace is the tracer already
    losses = {
        "execs_without_mappings": "programs that ended too soon for a look at what exec had mapped: {:,}",
        "tasks_of_unknown_parent": "tasks left out, for it is not known who made them: {:,}",
    }

    def __init__(self, directory: Path) -> None:
        self._log = directory / "strace.log"
        self._pipe: LogPipe | None = None
        self.looks: Mapping[int, Sequence[Snapshot | None]] = {}

    @classmethod
    def available(cls) -> tuple[bool, str]:
        """Whether strace is installed and may trace."""
        strace = shutil.which("strace")
        if strace is None:
            return False, "strace is not installed: apt install strace"
        try:
            subprocess.run(
                [strace, "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=brk", "--", "/bin/true"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=True,
                timeout=10,
            )
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
            return False, f"strace does not work here: {said[0] if said else error}"
        return True, ""

    @staticmethod
    def clock() -> int:
        """CLOCK_REALTIME, as in the log's lines."""
        return time.time_ns()

    def command(self, command: list[str]) -> list[str]:
        """The command line that runs `command` under strace."""
        self._pipe = LogPipe(self._log)
        return [
            shutil.which("strace") or "strace",
            "-f", "--seccomp-bpf", "-X", "raw", "-y", "-s", "80", "--quiet=attach,personality",
            "--absolute-timestamps=unix,ns", "-o", self._pipe.path, "--columns", str(COLUMNS),
            "-e", "trace=" + ",".join(f"?{name}" for name in _TRACED),
            "-e", "abbrev=!mbind",  # signals stay on: without them strace hides who was killed by one, too
            "--", *command,
        ]  # fmt: skip

    def target(self, pid: int) -> int:
        """The recorded command's own process, a child of strace's `pid`."""
        try:
            return int(Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split()[0])
        except (OSError, IndexError, ValueError):
            return pid

    def attach(self, pid: int) -> None:
        """Begin to read the log. strace starts the command itself."""
        assert self._pipe is not None
        self._pipe.start()

    def stop(self) -> None:
        """Read the log to its end. strace ends with the command. Raises NoRoomError where it is not whole."""
        assert self._pipe is not None
        try:
            self._pipe.stop()
        except OSError as error:
            raise NoRoomError(f"strace's log: {error.strerror}") from None
        self.looks = self._pipe.looks

    def convert(self, writer: TraceWriter, root: int, samples: list[Sample], progress: Progress) -> None:
        """Turn the log into `writer`'s events. `root` is strace's own pid: the command's is the log's first."""
        size = self._log.stat().st_size
        with self._log.open(encoding="utf-8", errors="surrogateescape") as lines:
            first = next(lines, "")
            begin = next((line[1] for line in strace_log.parse([first])), 0)
            lines.seek(0)
            root = next((line[2] for line in strace_log.parse([first])), root)
            assembler = Assembler(AssumeWrites(writer.append), root, begin=begin)
            feed = _Feed(assembler, writer, samples, self.looks, begin)
            for line in strace_log.parse(_counted(lines, lambda count: progress("reading strace's log", count, size))):
                feed.take(line)
            feed.finish()
        writer.metadata.add_losses(assembler.losses)


def _counted(lines: Iterator[str], progress: Callable[[int], None]) -> Iterator[str]:
    count = 0
    for number, line in enumerate(lines):
        count += len(line)
        if number % 10_000 == 0:
            progress(count)
        yield line


class _Feed:
    """Gives the log's lines to the assembler: whose thread is whose, who is whose child."""

    def __init__(
        self,
        assembler: Assembler,
        writer: TraceWriter,
        samples: list[Sample],
        looks: Mapping[int, Sequence[Snapshot | None]],
        begin: int,
    ) -> None:
        self._assembler = assembler
        self._placing = Placing(samples, assembler, writer, begin, _MARGIN)
        self._looks = {pid: iter(seen) for pid, seen in looks.items()}
        self._pid_of: dict[int, int] = {}
        self._unknown: dict[int, list[strace_log.Line]] = {}  # what tasks did before their maker's call returned

    def take(self, line: strace_log.Line) -> None:
        """One line of the log."""
        kind, now, tid, name, arguments, result = line
        self._placing.until(now)
        pid = self._pid_of.get(tid)
        if pid is None:
            if self._pid_of:
                self._unknown.setdefault(tid, []).append(line)
                return
            pid = self._pid_of[tid] = tid
        assembler = self._assembler
        if kind == strace_log.ENDED:
            assembler.ended(now, pid, tid)
            del self._pid_of[tid]
        elif kind == strace_log.REPLACED:
            # The thread that execs goes on under this number, the process's own.
            if result is not None:
                self._pid_of.pop(result, None)
        elif kind == strace_log.ENTER:
            if name in NUMBERS.values():
                assembler.enter(now, pid, tid, name, _registers(arguments))
        elif name in _EXECS:
            if result == 0:
                self._exec(now, pid, tid, strace_log.string(arguments[name == "execveat"] if arguments else ""))
        elif name in _TASKS:
            if result is not None and result > 0:
                self._made(now, pid, tid, result, name, arguments)
        elif name == "ioctl":
            self._ioctl(now, pid, arguments, result)
        elif result is not None and name in NUMBERS.values():
            # What strace knew at the entry may have been cut short; now it knows all.
            assembler.amend(pid, tid, _registers(arguments))
            assembler.leave(now, pid, tid, name, result, _file(name, arguments))

    def _made(self, now: int, pid: int, tid: int, child: int, name: str, arguments: list[str]) -> None:
        flags = 0
        if name == "vfork":
            flags = abi.CLONE_VM | abi.CLONE_VFORK
        elif name != "fork":
            flags = strace_log.field(", ".join(arguments), "flags") or 0
        thread = bool(flags & abi.CLONE_THREAD)
        self._pid_of[child] = pid if thread else child
        self._assembler.forked(now, pid if thread else child, child, pid, tid)
        if not thread:
            self._assembler.new_task(now, pid, tid, flags)
        for line in self._unknown.pop(child, []):
            self.take(line)

    def _exec(self, now: int, pid: int, tid: int, program: str) -> None:
        assembler = self._assembler
        assembler.execing(now, pid, tid)
        assembler.execed(now, pid, program)
        seen = next(self._looks.get(pid, iter(())), None)
        if seen is None:
            assembler.count("execs_without_mappings")
            return
        for place in mapped_by_exec(list(seen.rows), pid):
            assembler.happened(now, pid, place)

    def _ioctl(self, now: int, pid: int, arguments: list[str], result: int | None) -> None:
        if len(arguments) < 3 or result is None:
            return
        request = strace_log.number(arguments[1])
        if request not in (_UFFDIO_REGISTER, _UFFDIO_UNREGISTER):
            return
        start, length = strace_log.field(arguments[2], "start"), strace_log.field(arguments[2], "len")
        if start is None or length is None:
            return
        register = request == _UFFDIO_REGISTER
        event = Event(
            events.UFFD_REGISTER if register else events.UFFD_UNREGISTER,
            pid,
            addr=start,
            length=length,
            flags=(strace_log.field(arguments[2], "mode") or 0) if register else 0,
            new_addr=(pid << 20) + (strace_log.number(arguments[0]) & 0xF_FFFF),
            result=result,
        )
        self._assembler.happened(now, pid, event)

    def finish(self) -> None:
        """The log is at its end."""
        if self._unknown:
            self._assembler.count("tasks_of_unknown_parent", len(self._unknown))
        self._placing.finish()
        self._assembler.finish()


def _registers(arguments: list[str]) -> tuple[int, ...]:
    numbers = [strace_log.number(text) for text in arguments]
    return tuple(numbers[:6] + [0] * (6 - len(numbers)))


def _file(name: str, arguments: list[str]) -> str:
    if name == "mmap" and len(arguments) > 4:
        return strace_log.file_name(arguments[4])
    if name == "mbind" and len(arguments) > 3:
        words = [strace_log.number(word) for word in arguments[3].strip("[]").split() if word.startswith("0x")]
        mask = sum(word << (64 * i) for i, word in enumerate(words))
        nodes = ",".join(str(node) for node in range(mask.bit_length()) if mask >> node & 1)
        return policy_text(strace_log.number(arguments[2]), nodes)
    if name == "prctl" and len(arguments) > 4:
        return strace_log.string(arguments[4])
    return ""


def mapped_by_exec(rows: list[Row], pid: int) -> list[Event]:
    """Those `rows` of a running program that exec itself made: the program, its interpreter, what follows them, stack, vdso.

    The program is the file mapped lowest, the interpreter is named ld.so; the anonymous rows right behind their last
    segments are their zeroed tails. A tail that the program has grown, or split by mprotect, is taken as it is.
    """  # noqa: E501
    program = next((row.file for row in rows if row.file.startswith("/")), "")
    places: list[Event] = []
    tail = 0
    for row in rows:
        special = row.name.startswith("[") and row.name not in ("[heap]",) and not row.name.startswith("[anon")
        loader = os.path.basename(row.file).startswith(("ld-linux", "ld-musl", "ld.so", "ld-2"))
        file = bool(row.file) and (row.file == program or loader)
        behind = not row.file and not row.name and row.start == tail
        if not special and not file and not behind:
            continue
        tail = row.end if file else 0
        flags = row.flags | abi.VM_MAYREAD | abi.VM_MAYWRITE | abi.VM_MAYEXEC
        flags |= abi.VM_ACCOUNT if row.flags & abi.VM_WRITE else 0
        flags |= abi.VM_GROWSDOWN if row.name == "[stack]" else 0
        places.append(
            Event(
                events.PLACE,
                pid,
                addr=row.start,
                length=row.end - row.start,
                flags=row.flags if special and row.name != "[stack]" else flags,
                file=row.name if special else row.file,
                pgoff=row.start >> PAGE_SHIFT if row.pgoff is None else row.pgoff,
            )
        )
    return places
