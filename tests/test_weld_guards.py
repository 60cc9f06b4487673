# SPDX-License-Identifier: GPL-2.0-or-later
"""Welding processes that stand under a guard: seccomp, PR_SET_MDWE, Syscall User Dispatch.

A guard is never set off: what it forbids is left out, or the weld is refused and nothing has changed.
"""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from test_weld_remote import clean as is_clean
from weld_guarded import COUNT, SIZE
from weld_support import HERE, TIMEOUT, require_other, vmas

from vmaweld.kernel import snapshots
from vmaweld.welding import Refused, remote
from vmaweld.welding.report import Report

pytestmark = pytest.mark.live


class Guarded:
    """``weld_guarded.py``, running. areas: where the fragments of each name begin."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.pid = process.pid
        self.areas = {name: int(start, 16) for name, start in (word.split("=") for word in self._hear().split())}
        self.before = self._flags()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        patience = threading.Timer(TIMEOUT, self._process.kill)
        patience.start()
        try:
            return self._process.stdout.readline().strip()
        finally:
            patience.cancel()

    def _flags(self) -> dict[str, set[int]]:
        rows = snapshots.take(self.pid).rows
        return {
            name: {row.flags for row in rows if row.start < start + SIZE and row.end > start}
            for name, start in self.areas.items()
        }

    def weld(self, *names: str) -> Report:
        """Weld these areas, or all of them."""
        starts = [start for name, start in self.areas.items() if name in names or not names]
        return remote.weld(self.pid, remote.Options(low=min(starts), high=max(starts) + SIZE, verify=True))

    def put_on(self, guard: str) -> None:
        """One guard more."""
        assert self._process.stdin is not None
        self._process.stdin.write(guard + "\n")
        self._process.stdin.flush()
        assert self._hear() == "on"

    def check(self, *, clean: bool = True) -> None:
        """It lives, every byte, flag and protection is as before, and nothing of a weld is left (or just something)."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        assert self._hear() == "fine", self._process.wait(TIMEOUT)
        assert self._flags() == self.before
        assert is_clean(self.pid) == clean

    def welded(self) -> set[str]:
        """The areas that are one VMA."""
        found = {name: vmas(self.pid, start, start + SIZE) for name, start in self.areas.items()}
        assert set(found.values()) <= {1, COUNT}
        return {name for name, count in found.items() if count == 1}


@contextmanager
def guarded(guard: str, *arguments: str) -> Iterator[Guarded]:
    require_other()
    process = subprocess.Popen(
        [sys.executable, str(HERE / "weld_guarded.py"), guard, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Guarded(process)
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT)


EVERYTHING = {"rw-", "r--", "r-x", "rwx", "locked"}


@pytest.mark.parametrize(
    ("guard", "left", "call"),
    [
        ("none", set(), ""),
        ("systemd", {"r-x"}, "mprotect"),
        ("systemd_kills", {"r-x"}, "mprotect"),
        ("write_and_execute", {"r-x"}, "mprotect"),
        ("mprotect", {"r-x", "r--"}, "mprotect"),
        ("munlock", {"locked"}, "munlock"),
    ],
)
def test_what_a_filter_forbids_is_left_out(guard: str, left: set[str], call: str) -> None:
    with guarded(guard) as target:
        for _again in range(2):
            report = target.weld()
            reasons = {one.reason for one in report.left}
            assert reasons == ({f"its seccomp filter forbids {call}, which this memory takes"} if left else set())
            assert sum(one.seams for one in report.left) == len(left) * (COUNT - 1)
            assert target.welded() == EVERYTHING - left
            target.check()


@pytest.mark.parametrize(("guard", "call"), [("executable_maps", "mmap"), ("mremap_in_place", "mremap")])
def test_a_filter_that_forbids_the_weld_itself(guard: str, call: str) -> None:
    with guarded(guard) as target:
        with pytest.raises(Refused, match=f"^the seccomp filter of process {target.pid} forbids {call}$"):
            target.weld()
        assert target.welded() == set()
        target.check()


def test_memory_that_may_not_gain_the_right_to_execute() -> None:
    """PR_SET_MDWE cannot be asked for from outside: the call that fails is undone."""
    with guarded("mdwe") as target:
        for _again in range(2):
            report = target.weld()
            assert {one.reason for one in report.left} == {
                "it may not be made writable for the moment (PR_SET_MDWE, or a security module forbids it)"
            }
            assert sum(one.seams for one in report.left) == COUNT - 1
            assert target.welded() == EVERYTHING - {"r-x"}
            target.check()


@pytest.mark.parametrize(("guard", "name"), [("mremap_in_place", "mremap"), ("munmap", "munmap"), ("systemd", "")])
def test_a_filter_that_comes_between_two_slices(guard: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmaweld.welding.pace._A_PIECE", 1.0)
    with guarded("none") as target:
        slices: list[Report] = []

        def progress(report: Report) -> None:
            if not slices:
                target.put_on(guard)
            slices.append(report)

        low, high = min(target.areas.values()), max(target.areas.values()) + SIZE
        options = remote.Options(low=low, high=high, max_pause=1e-4)
        if name:
            with pytest.raises(Refused, match=f"seccomp filter of process {target.pid} forbids {name}$"):
                remote.weld(target.pid, options, progress=progress)
            assert len(slices) == 1
        else:
            report = remote.weld(target.pid, options, progress=progress)
            assert len(slices) > 1
            assert report.closed + sum(one.seams for one in report.left) == 5 * (COUNT - 1)
        # Where it may not even unmap what is ours, it keeps it.
        target.check(clean=name != "munmap")


def test_a_thread_whose_system_calls_come_back_as_signals() -> None:
    """Syscall User Dispatch, as Wine uses it: at the first call of a weld SIGSYS would end the process."""
    with guarded("dispatch") as target:
        message = f"^process {target.pid} cannot be welded: Syscall User Dispatch "
        with pytest.raises(Refused, match=message):
            target.weld()
        assert target.welded() == set()
        target.check()


def test_another_thread_works_where_one_has_its_system_calls_dispatched() -> None:
    with guarded("dispatch", "thread") as target:
        assert target.weld().closed == len(EVERYTHING) * (COUNT - 1)
        assert target.welded() == EVERYTHING
        target.check()


@pytest.mark.parametrize("said", [b"", b"d\0", b"d\0\0\0", b"d\0\0\0half"])
def test_the_process_that_welds_is_killed(said: bytes) -> None:
    """One line and status 1, whether it had said nothing yet or was in the middle of a word."""
    with guarded("none") as target:
        code = f"""
import os, signal, sys
from vmaweld.cli import main
from vmaweld.welding import guardian, remote
def killed(*_arguments, **_options):
    links = {{fd: os.readlink(f"/proc/self/fd/{{fd}}") for fd in range(64) if os.path.lexists(f"/proc/self/fd/{{fd}}")}}
    fd = max(fd for fd, link in links.items() if link.startswith("pipe:"))
    os.write(fd, {said!r})
    os.kill(os.getpid(), signal.SIGKILL)
remote.weld = killed
sys.argv[1:] = ["weld", "--yes", "{target.pid}"]
main()
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith(
            f"vmaweld: the process that welds process {target.pid} was killed by signal 9 (Killed): "
        )
        assert line.endswith("run the weld again, it clears up")
        target.check()
