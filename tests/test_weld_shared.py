# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that another process has too (CLONE_VM): it would go on while this one stands still, so it is not welded."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import require
from weld_support import HERE, TIMEOUT, no_allowance, open_seams, require_other

from vmaweld.welding import Refused, remote
from vmaweld.welding.pace import Pace
from vmaweld.welding.report import Report

pytestmark = pytest.mark.live


class Sharer:
    """``weld_sharer.c``, running."""

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid
        _, start, length = self._hear().split()
        self.start, self.end = int(start, 16), int(start, 16) + int(length, 16)

    def _hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def tell(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._hear().strip()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_other()
    require(shutil.which("cc") is not None, "no C compiler")
    built = tmp_path_factory.mktemp("sharer") / "weld_sharer"
    subprocess.run(["cc", "-O1", "-o", built, HERE / "weld_sharer.c"], check=True, timeout=TIMEOUT)
    return built


@pytest.fixture
def sharer(program: Path) -> Iterator[Sharer]:
    found = Sharer(program)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait(TIMEOUT)


def test_it_is_refused_and_nothing_changes(sharer: Sharer) -> None:
    other = sharer.tell("share").split()[1]
    before = open_seams(sharer.pid, sharer.start, sharer.end)
    with pytest.raises(Refused, match=f"process {other} has the same memory as process {sharer.pid}"):
        remote.weld(sharer.pid)
    assert open_seams(sharer.pid, sharer.start, sharer.end) == before
    assert sharer.tell("end") == "ended 0"
    remote.weld(sharer.pid)
    assert open_seams(sharer.pid, sharer.start, sharer.end) == 0


def test_one_that_is_born_in_a_rest_ends_the_weld(sharer: Sharer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was closed stays closed, and nothing of ours is left."""
    monkeypatch.setattr(Pace, "budget", no_allowance)
    monkeypatch.setattr("vmaweld.welding.pace._A_PIECE", 1e-4)
    told = ""

    def share(_report: Report) -> None:
        nonlocal told
        told = told or sharer.tell("share")

    with pytest.raises(Refused, match="has the same memory"):
        remote.weld(sharer.pid, remote.Options(max_pause=1e-3), progress=share)
    assert told.startswith("sharing")
    assert 0 < open_seams(sharer.pid, sharer.start, sharer.end) < 399
    assert sharer.tell("end") == "ended 0"
    assert "vmaweld" not in Path(f"/proc/{sharer.pid}/maps").read_text()
    remote.weld(sharer.pid)
    assert open_seams(sharer.pid, sharer.start, sharer.end) == 0


def test_one_that_is_born_after_the_plan_is_seen(sharer: Sharer, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_still = remote._Weld._standstill
    told = ""

    def share(self: remote._Weld, work: object) -> bool:
        nonlocal told
        told = told or sharer.tell("share")
        return stand_still(self, work)  # type: ignore[arg-type]

    monkeypatch.setattr(remote._Weld, "_standstill", share)
    with pytest.raises(Refused, match="has the same memory"):
        remote.weld(sharer.pid)
    assert open_seams(sharer.pid, sharer.start, sharer.end) == 399
    assert sharer.tell("end") == "ended 0"
