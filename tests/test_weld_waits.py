# SPDX-License-Identifier: GPL-2.0-or-later
"""Stops of other processes: what their system calls return, and when."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

import pytest
from conftest import require
from weld_again import a_batch
from weld_support import HERE, TIMEOUT, require_other

from vmaweld.kernel import snapshots
from vmaweld.welding.program import Outcome, Program
from vmaweld.welding.puppet import Puppet
from vmaweld.welding.standstill import Standstill
from vmaweld.welding.workshop import Workshop

pytestmark = pytest.mark.live
LIMIT_MS = 300
ENDED = {
    **dict.fromkeys(("epoll_wait", "epoll_pwait", "epoll_pwait2", "io_getevents", "io_pgetevents"), 0),
    **dict.fromkeys(("poll", "ppoll", "select", "nanosleep"), 0),
    "io_uring_enter": -62,  # ETIME
    "connect": -115,  # EINPROGRESS
    "futex": -110,  # ETIMEDOUT
}
"""What a call returns at its time limit, where that is not EAGAIN."""
PAIRS = 500 if os.environ.get("VMAWELD_TEST_EVERY") else 100
"""VMAWELD_TEST_EVERY=1 sends more stops."""
ALREADY = -114
"""A connect that was interrupted and begins anew says EALREADY in place of EINPROGRESS, stopped or continued."""


class Ended(NamedTuple):
    name: str
    result: int
    milliseconds: float


class Waits:
    """``weld_waits.c``, running. Use it in a `with`."""

    def __init__(self, program: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [str(program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=program.parent,
            start_new_session=True,
        )
        self.pid = self.process.pid
        self._lines: SimpleQueue[str] = SimpleQueue()
        Thread(target=self._read, daemon=True).start()
        while (line := self._lines.get(timeout=TIMEOUT)) != "ready|0|0":
            assert not line.startswith("cannot"), line

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.strip())

    def ended(self) -> list[Ended]:
        """The calls that have ended since it was asked last."""
        found = []
        with contextlib.suppress(Empty):
            while True:
                name, result, milliseconds = self._lines.get_nowait().split("|")
                found.append(Ended(name, int(result), float(milliseconds)))
        return found

    def __enter__(self) -> "Waits":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(TIMEOUT)


@pytest.fixture
def waits(tmp_path: Path) -> Path:
    require_other()
    require(shutil.which("gcc") is not None, "gcc is needed")
    program = tmp_path / "waits"
    subprocess.run(
        ["gcc", "-O1", "-pthread", "-o", str(program), str(HERE / "weld_waits.c")], check=True, timeout=TIMEOUT
    )
    return program


def stop(pid: int) -> None:
    with Standstill(pid):
        pass


def names(text: str, which: str) -> set[str]:
    """The names in that table of ``weld_waits.c``."""
    table = text.split(f"struct wait {which}[] = {{")[1].split("{0}};")[0]
    return {piece.split('"')[1] for piece in table.split("{") if '"' in piece}


def test_a_wait_with_a_limit_ends_however_often_it_is_stopped(waits: Path) -> None:
    """Each stop comes from a standstill that knows nothing of those before, as each command's does."""
    left = names((HERE / "weld_waits.c").read_text(), "limited")
    with Waits(waits, str(LIMIT_MS), "limited") as target:
        end = time.monotonic() + 30
        while left and time.monotonic() < end:
            stop(target.pid)
            for name, result, milliseconds in target.ended():
                assert result in (ENDED.get(name, -11), ALREADY if name == "connect" else 0), (name, result)
                assert result != 0 or ENDED.get(name) == 0, name
                assert milliseconds > LIMIT_MS - 1, (name, milliseconds)
                left.discard(name)
            time.sleep(LIMIT_MS / 1000 * random.uniform(0.1, 0.6))
        assert not left, f"never ended: {sorted(left)}"


def test_nothing_answers_eintr_to_a_stop(waits: Path) -> None:
    with Waits(waits, str(LIMIT_MS), "endless") as target:
        for _ in range(100):
            stop(target.pid)
            time.sleep(random.uniform(0, 0.005))
        assert target.ended() == []


def test_signals_in_vain_do_not_show(waits: Path) -> None:
    """Signals that the process ignores by default, while 150 threads stop, stand and go on."""
    with Waits(waits, str(LIMIT_MS), "ignored", "50") as target:
        code = f"""
import os, signal, time
numbers = (signal.SIGWINCH, signal.SIGURG, signal.SIGCHLD, signal.SIGCONT)
while True:
    for number in numbers: os.kill({target.pid}, number)
"""
        with subprocess.Popen([sys.executable, "-c", code]) as sender:
            try:
                time.sleep(0.2)
                for _ in range(60):
                    stop(target.pid)
                    time.sleep(random.uniform(0, 0.01))
                assert sender.poll() is None
            finally:
                sender.kill()
        stop(target.pid)
        assert target.ended() == []


COUNTER = """
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
static volatile unsigned long *count;
static void *work(void *which) { for (;;) { count[(long)which]++; if (which) usleep(100); } return 0; }
#include <sys/mman.h>
#include <fcntl.h>
int main(int argc, char **argv) {
  int fd = open(argv[1], O_RDWR);
  count = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  pthread_t thread;
  for (long i = 1; i < 4; i++) pthread_create(&thread, 0, work, (void *)i);
  work(0);
}
"""


class Counting:
    """A process whose four threads count. Use it in a `with`."""

    def __init__(self, folder: Path) -> None:
        (folder / "count.c").write_text(COUNTER)
        (folder / "counts").write_bytes(bytes(4096))
        subprocess.run(
            ["gcc", "-O1", "-w", "-pthread", "-o", str(folder / "count"), str(folder / "count.c")],
            check=True,
            timeout=TIMEOUT,
        )
        self._counts = folder / "counts"
        # In a process group that is no orphan: SIGTSTP and SIGTTIN do not stop those.
        self.process = subprocess.Popen([str(folder / "count"), str(self._counts)], process_group=0)
        self.pid = self.process.pid
        self.goes_on()

    def counts(self) -> list[int]:
        return list(memoryview(self._counts.read_bytes()[:32]).cast("Q"))

    def goes_on(self) -> None:
        """Every thread gets on, or the test fails."""
        before = self.counts()
        wait_until(lambda: all(new > old for new, old in zip(self.counts(), before, strict=True)))

    def stands(self) -> None:
        """It is stopped by the signal, and no thread gets on."""
        wait_until(lambda: state(self.pid) == "T")
        before = self.counts()
        time.sleep(0.005)
        assert self.counts() == before

    def __enter__(self) -> "Counting":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT)


def state(tid: int) -> str:
    return Path(f"/proc/{tid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.001)


def test_the_last_of_stop_and_continue_counts(tmp_path: Path) -> None:
    """At any moment of standstills that follow each other at once."""
    require_other()
    require(shutil.which("gcc") is not None, "gcc is needed")
    again = [sys.executable, str(HERE / "weld_again.py")]
    with Counting(tmp_path) as target:
        welder = subprocess.Popen([*again, str(target.pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def tell() -> int:
            assert welder.stdin is not None
            assert welder.stdout is not None
            welder.stdin.write("\n")
            welder.stdin.flush()
            return int(welder.stdout.readline())

        count = 0
        try:
            for _ in range(PAIRS):
                stopping = random.choice((signal.SIGSTOP, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN))
                numbers = random.choice(
                    ((stopping, signal.SIGCONT), (stopping, signal.SIGCONT, stopping), (signal.SIGCONT, stopping))
                )
                for number in numbers:
                    os.kill(target.pid, number)
                    time.sleep(random.choice((0, random.uniform(0, 0.01))))
                count = tell()
                if number == signal.SIGCONT:
                    target.goes_on()
                else:
                    target.stands()
                tell()
            assert count > PAIRS // 2
        finally:
            os.kill(target.pid, signal.SIGCONT)
            welder.communicate(timeout=TIMEOUT)


def test_a_process_that_was_stopped_is_continued_meanwhile(tmp_path: Path) -> None:
    require_other()
    require(shutil.which("gcc") is not None, "gcc is needed")
    with Counting(tmp_path) as target:
        for numbers in ((signal.SIGCONT,), (signal.SIGCONT, signal.SIGSTOP), ()):
            os.kill(target.pid, signal.SIGSTOP)
            target.stands()

            class Between(Workshop):
                def run(self, puppet: Puppet, program: Program) -> tuple[tuple[str, int], list[Outcome]]:
                    for number in numbers:  # noqa: B023
                        os.kill(target.pid, number)
                    return super().run(puppet, program)

            with Standstill(target.pid) as still:
                puppet = Puppet(still, snapshots.take(target.pid).rows)
                with Between() as shop:
                    try:
                        shop.set_up(puppet)
                        shop.run(puppet, a_batch(2000))
                    finally:
                        shop.take_down(puppet)
                        puppet.restore()
            if numbers[-1:] == (signal.SIGCONT,):
                target.goes_on()
            else:
                target.stands()
            os.kill(target.pid, signal.SIGCONT)
            target.goes_on()


def test_a_sleep_is_not_cut_short_where_the_tracer_is_killed(tmp_path: Path) -> None:
    """The thread makes a single call for it, and goes back by the trampoline."""
    require_other()
    require(shutil.which("gcc") is not None, "gcc is needed")
    calls = {
        "nanosleep": "struct timespec t = {0, 400000000}; if (nanosleep(&t, 0)) return errno;",
        "poll": "if (poll(0, 0, 400)) return errno;",
        "futex": "int word = 0; struct timespec t = {0, 400000000}; syscall(202, &word, 0, 0, &t, 0, 0); "
        "if (errno != ETIMEDOUT) return errno;",
    }
    for name, call in calls.items():
        (tmp_path / "a.c").write_text(
            "#define _GNU_SOURCE\n#include <errno.h>\n#include <poll.h>\n#include <stdio.h>\n#include <time.h>\n"
            f'#include <unistd.h>\nint main(void) {{ puts("ready"); fflush(stdout); {call} return 0; }}'
        )
        program = tmp_path / name
        subprocess.run(["gcc", "-w", "-o", str(program), str(tmp_path / "a.c")], check=True, timeout=TIMEOUT)
        with subprocess.Popen([str(program)], stdout=subprocess.PIPE, text=True) as target:
            assert target.stdout is not None
            target.stdout.readline()
            wait_until(lambda: state(target.pid) == "S")
            welder = os.fork()
            if welder == 0:
                with contextlib.suppress(BaseException):
                    puppet = Puppet(Standstill(target.pid), snapshots.take(target.pid).rows)
                    puppet.call(39)
                os.kill(os.getpid(), signal.SIGKILL)
            os.waitpid(welder, 0)
            assert target.wait(TIMEOUT) == 0, f"{name} ended with errno {target.returncode}"
