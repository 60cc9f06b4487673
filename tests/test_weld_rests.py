# SPDX-License-Identifier: GPL-2.0-or-later
"""A weld in slices rests between them, and the process runs: nothing known before a rest is believed after it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import require
from test_weld_killed import wait_gone
from test_weld_remote import clean
from weld_races import A_PIECE, FIXED_ADDRESSES, SLICES, TARGET, exec_between_slices, told_ok, two_welders
from weld_support import TIMEOUT, Target, no_allowance, open_seams, require_other

from vmaweld.kernel.errors import ProcessGone
from vmaweld.welding import Refused, remote
from vmaweld.welding.errors import Busy
from vmaweld.welding.pace import Pace
from vmaweld.welding.report import Report

pytestmark = pytest.mark.live


def workshop(pid: int) -> tuple[int, int]:
    """(address, length) of a welder's memory in `pid`."""
    found = re.findall(r"^(\w+)-(\w+) .*/memfd:vmaweld-weld", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE)
    start, end = int(found[0][0], 16), int(found[-1][1], 16)
    return start, end - start


@pytest.fixture(autouse=True)
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several slices, even on a machine that is busy."""
    monkeypatch.setattr(Pace, "budget", no_allowance)
    monkeypatch.setattr("vmaweld.welding.pace._A_PIECE", A_PIECE)


class InTheFirstRest:
    """A progress callback that calls `action` once, in the first rest."""

    def __init__(self, action) -> None:  # type: ignore[no-untyped-def]
        self.action = action
        self.calls = 0

    def __call__(self, _report: Report) -> None:
        self.calls += 1
        if self.calls == 1:
            self.action()


def weld_in_slices(target: Target, action, count: int = 120) -> Report:  # type: ignore[no-untyped-def]
    """Weld `count` fragments of `target`, `action` being called in the first rest."""
    start, end = target.build(count, 2)
    rest = InTheFirstRest(action)
    report = remote.weld(target.pid, remote.Options(max_pause=SLICES, low=start, high=end), progress=rest)
    assert rest.calls > 1
    assert open_seams(target.pid, start, end) == 0
    return report


def test_a_second_welder_is_refused_and_takes_nothing_away() -> None:
    require_other()
    with Target(program=TARGET) as target:

        def second() -> None:
            before = workshop(target.pid)
            stopped = len(Path(f"/proc/{target.pid}/maps").read_text())
            with pytest.raises(Refused, match=r"is being welded already, by another vmaweld or by itself"):
                remote.weld(target.pid)
            assert workshop(target.pid) == before
            assert len(Path(f"/proc/{target.pid}/maps").read_text()) == stopped

        weld_in_slices(target, second)
        told_ok(target)
        assert clean(target.pid)


def test_the_command_says_so_in_one_line() -> None:
    require_other()
    with Target(program=TARGET) as target:

        def second() -> None:
            command = [sys.executable, "-m", "vmaweld", "weld", "--yes", str(target.pid)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
            assert done.returncode == 3
            assert "is being welded already" in done.stderr
            assert done.stderr.count("\n") == 1

        weld_in_slices(target, second)
        told_ok(target)


def test_a_second_welder_in_another_pid_namespace_is_refused() -> None:
    """The process is in a container; one welder is outside, the other inside: each knows it by another number."""
    require_other()
    require(shutil.which("unshare") is not None and shutil.which("nsenter") is not None, "util-linux is needed")
    with Target(program=TARGET, through=("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")) as target:
        children = Path(f"/proc/{target.pid}/task/{target.pid}/children").read_text().split()
        inside = int(children[0])
        script = (
            "from vmaweld.welding import Refused, remote\n"
            "try:\n    remote.weld(1)\n"
            "except Refused as error:\n    print(error)\n"
        )

        def second() -> None:
            command = ["nsenter", "-t", str(inside), "-p", "-m", "-n", sys.executable, "-c", script]
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
            assert "process 1 is being welded already" in done.stdout, done

        start, end = target.build(120, 2)
        rest = InTheFirstRest(second)
        remote.weld(inside, remote.Options(max_pause=SLICES, low=start, high=end), progress=rest)
        assert rest.calls > 1
        told_ok(target)


def test_the_lock_ends_with_its_welder() -> None:
    require_other()
    with Target(program=TARGET) as target:
        target.build(120, 2)
        ends = os.pipe()
        welder = os.fork()
        if welder == 0:
            remote.weld(
                target.pid,
                remote.Options(max_pause=SLICES),
                progress=InTheFirstRest(lambda: os.write(ends[1], b".")),
            )
            os._exit(0)
        os.read(ends[0], 1)
        os.kill(welder, signal.SIGKILL)
        os.waitpid(welder, 0)
        for end in ends:
            os.close(end)
        time.sleep(0.2)
        report = remote.weld(target.pid)
        assert "removed what an interrupted weld had left" in report.repaired or not report.repaired
        told_ok(target)
        assert clean(target.pid)


@pytest.mark.parametrize("through", [(), FIXED_ADDRESSES], ids=["random", "fixed"])
def test_exec_in_a_rest(through: tuple[str, ...]) -> None:
    """The new image is not touched, wherever its memory lies."""
    require_other()
    with Target(program=TARGET, through=through) as target:
        for _ in range(4):

            def execute() -> None:
                target.tell("exec")
                target.expect("ready")

            start, end = target.build(120, 2)
            options = remote.Options(max_pause=SLICES, low=start, high=end)
            with pytest.raises(ProcessGone, match="has executed another program during the weld"):
                remote.weld(target.pid, options, progress=InTheFirstRest(execute))
            target.build(20, 2)
            told_ok(target)
            assert clean(target.pid)


@pytest.mark.parametrize("pages", [1, 2, 4096], ids=["code", "code and journal", "all"])
def test_other_memory_where_the_workshop_was(pages: int) -> None:
    """The process has mapped something else there: that stays, whole."""
    require_other()
    with Target(program=TARGET) as target:

        def replace() -> None:
            target.tell(f"replace {workshop(target.pid)[0]:x} {pages << 12}")
            target.expect("replaced")

        start, end = target.build(120, 2)
        options = remote.Options(max_pause=SLICES, low=start, high=end)
        with pytest.raises(ProcessGone, match="unmapped what the weld had mapped"):
            remote.weld(target.pid, options, progress=InTheFirstRest(replace))
        told_ok(target)


def test_a_file_of_the_same_name_at_the_same_place_is_not_ours() -> None:
    require_other()
    with Target(program=TARGET) as target:
        start, end = target.build(120, 2)
        options = remote.Options(max_pause=SLICES, low=start, high=end)

        def replace() -> None:
            target.tell(f"imitate {workshop(target.pid)[0]:x} {workshop(target.pid)[1]}")
            target.expect("imitated")

        with pytest.raises(ProcessGone, match="unmapped what the weld had mapped"):
            remote.weld(target.pid, options, progress=InTheFirstRest(replace))
        told_ok(target)
        report = remote.weld(target.pid)
        assert report.repaired == ""
        told_ok(target)


def test_children_born_in_a_rest_have_nothing_of_it() -> None:
    require_other()
    with Target(program=TARGET) as target:

        def fork() -> None:
            target.tell("fork")
            child = int(target.expect("child"))
            try:
                assert "memfd:vmaweld" not in Path(f"/proc/{child}/maps").read_text()
            finally:
                os.kill(child, signal.SIGKILL)

        start, end = target.build(120, 2)
        options = remote.Options(max_pause=SLICES, low=start, high=end, unshare=True)
        remote.weld(target.pid, options, progress=InTheFirstRest(fork))
        told_ok(target)


def test_interrupted_in_a_rest_after_exec() -> None:
    """The way out, too, takes nothing away that is not proved to be ours."""
    require_other()

    with Target(program=TARGET, through=FIXED_ADDRESSES) as target:

        def execute() -> None:
            target.tell("exec")
            target.expect("ready")
            raise KeyboardInterrupt

        start, end = target.build(120, 2)
        options = remote.Options(max_pause=SLICES, low=start, high=end)
        with pytest.raises(KeyboardInterrupt):
            remote.weld(target.pid, options, progress=InTheFirstRest(execute))
        target.build(20, 2)
        told_ok(target)
        assert clean(target.pid)


def test_a_process_that_welds_itself_is_left_alone_while_it_does() -> None:
    require_other()
    with Target(program=TARGET) as target:
        target.tell("own")
        target.expect("welding")
        closed = refused = 0
        for _ in range(60):
            try:
                closed += remote.weld(target.pid).closed
            except Busy:
                refused += 1
        assert target.process.poll() is None
        start, end = target.build(40, 2)
        assert end > start
        told_ok(target)
        assert closed + refused > 0


def test_races() -> None:
    """A sample of ``python -m tests.weld_races``."""
    require_other()
    seen = two_welders(20, os.getpid())
    assert seen["done"] >= 20
    exec_between_slices(8, os.getpid())


def test_a_debugger_that_comes_in_a_rest_is_waited_for() -> None:
    require_other()
    with Target(program=TARGET) as target:
        tracer: list[int] = []

        def trace() -> None:
            ends = os.pipe()
            pid = os.fork()
            if pid == 0:
                from vmaweld.kernel import ptrace

                ptrace.seize(target.pid)
                os.write(ends[1], b".")
                time.sleep(0.3)
                os._exit(0)
            os.read(ends[0], 1)
            tracer.append(pid)

        weld_in_slices(target, trace)
        os.waitpid(tracer[0], 0)
        told_ok(target)
        assert clean(target.pid)


def test_the_guardian_killed_in_a_rest() -> None:
    require_other()
    with Target(program=TARGET) as target:
        target.build(800, 2)
        command = subprocess.Popen(
            [sys.executable, "-m", "vmaweld", "weld", "--yes", "--max-pause", "0.1", str(target.pid)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        end = time.monotonic() + TIMEOUT
        while "memfd:vmaweld" not in Path(f"/proc/{target.pid}/maps").read_text():
            assert time.monotonic() < end
            time.sleep(0.002)
        guardian = int(Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()[0])
        os.kill(guardian, signal.SIGKILL)
        wait_gone([guardian])
        _, told = command.communicate(timeout=TIMEOUT)
        assert command.returncode == 1, told
        assert told.count("\n") == 1, told
        time.sleep(0.2)
        told_ok(target)
        remote.weld(target.pid)
        told_ok(target)
        assert clean(target.pid)
