# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that cannot be stopped, or not made to work: refused soon, and nothing left behind."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import require
from test_weld_remote import clean, wait_until
from weld_support import TIMEOUT, Target, open_seams, require_other

from vmaweld.kernel import freezer, ptrace
from vmaweld.welding import Refused, remote, standstill
from vmaweld.welding.program import Program
from vmaweld.welding.puppet import Puppet

pytestmark = pytest.mark.live

READER = """
import ctypes, fcntl, os, select, struct, sys, threading, time
sys.path.insert(0, 'tests')
from weld_target import fragments
from vmaweld.kernel import syscalls, x86_64
fragments(3, 2)
fd = syscalls.raw(x86_64.NR_USERFAULTFD, os.O_CLOEXEC)
assert fd >= 0
fcntl.ioctl(fd, 0xC018AA3F, bytearray(struct.pack('<QQQ', 0xAA, 0, 0)))
area = syscalls.mmap(0, 4096, 3, 0x22)
fcntl.ioctl(fd, 0xC020AA00, bytearray(struct.pack('<QQQQ', area, 4096, 1, 0)))
zeroes = os.open('/dev/zero', os.O_RDONLY)
def read():
    # The kernel writes to the page that is missing: nobody serves the fault.
    ctypes.CDLL(None).read(zeroes, ctypes.c_void_p(area), 4096)
    print('read', flush=True)
worst = 0.0
def tick():
    global worst
    last = time.monotonic()
    while True:
        time.sleep(0.001)
        now = time.monotonic()
        worst, last = max(worst, now - last), now
threading.Thread(target=read, daemon=True).start()
threading.Thread(target=tick, daemon=True).start()
assert select.select([fd], [], [], 60)[0]
time.sleep(0.05)
print('ready', flush=True)
sys.stdin.readline()
print(worst, flush=True)
fcntl.ioctl(fd, 0x8010AA01, bytearray(struct.pack('<QQ', area, 4096)))  # UFFDIO_UNREGISTER: the fault is served
sys.stdin.readline()
"""


@contextlib.contextmanager
def reader() -> Iterator["subprocess.Popen[str]"]:
    """A process with a thread in read(2) of /dev/zero into memory that is missing, and one that counts its pauses."""
    process = subprocess.Popen([sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def served(process: "subprocess.Popen[str]") -> float:
    """Let the fault be served; the thread must have got on. Returns the longest pause of the other thread."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    worst = float(process.stdout.readline())
    assert process.stdout.readline() == "read\n"
    return worst


def traced(pid: int) -> list[int]:
    found = []
    for name in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):  # it has ended
            if "TracerPid:\t0" not in Path(f"/proc/{pid}/task/{name}/status").read_text():
                found.append(int(name))
    return found


def test_a_thread_that_does_not_stop_freezes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    require_other()
    stopped: list[int] = []
    interrupt = ptrace.interrupt

    def note(tid: int) -> None:
        stopped.append(tid)
        interrupt(tid)

    monkeypatch.setattr(ptrace, "interrupt", note)
    with reader() as process:
        began = time.monotonic()
        with pytest.raises(
            Refused, match=r"thread \d+ of process \d+ does not stop: .* handle_userfault\(\), system call 0"
        ):
            remote.weld(process.pid)
        print(f"refused after {time.monotonic() - began:.3f} s, {len(stopped)} threads stopped for it")
        assert stopped == []
        assert traced(process.pid) == []
        print(f"longest pause {served(process):.3f} s")


@pytest.mark.parametrize("max_pause", [None, 0.005])
def test_one_that_begins_to_wait_at_the_last_moment(max_pause: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told to stop, and does not: the others go on soon, and it is let go without having stopped."""
    require_other()
    monkeypatch.setattr(standstill, "_look_first", lambda _pid: None)
    with reader() as process:
        with pytest.raises(Refused, match=r"does not stop"):
            remote.weld(process.pid, remote.Options(max_pause=max_pause))
        assert traced(process.pid) == []
        worst = served(process)
        print(f"longest pause {worst:.3f} s")
        assert traced(process.pid) == []


def test_one_that_sleeps_for_a_moment_is_waited_for() -> None:
    """The parent of a vfork sleeps uninterruptibly until its child calls exec or ends."""
    require_other()
    source = "int main(void) { for (;;) { if (!vfork()) { usleep(20000); _exit(0); } wait(0); usleep(30000); } }"
    process = subprocess.Popen(["sh", "-c", 'cd "$(mktemp -d)" && cat > a.c && gcc -w a.c && exec ./a.out'], stdin=-1)
    try:
        assert process.stdin is not None
        process.stdin.write(source.encode())
        process.stdin.close()
        wait_until(lambda: os.readlink(f"/proc/{process.pid}/exe").endswith("a.out"))
        for _ in range(20):
            with standstill.Standstill(process.pid) as still:
                assert still.threads == [process.pid]
    finally:
        process.kill()
        process.wait(TIMEOUT)


# Frozen


class Frozen:
    """A cgroup of our own that freezes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unified = (path / "cgroup.freeze").exists()

    def freeze(self) -> None:
        name, text = ("cgroup.freeze", "1") if self.unified else ("freezer.state", "FROZEN")
        (self.path / name).write_text(text)

    def thaw(self) -> None:
        name, text = ("cgroup.freeze", "0") if self.unified else ("freezer.state", "THAWED")
        (self.path / name).write_text(text)

    def add(self, pid: int) -> None:
        (self.path / "inner" / "cgroup.procs").write_text(str(pid))


@pytest.fixture(params=["cgroup.freeze", "freezer.state"])
def cgroup(request: pytest.FixtureRequest) -> Iterator[Frozen]:
    require_other()
    for parent in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup/freezer"), Path("/sys/fs/cgroup")):
        path = parent / f"vmaweld-freeze-{os.getpid()}"
        try:
            path.mkdir()
        except OSError:
            continue
        if (path / request.param).exists():
            break
        path.rmdir()
    else:
        if request.param == "freezer.state":
            pytest.skip("this machine has no freezer of cgroup version 1")
        require(False, "no cgroup that freezes can be made here")
    (path / "inner").mkdir()
    found = Frozen(path)
    try:
        yield found
    finally:
        found.thaw()
        wait_until(lambda: not (path / "inner" / "cgroup.procs").read_text())
        (path / "inner").rmdir()
        path.rmdir()


def test_a_frozen_process_is_refused_at_once(cgroup: Frozen) -> None:
    with Target("eintr") as target:  # to freeze it is what ends its waits
        start, end = target.build(5, 3)
        cgroup.add(target.pid)
        assert freezer.frozen(target.pid) == ""
        cgroup.freeze()
        wait_until(lambda: freezer.frozen(target.pid) != "")
        done = subprocess.run(
            [
                *(sys.executable, "-c", "from vmaweld.cli import main; main()", "weld", "--yes"),
                *("--range", f"{start:x}-{end:x}", str(target.pid)),
            ],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        print(done.stderr.strip())
        assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)
        assert f"process {target.pid} is frozen, by the cgroup {cgroup.path}" in done.stderr
        assert traced(target.pid) == []
        cgroup.thaw()
        assert remote.weld(target.pid, remote.Options(start, end)).closed == 4
        target.check()


@pytest.mark.parametrize("call", [0, 1, 2, 3])
def test_frozen_when_a_thread_is_to_work(call: int, cgroup: Frozen, monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads stand still already, one of the single calls is about to be made."""
    with Target("eintr") as target:  # to freeze it is what ends its waits
        start, end = target.build(5, 3)
        cgroup.add(target.pid)
        plain, made = Puppet.call, 0

        def freezes(self: Puppet, number: int, *arguments: int) -> int:
            nonlocal made
            if made == call:
                cgroup.freeze()
            made += 1
            return plain(self, number, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Puppet, "call", freezes)
            with pytest.raises(Refused, match="is frozen, by the cgroup"):
                remote.weld(target.pid, remote.Options(start, end))
        assert traced(target.pid) == []
        assert open_seams(target.pid, start, end) == 4
        cgroup.thaw()
        wait_until(lambda: freezer.frozen(target.pid) == "")
        wait_until(lambda: "SigBlk:\t0000000000000000" in Path(f"/proc/{target.pid}/status").read_text())
        # What the calls before had made cannot be taken back meanwhile; the next weld does it.
        assert remote.weld(target.pid, remote.Options(start, end)).closed == 4
        assert clean(target.pid)
        target.check()


def test_frozen_while_a_batch_is_on_its_way(cgroup: Frozen) -> None:
    """It is not given up, for what is on its way must come home before others run; all stand still anyway."""
    with Target("eintr") as target:
        start, end = target.build(300, 3)
        cgroup.add(target.pid)

        class Freezes(Program):
            def finish(self) -> None:
                super().finish()
                threading.Timer(0.002, cgroup.freeze).start()
                threading.Timer(0.4, cgroup.thaw).start()

        for _ in range(3):
            with contextlib.suppress(Refused):
                remote.weld(target.pid, remote.Options(start, end), program=Freezes)
            time.sleep(0.5)
            assert traced(target.pid) == []
        remote.weld(target.pid, remote.Options(start, end))
        assert open_seams(target.pid, start, end) == 0
        assert clean(target.pid)
        target.check()
