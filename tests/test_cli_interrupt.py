# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C: every command ends with status 130 and one line, and says what was done and where to go on."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from cli_support import TIMEOUT, command, interrupted, waiting_in
from conftest import require
from study_support import write_trace
from weld_support import Target, require_other, vmas

from vmaweld.study.scenarios import SCENARIOS
from vmaweld.trace.recorders import perf, strace
from vmaweld.trace.store import open_trace

INTERRUPTED = 130
WORKS = {"perf": perf.PerfRecorder.available(), "strace": strace.StraceRecorder.available()}
CONVERTING = {
    "perf": "vmaweld.trace.recorders.perf:PerfRecorder.convert",
    "strace": "vmaweld.trace.recorders.strace:StraceRecorder.convert",
}
RUNNING = {
    "replay": (("replay", "run.trace"), "vmaweld.cli.replaying:replay"),
    "replay --check": (("replay", "run.trace", "--check"), "vmaweld.cli.replay_command:check"),
    "replay --jobs": (("replay", "run.trace", "--jobs", "2"), "vmaweld.cli.replay_command:replay_many"),
    "report": (("report", "run.trace"), "vmaweld.cli.replaying:replay"),
    "study": (("study", "--sample", "growing-buffers"), "vmaweld.cli.replaying:replay"),
    "inspect": (("inspect", os.getpid(), "--html", "page.html"), "vmaweld.cli.inspect_command:inspect_process"),
    "inspect --watch": (("inspect", os.getpid(), "--watch", "9"), "vmaweld.cli.inspect_command:inspect_process"),
    "inspect --all": (("inspect", "--all"), "vmaweld.inspect.census:Census.take"),
    "weld": (("weld", os.getpid()), "vmaweld.welding.remote:survey"),
    "verify": (("verify", "--program", "3"), "vmaweld.verify.run:run_one"),
    "verify, before it begins": (("verify",), "vmaweld.verify.run:make_bench"),
    "explain": (("explain", "mremap-back"), "vmaweld.cli.explain_command:explain"),
    "doctor": (("doctor",), "vmaweld.doctor:examine"),
    "record, before it begins": (("record", "true"), "vmaweld.trace.recording:choose"),
}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write_trace(tmp_path / "run.trace", SCENARIOS["mremap-back"].events)


@pytest.mark.live
@pytest.mark.parametrize("name", RUNNING)
def test_every_command_says_so_with_the_status_of_an_interrupt(name: str, trace: Path, tmp_path: Path) -> None:
    arguments, place = RUNNING[name]
    status, stdout, stderr = interrupted(*arguments, cwd=tmp_path, first=waiting_in(place))
    assert status == INTERRUPTED, stderr
    assert stdout == ""
    assert re.fullmatch(r"vmaweld: interrupted(: there is no trace)?\n", stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["run.trace"]


def test_an_interrupted_replay_leaves_no_process_behind(tmp_path: Path) -> None:
    """Only the command itself gets the signal, as `kill -INT` and `timeout` send it; its workers are in the middle."""
    write_trace(tmp_path / "run.trace", SCENARIOS["mremap-back"].events)
    first = (
        "import sys, vmaweld.study.many as many\n"
        "pool = many.ProcessPoolExecutor\n"
        "class Pool(pool):\n"
        "    def submit(self, function, *arguments):\n"
        "        import time\n"
        "        return super().submit(time.sleep, 100)\n"
        "many.ProcessPoolExecutor = Pool\n"
        "def completed(futures):\n"
        "    from multiprocessing import active_children\n"
        "    print(*(child.pid for child in active_children()), file=sys.stderr)\n"
        "    print('waiting', file=sys.stderr, flush=True)\n"
        "    for future in futures: future.result()\n"
        "many.as_completed = completed\n"
    )
    with subprocess.Popen(
        command("replay", "run.trace", "run.trace", "--jobs", "2", first=first),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        workers = [int(word) for word in process.stderr.readline().split()]
        assert len(workers) >= 1
        assert process.stderr.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=TIMEOUT / 2)  # not the 100 s of the work
    assert (process.returncode, stderr) == (INTERRUPTED, "vmaweld: interrupted\n")
    for worker in workers:
        assert not Path(f"/proc/{worker}").exists()


# verify

AT_SEED_8 = (
    "import sys, time, vmaweld.verify.run as run\n"
    "run.SEED_EVENTS = 60\n"
    "make = run.ProgramMaker.make\n"
    "def wait(self, program, length):\n"
    "    if program >> 20 == 8:\n"
    "        print('waiting', file=sys.stderr, flush=True)\n"
    "        time.sleep(100)\n"
    "    return make(self, program, length)\n"
    "run.ProgramMaker.make = wait\n"
)


@pytest.mark.live
def test_verify_says_where_to_go_on(tmp_path: Path) -> None:
    status, stdout, stderr = interrupted("verify", "--seed", "5", cwd=tmp_path, first=AT_SEED_8)
    assert (status, stderr) == (INTERRUPTED, "")
    first, second = stdout.splitlines()
    assert re.fullmatch(r"Interrupted\. linux-\S+ against \S+: [\d,]+ events in 6 programs\.", first)
    assert re.fullmatch(r"No difference by then, .*\. Go on with --seed 8\.", second)
    status, stdout, stderr = interrupted("verify", "--seed", "5", "--json", cwd=tmp_path, first=AT_SEED_8)
    assert (status, stderr) == (INTERRUPTED, "")
    outcome = json.loads(stdout)
    assert (outcome["interrupted"], outcome["next_seed"], outcome["difference"]) == (True, 8, None)


@pytest.mark.live
def test_verify_tells_the_difference_that_it_was_shrinking(tmp_path: Path) -> None:
    arguments = ("verify", "--policy", "linux-5.10")
    status, stdout, stderr = interrupted(*arguments, cwd=tmp_path, first=waiting_in("vmaweld.verify.run:shrunk"))
    assert (status, stderr) == (INTERRUPTED, "")
    assert "Model and kernel differ (program " in stdout
    assert "Interrupted while shrinking it" in stdout


# record and study


@pytest.mark.live
@pytest.mark.parametrize("recorder", WORKS)
def test_a_second_ctrl_c_says_what_became_of_the_trace(recorder: str, tmp_path: Path) -> None:
    require(*WORKS[recorder])
    first = waiting_in(CONVERTING[recorder])
    arguments = ("record", "--recorder", recorder, "-o", "run.trace", "--", "true")
    status, stdout, stderr = interrupted(*arguments, cwd=tmp_path, first=first)
    assert (status, stdout) == (INTERRUPTED, "")
    assert stderr == "vmaweld: interrupted: run.trace holds what had been read by then\n"
    assert open_trace(tmp_path / "run.trace").metadata.interrupted
    before = (tmp_path / "run.trace").read_bytes()
    status, stdout, stderr = interrupted(*arguments, cwd=tmp_path, first=first)
    assert (status, stderr) == (INTERRUPTED, "vmaweld: interrupted: run.trace is what it was before\n")
    assert (tmp_path / "run.trace").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run.trace"]


@pytest.mark.live
@pytest.mark.parametrize("recorder", WORKS)
def test_a_study_names_no_file_that_is_gone(recorder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(*WORKS[recorder])
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    arguments = ("study", "--recorder", recorder, "--", "true")
    status, stdout, stderr = interrupted(*arguments, cwd=tmp_path, first=waiting_in(CONVERTING[recorder]))
    assert (status, stdout) == (INTERRUPTED, "")
    assert stderr == "vmaweld: interrupted: nothing is kept (-o FILE would keep the trace)\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.live
def test_a_study_that_has_recorded_names_the_recording(tmp_path: Path) -> None:
    require(WORKS["perf"][0] or WORKS["strace"][0], "no recorder works here")
    first = waiting_in("vmaweld.cli.replaying:replay")
    status, _, stderr = interrupted("study", "-o", "run.trace", "--", "true", cwd=tmp_path, first=first)
    assert status == INTERRUPTED
    assert stderr == "vmaweld: interrupted: run.trace holds the whole recording, for `vmaweld replay run.trace`\n"
    assert not open_trace(tmp_path / "run.trace").metadata.interrupted


# weld


def _welding(when: str) -> str:
    """Code that interrupts the command when its child has welded, before ("standstill") or after ("end") its end."""
    return (
        "import os, signal, sys, time\n"
        "from vmaweld.welding import remote\n"
        "weld = remote.weld\n"
        "def welded(*arguments, **options):\n"
        "    report = weld(*arguments, **options)\n"
        f"    if {when!r} == 'end': signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "    os.kill(os.getppid(), signal.SIGINT)\n"
        f"    time.sleep({0 if when == 'end' else 60})\n"
        "    return report\n"
        "remote.weld = welded\n"
    )


@pytest.mark.live
@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("when", ["standstill", "end"])
def test_an_interrupted_weld_says_what_was_done(when: str, as_json: bool, tmp_path: Path) -> None:
    require_other()
    with Target() as target:
        start, end = target.build(5, 3)
        area = ("--range", f"{start:x}-{end:x}")
        done = subprocess.run(
            command("weld", "--yes", *(("--json",) if as_json else ()), *area, target.pid, first=_welding(when)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert done.returncode == INTERRUPTED, done.stderr
        assert vmas(target.pid, start, end) == 1
        target.check()
        if as_json:
            answer = json.loads(done.stdout)
            assert answer["seams"] == {"before": 4, "closed": 4, "left": 0}
            assert answer.get("interrupted", False) == (when == "standstill")
        elif when == "end":
            assert "closed 4 seams" in done.stdout
        if when == "end":
            assert done.stderr == "vmaweld: interrupted, but the weld was done by then\n"
        elif not as_json:
            assert re.fullmatch(
                r"vmaweld: interrupted: \d+ -> \d+ VMAs, 0 seams of 4 can still be welded\n", done.stderr
            )
