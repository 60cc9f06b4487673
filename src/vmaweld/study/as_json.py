# SPDX-License-Identifier: GPL-2.0-or-later
"""An answer as plain data, for --json. The keys are told in docs/study.md and do not change their meaning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from vmaweld.study.answer import Answer, Losses, PolicyAnswer
from vmaweld.study.fidelity import Fidelity
from vmaweld.study.missed import CAUSES
from vmaweld.study.replay import Lane

SCHEMA: Final = 1
"""Raised when a key goes away or changes its meaning; new keys may come at any time."""


def percent(part: int, whole: int) -> float:
    """`part` of `whole` in percent to two digits, 0 where there is nothing."""
    return round(100 * part / whole, 2) if whole else 0.0


def _recording(answer: Answer) -> dict[str, Any]:
    metadata = answer.metadata
    return {
        "command": metadata.command,
        "exit_status": metadata.exit_status,
        "recorder": metadata.recorder,
        "kernel": metadata.kernel,
        "faults": metadata.faults,
        "interrupted": metadata.interrupted,
        "losses": metadata.losses,
        "notes": metadata.notes,
        "duration_seconds": round(metadata.duration / 1e9, 6),
        "max_map_count": metadata.max_map_count,
    }


def _divergences(divergences: Mapping[tuple[str, str], int]) -> list[dict[str, Any]]:
    return [{"call": call, "how": how, "count": count} for (call, how), count in divergences.items()]


def _policy(answer: Answer, number: int, policy: PolicyAnswer) -> dict[str, Any]:
    losses = answer.losses
    return {
        "name": policy.policy.name,
        "attempts": policy.attempts,
        "merges": policy.merges,
        "vmas_saved": policy.saved,
        "max_vmas": policy.peak,
        "max_vmas_pid": policy.peak_pid,
        "max_vmas_program": policy.peak_program,
        "over_limit": policy.over_limit,
        "recovered": losses.recovered[number],
        "recovered_percent": percent(losses.recovered[number], losses.missed),
        "left": {cause: losses.left[number][cause] for cause in CAUSES},
        "reasons": [
            {"cause": cause, "reason": reason, "count": count}
            for (cause, reason), count in answer.reasons[number].most_common()
        ],
        "divergences": _divergences(policy.divergences),
        "bad_faults": policy.bad_faults,
        "failed_calls": policy.failed_calls,
    }


def _losses(answer: Answer, losses: Losses) -> dict[str, Any]:
    names = [policy.policy.name for policy in answer.policies]
    series = answer.series
    return {
        "missed": losses.missed,
        "recovered": dict(zip(names[1:], losses.recovered[1:], strict=True)),
        "shared": None if series is None else losses.shared(series),
    }


def answer_data(answer: Answer) -> dict[str, Any]:
    """Everything an answer tells."""
    losses = answer.losses
    recovered = {
        key: None if number is None else losses.recovered[number]
        for key, number in (
            ("recovered_by_pgoff", answer.index_of(update_pgoff=True, merge_anon_vmas=False)),
            ("recovered_by_anon_vma", answer.index_of(update_pgoff=False, merge_anon_vmas=True)),
            ("recovered_by_series", answer.series),
        )
    }
    series = answer.series
    shared = None if series is None else losses.shared(series)
    return {
        "schema": SCHEMA,
        **_recording(answer),
        "processes": answer.pids,
        "events": answer.events,
        "base": answer.policies[0].policy.name,
        "missed": {
            "total": losses.missed,
            "page_offset": losses.by_obstacle["page_offset"],
            "anon_vma": losses.by_obstacle["anon_vma"],
            "both": losses.by_obstacle["both"],
            **recovered,
            "needs_both": None if series is None else answer.needs_both,
            "shared": shared,
            "shared_percent": None if shared is None else percent(shared, losses.missed),
            "passing": answer.passing,
            "file_offsets": answer.file_offsets,
        },
        "policies": [_policy(answer, number, policy) for number, policy in enumerate(answer.policies)],
        "calls": [
            {"call": call, **_losses(answer, losses)}
            for call, losses in sorted(answer.by_call.items(), key=lambda item: -item[1].missed)
        ],
        "programs": [
            {
                "pid": process.pid,
                "program": process.program,
                "events": process.events,
                **_losses(answer, process.losses),
                "merges": {p.policy.name: n for p, n in zip(answer.policies, process.merges, strict=True)},
                "max_vmas": {p.policy.name: n for p, n in zip(answer.policies, process.peak, strict=True)},
            }
            for process in answer.processes
        ],
    }


def lane_data(lane: Lane) -> dict[str, Any]:
    """How far a machine and the recording agree."""
    return {
        "divergences": _divergences(lane.divergences),
        "bad_faults": lane.bad_faults,
        "failed_calls": lane.failed_calls,
    }


def report_data(answer: Answer, trace: Path, html: Path) -> dict[str, Any]:
    """What `vmaweld report` wrote, and the numbers at its head."""
    data = answer_data(answer)
    kept = ("command", "exit_status", "processes", "events", "base", "missed")
    head = {"schema": SCHEMA, "trace": str(trace), "html": str(html), "bytes": html.stat().st_size}
    return head | {key: data[key] for key in kept}


def fidelity_data(fidelity: Fidelity, threshold: float) -> dict[str, Any]:
    """What `replay --check` found. threshold: the least share, from 0 to 1, that counts as a yes."""
    return {
        "schema": SCHEMA,
        "policy": fidelity.policy.name,
        "snapshots": fidelity.snapshots,
        "perfect_snapshots": fidelity.perfect,
        "hidden_snapshots": fidelity.hidden,
        "processes": len(fidelity.processes),
        "rows": fidelity.rows,
        "exact": fidelity.exact,
        "exact_percent": round(100 * fidelity.share, 4),
        "threshold_percent": round(100 * threshold, 4),
        "passed": fidelity.rows > 0 and fidelity.share >= threshold,
        **lane_data(fidelity.lane),
        "causes": dict(fidelity.causes),
        "inexact": [
            {
                "pid": row.pid,
                "program": row.program,
                "event": row.position,
                "snapshot": row.snapshot,
                "row": row.row,
                "cause": row.cause,
                "text": row.text,
            }
            for row in fidelity.inexact
        ],
    }
