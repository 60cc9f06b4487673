# SPDX-License-Identifier: GPL-2.0-or-later
"""Replaying many traces, or one under many policies, on all processors; the result is that of one after the other.

A task is a trace with some of the policies, the base always among them, since the others are held against it. Tasks
run in processes of their own and answer with plain data (`as_json.answer_data`), which is put together by name: neither
the number of processes nor the order in which they finish shows in it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import chain
from multiprocessing import active_children, get_context
from typing import Any, Final

from vmaweld.policy import Policy, parse_policy
from vmaweld.study.as_json import answer_data
from vmaweld.study.tally import replay
from vmaweld.trace.store import open_trace

_TOGETHER: Final = 4
"""Policies of one task: the base and three others. Below that, reading the trace costs more than it gains."""


def processors() -> int:
    """How many processes can run at once here."""
    return len(os.sched_getaffinity(0))


def policy_groups(policies: Sequence[Policy]) -> list[list[str]]:
    """The names of `policies` in groups, each led by the base.

    The first policies with patch 2 alone, patch 3 alone and both stay in one group: `needs_both` compares them.
    """
    base, *others = policies
    patches = [(policy.update_pgoff, policy.merge_anon_vmas) for policy in others]
    series = [patches.index(patch) for patch in ((True, False), (False, True), (True, True)) if patch in patches]
    rest = [number for number in range(len(others)) if number not in series]
    queue = [others[number].name for number in (*sorted(series), *rest)]
    size = _TOGETHER - 1
    return [[base.name, *queue[at : at + size]] for at in range(0, len(queue), size)] or [[base.name]]


def replay_many(
    paths: Sequence[str],
    policies: Sequence[Policy],
    *,
    jobs: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """What `answer_data` tells of each trace under all `policies`, in the order of `paths`.

    jobs: processes at work at once.      progress: called with (tasks done, tasks in all).
    Raises TraceError for the first trace that cannot be read.
    """
    groups = policy_groups(policies)
    tasks = [(path, group) for path in paths for group in groups]
    # Not forked: the reader of Parquet has threads, which a fork would cut off.
    pool = ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=get_context("spawn"), initializer=_worker)
    try:
        futures = [pool.submit(_replay, path, group) for path, group in tasks]
        for done, _ in enumerate(as_completed(futures), 1):
            progress(done, len(tasks))
        parts = [future.result() for future in futures]
    except BaseException:
        for worker in active_children():  # whoever was interrupted does not wait for long replays
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    names = [policy.name for policy in policies]
    return [_joined(parts[at : at + len(groups)], names) for at in range(0, len(parts), len(groups))]


def _worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: who started us says so, once


def _replay(path: str, names: list[str]) -> dict[str, Any]:
    with open_trace(path) as trace:
        return answer_data(replay(trace, [parse_policy(name) for name in names]))


def _joined(parts: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """The answers of all groups of one trace as the one answer under all policies."""
    joined = dict(parts[0])
    joined["missed"] = _known(part["missed"] for part in parts)
    policies = {policy["name"]: policy for part in parts for policy in part["policies"]}
    joined["policies"] = [policies[name] for name in names]
    for key in ("calls", "programs"):
        joined[key] = [_known(entries) for entries in zip(*(part[key] for part in parts), strict=True)]
        for entry in joined[key]:
            for kind in ("recovered", "merges", "max_vmas"):
                if kind in entry:
                    entry[kind] = {name: entry[kind][name] for name in names if name in entry[kind]}
    return joined


def _known(entries: Any) -> dict[str, Any]:
    """The same object as told by several groups: what one leaves open (None) another knows; by policy, all of them."""
    joined: dict[str, Any] = {}
    for key, value in chain.from_iterable(entry.items() for entry in entries):
        if isinstance(value, dict):
            joined[key] = {**joined.get(key, {}), **value}
        elif joined.get(key) is None:
            joined[key] = value
    return joined
