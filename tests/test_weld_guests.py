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
