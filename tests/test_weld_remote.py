# SPDX-License-Identifier: GPL-2.0-or-later
"""Welding other processes: they run on, and notice nothing."""

import ctypes
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import require
from weld_crack import crack_at
from weld_random import Failing, picture
from weld_support import HERE, TIMEOUT, Target, no_allowance, open_seams, require_other, vmas

from vmaweld.kernel import ptrace, snapshots, syscalls, x86_64
from vmaweld.kernel.errors import NotPermitted, ProcessGone
from vmaweld.welding import HalfDone, Refused, plan, remote, standstill, support
from vmaweld.welding.pace import Pace
from vmaweld.welding.program import Program
from vmaweld.welding.puppet import Puppet
from vmaweld.welding.workshop import Workshop

pytestmark = pytest.mark.live


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0]


def clean(pid: int) -> bool:
    """Nothing of a weld is left: no mapping, no descriptor, no tracer, no blocked signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    links = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(fd))
        except OSError:
            continue
    return (
        "memfd:vmaweld" not in Path(f"/proc/{pid}/maps").read_text()
        and not any("memfd:vmaweld" in link or "userfaultfd" in link for link in links)
        and "TracerPid:\t0" in status
        and "SigBlk:\t0000000000000000" in status
    )


def test_a_busy_process_is_welded_and_notices_nothing() -> None:
    require_other()
    with Target() as target:
        start, end = target.build(200, 4)
        assert open_seams(target.pid, start, end) == 199
        report = remote.weld(target.pid, remote.Options(verify=True))
        assert report.closed >= 199
        assert report.left == []
        assert len(report.pauses) == 1
        assert vmas(target.pid, start, end) == 1
        assert clean(target.pid)
        time.sleep(0.4)  # a nanosleep and a wait or two more
        assert target.check() > 0
        # Resident memory, and what runs on, are as before: the same once more.
        start, end = target.build(3, 700)
        before = picture(target.pid, start, end)[1]
        remote.weld(target.pid)
        assert picture(target.pid, start, end)[1] == before
        target.check()


def test_nothing_to_do_stops_nobody() -> None:
    require_other()
    with Target() as target:
        remote.weld(target.pid)
        report = remote.weld(target.pid)
        assert (report.seams, report.closed, report.pauses) == (0, 0, [])


def test_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    require_other()
    monkeypatch.setattr(Pace, "budget", no_allowance)
    monkeypatch.setattr("vmaweld.welding.pace._A_PIECE", 1e-3)
    with Target() as target:
        start, end = target.build(100, 4)
        seen: list[int] = []
        report = remote.weld(
            target.pid, remote.Options(max_pause=0.0001), progress=lambda report: seen.append(report.closed)
        )
        assert len(report.pauses) == len(seen) > 1
        assert seen == sorted(seen)
        assert open_seams(target.pid, start, end) == 0
        assert clean(target.pid)
        target.check()


def test_slices_cut_inside_a_large_vma(monkeypatch: pytest.MonkeyPatch) -> None:
    require_other()
    monkeypatch.setattr(Pace, "budget", no_allowance)
    monkeypatch.setattr("vmaweld.welding.pace._A_PAGE", 2e-5)
    with Target() as target:
        start, end = target.build(3, 1500)
        report = remote.weld(target.pid, remote.Options(max_pause=0.001, low=start, high=end))
        assert len(report.pauses) > 2
        assert (report.seams, report.closed) == (2, 2)
        assert vmas(target.pid, start, end) == 1
        target.check()


def test_range_and_min_gain() -> None:
    require_other()
    with Target() as target:
        start, end = target.build(6, 4)
        page = 4096
        report = remote.weld(target.pid, remote.Options(low=start, high=start + 12 * page))
        assert report.closed == 2
        assert vmas(target.pid, start, end) == 4
        report = remote.weld(target.pid, remote.Options(low=start, high=end, min_gain=4))
        assert (report.closed, [left.reason for left in report.left]) == (0, [plan.GAIN])
        report = remote.weld(target.pid, remote.Options(low=start, high=end, min_gain=3))
        assert report.closed == 3
        target.check()


def test_signals_that_come_meanwhile_are_delivered_after() -> None:
    require_other()
    with Target() as target:
        target.build(6, 4)

        def program() -> Program:
            os.kill(target.pid, signal.SIGUSR1)  # every thread stands still now
            return Program()

        remote.weld(target.pid, program=program)
        assert target.hear() == "SIGUSR1"
        target.check()


def test_a_stopped_process_is_welded_and_stays_stopped() -> None:
    require_other()
    with Target("eintr") as target:
        start, end = target.build(6, 4)
        os.kill(target.pid, signal.SIGSTOP)
        wait_until(lambda: state(target.pid) == "T")
        remote.weld(target.pid)
        assert open_seams(target.pid, start, end) == 0
        wait_until(lambda: state(target.pid) == "T")
        os.kill(target.pid, signal.SIGCONT)
        target.check()


def test_a_stop_that_comes_meanwhile_stops_it_after() -> None:
    require_other()
    with Target("eintr") as target:
        target.build(6, 4)

        def program() -> Program:
            os.kill(target.pid, signal.SIGSTOP)
            return Program()

        remote.weld(target.pid, program=program)
        wait_until(lambda: state(target.pid) == "T")
        os.kill(target.pid, signal.SIGCONT)
        target.check()


def wait_until(condition) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.005)


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_process_dies_meanwhile(when: str) -> None:
    """Before the calls of a batch are put together, or after, when they are about to be made."""
    require_other()
    with Target() as target:
        target.build(6, 4)

        class Kills(Program):
            def finish(self) -> None:
                super().finish()
                os.kill(target.pid, signal.SIGKILL)

        def program() -> Program:
            if when == "after":
                return Kills()
            os.kill(target.pid, signal.SIGKILL)
            return Program()

        with pytest.raises(ProcessGone):
            remote.weld(target.pid, program=program)
        assert target.process.wait(TIMEOUT) == -signal.SIGKILL


def test_threads_come_and_go_meanwhile() -> None:
    require_other()
    code = """
import sys, threading, time
sys.path.insert(0, 'tests')
from weld_target import fragments, content
import ctypes
start = fragments(20, 2)
print(hex(start), flush=True)
done = False
def short():
    for index in range(20):
        assert ctypes.c_uint64.from_address(start + index * 8192 + 8).value == content(1, index, 0)
def spawn():
    while not done:
        threads = [threading.Thread(target=short) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
spawners = [threading.Thread(target=spawn) for _ in range(3)]
for thread in spawners: thread.start()
sys.stdin.readline()
done = True
for thread in spawners: thread.join()
print('fine', flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        start = int(process.stdout.readline(), 16)
        for _ in range(15):
            remote.weld(process.pid, remote.Options(low=start, high=start + 20 * 8192))
            with standstill.Standstill(process.pid) as still:
                found = {int(name) for name in os.listdir(f"/proc/{process.pid}/task")}
                assert set(still.threads) <= found
                for tid in still.threads:
                    assert state(tid) == "t"
        assert open_seams(process.pid, start, start + 20 * 8192) == 0
        out, _ = process.communicate("\n", timeout=TIMEOUT)
        assert out == "fine\n"
        assert process.returncode == 0


def test_the_main_thread_may_be_gone() -> None:
    require_other()
    code = """
import sys, threading, ctypes
sys.path.insert(0, 'tests')
from weld_target import fragments, content
start = fragments(5, 2)
def other():
    sys.stdin.readline()
    good = all(ctypes.c_uint64.from_address(start + i * 8192 + 8).value == content(1, i, 0) for i in range(5))
    print('fine' if good else 'bad', flush=True)
    import os; os._exit(0)
threading.Thread(target=other).start()
print(hex(start), flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        start = int(process.stdout.readline(), 16)
        wait_until(lambda: state(process.pid) == "Z")
        with standstill.Standstill(process.pid) as still:
            assert process.pid not in still.threads
        # The address space is the process's as long as one thread lives, but /proc shows it by that thread only.
        try:
            remote.weld(process.pid)
            assert open_seams(process.pid, start, start + 5 * 8192) == 0
        except ProcessGone:
            pass
        out, _ = process.communicate("\n", timeout=TIMEOUT)
        assert out == "fine\n"


@pytest.mark.parametrize("step", ["take", "grow", "move", "put back", "register", "unregister spare"])
def test_calls_made_to_fail_in_the_other_process(step: str) -> None:
    require_other()
    with Target() as target:
        start, end = target.build(5, 3)

        class OneFails(Failing):
            done = False

            def finish(self) -> None:
                Program.finish(self)
                if step in self.steps and not OneFails.done:
                    OneFails.done = True
                    self.fail(self.steps.index(step))

        report = remote.weld(target.pid, remote.Options(low=start, high=end, verify=True), program=OneFails)
        assert report.closed == 4
        assert open_seams(target.pid, start, end) == 0
        assert clean(target.pid)
        target.check()


def test_what_cannot_be_put_back_is_finished_by_the_next_weld() -> None:
    require_other()
    with Target() as target:
        start, end = target.build(5, 3)

        class Stuck(Failing):
            def finish(self) -> None:
                Program.finish(self)
                for at, step in enumerate(self.steps):
                    if step == "put back":
                        self.fail(at)

        with pytest.raises(HalfDone, match="run the weld again"):
            remote.weld(target.pid, remote.Options(low=start, high=end), program=Stuck)
        # Its calls are as wrong as they were made: right ones, as if memory had become free.
        area = next(row.start for row in snapshots.take(target.pid).rows if "memfd:vmaweld" in row.file)
        mended = bytearray(syscalls.read_memory(target.pid, area + 4096, 64 << 10))
        for at in range(512 + 8, len(mended), 96):
            if mended[at : at + 8] == (1 << 20).to_bytes(8, "little"):
                mended[at : at + 8] = x86_64.NR_MREMAP.to_bytes(8, "little")
        syscalls.write_memory(target.pid, area + 4096, bytes(mended))
        report = remote.weld(target.pid)
        assert "finished" in report.repaired
        assert open_seams(target.pid, start, end) == 0
        assert target.check() > 0


def test_shared_with_a_child() -> None:
    require_other()
    with Target() as target:
        start, end = target.build(6, 4)
        target.tell("fork")
        child = int(target.expect("child"))
        # The threads go on writing, so some pages are the process's own again, others not.
        report = remote.weld(target.pid, remote.Options(low=start, high=end, verify=True))
        assert report.closed + sum(left.seams for left in report.left) == 5
        report = remote.weld(target.pid, remote.Options(low=start, high=end, unshare=True, verify=True))
        assert open_seams(target.pid, start, end) == 0
        os.kill(child, signal.SIGKILL)
        target.check()


def test_the_limit_of_vmas() -> None:
    require_other()
    with Target() as target:
        start, end = target.build(6, 4)
        target.tell("fill 8")
        assert int(target.expect("filled")) < support.HEADROOM
        with pytest.raises(Refused, match=r"sysctl -w vm.max_map_count=\d+"):
            remote.weld(target.pid, remote.Options(low=start, high=end))
        assert vmas(target.pid, start, end) == 6
        assert clean(target.pid)
        target.check()


@pytest.mark.parametrize("spare", [3, 5, 7])
def test_the_limit_of_vmas_reached_on_the_way(spare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    require_other()
    monkeypatch.setattr(support, "check_headroom", lambda _vmas: None)
    with Target() as target:
        start, end = target.build(6, 4)
        target.tell(f"fill {spare}")
        target.expect("filled")
        before = picture(target.pid, start, end)[1]
        try:
            report = remote.weld(target.pid, remote.Options(low=start, high=end, verify=True))
            assert vmas(target.pid, start, end) == 6 - report.closed
            assert all("limit" in left.reason for left in report.left)
        except Refused:
            assert vmas(target.pid, start, end) == 6
        assert clean(target.pid)
        assert picture(target.pid, start, end)[1] == before
        target.check()


# Refusals


def _spawn(code: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "name"), [(323, "userfaultfd"), (25, "mremap"), (319, "memfd_create")])
def test_a_seccomp_filter_that_forbids_it(number: int, name: str) -> None:
    require_other()
    # Kills the process at that system call.
    code = f"""
import ctypes, struct, sys
sys.path.insert(0, 'tests')
from weld_target import fragments
start = fragments(3, 2)
code = b''.join(struct.pack('<HBBI', *i) for i in
    ((0x20, 0, 0, 0), (0x15, 0, 1, {number}), (6, 0, 0, 0x80000000), (6, 0, 0, 0x7fff0000)))
buffer = ctypes.create_string_buffer(code)
program = struct.pack('<HxxxxxxQ', 4, ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()
print('ready', flush=True)
sys.stdin.readline()
print('alive')
"""
    process = _spawn(code)
    with pytest.raises(Refused, match=f"seccomp filter of process {process.pid} forbids {name}"):
        remote.weld(process.pid)
    assert clean(process.pid)
    assert process.communicate("\n", timeout=TIMEOUT)[0] == "alive\n"


def test_a_seccomp_filter_that_does_not_mind() -> None:
    require_other()
    code = """
import ctypes, struct, sys
sys.path.insert(0, 'tests')
from weld_target import fragments
start = fragments(3, 2)
buffer = ctypes.create_string_buffer(b''.join(struct.pack('<HBBI', *i) for i in
    ((0x20, 0, 0, 0), (0x15, 0, 1, 59), (6, 0, 0, 0x80000000), (6, 0, 0, 0x7fff0000))))
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, struct.pack('<HxxxxxxQ', 4, ctypes.addressof(buffer)), 0, 0) == 0
print('ready', flush=True)
sys.stdin.readline()
print('alive')
"""
    process = _spawn(code)
    assert remote.weld(process.pid).closed >= 2
    assert process.communicate("\n", timeout=TIMEOUT)[0] == "alive\n"


def test_another_tracer() -> None:
    require_other()
    with Target() as target:
        start, end = target.build(3, 2)
        ready, go = threading.Event(), threading.Event()

        tracer = subprocess.Popen(
            [sys.executable, "-c", f"from vmaweld.kernel import ptrace; ptrace.seize({target.pid}); print(); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        del ready, go
        assert tracer.stdout is not None
        tracer.stdout.readline()
        try:
            with pytest.raises(Refused, match=f"already traced, by process {tracer.pid}"):
                remote.weld(target.pid)
            assert vmas(target.pid, start, end) == 3
        finally:
            tracer.communicate(b"\n", timeout=TIMEOUT)
        assert remote.weld(target.pid).closed >= 2
        target.check()


def test_no_permission() -> None:
    require_other()
    with Target() as target:
        target.build(3, 2)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                remote.weld(target.pid)
            except NotPermitted as error:
                status = 0 if "run as its owner, or as root" in str(error) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        target.check()


def test_unprivileged_users_weld_their_own_processes() -> None:
    """With no BPF, no CAP_SYS_ADMIN, and (where the sysctl says so) a userfaultfd for user code only."""
    require_other()
    python = next(
        (
            name
            for name in (sys.executable, "/usr/bin/python3.13", "/usr/bin/python3.12", "/usr/bin/python3.11")
            if _open_to_all(name)
        ),
        "",
    )
    require(bool(python) and _open_to_all(HERE / "weld_target.py"), "a Python that other users may run is needed")
    code = """
import os, subprocess, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.path[:0] = ['src', 'tests']
from vmaweld.welding import remote
from vmaweld.kernel import snapshots
from vmaweld.kernel.bpf import iterator
assert not iterator.available()[0]
target = subprocess.Popen([sys.executable, 'tests/weld_target.py'], stdin=-1, stdout=-1, text=True,
    env={'PYTHONPATH': 'src'})
def ask(line):
    target.stdin.write(line + '\\n'); target.stdin.flush(); return target.stdout.readline()
assert target.stdout.readline() == 'ready\\n'
start = int(ask('build 5 3').split()[1], 16)
end = start + 15 * 4096
report = remote.weld(target.pid, remote.Options(low=start, high=end))
assert report.closed == 4, report
assert sum(1 for row in snapshots.take(target.pid).rows if row.start < end and row.end > start) == 1
assert ask('check').startswith('ok')
target.kill()
print('fine')
"""
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.stdout == "fine\n", done.stderr


def _open_to_all(path: str | Path) -> bool:
    """Every user may enter all folders above it, and read it."""
    resolved = Path(path).resolve()
    return resolved.exists() and all(part.stat().st_mode & 0o005 for part in (resolved, *resolved.parents))


def test_a_32_bit_process(tmp_path: Path) -> None:
    require_other()
    require(shutil.which("gcc") is not None, "gcc is needed")
    source = tmp_path / "a.S"
    source.write_text(".globl _start\n_start: movl $29, %eax\nint $0x80\njmp _start\n")  # pause()
    built = subprocess.run(
        ["gcc", "-m32", "-nostdlib", "-static", "-o", str(tmp_path / "a"), str(source)],
        capture_output=True,
        check=False,
        timeout=TIMEOUT,
    )
    require(built.returncode == 0, "gcc -m32 is needed")
    with subprocess.Popen([str(tmp_path / "a")]) as process:
        try:
            while not any(Path(f"/proc/{process.pid}/auxv").read_bytes()):  # in the middle of exec
                time.sleep(0.01)
            with pytest.raises(Refused, match="32-bit"):
                remote.weld(process.pid)
            assert process.poll() is None
        finally:
            process.kill()


def test_kernel_threads_oneself_and_nobody() -> None:
    require_other()
    with pytest.raises(Refused, match="kernel thread"):
        remote.weld(2)
    with pytest.raises(Refused, match=r"vmaweld\.weld"):
        remote.weld(os.getpid())
    with pytest.raises(ProcessGone):
        remote.weld(4_000_000)


def test_an_older_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.release", lambda: "6.7.12-generic")
    with pytest.raises(Refused, match=r"6\.7\.12-generic.*Linux 6\.8"):
        support.check_other(1)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(Refused, match="x86-64"):
        support.check_other(1)


def test_memory_shared_with_another_process() -> None:
    require_other()
    libc = ctypes.CDLL(None, use_errno=True)
    # vfork's child runs in the parent's memory until it calls exec or exits.
    code = """
import ctypes, subprocess, sys, time
print('ready', flush=True)
import os
subprocess._USE_VFORK = True
libc = ctypes.CDLL(None)
CLONE_VM = 0x100
stack = ctypes.create_string_buffer(65536)
fn = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(0) if False else libc.pause
libc.clone(fn, ctypes.c_void_p(ctypes.addressof(stack) + 65536 - 64), CLONE_VM | 17, None)
print('cloned', flush=True)
sys.stdin.readline()
"""
    del libc
    process = _spawn(code)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "cloned\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        with pytest.raises(Refused, match="same memory"):
            remote.weld(process.pid)
        for child in children:
            os.kill(int(child), signal.SIGKILL)
    finally:
        process.kill()
        process.wait(TIMEOUT)


# The command


def _vmaweld(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", "from vmaweld.cli import main; main()", "weld", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def test_the_command() -> None:
    require_other()
    with Target() as target:
        start, end = target.build(5, 3)
        pid = str(target.pid)
        area = f"{start:x}-{end:x}"
        done = _vmaweld("--dry-run", "--range", area, pid)
        assert done.returncode == 0
        assert "4 open seams" in done.stdout
        assert "12 pages (48 KiB) move" in done.stdout
        assert vmas(target.pid, start, end) == 5
        done = _vmaweld("--dry-run", "--json", "--range", area, pid)
        assert json.loads(done.stdout)["seams"] == {"weldable": 4, "left": 0}
        done = _vmaweld(pid)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert "--yes" in done.stderr
        done = _vmaweld("--yes", "--range", area, pid)
        assert done.returncode == 0, done.stderr
        assert "closed 4 seams" in done.stdout
        assert re.search(r"all threads stood still for \d+\.\d ms", done.stdout)
        assert vmas(target.pid, start, end) == 1
        done = _vmaweld("--yes", "--json", "--range", area, pid)
        answer = json.loads(done.stdout)
        assert answer["seams"] == {"before": 0, "closed": 0, "left": 0}
        assert answer["pauses_ms"] == []
        target.check()
        start, end = target.build(4, 3, "quiet")
        target.tell("fork")
        child = int(target.expect("child"))
        area = f"{start:x}-{end:x}"
        done = _vmaweld("--yes", "--range", area, pid)
        assert done.returncode == 1
        assert "3 seams stay: pages shared" in done.stdout
        done = _vmaweld("--yes", "--unshare", "--range", area, pid)
        assert done.returncode == 0
        assert "9 pages (36 KiB) will be copied" in done.stdout
        os.kill(child, signal.SIGKILL)
        target.check()
    done = _vmaweld("--yes", "2")
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)
    done = _vmaweld("--yes", str(target.pid))
    assert done.returncode == 1
    done = _vmaweld("--range", "zzz", "1")
    assert done.returncode == 2


def test_interrupting_the_command_leaves_nothing_behind() -> None:
    require_other()
    with Target() as target:
        for delay in (0.25, 0.4, 0.6):
            start, end = target.build(300, 3)
            process = subprocess.Popen(
                [
                    *(sys.executable, "-c", "from vmaweld.cli import main; main()"),
                    *("weld", "--yes", "--max-pause", "0.1", "--range", f"{start:x}-{end:x}", str(target.pid)),
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            process.wait(TIMEOUT)
            assert clean(target.pid)
            target.check()


# What a stop must not show


def test_registers_and_extended_state_survive(tmp_path: Path) -> None:
    """A program that keeps values in all registers, vector registers included, and compares them all the time."""
    require_other()
    require(shutil.which("gcc") is not None, "gcc is needed")
    source = tmp_path / "a.c"
    source.write_text(
        r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
typedef double v4 __attribute__((vector_size(32)));
int main(void) {
  char *a = mmap(0, 1 << 20, 3, 0x22, -1, 0);
  memset(a, 1, 1 << 19);
  char *b = mmap(0, 1 << 19, 3, 0x22, -1, 0);
  memset(b, 2, 1 << 19);
  mremap(b, 1 << 19, 1 << 19, 3, a + (1 << 19));
  puts("ready"); fflush(stdout);
  v4 x = {1, 2, 3, 4}, y = {5, 6, 7, 8};
  unsigned long n = 0, r[8] = {11, 12, 13, 14, 15, 16, 17, 18};
  while (!access("/proc/self", 0) || 1) {
    unsigned long s = 0;
    for (int i = 0; i < 100000; i++) {
      x = x + y; x = x - y;
      __asm__ volatile("" : "+x"(x), "+x"(y));
      s += r[i & 7]; a[(i * 64) & 0xfffff] += 1; a[(i * 64) & 0xfffff] -= 1;
    }
    if (s != 12500ul * 116 || x[0] != 1 || x[1] != 2 || x[2] != 3 || x[3] != 4 || y[3] != 8) { puts("bad"); return 1; }
    for (int i = 0; i < 1 << 20; i += 4096) if (a[i] != (i < 1 << 19 ? 1 : 2)) { puts("bad byte"); return 1; }
    if (++n == 3000) return 0;
  }
}
"""
    )
    built = subprocess.run(
        ["gcc", "-O2", "-mavx2", "-o", str(tmp_path / "a"), str(source)], capture_output=True, check=False, text=True
    )
    require(built.returncode == 0 and "avx2" in Path("/proc/cpuinfo").read_text(), "gcc and AVX2 are needed")
    with subprocess.Popen([str(tmp_path / "a")], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert remote.weld(process.pid, remote.Options(verify=True)).closed >= 1
            for _ in range(20):  # single calls and batches, again and again
                with standstill.Standstill(process.pid) as still:
                    puppet = Puppet(still, snapshots.take(process.pid).rows)
                    with Workshop() as shop:
                        try:
                            shop.set_up(puppet)
                            work = Program()
                            work.finish()
                            assert shop.run(puppet, work) == (("", 0), [])
                        finally:
                            shop.take_down(puppet)
                            puppet.restore()
                assert process.poll() is None
            assert clean(process.pid)
        finally:
            process.kill()


def test_the_trampoline_alone_brings_a_thread_back() -> None:
    """A single call, and then the tracer is gone."""
    require_other()
    with Target("eintr") as target:
        target.build(4, 2)
        for _ in range(5):
            pid = os.fork()
            if pid == 0:
                still = standstill.Standstill(target.pid)
                puppet = Puppet(still, snapshots.take(target.pid).rows)
                puppet.call(39)
                os.kill(os.getpid(), signal.SIGKILL)
            os.waitpid(pid, 0)
            wait_until(lambda: clean(target.pid))  # its thread may wait for a processor
        target.check()


def test_ptrace_registers_have_the_kernels_layout() -> None:
    assert ctypes.sizeof(ptrace.Registers) == 27 * 8
    assert ptrace.Registers.orig_rax.offset == 15 * 8  # type: ignore[attr-defined]
    assert ptrace.Registers.rsp.offset == 19 * 8  # type: ignore[attr-defined]
    assert struct.calcsize("P") == 8


def test_the_working_threads_own_thread_area_may_be_welded() -> None:
    """The kernel writes to it behind the thread's back, whenever the thread comes to another processor."""
    require_other()
    processors = sorted(os.sched_getaffinity(0))
    require(len(processors) > 1, "two processors are needed")
    with Target() as target, standstill.Standstill(target.pid) as still:
        rows = snapshots.take(target.pid).rows
        puppet = Puppet(still, rows)
        registration = puppet.rseq
        require(registration is not None, "this C library registers no rseq")
        assert registration is not None
        puppet.restore()
        still.release()
        row = next(row for row in rows if row.start <= registration.area < row.end)
        assert row.pages > 1
        steps: list[str] = []

        class Watched(Program):
            def finish(self) -> None:
                super().finish()
                steps.extend(self.steps)
                processors.append(processors.pop(0))
                os.sched_setaffinity(target.pid, processors[:1])

        options = remote.Options(low=row.start, high=row.end, verify=True)
        for _ in range(5):
            crack_at(target.pid, registration.area & -4096, 1, row)
            report = remote.weld(target.pid, options, program=Watched)
            assert report.closed >= 1
            assert "leave rseq" in steps
            assert "join rseq" in steps
        with standstill.Standstill(target.pid) as again:
            puppet = Puppet(again, snapshots.take(target.pid).rows)
            assert puppet.rseq == registration
            puppet.restore()
        target.build(3, 2)
        target.check()
