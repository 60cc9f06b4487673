# SPDX-License-Identifier: GPL-2.0-or-later
"""One process that serves, seen from the driver: what is sent to it, what it answers, and when it is given up."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import NoReturn

from vmaweld.executor import child
from vmaweld.kernel.errors import KernelError

Command = tuple[int, bytes, tuple[int, ...]]
"""(kind, as `child` numbers them; data; numbers)."""


class ExecutorError(KernelError):
    """The sacrificial process crashed, was killed, hung, or could not be started; the message tells which."""


class Process:
    """One real process at the other end of a socket.

    Attributes:
        pid: the kernel's number of it.
        users: how many event pids name it.

    Args:
        sock: its timeout is the time within which a message must be answered.
        errors: the file that takes what the processes write to stderr.
        lost: called when the process is given up, before ExecutorError is raised.
        name: how messages call it.

    """

    def __init__(
        self,
        pid: int,
        sock: socket.socket,
        errors: int,
        *,
        lost: Callable[["Process"], None] = lambda process: None,
        name: str = "",
    ) -> None:
        self.pid = pid
        self.users = 1
        self._sock = sock
        self._errors = errors
        self._lost = lost
        self._name = name or f"process {pid}"

    def exchange(self, commands: list[Command], flags: int, channels: list[int], what: str) -> list[tuple[int, bytes]]:
        """Send `commands`; for each its result and, where `flags` ask for it, what the process shows of its arena.

        channels: descriptors for the children that the commands fork. what: what is done, for messages.
        Raises ExecutorError.
        """
        packed = bytearray()
        data = bytearray()
        for kind, own, numbers in commands:
            packed += child.COMMAND.pack(kind, len(own), len(data), *numbers, *(0,) * (7 - len(numbers)))
            data += own
        message = child.HEADER.pack(len(commands), flags, len(data))
        if channels:
            self.send_descriptors(message, channels, what)
            self._attempt(lambda: self._sock.sendall(packed + data), what)
        else:
            self._attempt(lambda: self._sock.sendall(message + packed + data), what)
        if not flags:
            results = self.receive(len(commands) * child.ANSWER.size, what)
            return [(result, b"") for (result,) in child.ANSWER.iter_unpack(results)]
        answers: list[tuple[int, bytes]] = []
        for _command in commands:
            answer = self.receive(child.ANSWER.size + child.LENGTH.size, what)
            (size,) = child.LENGTH.unpack_from(answer, child.ANSWER.size)
            shown = self.receive(size, what) if size else b""
            answers.append((child.ANSWER.unpack_from(answer)[0], shown))
        return answers

    def show(self, flags: int) -> bytes:
        """What the process shows of its arena."""
        return self.exchange([(child.SNAPSHOT, b"", ())], flags, [], "taking a snapshot")[0][1]

    def send_descriptors(self, message: bytes, descriptors: list[int], what: str) -> None:
        """Send `message` with open `descriptors`. Raises ExecutorError."""
        self._attempt(lambda: socket.send_fds(self._sock, [message], descriptors), what)

    def receive(self, size: int, what: str) -> bytes:
        """The next `size` bytes that the process sends. Raises ExecutorError."""
        parts = []
        while size:
            try:
                part = self._sock.recv(min(size, 1 << 20))
            except TimeoutError:
                self._hung(what)
            except OSError:
                part = b""
            if not part:
                self._died(what)
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def end(self) -> None:
        """Tell the process to end, and wait for it. What it mapped is gone when this returns."""
        self._sock.shutdown(socket.SHUT_WR)
        self.wait_for_end()

    def wait_for_end(self) -> None:
        """Until its socket is closed: the kernel tears the address space down before it closes files."""
        try:
            while self._sock.recv(1 << 16):
                pass
        except TimeoutError:
            self._hung("ending")
        except OSError:
            pass
        self._sock.close()

    def close(self) -> None:
        """Let go of the process, which then ends by itself; safe to call twice."""
        self._sock.close()

    def _attempt(self, action: Callable[[], object], what: str) -> None:
        try:
            action()
        except TimeoutError:
            self._hung(what)
        except OSError:
            self._died(what)

    def _hung(self, what: str) -> NoReturn:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        limit = self._sock.gettimeout()
        self._lost(self)
        raise ExecutorError(f"{self._name} did not answer within {limit:g} s and was ended: {what}")

    def _died(self, what: str) -> NoReturn:
        self._lost(self)
        said = os.pread(self._errors, 1 << 16, 0).decode(errors="replace").strip().splitlines()
        raise ExecutorError(f"{self._name} died: {what}{'; it said: ' + said[-1] if said else ''}")
