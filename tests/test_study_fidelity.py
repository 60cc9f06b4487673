# SPDX-License-Identifier: GPL-2.0-or-later
"""Fidelity: a true snapshot that the model agrees with, and one difference of each kind."""

from collections.abc import Callable
from pathlib import Path

import pytest
from study_support import write_trace

from vmaweld import comparison
from vmaweld.abi import VM_DONTDUMP, VM_SOFTDIRTY
from vmaweld.events import Event
from vmaweld.model.system import System
from vmaweld.policy import parse_policy
from vmaweld.snapshot import Row, Snapshot
from vmaweld.study import fidelity
from vmaweld.study.fidelity import Fidelity, check
from vmaweld.study.scenarios import SCENARIOS
from vmaweld.trace.store import open_trace

EVENTS = [
    *SCENARIOS["mremap-back"].events,
    Event("mmap", 1, addr=0x200000, length=8192, prot=1, flags=0x12, file="/lib/x.so", pgoff=3),
    Event("fork", 1, child=2),
]


def true_rows(pid: int = 1, source: str = "linux-6.18") -> list[Row]:
    """What a kernel that is the model would show, anon_vmas under other names."""
    system = System(parse_policy(source))
    for event in EVENTS:
        system.apply(event)
    rows = list(system.snapshot(pid).rows)
    for row in rows:
        row.anon_vma = row.anon_vma and 0xFFFF_8880_0000_0000 + 64 * row.anon_vma
    return rows


def check_rows(rows: list[Row], path: Path, *, pid: int = 1, exact: bool = True) -> Fidelity:
    snapshot = Snapshot(pid, rows, source="bpf" if exact else "procfs", flags_exact=exact, hidden=exact)
    with open_trace(write_trace(path / "x.trace", [*EVENTS, snapshot])) as trace:
        return check(trace)


@pytest.mark.parametrize("pid", [1, 2])
def test_a_snapshot_of_the_model_itself_is_exact(pid: int, tmp_path: Path) -> None:
    found = check_rows(true_rows(pid), tmp_path, pid=pid)
    assert (found.policy.name, found.rows, found.exact, found.share) == ("linux-6.18.0", 3, 3, 1.0)
    assert (found.snapshots, found.perfect, found.hidden) == (1, 1, 1)
    assert not found.inexact


def _other_start(rows: list[Row]) -> None:
    rows[0].start += 4096


def _other_flags(rows: list[Row]) -> None:
    rows[0].flags |= VM_DONTDUMP


def _other_offset(rows: list[Row]) -> None:
    rows[1].pgoff = 0x104


def _no_file(rows: list[Row]) -> None:
    rows[2].file = ""


def _not_faulted(rows: list[Row]) -> None:
    rows[0].anon_vma = 0


def _other_chain(rows: list[Row]) -> None:
    rows[0].chain = 3


def _same_owner(rows: list[Row]) -> None:
    rows[1].anon_vma = rows[0].anon_vma


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (_other_start, fidelity.LAYOUT),
        (_other_flags, comparison.FLAGS),
        (_other_offset, comparison.OFFSET),
        (_no_file, comparison.FILE),
        (_not_faulted, comparison.FAULTED),
        (_other_chain, comparison.CHAIN),
        (_same_owner, fidelity.OWNER),
    ],
)
def test_each_difference_is_told_by_its_cause(change: Callable[[list[Row]], None], cause: str, tmp_path: Path) -> None:
    rows = true_rows()
    change(rows)
    found = check_rows(rows, tmp_path)
    assert (found.rows, found.exact) == (3, 2)
    assert list(found.causes) == [cause]
    assert found.inexact[0].position == len(EVENTS)


def test_soft_dirty_is_not_compared(tmp_path: Path) -> None:
    rows = true_rows()
    rows[0].flags |= VM_SOFTDIRTY
    assert check_rows(rows, tmp_path).share == 1.0


def test_what_procfs_does_not_show_is_not_compared(tmp_path: Path) -> None:
    rows = true_rows()
    for row in rows:
        row.flags &= 0x87
        row.anon_vma = row.chain = None
        row.pgoff = row.pgoff if row.file else None
    assert check_rows(rows, tmp_path, exact=False).share == 1.0


def test_a_row_that_only_the_model_has_counts(tmp_path: Path) -> None:
    found = check_rows(true_rows()[:2], tmp_path)
    assert (found.rows, found.exact) == (3, 2)
    assert found.inexact[0].text == "only in the model"


def test_a_process_that_the_model_does_not_know_counts(tmp_path: Path) -> None:
    found = check_rows(true_rows(), tmp_path, pid=77)
    assert (found.rows, found.exact) == (3, 0)
    assert list(found.causes) == [fidelity.PROCESS]


def test_a_trace_without_snapshots_proves_nothing(tmp_path: Path) -> None:
    with open_trace(write_trace(tmp_path / "x.trace", EVENTS)) as trace:
        assert check(trace).rows == 0
