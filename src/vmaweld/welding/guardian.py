# SPDX-License-Identifier: GPL-2.0-or-later
"""Welding from a process of its own, so that the death of the one the user sees harms nobody.

While threads of another process stand still, their tracer must not die: if it does, they go on while a batch may be on
its way (docs/welding.md tells what that means). So the command itself only waits and prints. The tracer is a child in a
session of its own, which no terminal signals, which the kernel spares when memory runs out, if it may, and which comes
to an orderly end between two standstills when its parent is gone or asks for it.
"""

import contextlib
import os
import pickle
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, BinaryIO, Final, NoReturn

from vmaweld.welding import remote
from vmaweld.welding.errors import HalfDone
from vmaweld.welding.report import Report

_LENGTH: Final = struct.Struct("<I")
_REQUESTS: Final = (signal.SIGINT, signal.SIGTERM)
"""What asks the child to come to its end."""
Progress = Callable[[Report], None]


@dataclass(frozen=True)
class Ended:
    """How a weld ended.

    report: of the whole weld; None where it was interrupted before its end.
    interrupted: by Ctrl-C, whether there was anything left to be done or not.
    """

    report: Report | None
    interrupted: bool


def weld(pid: int, options: remote.Options, progress: Progress | None = None) -> Ended:
    """As `remote.weld`, but by a child process. Call it from the main thread of a process that has no other.

    Ctrl-C is passed on to the child, which ends between two standstills. Whatever else `remote.weld` raises is raised
    here; HalfDone, too, where the child was killed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    receive, send = os.pipe()
    interrupted = False

    def pass_on(number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    before = signal.getsignal(signal.SIGINT)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        # What comes now waits for its handler, in both processes. An exception would be lost in what Python does after
        # a fork, and in the middle of reading a message it would lose half of it.
        signal.pthread_sigmask(signal.SIG_BLOCK, _REQUESTS)
        child = os.fork()
        if child == 0:
            os.close(receive)
            _guard(pid, options, send)
        os.close(send)
        if before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, pass_on)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    result: Report | BaseException | None = None
    try:
        with os.fdopen(receive, "rb") as pipe:
            for kind, value in _messages(pipe):
                if kind == "progress" and progress is not None:
                    progress(value)
                elif kind != "progress":
                    result = value
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    finally:
        signal.signal(signal.SIGINT, before)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if isinstance(result, KeyboardInterrupt):
        return Ended(None, True)
    if isinstance(result, BaseException):
        raise result
    if result is None:
        how = f"was killed by signal {-status} ({signal.strsignal(-status)})" if status < 0 else "has ended early"
        raise HalfDone(
            f"the process that welds process {pid} {how}: its memory is complete, but how much was welded is unknown, "
            "and a mapping of ours may have stayed there: run the weld again, it clears up"
        )
    return Ended(result, interrupted)


def _messages(pipe: BinaryIO) -> Iterator[tuple[str, Any]]:
    """What the child says, until its end; it may be killed in the middle of a word."""
    while len(head := pipe.read(_LENGTH.size)) == _LENGTH.size:
        length = _LENGTH.unpack(head)[0]
        if len(data := pipe.read(length)) < length:
            return
        yield pickle.loads(data)


def _guard(pid: int, options: remote.Options, send: int) -> NoReturn:
    """Weld, and tell of it; requests are blocked, and let in only where they do no harm."""
    os.setsid()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in _REQUESTS:
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("-1000")

    pipe = os.fdopen(send, "wb")

    def tell(kind: str, value: object) -> None:
        data = pickle.dumps((kind, value))
        # A request waits: half a message would make those after it unreadable.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _REQUESTS)
        try:
            pipe.write(_LENGTH.pack(len(data)) + data)
            pipe.flush()
        except BrokenPipeError:
            raise KeyboardInterrupt from None  # nobody is there any more
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def progress(report: Report) -> None:
        tell("progress", replace(report, left=(), pauses=report.pauses[-2:]))

    try:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _REQUESTS)
            report = remote.weld(pid, options, progress=progress)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, _REQUESTS)
        tell("done", report)
    except BaseException as error:
        with contextlib.suppress(BaseException):
            tell("failed", error)
    finally:
        os._exit(0)
