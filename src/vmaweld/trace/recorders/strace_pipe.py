# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads strace's log while strace writes it, and looks at each program before it has done anything.

strace writes the line of an exec that has succeeded while it still holds the new program at the exec's end. It writes
into a pipe of one page, and pads each call's line to nearly a page (``--columns``). So the next line of a call that has
returned finds no room until the line of the exec is taken out. strace cannot let the new program past the end of its
first recorded call before that. The reader copies what is in the pipe with tee(2), looks at the program, and only then
takes the page out: the look comes in time however loaded the machine is and however short the program's life.

Were nobody to read, strace would complain about each line on the terminal, or wait for ever. So a second process, the
heir, holds the reading end too. It does nothing unless we are killed; then it reads on until strace has ended.

A program that makes no recorded call at all may still end before the look. Every program that a C library starts makes
one: its first call is brk(2) or mmap(2).
"""

import contextlib
import errno
import fcntl
import os
import re
import threading
from pathlib import Path
from typing import Final

from vmaweld.kernel import procfs, snapshots, syscalls, x86_64
from vmaweld.kernel.errors import KernelError
from vmaweld.snapshot import Snapshot

_PAGE: Final = 4096
COLUMNS: Final = _PAGE - 200
"""Column to which strace pads a call before its result. The rest of the page is for the result itself."""
_EXECED: Final = re.compile(rb"(\d+) +\d+\.\d+ (?:<\.\.\. execve(?:at)? resumed>|execve(?:at)?\().*\) += 0$")
_PADDING: Final = re.compile(rb" {64,}= ")


class LogPipe:
    """A pipe that strace writes its log into, a thread that reads it, and the log as a file.

    Attributes:
        path: what strace opens.
        looks: by process, a snapshot for each of its execs in their order; None where no look was possible.

    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._reader, self._writer = os.pipe()
        self._copied, self._copies = os.pipe()
        fcntl.fcntl(self._writer, fcntl.F_SETPIPE_SZ, _PAGE)
        self._exact = snapshots.bpf_available()[0]
        self._line = b""
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="vmaweld-strace-log", daemon=True)
        self._alive, self._heir = self._make_heir()
        self.path = f"/proc/{os.getpid()}/fd/{self._writer}"
        self.looks: dict[int, list[Snapshot | None]] = {}

    def _make_heir(self) -> tuple[int, int]:
        """A descriptor that is closed when we end, and the process that waits for that."""
        waiting, alive = os.pipe()
        heir = os.fork()
        if heir == 0:
            try:
                os.setsid()  # no signal of the terminal is meant for it
                # Whatever else is open is ours alone: the other ends of these pipes, and locks that tell that we live.
                for held in map(int, os.listdir("/proc/self/fd")):
                    if held not in (waiting, self._reader):
                        with contextlib.suppress(OSError):  # the listing itself
                            os.close(held)
                if not os.read(waiting, 1):
                    while os.read(self._reader, _PAGE):
                        pass
            finally:
                os._exit(0)
        os.close(waiting)
        return alive, heir

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Read to the end. strace has ended.

        Raises:
            OSError: the log could not be written to its file.

        """
        os.close(self._writer)
        if self._thread.ident is not None:
            self._thread.join()
        os.write(self._alive, b"!")
        os.waitpid(self._heir, 0)
        for descriptor in (self._reader, self._copied, self._copies, self._alive):
            os.close(descriptor)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        # strace and all that it holds wait for us: whatever happens to the file, the pipe is read to its end.
        try:
            with self._log.open("wb", buffering=1 << 16) as log:
                while chunk := self._peek():
                    lines = (self._line + chunk).split(b"\n")
                    self._line = lines.pop()
                    for line in lines:
                        self._look(line)
                    os.read(self._reader, len(chunk))
                    log.writelines(_PADDING.sub(b" = ", line) + b"\n" for line in lines)
                log.write(self._line)
        except OSError as error:
            self._error = error
        finally:
            while os.read(self._reader, _PAGE):
                pass

    def _peek(self) -> bytes:
        """What the pipe holds, left in it; empty at its end."""
        while True:
            count = syscalls.raw(x86_64.NR_TEE, self._reader, self._copies, _PAGE, 0)
            if count > 0:
                return os.read(self._copied, count)
            if count != -errno.EINTR:
                syscalls.check(count, "tee")
                return b""

    def _look(self, line: bytes) -> None:
        found = _EXECED.match(line)
        if found is None:
            return
        pid = int(found[1])
        snapshot: Snapshot | None = None
        with contextlib.suppress(KernelError, OSError):  # killed meanwhile
            snapshot = snapshots.take(pid) if self._exact else procfs.read_maps(pid)
        self.looks.setdefault(pid, []).append(snapshot)
