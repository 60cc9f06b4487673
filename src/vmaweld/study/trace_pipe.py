# SPDX-License-Identifier: GPL-2.0-or-later
"""The trace events of the series (patch 4) as tracefs's trace_pipe would print them, while a trace is replayed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from os.path import basename
from typing import Final

from vmaweld.events import Event
from vmaweld.policy import Policy
from vmaweld.study.replay import Replayer
from vmaweld.trace.store import Trace
from vmaweld.words import printable

_COMM_LENGTH: Final = 15


def trace_lines(program: str, pid: int, time: int, messages: Iterable[str]) -> Iterator[str]:
    """Each of `messages` behind tracefs's columns. program: a path. time: nanoseconds since the recording began.

    The processor is not recorded: it is always 000, and the flags are those of a task that may be interrupted.

    >>> list(trace_lines("/usr/bin/make", 42, 1_500_000_000, ["vm_pgoff_merge: faulted=1 updated=1"]))
    ['            make-42      [000] .....     1.500000: vm_pgoff_merge: faulted=1 updated=1']
    """
    comm = printable(basename(program)[:_COMM_LENGTH]) or "<...>"
    head = f"{comm:>16}-{pid:<7} [000] ..... {time // 1_000_000_000:5}.{time // 1000 % 1_000_000:06}: "
    for message in messages:
        yield head + message


def trace_pipe(trace: Trace, policy: Policy, pids: frozenset[int] = frozenset()) -> Iterator[str]:
    """Replay `trace` under `policy`; the lines of every merge as it is asked for, of `pids` alone where given.

    Raises TraceError where the file turns out to be damaged.
    """
    replayer = Replayer([policy], overcommit_never=trace.metadata.overcommit == 2, thp=trace.metadata.thp or "madvise")
    for event in trace.events():
        replayer.apply(event)
        yield from _lines_of(replayer, event, pids)


def _lines_of(replayer: Replayer, event: Event, pids: frozenset[int]) -> Iterator[str]:
    if pids and event.pid not in pids:
        return
    for record in replayer.lanes[0].records:
        yield from trace_lines(replayer.programs.get(event.pid, ""), event.pid, event.time, record.trace_lines())
