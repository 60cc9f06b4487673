# SPDX-License-Identifier: GPL-2.0-or-later
"""What inspect calls weldable is what the weld closes: both ask the same rule."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import require
from inspect_support import AS_NOBODY, inspect_json, wait_until
from weld_guarded import COUNT, SIZE
from weld_support import HERE, TIMEOUT, require_other

from vmaweld import abi
from vmaweld.inspect.collect import inspect_process
from vmaweld.kernel import pagemap, syscalls
from vmaweld.welding import remote

pytestmark = pytest.mark.live

KSM = Path("/sys/kernel/mm/ksm")


class Held:
    """``weld_guarded.py`` after what it is told to do; areas: where the fragments of each name begin."""

    def __init__(self, *acts: str, before: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*before, sys.executable, str(HERE / "weld_guarded.py"), "none"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        self.areas = {name: int(start, 16) for name, start in (word.split("=") for word in words)}
        for act in acts:
            assert self.tell(act) == "on"

    def tell(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def obstacles(self) -> dict[str, set[str]]:
        """The obstacles that inspect names in each area."""
        report = inspect_process(self.pid)
        return {
            name: {one.obstacle for one in report.open if start < one.seam.address < start + SIZE}
            for name, start in self.areas.items()
        }

    def agrees(self) -> None:
        """What is weldable is in the weld's plan, what is not in its list of what it leaves; then it comes so."""
        report = inspect_process(self.pid)
        options = remote.Options()
        _snapshot, made = remote.survey(self.pid, options)
        planned = {row.start for candidate in made.candidates for row in candidate.rows[1:]}
        assert {one.seam.address for one in report.open if one.weldable} == planned
        assert len(report.open) - report.weldable == sum(one.seams for one in made.left)
        done = remote.weld(self.pid, options)
        assert (done.closed, done.vmas_after) == (report.weldable, report.after_welding)
        assert self.tell("") == "fine"

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=TIMEOUT)


def test_plain_memory() -> None:
    require_other()
    with Held() as target:
        assert target.obstacles() == {name: {""} for name in target.areas}
        target.agrees()


def test_pages_shared_since_a_fork() -> None:
    """As redis after its bgsave: the child is gone, its parent's pages still count as shared."""
    require_other()
    with Held("fork") as target:
        # To lock memory again is to write to its pages.
        assert target.obstacles() == {name: {"" if name == "locked" else "marked-pages"} for name in target.areas}
        target.agrees()


def test_mlocked_pages_that_a_child_shares_are_not_copied() -> None:
    require_other()
    with Held("fork_and_wait") as target:
        start = target.areas["locked"]
        assert target.obstacles() == {name: {"shared-pages"} for name in target.areas}
        target.agrees()
        with pagemap.Pagemap(target.pid) as pages:
            assert pages.totals(start, start + SIZE).shared == SIZE // abi.PAGE_SIZE


def test_mlocked_while_swap_is_on(swap: None) -> None:
    require_other()
    with Held() as target:
        assert target.obstacles() == {name: {"locked-swap" if name == "locked" else ""} for name in target.areas}
        target.agrees()


@pytest.fixture
def ksm() -> Iterator[None]:
    """KSM at work, as fast as it can; as it was at the end."""
    require(not os.geteuid() and KSM.exists(), "KSM needs root and CONFIG_KSM")
    before = {name: (KSM / name).read_text() for name in ("pages_to_scan", "sleep_millisecs", "run")}
    (KSM / "pages_to_scan").write_text("10000")
    (KSM / "sleep_millisecs").write_text("5")
    (KSM / "run").write_text("1")
    try:
        yield
    finally:
        for name, value in before.items():
            (KSM / name).write_text(value)


def test_pages_that_ksm_has_merged(ksm: None) -> None:
    require_other()
    with Held("twin") as target:
        start = target.areas["rw-"]

        def merged() -> bool:
            with pagemap.Pagemap(target.pid) as pages:
                return pages.totals(start, start + SIZE).shared >= COUNT

        assert wait_until(merged), "KSM merges nothing"
        assert target.obstacles()["rw-"] == {"ksm"}
        target.agrees()
        report = remote.weld(target.pid, remote.Options(low=start, high=start + SIZE, unshare=True, verify=True))
        assert report.closed == COUNT - 1
        assert target.tell("") == "fine"


@pytest.mark.parametrize("huge", [False, True])
def test_marks_that_a_fork_has_left_come_off_with_a_write(huge: bool) -> None:
    require_other()
    with pagemap.Pagemap(os.getpid()) as pages, huge_or_small(huge) as start:
        size = 4 * abi.HUGE_PAGE_SIZE

        def marked() -> int:
            return sum(end - at for at, end, kind in pages.closely(start, start + size) if kind & pagemap.MARKED)

        assert marked() == 0
        if (pid := os.fork()) == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        assert marked() == size
        ctypes.c_char.from_address(start).value = b"2"
        assert marked() == size - (abi.HUGE_PAGE_SIZE if huge else abi.PAGE_SIZE)
        assert pages.totals(start, start + size).exclusive == size // abi.PAGE_SIZE


@contextmanager
def huge_or_small(huge: bool) -> Iterator[int]:
    """Eight megabytes, written to; where they begin."""
    size = 4 * abi.HUGE_PAGE_SIZE
    private = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS
    reserved = syscalls.mmap(0, size + abi.HUGE_PAGE_SIZE, abi.PROT_READ | abi.PROT_WRITE, private)
    start = (reserved + abi.HUGE_PAGE_SIZE - 1) & -abi.HUGE_PAGE_SIZE
    try:
        syscalls.madvise(start, size, abi.MADV_HUGEPAGE if huge else abi.MADV_NOHUGEPAGE)
        ctypes.memset(start, 1, size)
        yield start
    finally:
        syscalls.munmap(reserved, size + abi.HUGE_PAGE_SIZE)


def test_without_privilege() -> None:
    """Nobody's own process: its pages and policies can be read, and the answer is the same but for marks."""
    with Held("fork_and_wait", before=AS_NOBODY) as target:
        data = inspect_json(target.pid, nobody=True)
        assert not data["exact"]
        assert "mempolicy-unknown" not in data["obstacles"]
        assert data["obstacles"]["shared-pages"] >= (COUNT - 1) * 4
