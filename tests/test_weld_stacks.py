# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing is written to a thread's stack: it may be a coroutine's, in the middle of the program's data."""

import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import require
from test_weld_killed import _Dies
from weld_support import TIMEOUT, require_other

from vmaweld.kernel import snapshots, syscalls
from vmaweld.kernel.bpf import iterator
from vmaweld.welding import Refused, remote, trampoline
from vmaweld.welding.puppet import Puppet
from vmaweld.welding.standstill import Standstill

pytestmark = pytest.mark.live

SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
/* A coroutine on a stack of 1 KiB between words that belong to somebody else: it looks at them all the time. */
enum { WORDS = 1 << 16, LOW = WORDS / 2, HIGH = LOW + 128 };
static unsigned long *all;
static ucontext_t first, second;
static void look(void) {
  for (;;) {
    for (unsigned long i = 0; i < WORDS; i++)
      if ((i < LOW || i >= HIGH) && all[i] != ~i) _exit(3);
    struct { long s, n; } nap = {0, 1000000};
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "0"(35), "D"(&nap), "S"(0) : "rcx", "r11", "memory");
  }
}
int main(void) {
  char *a = mmap(0, 1 << 20, 3, 0x22, -1, 0);
  memset(a, 1, 1 << 19);
  char *b = mmap(0, 1 << 19, 3, 0x22, -1, 0);
  memset(b, 2, 1 << 19);
  mremap(b, 1 << 19, 1 << 19, 3, a + (1 << 19));
  all = malloc(WORDS * 8);
  for (unsigned long i = 0; i < WORDS; i++) all[i] = ~i;
  getcontext(&first);
  first.uc_stack.ss_sp = all + LOW;
  first.uc_stack.ss_size = (HIGH - LOW) * 8;
  makecontext(&first, look, 0);
  puts("ready"); fflush(stdout);
  swapcontext(&second, &first);
}
"""


@pytest.fixture(name="program")
def _program(tmp_path: Path) -> Path:
    require_other()
    require(shutil.which("gcc") is not None, "gcc is needed")
    source = tmp_path / "coroutine.c"
    source.write_text(SOURCE)
    subprocess.run(["gcc", "-O2", "-o", str(tmp_path / "coroutine"), str(source)], check=True, timeout=60)
    return tmp_path / "coroutine"


@pytest.fixture(name="process")
def _process(program: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([str(program)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], TIMEOUT)[0]
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_a_welder_that_dies_leaves_no_word_of_a_neighbour_overwritten(process: "subprocess.Popen[str]") -> None:
    """Killed before every call it makes, while the only thread sleeps on a stack of 1 KiB."""
    iterator.available()
    limit = os.getpid() % 5
    while True:
        welder = os.fork()
        if welder == 0:
            status = 1
            try:
                syscalls.raw = _Dies(limit)  # type: ignore[assignment]
                with Standstill(process.pid) as still:
                    puppet = Puppet(still, snapshots.take(process.pid).rows)
                    puppet.call(39)
                    puppet.restore()
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(welder, 0)
        time.sleep(0.005)
        assert process.poll() is None, f"call {limit}: a word was overwritten"
        if status == 0:
            break
        assert os.WIFSIGNALED(status), f"call {limit}: the welder ended with {status}"
        limit += 5
    assert limit > 60
    assert remote.weld(process.pid).closed >= 1
    time.sleep(0.01)
    assert process.poll() is None


def test_what_a_dead_welder_left_in_the_gap_is_taken_away(process: "subprocess.Popen[str]") -> None:
    welder = os.fork()
    if welder == 0:
        still = Standstill(process.pid)
        puppet = Puppet(still, snapshots.take(process.pid).rows)
        assert puppet.call(39) == process.pid
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(welder, 0)
    rows = snapshots.take(process.pid).rows
    gap = trampoline.gap(process.pid, rows)
    assert gap.left
    assert remote.weld(process.pid).closed >= 1
    assert trampoline.gap(process.pid, rows) == (gap.address, False)
    assert process.poll() is None


def test_without_a_vdso_the_gap_is_behind_another_text(process: "subprocess.Popen[str]") -> None:
    rows = snapshots.take(process.pid).rows
    inside = next(row for row in rows if row.name == "[vdso]")
    gap = trampoline.gap(process.pid, rows)
    assert inside.start <= gap.address < inside.end - trampoline.SIZE
    others = [row for row in rows if row.name != "[vdso]"]
    gap = trampoline.gap(process.pid, others)
    row = next(row for row in others if row.start <= gap.address < row.end)
    assert row.end - gap.address < 4096
    assert row.file
    with Standstill(process.pid) as still:
        puppet = Puppet(still, others)
        before = syscalls.read_memory(process.pid, row.start, row.size)
        assert puppet.call(39) == process.pid
        puppet.restore()
        assert syscalls.read_memory(process.pid, row.start, row.size) == before
    with pytest.raises(Refused, match=r"no page of its program text has \d+ bytes free"):
        trampoline.gap(process.pid, [row for row in rows if not row.file and row.name != "[vdso]"])
    time.sleep(0.02)
    assert process.poll() is None
