# SPDX-License-Identifier: GPL-2.0-or-later
"""Welding where memory is short: in a memory cgroup that is full, or from which pages go to swap."""

import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import require
from weld_support import TIMEOUT, Target, require_other, vmas

from vmaweld.kernel import memory_cgroup
from vmaweld.kernel.errors import ProcessGone
from vmaweld.kernel.pagemap import Pagemap
from vmaweld.welding import Refused, remote, support

FILES = {"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}


class Cgroup:
    """A memory cgroup of our own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._limit = next(path / name for name in FILES if (path / name).exists())

    def add(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    def leave_room(self, size: int) -> None:
        """Set the limit that much (it may be negative) above what is used now."""
        limit = (int((self.path / FILES[self._limit.name]).read_text()) + size) & -4096
        end = time.monotonic() + TIMEOUT
        while True:
            try:
                self._limit.write_text(str(limit))
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > end:  # busy: not all could be reclaimed yet
                    raise
            else:
                return


def _parents() -> Iterator[Path]:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            yield Path("/sys/fs/cgroup/memory", path.strip("/"))
            yield Path("/sys/fs/cgroup/memory")
    yield Path("/sys/fs/cgroup")


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    require_other()
    for parent in _parents():
        path = parent / f"vmaweld-test-{os.getpid()}"
        try:
            path.mkdir()
        except OSError:
            continue
        if any((path / name).exists() for name in FILES):
            break
        path.rmdir()
    else:
        require(False, "no memory cgroup can be made here")
    try:
        yield Cgroup(path)
    finally:
        end = time.monotonic() + TIMEOUT
        while (path / "cgroup.procs").read_text() and time.monotonic() < end:
            time.sleep(0.01)
        path.rmdir()


def test_near_its_limit_a_process_is_left_alone(cgroup: Cgroup) -> None:
    with Target() as target:
        cgroup.add(target.pid)
        start, end = target.build(64, 16)
        before = memory_cgroup.room(target.pid)
        cgroup.leave_room(100 << 10)
        room = memory_cgroup.room(target.pid)
        assert room is not None
        assert before is None or before.free > room.free
        assert room.cgroup == str(cgroup.path)
        assert (100 << 10) - 4096 <= room.free <= 400 << 10  # what the kernel charged ahead may have come back
        for options in (remote.Options(start, end), remote.Options(start, end, max_pause=0.005)):
            with pytest.raises(Refused, match=r"the weld needs 5\d\d KiB while it works, and the kernel might kill"):
                remote.weld(target.pid, options)
        assert vmas(target.pid, start, end) == 64
        cgroup.leave_room(1 << 20)
        assert remote.weld(target.pid, remote.Options(start, end, verify=True)).closed == 63
        target.check()


def test_copies_count_too(cgroup: Cgroup) -> None:
    with Target() as target:
        cgroup.add(target.pid)
        start, end = target.build(64, 16, "quiet")
        target.tell("fork")
        child = int(target.expect("child"))
        try:
            cgroup.leave_room(2 << 20)
            with pytest.raises(Refused, match=r"needs 4,\d\d\d KiB"):
                remote.weld(target.pid, remote.Options(start, end, unshare=True))
            assert vmas(target.pid, start, end) == 64
            cgroup.leave_room(6 << 20)
            assert remote.weld(target.pid, remote.Options(start, end, unshare=True)).closed == 63
        finally:
            os.kill(child, signal.SIGKILL)
        target.check()


def test_killed_for_its_memory_in_the_middle(cgroup: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the check spares a process: and the welder does not wait for the dead."""
    monkeypatch.setattr(support, "check_memory", lambda *_arguments, **_more: None)
    with Target() as target:
        cgroup.add(target.pid)
        start, end = target.build(4000, 16, "quiet")
        cgroup.leave_room(0)
        with pytest.raises(ProcessGone):
            remote.weld(target.pid, remote.Options(start, end))
        assert target.process.wait(TIMEOUT) == -signal.SIGKILL


def test_swapped_out_by_its_limit(cgroup: Cgroup, swap: None) -> None:
    """Pages in swap move without being read; to compare them they would have to come back, and there is no room."""
    with Target() as target:
        cgroup.add(target.pid)
        start, end = target.build(256, 16, "quiet")
        cgroup.leave_room(-(6 << 20))
        cgroup.leave_room(1 << 20)
        with Pagemap(target.pid) as pages:
            before = pages.totals(start, end)
            assert before.swapped > 1000
            with pytest.raises(Refused, match=r"the weld needs \d+,\d\d\d KiB while it works"):
                remote.weld(target.pid, remote.Options(start, end, verify=True))
            assert vmas(target.pid, start, end) == 256
            assert remote.weld(target.pid, remote.Options(start, end)).closed == 255
            assert pages.totals(start, end) == before
        cgroup.leave_room(64 << 20)
        assert remote.weld(target.pid, remote.Options(start, end, verify=True)).closed == 0
        target.check()
