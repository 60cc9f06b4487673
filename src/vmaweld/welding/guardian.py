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
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FrameType
from typing import NoReturn

from vmaweld.welding import remote
from vmaweld.welding.report import Report

_LENGTH = struct.Struct("<I")
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
    here.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        _guard(pid, options, send)
    os.close(send)
    interrupted = False

    def pass_on(number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    result: Report | BaseException | None = None
    # No exception, which could come in the middle of reading a message and lose half of it.
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, pass_on)
    try:
        with os.fdopen(receive, "rb") as pipe:
            while len(head := pipe.read(_LENGTH.size)) == _LENGTH.size:
                kind, value = pickle.loads(pipe.read(_LENGTH.unpack(head)[0]))
                if kind == "progress" and progress is not None:
                    progress(value)
                elif kind != "progress":
                    result = value
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    finally:
        signal.signal(signal.SIGINT, before)
        os.waitpid(child, 0)
    if interrupted and isinstance(result, KeyboardInterrupt):
        return Ended(None, True)
    if isinstance(result, BaseException):
        raise result
    if result is None:
        raise RuntimeError("the process that welds has died; run the weld again, it repairs what is half done")
    return Ended(result, interrupted)


def _guard(pid: int, options: remote.Options, send: int) -> NoReturn:
    os.setsid()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("-1000")

    pipe = os.fdopen(send, "wb")

    def tell(kind: str, value: object) -> None:
        data = pickle.dumps((kind, value))
        # An interrupt waits: half a message would make those after it unreadable.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
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
        report = remote.weld(pid, options, progress=progress)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is done: that is what is to be told
        tell("done", report)
    except BaseException as error:
        with contextlib.suppress(BaseException):
            tell("failed", error)
    finally:
        os._exit(0)
