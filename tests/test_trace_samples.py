# SPDX-License-Identifier: GPL-2.0-or-later
"""The samples that come with the package are there, small, whole and free of whoever recorded them."""

import re
from collections import Counter
from pathlib import Path

import duckdb
import pytest

from vmaweld.abi import CLONE_VM
from vmaweld.trace import samples
from vmaweld.trace.samples import open_sample, sample_names
from vmaweld.trace.store import TraceError

NAMES = ["forking-workers", "growing-buffers", "small-compile"]


def test_all_are_there_and_small() -> None:
    assert sample_names() == NAMES
    directory = Path(samples.__file__).parent / "sample_traces"
    assert sum(path.stat().st_size for path in directory.iterdir()) <= 2 << 20


@pytest.mark.parametrize("name", NAMES)
def test_each_is_whole(name: str) -> None:
    with open_sample(name) as trace:
        assert trace.metadata.recorder == "perf"
        assert trace.metadata.losses == {}
        assert trace.metadata.exit_status == 0
        events = list(trace.events())
        assert len(events) == len(trace) > 1000
        assert events[0].op == "exec"
        assert len(list(trace.snapshots())) == trace.metadata.snapshots >= 2
        for event in events:
            assert not event.file.startswith(("/home", "/root", "/work"))


def test_they_show_what_their_names_say() -> None:
    counts = {name: Counter(event.op for event in open_sample(name).events()) for name in NAMES}
    assert counts["growing-buffers"]["mremap"] > 500
    assert counts["forking-workers"]["fork"] == 4
    assert counts["small-compile"]["exec"] > 10
    forks = [event for event in open_sample("forking-workers").events() if event.op == "fork"]
    assert not any(event.flags & CLONE_VM for event in forks)


def test_an_unknown_sample_names_those_there_are() -> None:
    with pytest.raises(TraceError, match="choose forking-workers, growing-buffers, small-compile"):
        open_sample("nothing")


def test_the_documented_sql_works_on_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very lines of docs/trace-file.md, on a file of the very name that `vmaweld record -- make` gives."""
    documented = (Path(__file__).parents[1] / "docs" / "trace-file.md").read_text()
    statements = re.findall(r"```sql\n(.*?)```", documented, re.DOTALL)
    assert statements
    sample = Path(samples.__file__).parent / "sample_traces" / "growing-buffers.trace"
    (tmp_path / "make.trace").write_bytes(sample.read_bytes())
    monkeypatch.chdir(tmp_path)
    with open_sample("growing-buffers") as trace:
        moved = [e for e in trace.events() if e.op == "mremap" and (e.result or 0) > 0 and e.result != e.addr]
    for statement in statements:
        assert duckdb.execute(statement).fetchall() == [(moved[0].pid, len(moved), sum(e.length for e in moved))]
