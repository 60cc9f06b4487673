# SPDX-License-Identifier: GPL-2.0-or-later
"""A sample of what `make fuzz` runs: each reader on its corpus and on some thousands of inputs made of it at random."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
INPUTS = {"scenario": 3000, "strace": 3000, "perf": 3000, "trace": 1500}


def fuzz(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    paths = (before, os.environ.get("PYTHONPATH"), str(ROOT / "src"))
    path = os.pathsep.join(entry for entry in paths if entry)
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=1200,
    )


@pytest.mark.parametrize("reader", INPUTS)
def test_no_input_brings_a_reader_down(reader: str) -> None:
    done = fuzz(reader, "--plain", "--inputs", str(INPUTS[reader]))
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"{INPUTS[reader]:,} inputs" in done.stdout
    assert "0 kinds of failure" in done.stdout


def test_a_failure_would_be_told_and_kept(tmp_path: Path) -> None:
    broken = tmp_path / "sitecustomize.py"
    broken.write_text("import json\ndef loads(text):\n    raise KeyError(text)\njson.loads = loads\n")
    kept = tmp_path / "kept"
    done = fuzz("scenario", "--plain", "--inputs", "20", "--findings", str(kept), before=str(tmp_path))
    assert done.returncode == 1, done.stderr
    assert "found: KeyError at sitecustomize.py:3" in done.stderr
    assert "1 kinds of failure" in done.stdout
    assert len(list(kept.iterdir())) == 1
