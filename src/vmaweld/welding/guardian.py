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
from dataclasses import replace
from typing import NoReturn

from vmaweld.welding import remote
from vmaweld.welding.errors import HalfDone
from vmaweld.welding.report import Report

_LENGTH = struct.Struct("<I")
Progress = Callable[[Report], None]


def weld(pid: int, options: remote.Options, progress: Progress | None = None) -> Report:
    """As `remote.weld`, but by a child process. Call it from a process with one thread.

    KeyboardInterrupt is raised when the child has come to an end. Whatever `remote.weld` raises is raised here.
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
    result: Report | BaseException | None = None
    with os.fdopen(receive, "rb") as pipe:
        while True:
            try:
                head = pipe.read(_LENGTH.size)
                length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
                data = pipe.read(length)
                if not length or len(data) < length:  # it has ended, perhaps in the middle of a word
                    break
                kind, value = pickle.loads(data)
                if kind == "progress" and progress is not None:
                    progress(value)
                elif kind != "progress":
                    result = value
            except KeyboardInterrupt:
                interrupted = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGINT)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if interrupted:
        raise KeyboardInterrupt
    if isinstance(result, BaseException):
        raise result
    if result is None:
        how = f"was killed by signal {-status} ({signal.strsignal(-status)})" if status < 0 else "has ended early"
        raise HalfDone(
            f"the process that welds process {pid} {how}: its memory is complete, but how much was welded is unknown, "
            "and a mapping of ours may have stayed there: run the weld again, it clears up"
        )
    return result


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
        try:
            pipe.write(_LENGTH.pack(len(data)) + data)
            pipe.flush()
        except BrokenPipeError:
            raise KeyboardInterrupt from None  # nobody is there any more

    def progress(report: Report) -> None:
        tell("progress", replace(report, left=(), pauses=report.pauses[-2:]))

    try:
        tell("done", remote.weld(pid, options, progress=progress))
    except BaseException as error:
        with contextlib.suppress(BaseException):
            tell("failed", error)
    finally:
        os._exit(0)
