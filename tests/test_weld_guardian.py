# SPDX-License-Identifier: GPL-2.0-or-later
"""The command that the user sees and the process that welds: what signals do to what they say to each other."""

import re
import subprocess

import pytest
from cli_support import TIMEOUT, command
from weld_support import Target, require_other, vmas

pytestmark = pytest.mark.live
INTERRUPTED = 130

HALF_A_MESSAGE = """
import array, fcntl, os, pickle, signal, struct, termios, time
from dataclasses import replace
from vmaweld.welding import remote
weld = remote.weld
def in_halves(*arguments, **options):
    report = weld(*arguments, **options)
    to_command = max(fd for fd in range(64) if "/pipe:" in os.path.realpath(f"/proc/self/fd/{fd}"))
    data = pickle.dumps(("progress", replace(report, left=())))
    data = struct.pack("<I", len(data)) + data
    os.write(to_command, data[:CUT])
    waiting = array.array("i", [1])
    while waiting[0]:  # until the command has taken it
        time.sleep(0.001)
        fcntl.ioctl(to_command, termios.FIONREAD, waiting)
    try:
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:  # the command has passed it on, so it knows of it
        os.write(to_command, data[CUT:])
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return report
remote.weld = in_halves
"""


@pytest.mark.parametrize("cut", [2, 4, 40], ids=["in the length", "behind the length", "in the words"])
def test_an_interrupt_loses_no_half_of_a_message(cut: int) -> None:
    require_other()
    with Target() as target:
        start, end = target.build(5, 3)
        done = welded(target, start, end, HALF_A_MESSAGE.replace("CUT", str(cut)))
        assert done.returncode == INTERRUPTED, done.stderr
        assert done.stderr == "vmaweld: interrupted, but the weld was done by then\n"
        assert "closed 4 seams" in done.stdout
        assert vmas(target.pid, start, end) == 1
        target.check()


@pytest.mark.parametrize("who", ["child", "parent"])
def test_an_interrupt_right_after_the_fork_is_heard(who: str) -> None:
    """Python itself works in both processes then, and says "Exception ignored" of what comes in the middle of that."""
    require_other()
    first = f"import os, signal\nos.register_at_fork(after_in_{who}=lambda: os.kill(os.getpid(), signal.SIGINT))\n"
    with Target() as target:
        start, end = target.build(5, 3)
        done = welded(target, start, end, first)
        assert (done.returncode, done.stdout.count("closed")) == (INTERRUPTED, 0), done.stderr
        assert re.fullmatch(
            r"vmaweld: interrupted: [\d,]+ -> [\d,]+ VMAs, \d+ seams of 4 can still be welded\n", done.stderr
        )
        target.check()


def welded(target: Target, start: int, end: int, first: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command("weld", "--yes", "--range", f"{start:x}-{end:x}", target.pid, first=first),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
