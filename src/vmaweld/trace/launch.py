# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts the command that is recorded and stands beside it: same terminal, same user, its signals, its exit status.

The command is a child of ours that waits at a gate until the recorder is attached, then execs: so its very first
mapping is seen. Where the kernel lets us, its main thread is seized with ptrace for two moments alone: right after an
exec, and right before its end, when the address space is still whole. No other thread or process is touched.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from vmaweld.kernel import ptrace, syscalls, x86_64

_PTRACE_LISTEN: Final = 0x4208
_PTRACE_O_TRACEEXEC: Final = 0x10
_PTRACE_O_TRACEEXIT: Final = 0x40
_EVENT_EXEC: Final = 4
_EVENT_EXIT: Final = 6
_WALL: Final = 0x4000_0000
_SI_KERNEL: Final = 0x80
_STOPPING: Final = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_PASSED_ON: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)


class LaunchError(Exception):
    """The command could not be started; one line. errno: why."""

    def __init__(self, command: str, errno: int) -> None:
        super().__init__(f"{command}: {os.strerror(errno)}")
        self.errno = errno


class Launch:
    """One command: waiting at the gate, then running, then ended.

    A context manager: leaving it early lets a command that still waits at the gate go without running it.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._ended = False
        gate, self._gate = os.pipe()
        self._errors, errors = os.pipe()
        # Signals for the command arrive at us too. They wait in `_Signals`, and none gets lost before it runs.
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._gate)
            self._become_command(gate, errors)
        os.close(gate)
        os.close(errors)

    def _become_command(self, gate: int, errors: int) -> None:
        try:
            if os.read(gate, 1):
                # Python ignores these two for itself, and what is ignored stays so across exec.
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
                os.execvp(self._command[0], self._command)
        except OSError as error:
            os.write(errors, str(error.errno).encode())
        finally:
            os._exit(127)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_gate()
        if not self._ended:
            self.wait(lambda _: None)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _close_gate(self) -> None:
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1

    def seize(self) -> bool:
        """Ask to be told of the command's execs and of its end; False where the kernel does not permit it."""
        try:
            ptrace.seize(self.pid, _PTRACE_O_TRACEEXEC | _PTRACE_O_TRACEEXIT)
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Open the gate: the command begins."""
        os.write(self._gate, b"!")
        self._close_gate()

    def wait(self, stopped: Callable[[str], None], target: Callable[[int], int] = int) -> int:
        """Wait for the command's end; its exit status, ``-N`` where signal N ended it.

        stopped: called with "exec" or "exit" while the main thread stands still there.
        target: from our child's pid to the process that signals are for.
        Raises LaunchError where the command could not be executed. Call it on the thread that seized.
        """
        with _Signals(lambda: target(self.pid)):
            while True:
                _, status = os.waitpid(self.pid, _WALL)
                if not os.WIFSTOPPED(status):
                    break
                self._answer(status, stopped)
        self._ended = True
        failure = os.read(self._errors, 16)
        os.close(self._errors)
        if failure:
            raise LaunchError(self._command[0], int(failure))
        return os.waitstatus_to_exitcode(status)

    def _answer(self, status: int, stopped: Callable[[str], None]) -> None:
        number = os.WSTOPSIG(status)
        event = status >> 16
        if event == ptrace.EVENT_STOP and number in _STOPPING:
            # The whole process is stopped (Ctrl-Z): leave it so, and hear when it goes on.
            syscalls.raw(x86_64.NR_PTRACE, _PTRACE_LISTEN, self.pid, 0, 0)
            return
        if event == _EVENT_EXEC:
            stopped("exec")
        elif event == _EVENT_EXIT:
            stopped("exit")
        with contextlib.suppress(OSError):  # killed meanwhile: waiting tells
            ptrace.proceed(self.pid, 0 if event else number)


class _Signals:
    """While the command runs: what a terminal sends reaches it by itself, what somebody sends to us is passed on."""

    def __init__(self, target: Callable[[], int]) -> None:
        self._target = target
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vmaweld-signals", daemon=True)

    def _run(self) -> None:
        while True:
            info = signal.sigwaitinfo(_PASSED_ON)
            if self._stop.is_set():
                return
            if info.si_code != _SI_KERNEL:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._target(), info.si_signo)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            signal.pthread_kill(self._thread.ident, signal.SIGHUP)  # it only waits for signals
        self._thread.join()
        # The Ctrl-C that ended the command reached us too, and may still wait: it was not meant for what follows.
        while signal.sigtimedwait(_PASSED_ON, 0) is not None:
            pass
