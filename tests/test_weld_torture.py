# SPDX-License-Identifier: GPL-2.0-or-later
"""Two minutes of `make weld-torture`: real programs that check their data, welded while welders are killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torture.running as running_module
from conftest import require
from torture.harness import OVERTIME
from torture.programs import PROGRAMS, Program
from torture.running import Running, has_workshop, name_of
from torture.table import Result, table
from weld_support import TIMEOUT, require_other

ROOT = Path(__file__).parent.parent
MINUTES = 2
_COMMAND = (sys.executable, "-m", "tests.torture")


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.mark.live
def test_real_programs_for_two_minutes(tmp_path: Path) -> None:
    require_other()
    lacking = {package for program in PROGRAMS if program.sample for package in program.missing()}
    require(not lacking, f"apt install {' '.join(sorted(lacking))}")
    done = subprocess.run(
        [*_COMMAND, "--sample", f"--minutes={MINUTES}", f"--evidence={tmp_path}"],
        cwd=ROOT,
        env=_environment(),
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=MINUTES * 60 + 2 * OVERTIME,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout


@pytest.mark.live
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_a_run_that_is_ended(number: signal.Signals, tmp_path: Path) -> None:
    require_other()
    run = subprocess.Popen(
        [*_COMMAND, "--programs=python-multiprocessing,redis", "--minutes=5", f"--evidence={tmp_path}"],
        cwd=ROOT,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        end = time.monotonic() + 3 * TIMEOUT
        started: list[psutil.Process] = []
        while not {"redis-server", "redis-benchmark"} <= {name_of(process) for process in started}:
            assert time.monotonic() < end
            assert run.poll() is None
            time.sleep(0.1)
            started = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(number)
        said, _ = run.communicate(timeout=3 * TIMEOUT)
        assert run.returncode == (130 if number == signal.SIGINT else -number), said
        assert "Traceback" not in said
        _, left = psutil.wait_procs(started, timeout=TIMEOUT)
        assert not left
    finally:
        run.kill()
        run.wait(TIMEOUT)


def test_twenty_programs_are_known_and_eight_in_the_sample() -> None:
    names = [program.name for program in PROGRAMS]
    assert len(names) == len(set(names)) >= 25
    assert sum(program.sample for program in PROGRAMS) >= 8


@contextmanager
def running(run: str, folder: Path) -> Iterator[Running]:
    """A program whose shell command is `run`."""
    program = Running(Program("test", f"{run}; sleep 600"), folder, "turn")
    try:
        yield program
    finally:
        with suppress(ProcessLookupError):
            os.killpg(program.process.pid, signal.SIGKILL)
        program.process.wait(TIMEOUT)


@pytest.mark.parametrize(
    ("run", "fault"),
    [
        ("echo ok 1; echo bad: word 3 differs", "bad: word 3 differs"),
        ("echo ok 1; kill -SEGV $$", "it has ended, status -11"),
        ("echo ok 1; echo why; exit 4", "it has ended, status 4: why"),
    ],
)
def test_a_fault_of_a_program_is_seen(run: str, fault: str, tmp_path: Path) -> None:
    with running(run, tmp_path) as program:
        assert not program.await_beats(2)
        assert program.beats == 1
        assert program.fault().startswith(fault)


def test_a_silent_program_is_seen_and_a_starved_one_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_module, "STALL", 1.0)
    with running("echo ok 1", tmp_path) as program:
        assert program.await_beats(1)
        assert not program.await_beats(1)
        assert program.fault() == ""
    monkeypatch.setattr(running_module, "_work", lambda _process: 0.0)  # it never gets a processor
    with running("echo ok 1; seq 2000000 | tail -1; echo ok 2", tmp_path) as program:
        assert program.await_beats(2)


def test_what_a_weld_leaves_is_seen(tmp_path: Path) -> None:
    left = (
        f"exec {sys.executable} -c '\n"
        "import mmap, os, time\n"
        'fd = os.memfd_create("vmaweld-test")\n'
        "os.truncate(fd, 4096)\n"
        "area = mmap.mmap(fd, 4096)\n"
        'print("ok", flush=True)\n'
        "time.sleep(600)'"
    )
    with running(left, tmp_path) as program:
        assert program.await_beats(1)
        pid = program.process.pid
        assert has_workshop(pid)
        program.process.send_signal(signal.SIGSTOP)
        found = program.left_behind()
        assert f"thread {pid} of process {pid} is stopped (T)" in found
        assert any("maps" in trace for trace in found)
        assert any("descriptor" in trace for trace in found)
    with running("echo ok", tmp_path) as program:
        assert program.await_beats(1)
        assert program.left_behind() == []


def test_the_table_adds_up() -> None:
    first = Result("a", turns=1, welds=3, seams=1200, closed=1100)
    first.reasons["no"] += 1
    first.add(Result("a", turns=1, welds=2, seams=1, closed=1, anomalies=["it has ended"]))
    lines = table([first]).splitlines()
    assert lines[2] == "| a | 2 | 0 | 5 | 1,201 | 1,101 | 0 | 0 | 0 | 0 | 1 |"
    assert lines[3] == lines[2].replace("| a |", "| all together |")
    assert lines[-1].split() == ["1", "x", "no"]
    assert Result.from_json(first.as_json()) == first
