# SPDX-License-Identifier: GPL-2.0-or-later
"""Explaining one scenario: the address spaces before and after its last event, under several policies."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, Final

from vmaweld import abi
from vmaweld import events as ev
from vmaweld.abi import PAGE_SHIFT, page_align_up
from vmaweld.events import EVENT_FIELDS, Event
from vmaweld.model.errors import LinuxError
from vmaweld.model.merge import AV_MERGE_FAILED
from vmaweld.model.system import System
from vmaweld.model.tracepoints import MergeRecord, Tracepoints, obstacle_names
from vmaweld.policy import Policy
from vmaweld.snapshot import Snapshot
from vmaweld.study.scenarios import Scenario
from vmaweld.words import count_text

_MOST_BYTES: Final = 16 << 20
_MOST_EVENTS: Final = 1000
_WORD: Final = (0, (1 << 64) - 1)
_RANGES: Final = {
    "pid": (1, (1 << 31) - 1),
    "child": (0, (1 << 31) - 1),
    "result": (-(1 << 63), (1 << 63) - 1),
    "time": (0, (1 << 63) - 1),
}
"""Least and most of the fields that are no word of the machine; a trace holds them in as many bits."""
_FLAG_PREFIXES: Final = ("MAP_", "MREMAP_", "MADV_", "MLOCK_", "MCL_", "CLONE_", "UFFDIO_REGISTER_MODE_", "VM_")


class ScenarioError(Exception):
    """A file holds no scenario; one line: which, why, what would be right."""


@dataclass(slots=True)
class Explanation:
    """A scenario under one policy. before, after: the address spaces around the last event, by pid.

    records: the merges that the last event asked for. error: why the last event failed, "" where it did not.
    failures: earlier events that failed, as text.
    """

    policy: Policy
    before: list[Snapshot]
    after: list[Snapshot]
    records: list[MergeRecord]
    error: str
    failures: list[str]


def explain(events: Sequence[Event], policy: Policy) -> Explanation:
    """Let `events` happen under `policy`; there must be one at least."""
    tracepoints = Tracepoints()
    system = System(policy, trace=tracepoints)
    failures: list[str] = []
    for event in events[:-1]:
        try:
            system.apply(event)
        except LinuxError as error:
            failures.append(f"{describe(event, 0)}: {error}")
    before = _snapshots(system)
    tracepoints.records.clear()
    error_text = ""
    try:
        system.apply(events[-1])
    except LinuxError as error:
        error_text = str(error)
    return Explanation(policy, before, _snapshots(system), list(tracepoints.records), error_text, failures)


def _snapshots(system: System) -> list[Snapshot]:
    return [system.snapshot(pid) for pid in sorted(system.processes)]


def describe(event: Event, base: int) -> str:
    """`event` in words, its range in pages from `base` on.

    >>> describe(Event("write", 1, addr=0x104000, length=8192), 0x100000)
    'write pages 4-5'
    """
    text = event.op
    if event.op == ev.FORK:
        text = f"fork process {event.child}"
    elif event.op == ev.MREMAP:
        text = f"mremap {_pages(event.addr, event.length, base)}"
        if event.flags & abi.MREMAP_FIXED:
            text += f" to {_pages(event.new_addr, event.new_length, base)}"
        else:
            text += f" to {count_text(page_align_up(event.new_length) >> PAGE_SHIFT, 'page')}"
    elif event.length:
        text = f"{event.op} {_pages(event.addr, event.length, base)}"
    if event.op in (ev.MMAP, ev.MPROTECT):
        text += " " + "".join(c if event.prot & bit else "-" for c, bit in (("r", 1), ("w", 2), ("x", 4)))
    elif event.op == ev.MADVISE:
        text += f" {advice_name(event.flags)}"
    if event.file:
        text += f" {event.file}"
    return text if event.pid == 1 else f"{text}, by process {event.pid}"


def _pages(address: int, length: int, base: int) -> str:
    first = (address - base) >> PAGE_SHIFT
    last = first + (page_align_up(length) >> PAGE_SHIFT) - 1
    return f"pages {first}-{last}" if last > first else f"page {first}"


def advice_name(advice: int) -> str:
    """The name of a madvise advice."""
    for name, value in vars(abi).items():
        if name.startswith("MADV_") and value == advice:
            return name
    return str(advice)


def verdict(record: MergeRecord, policy: Policy) -> str:
    """What became of one attempt to merge, in a line."""
    if record.merged:
        text = f"merged, case {record.case}"
        if record.both_answer == AV_MERGE_FAILED:
            text += "; not with both: their anon_vmas differ"
    else:
        text = (
            f"not merged; predecessor: {_obstacles(record.prev_obstacles)}, "
            f"successor: {_obstacles(record.next_obstacles)}"
        )
    if record.shared and not record.merged and (policy.update_pgoff or policy.merge_anon_vmas):
        text += f" ({record.shared})"
    return text


def _obstacles(bits: int) -> str:
    return " and ".join(obstacle_names(bits)) or "none"


def read_scenario(path: Path) -> Scenario:
    """The scenario in a JSON file: a list of events, or an object with `events` and, if wanted, `text`, `policies`.

    An event is an object with the fields of `Event`; numbers may be strings in hex, flags names joined by ``|``,
    and prot a string such as "rw". Raises ScenarioError.
    """
    try:
        with path.open("rb") as stream:
            text = stream.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise ScenarioError(f"{path} is larger than {_MOST_BYTES >> 20} MiB: a scenario is a few calls")
        data = json.loads(text.decode())
    except OSError as error:
        raise ScenarioError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ScenarioError(f"{path} is not JSON: {error}") from None
    listed = data.get("events") if isinstance(data, dict) else data
    if not isinstance(listed, list) or not listed:
        raise ScenarioError(f'{path} holds no events: write [{{"op": "mmap", "addr": "0x100000", ...}}, ...]')
    if len(listed) > _MOST_EVENTS:
        raise ScenarioError(
            f"{path} holds {count_text(len(listed), 'event')}, and {_MOST_EVENTS:,} are the most that can be drawn: "
            "record a program and replay it"
        )
    events = [_read_event(entry, f"{path}, event {number}") for number, entry in enumerate(listed)]
    extra = data if isinstance(data, dict) else {}
    policies = extra.get("policies", ("linux-5.17", "linux-5.17+series"))
    if not isinstance(policies, list | tuple) or not policies or not all(isinstance(name, str) for name in policies):
        raise ScenarioError(f'{path}: "policies" is no list of names')
    return Scenario(path.stem, str(extra.get("text", "")), events, policies)


def _read_event(entry: object, where: str) -> Event:
    if not isinstance(entry, dict) or entry.get("op") not in ev.OPERATIONS:
        raise ScenarioError(f'{where}: "op" must be one of {", ".join(ev.OPERATIONS)}')
    unknown = set(entry) - set(EVENT_FIELDS)
    if unknown:
        raise ScenarioError(f"{where}: unknown field {min(unknown)[:40]}; there are {', '.join(EVENT_FIELDS)}")
    values: dict[str, Any] = {}
    for name, value in entry.items():
        if name == "op":
            continue
        values[name] = value if name == "file" else _number(name, value, where)
    if not isinstance(values.get("file", ""), str):
        raise ScenarioError(f'{where}: "file" is no text')
    return Event(entry["op"], values.pop("pid", 1), **values)


def _number(field: str, value: object, where: str) -> int:
    number = _number_in(field, value)
    if number is None:
        raise ScenarioError(
            f'{where}: "{field}": {reprlib.repr(value)} is no number, such as 4096, "0x1000" or "MAP_PRIVATE|MAP_FIXED"'
        )
    least, most = _RANGES.get(field, _WORD)
    if not least <= number <= most:
        raise ScenarioError(f'{where}: "{field}": {reprlib.repr(number)} is not from {least} to {most:#x}')
    return number


def _number_in(field: str, value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        return None
    if field == "prot" and value and not set(value) - set("rwx-"):
        return sum(bit for letter, bit in (("r", 1), ("w", 2), ("x", 4)) if letter in value)
    try:
        return reduce(or_, (_flag(part.strip()) for part in value.split("|")))
    except ValueError:
        return None


def _flag(text: str) -> int:
    if text.startswith(_FLAG_PREFIXES):
        value = getattr(abi, text, None)
        if isinstance(value, int):
            return value
    return int(text, 0)
