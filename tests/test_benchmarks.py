# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmarks run, and compare what is the same: model and kernel end with equally many VMAs, or they say so."""

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from conftest import require
from weld_support import require_other

from vmaweld import build

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / arguments[0]), *arguments[1:]], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.live
def test_every_workload_ends_alike_on_model_and_kernel() -> None:
    require(shutil.which("cc") is not None, "no C compiler")
    results = json.loads(run("model.py", "--rounds", "1", "--json"))
    assert {"mmap+munmap", "mprotect", "fork and copy"} <= set(results)
    assert all({"kernel", "pure Python"} <= set(times) and min(times.values()) > 0 for times in results.values())


def test_growth_measures_each_thing() -> None:
    for name, size in (("vmas", 50), ("processes", 20), ("touched", 1 << 20)):
        told, value = json.loads(run("growth.py", "--measure", name, str(size)))
        assert told == build.describe()
        assert value > 0


def test_a_tebibyte_forked_ten_times_is_little() -> None:
    _, value = json.loads(run("growth.py", "--measure", "tebibyte", "0"))
    assert value["growth"] < 50e6


def test_memory_does_not_grow_with_the_trace(tmp_path: Path) -> None:
    """Ten times the events may take a little more for what they leave behind, not ten times the memory."""
    peaks = []
    for events in (40_000, 400_000):
        path = tmp_path / f"{events}.trace"
        run("stream.py", "--write", str(path), str(events))
        done = json.loads(run("stream.py", "--read", str(path)))
        assert done["events"] == events
        peaks.append(done["replay peak"])
    assert peaks[1] < 2 * peaks[0]


def test_a_chart_is_well_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from charts import Chart, Series

    drawn = Chart("a < b", "x & y", "y", [Series("one", [(1, 2), (1000, 30)])], "{:,.0f}".format).svg(scale=1e-3)
    root = ElementTree.fromstring(drawn)
    labels = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "x & y", "1", "1,000", "one"} <= set(labels)


@pytest.mark.live
def test_pauses_are_measured_for_each_wish() -> None:
    require_other()
    require(shutil.which("cc") is not None, "no C compiler")
    lines = json.loads(run("pauses.py", "--fragments", "300", "--json"))
    assert [line["wish"] for line in lines][:2] == ["all at once", "--max-pause 5"]
    assert lines[0]["slices"] == 1
    assert all(0 < line["median"] <= line["longest"] <= line["total"] for line in lines)
