# SPDX-License-Identifier: GPL-2.0-or-later
"""Records with perf: every call, every fault, every mapping that the kernel makes; see docs/recording.md.

Two tracepoints with a filter on the call's number (``raw_syscalls``) in place of two for each call: perf hands every
event on to every new task on every CPU, and eighty events would make each fork of a compile cost more than the fork.
"""

import ctypes
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vmaweld import abi
from vmaweld.trace.assembly import open_files
from vmaweld.trace.assembly.assembler import Assembler
from vmaweld.trace.calls import NUMBERS, TASK_NUMBERS, UNSEEN_NUMBERS
from vmaweld.trace.machine import nodes, special_flags
from vmaweld.trace.progress import Progress
from vmaweld.trace.recorders import perf_data
from vmaweld.trace.recorders.placing import Placing
from vmaweld.trace.recorders.protocol import NoRoomError, Recorder, RecorderError
from vmaweld.trace.sampler import MARGIN, Sample
from vmaweld.trace.store import TraceWriter

_NAMES: Final = {**NUMBERS, **TASK_NUMBERS, **UNSEEN_NUMBERS, **open_files.NUMBERS}
_TRACEFS: Final = Path("/sys/kernel/tracing")
_READY_SECONDS: Final = 30
_LARGEST_BUFFER: Final = 16 << 20
_SMALLEST_BUFFER: Final = 1 << 20
_BUFFER_TOTAL: Final = 512 << 20
_FULL: Final = re.compile("failed to write perf data, error: (.*)")
"""What perf says before it ends early (record__write in the kernel's tools/perf/builtin-record.c)."""
_ROOM: Final = 1 << 16
_WRITE_FAULT: Final = 2  # bit 1 of the page fault's error code


def mount_tracefs() -> None:
    """Mount tracefs where every distribution mounts it, if we may and it is not there."""
    if os.geteuid() == 0 and _TRACEFS.is_dir() and not (_TRACEFS / "events").exists():
        libc = ctypes.CDLL(None)
        libc.mount(b"nodev", os.fsencode(_TRACEFS), b"tracefs", 0, None)


class PerfRecorder(Recorder):
    """perf, attached to one process and all that it will fork.

    directory: where perf.data grows. buffer: bytes of each CPU's ring buffer, a power of two of pages; None takes what
    a storm of page faults needs, and less where there are many CPUs.
    """

    name = "perf"
    means = "record: every call, every page fault, exec's own mappings"
    faults = "seen"
    seizes = True
    losses = {
        "perf_records": "records lost by perf (events are missing, what follows them may be wrong): {:,}",
        "perf_file_cut_short": "perf did not finish its file: the end of the recording is missing",
        "userfaultfd": "userfaultfds made, with ranges that perf does not see: {:,}",
    }

    def __init__(self, directory: Path, buffer: int | None = None) -> None:
        self._buffer = _LARGEST_BUFFER if buffer is None else buffer
        while (
            buffer is None and self._buffer > _SMALLEST_BUFFER and self._buffer * (os.cpu_count() or 1) > _BUFFER_TOTAL
        ):
            self._buffer //= 2
        self._data = directory / "perf.data"
        # In memory: where perf has to tell that the disk is full, there is no room for it on that disk.
        self._chatter = os.memfd_create("vmaweld-perf")
        self._said = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._control = -1
        self._begin = 0

    @classmethod
    def available(cls) -> tuple[bool, str]:
        """Whether perf is installed, tracefs is there and its events are permitted."""
        if shutil.which("perf") is None:
            return False, "perf is not installed: apt install linux-perf"
        mount_tracefs()
        try:
            (_TRACEFS / "events/raw_syscalls/sys_enter/id").read_bytes()
        except FileNotFoundError:
            return False, "tracefs is not mounted: as root, mount -t tracefs nodev /sys/kernel/tracing"
        except PermissionError:
            return False, "tracefs is for root alone: run as root"
        if os.geteuid() != 0:
            try:
                paranoid = int(Path("/proc/sys/kernel/perf_event_paranoid").read_text())
            except (OSError, ValueError):
                paranoid = 2
            if paranoid > -1:
                return (
                    False,
                    f"kernel.perf_event_paranoid is {paranoid}: run as root, or sysctl kernel.perf_event_paranoid=-1",
                )
        return True, ""

    @staticmethod
    def clock() -> int:
        """CLOCK_MONOTONIC, which perf is told to stamp its records with."""
        return time.monotonic_ns()

    def attach(self, pid: int) -> None:
        """Start perf on `pid` and wait until it records. Raises RecorderError, NoRoomError."""
        perf = shutil.which("perf")
        if perf is None:
            raise RecorderError("perf is not installed: apt install linux-perf")
        control, self._control = os.pipe()
        acknowledged, acknowledge = os.pipe()
        entered = "||".join(f"id=={number}" for number in _NAMES)
        left = "||".join(
            f"(id=={number}&&ret>=0)" if number in open_files.MUST_SUCCEED else f"id=={number}"
            for number in _NAMES
            if number not in open_files.ENTRY_ONLY
        )
        user_address = f"address<{abi.TASK_SIZE:#x}"
        command = [
            perf, "record", "--output", str(self._data), "--pid", str(pid),
            "--clockid", "CLOCK_MONOTONIC", "--mmap-pages", f"{self._buffer >> 10}K",
            "--data",  # announces data mappings too, not only executable ones
            "--no-buildid", "--no-buildid-cache", "--no-bpf-event",
            "--delay", "-1", f"--control=fd:{control},{acknowledge}",
            "-e", "exceptions:page_fault_user",
            "-e", "exceptions:page_fault_kernel", "--filter", user_address,
            "-e", "task:task_newtask",
            "-e", "sched:sched_process_exec",
            "-e", "raw_syscalls:sys_enter", "--filter", entered,
            "-e", "raw_syscalls:sys_exit", "--filter", left,
        ]  # fmt: skip
        # In a session of its own: a Ctrl-C is for the command, perf ends when we say so.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._chatter,
            stderr=self._chatter,
            pass_fds=(control, acknowledge),
            start_new_session=True,
        )
        os.close(control)
        os.close(acknowledge)
        try:
            os.write(self._control, b"enable\n")
            ready, _, _ = select.select([acknowledged], [], [], _READY_SECONDS)
            if not ready or not os.read(acknowledged, 16).startswith(b"ack"):
                self._end(signal.SIGTERM)
                self._check_room()
                raise RecorderError(f"perf does not record here: {self._complaint()}")
        finally:
            os.close(acknowledged)
        self._begin = self.clock()

    def _complaint(self) -> str:
        """What perf itself said, as a line."""
        lines = (line.strip() for line in self._said.splitlines())
        said = [line for line in lines if line and not line.startswith(("Events ", "[ perf"))]
        return " ".join(said[:3]) or "it said nothing"

    def _check_room(self) -> None:
        """Raise NoRoomError if perf ended because its disk is full. Where it cannot write at all, it says nothing."""
        full = _FULL.search(self._said)
        if full is not None:
            raise NoRoomError(f"perf: {full[1].strip()}")
        if not self._said.strip():
            try:
                (self._data.parent / "room").write_bytes(bytes(_ROOM))
            except OSError as error:
                raise NoRoomError(f"perf: {error.strerror}") from None

    def _end(self, number: int) -> None:
        perf = self.process
        if perf is None:
            return
        self.process = None
        if self._control >= 0:
            os.close(self._control)
            self._control = -1
        if perf.poll() is None:
            perf.send_signal(number)
        try:
            perf.wait(_READY_SECONDS)
        except subprocess.TimeoutExpired:
            perf.kill()
            perf.wait()
        self._said = os.pread(self._chatter, 1 << 16, 0).decode(errors="replace")
        os.close(self._chatter)

    def stop(self) -> None:
        """End the recording; perf finishes its file."""
        self._end(signal.SIGINT)

    def convert(self, writer: TraceWriter, root: int, samples: list[Sample], progress: Progress) -> None:
        """Turn what was recorded into `writer`'s events; samples that fit exactly become its snapshots.

        Raises RecorderError where perf left nothing that can be read, NoRoomError where its disk was full.
        """
        self._check_room()
        begin = self._begin
        assembler = Assembler(writer.append, root, special_flags=special_flags(), nodes=nodes(), begin=begin)
        try:
            data = perf_data.PerfData(self._data)
            feed(
                data,
                assembler,
                writer,
                samples,
                begin,
                lambda done: progress("reading perf's records", done, data.size),
            )
        except (OSError, perf_data.PerfDataError) as error:
            raise RecorderError(f"perf recorded nothing that can be read ({error}): {self._complaint()}") from None
        assembler.finish()
        writer.metadata.add_losses({"perf_records": data.losses, "perf_file_cut_short": int(data.truncated)})
        writer.metadata.add_losses(assembler.losses)


def feed(
    data: perf_data.PerfData,
    assembler: Assembler,
    writer: TraceWriter,
    samples: list[Sample],
    begin: int,
    progress: Callable[[int], None],
) -> None:
    """Give all records of `data` to `assembler`, and the samples to `writer` at their place."""
    placing = Placing(samples, assembler, writer, begin, MARGIN)
    due = placing.due
    names = _NAMES
    for record in data.records(progress):
        now = record[0]
        if now > due:
            placing.until(now)
            due = placing.due
        kind = record[1]
        if kind == perf_data.FAULT:
            assembler.fault(now, record[2], record[4], bool(record[5] & _WRITE_FAULT))
        elif kind == perf_data.ENTER:
            name = names.get(record[4])
            if name is not None:
                assembler.enter(now, record[2], record[3], name, record[5:])
        elif kind == perf_data.LEAVE:
            name = names.get(record[4])
            if name is not None:
                assembler.leave(now, record[2], record[3], name, record[5])
        elif kind == perf_data.MAPPED:
            assembler.mapped(*record[:1], *record[2:])
        elif kind == perf_data.FORKED:
            assembler.forked(now, record[2], record[3], record[4], record[5])
        elif kind == perf_data.NEW_TASK:
            assembler.new_task(now, record[2], record[3], record[4])
        elif kind == perf_data.EXECING:
            assembler.execing(now, record[2], record[3])
        elif kind == perf_data.EXECED:
            assembler.execed(now, record[2], record[4])
        elif kind == perf_data.ENDED:
            assembler.ended(now, record[2], record[3])
    placing.finish()
