# SPDX-License-Identifier: GPL-2.0-or-later
"""Welding on other kernels than the running one, in guests."""

import os
import sys

import pytest
import weld_random
from conftest import require_guest

from vmaweld.guests.guest import Finished, Guest

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


ODD_MEMORY = """
import ctypes, json, mmap, os, subprocess, sys
from pathlib import Path
from tests.weld_target import content, fragments
from vmaweld.kernel import snapshots, syscalls
PAGE, SIZE = 4096, 16 * 4096
def weld(start):
    command = [sys.executable, "-m", "vmaweld", "weld", str(os.getpid()), "--yes", "--verify", "--json",
        "--range", f"{start:x}-{start + SIZE:x}"]
    done = subprocess.run(command, capture_output=True, text=True)
    told = json.loads(done.stdout) if done.stdout else {"seams": {"closed": done.stderr.strip()}, "left": []}
    return told["seams"]["closed"], *{left["reason"] for left in told["left"]}
def flags(start):
    return {row.flags for row in snapshots.take(os.getpid()).rows if row.start < start + SIZE and row.end > start}
def intact(start, seed):
    return all(ctypes.c_uint64.from_address(start + (4 * piece + page) * PAGE + 8).value == content(seed, piece, page)
        for piece in range(4) for page in range(4))

key = syscalls.check(syscalls.raw(330, 0, 0), "pkey_alloc")
start = fragments(4, 4, seed=1)
syscalls.pkey_mprotect(start, SIZE, 3, key)
before = flags(start)
print("key", key, weld(start), flags(start) == before, intact(start, 1))
start = fragments(4, 4, seed=2)
syscalls.mprotect(start, SIZE, 4)  # execute only: the kernel takes a key for that
before = flags(start)
print("execute only", weld(start), flags(start) == before)
syscalls.mprotect(start, SIZE, 3)
print(intact(start, 2))

def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/meminfo") if line.startswith(name + ":"))
import vmaweld
big, size = fragments(2, 3072, seed=3), 3072 * PAGE
vmaweld.weld(big, PAGE)  # all that it imports is there
Path("/proc/sys/vm/overcommit_kbytes").write_text(str(kilobytes("Committed_AS") + 524288))
Path("/proc/sys/vm/overcommit_memory").write_text("2")
free = kilobytes("CommitLimit") - kilobytes("Committed_AS")
hold = mmap.mmap(-1, (free - 32768) << 10, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
try:
    vmaweld.weld(big, 2 * size)
except vmaweld.welding.Refused as error:
    print(error)
hold.close()
report = vmaweld.weld(big, 2 * size)
print(report.closed, *{left.reason for left in report.left})
print(all(ctypes.c_uint64.from_address(big + piece * size + page * PAGE + 8).value == content(3, piece, page)
    for piece in range(2) for page in range(3072)))
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


@pytest.mark.live
def test_protection_keys_and_strict_overcommit() -> None:
    """QEMU's processor has protection keys; how memory may be overcommitted is the whole machine's affair."""
    done = in_guest("6.12", "-c", ODD_MEMORY)
    key, execute_only, intact, refused, *rest = done.stdout.splitlines()
    assert (key, execute_only, intact) == ("key 1 (3,) True True", "execute only (3,) True", "True"), done
    assert "KiB are left of the commit limit (vm.overcommit_memory is 2)" in refused
    assert rest == ["1", "True"], done
