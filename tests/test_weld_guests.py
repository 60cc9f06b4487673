"""Welding on other kernels than the running one, in guests."""

import os
import sys

import pytest
import weld_random
from conftest import require_guest

from vmaweld.kernel.guest import Finished, Guest

UNREADABLE = """
import subprocess, sys
from tests.weld_target import fragments
from vmaweld.kernel import syscalls
start = fragments(4, 4)
syscalls.mprotect(start, 16 * 4096, 0)
weld = [sys.executable, "-m", "vmaweld", "weld", str(__import__("os").getpid()), "--yes",
        "--range", f"{start:x}-{start + 16 * 4096:x}"]
for more in (["--verify"], []):
    done = subprocess.run(weld + more, capture_output=True, text=True)
    print(done.returncode, done.stderr.strip().splitlines()[-1:], done.stdout.strip().splitlines()[-1:])
"""

YAMA = """
import encodings.ascii, encodings.latin_1, ctypes, os, signal  # a plain user may not be able to read the library
from pathlib import Path
from tests.weld_target import fragments
from vmaweld.welding import remote
SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
NOBODY = 65534
def run_as(user, work):
    pid = os.fork()
    if pid:
        return pid
    os.setgid(user), os.setuid(user)
    ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: it is its user's own process again
    try:
        print(work(), flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    os._exit(0)
ready, tell = os.pipe()
def hold():
    fragments(4, 2)
    os.write(tell, b"1")
    signal.pause()
targets = [run_as(NOBODY, hold) for _ in range(2)]
os.read(ready, 1), os.read(ready, 1)
for scope, user, target in ((1, NOBODY, 0), (2, NOBODY, 0), (2, 0, 0), (3, 0, 1)):
    SCOPE.write_text(str(scope))
    os.waitpid(run_as(user, lambda: remote.weld(targets[target]).closed), 0)
for target in targets:
    os.kill(target, signal.SIGKILL)
"""


def in_guest(version: str, *command: str, options: str = "") -> Finished:
    """Run `python COMMAND` there, from the project's directory."""
    require_guest(version)
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return Guest(version, options=options).run([sys.executable, *command], timeout=400, environment=environment)


@pytest.mark.live
def test_random_welds_on_the_oldest_long_term_kernel_that_can(capsys: pytest.CaptureFixture[str]) -> None:
    """1,000 there, and as many on 7.2, are in `make weld-guests`."""
    require_guest("6.12")
    status = weld_random.in_guest("6.12", count=60, first=0, other=4)
    told = capsys.readouterr().out
    assert status == 0, told
    assert "nothing lost" in told


@pytest.mark.live
def test_verify_refuses_what_the_kernel_lets_nobody_read() -> None:
    done = in_guest("6.12", "-c", UNREADABLE, options="proc_mem.force_override=never")
    refused, welded = done.stdout.splitlines()
    assert refused.startswith("3 [")
    assert "proc_mem.force_override" in refused
    assert welded.startswith("0 []")
    assert "stood still" in welded


@pytest.mark.live
def test_a_kernel_without_uffdio_move_is_refused() -> None:
    done = in_guest("6.1", "-m", "vmaweld", "weld", "1", "--yes")
    assert (done.status, done.stdout) == (3, "")
    assert (
        done.stderr.strip() == "vmaweld: this kernel is " + Guest("6.1").release + ": UFFDIO_MOVE came with Linux 6.8"
    )


@pytest.mark.live
def test_yama_forbids_it() -> None:
    """6.18 here has no Yama; Debian's kernels have."""
    done = in_guest("6.12", "-c", YAMA)
    told = [line.partition(": ") for line in done.stdout.splitlines()]
    hint = "kernel.yama.ptrace_scope is {}: run as root (CAP_SYS_PTRACE)"
    assert [rest for _, _, rest in told] == [
        hint.format(1),
        hint.format(2),
        "",
        "kernel.yama.ptrace_scope is 3, which forbids it to everyone until the next boot",
    ], done
    assert [head.split()[0] for head, _, _ in told] == ["NotPermitted", "NotPermitted", "3", "NotPermitted"]
