# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces for the study's tests, written as a recorder would write them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from vmaweld.events import Event
from vmaweld.policy import parse_policy
from vmaweld.snapshot import Snapshot
from vmaweld.study.answer import Answer
from vmaweld.study.tally import replay
from vmaweld.trace.store import Metadata, TraceWriter, open_trace

FOUR = ("linux-5.17", "linux-5.17+pgoff", "linux-5.17+anon-vma", "linux-5.17+series")


def write_trace(path: Path, items: Iterable[Event | Snapshot], **metadata: object) -> Path:
    """A trace of `items` at `path`; snapshots stand at their place. An event without time gets its number in ms."""
    values: dict[str, object] = {
        "command": ["./program", "with space"],
        "kernel": "6.18.0",
        "recorder": "perf",
        "exit_status": 0,
        **metadata,
    }
    with TraceWriter(path, Metadata(**values)) as writer:  # type: ignore[arg-type]
        for number, item in enumerate(items):
            if isinstance(item, Snapshot):
                writer.append_snapshot(item, number * 1_000_000)
            else:
                item.time = item.time or number * 1_000_000
                writer.append(item)
    return path


def study(path: Path, items: Iterable[Event], policies: Sequence[str] = FOUR, **metadata: object) -> Answer:
    """The answer to `items` under `policies`, by way of a trace file."""
    with open_trace(write_trace(path / "study.trace", items, **metadata)) as trace:
        return replay(trace, [parse_policy(name) for name in policies])
