# SPDX-License-Identifier: GPL-2.0-or-later
"""True snapshots while a command runs: when they are taken."""

import os
import signal
import subprocess
import time

import pytest

from vmaweld.trace.sampler import Sampler


def test_a_process_that_stands_still_has_done_so_for_the_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast machine would take its snapshot within microseconds of the exec: too soon for it to be kept."""
    monkeypatch.setattr("vmaweld.trace.sampler.MARGIN", 50_000_000)  # no machine is so slow as to wait by itself
    taker = Sampler(os.getpid(), time.monotonic_ns)
    with subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL) as child:
        try:
            child.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, child.pid, os.WSTOPPED)
            stopped = time.monotonic_ns()
            taker.take(child.pid)
        finally:
            child.kill()
    (sample,) = taker.stop()
    assert sample.begin - stopped > 50_000_000
