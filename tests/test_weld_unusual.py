# SPDX-License-Identifier: GPL-2.0-or-later
"""Welding programs that are linked, started, watched or ended in unusual ways."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from conftest import require
from inspect_support import wait_until
from test_weld_remote import clean
from weld_support import HERE, TIMEOUT, require_other, vmas

from vmaweld.kernel import procfs
from vmaweld.kernel.errors import NotAProcess, ProcessGone
from vmaweld.welding import Refused, remote

pytestmark = pytest.mark.live

COUNT = 40
NOBODY = 65534


class Holder:
    """``weld_holder.c``, running."""

    def __init__(self, command: Sequence[str | Path], **options: object) -> None:
        self.process: subprocess.Popen[str] = subprocess.Popen(  # type: ignore[call-overload]
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
        )
        self.pid = self.process.pid
        _ready, start, length = self._hear().split()
        self.start, self.end = int(start, 16), int(start, 16) + int(length, 16)

    def _hear(self) -> str:
        assert self.process.stdout is not None
        patience = threading.Timer(TIMEOUT, self.process.kill)
        patience.start()
        try:
            return self.process.stdout.readline().strip()
        finally:
            patience.cancel()

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._hear()

    def goes_on(self) -> None:
        """Its bytes are as they were, and its threads get on."""
        before = int(self.ask("").removeprefix("fine "))
        end = time.monotonic() + TIMEOUT
        while int(self.ask("").removeprefix("fine ")) < before + 10:
            assert time.monotonic() < end
            time.sleep(0.01)

    def weld(self) -> None:
        report = remote.weld(self.pid, remote.Options(low=self.start, high=self.end, verify=True))
        assert (report.closed, report.left) == (COUNT - 1, [])
        assert vmas(self.pid, self.start, self.end) == 1
        assert clean(self.pid)
        self.goes_on()


@contextmanager
def holding(command: Sequence[str | Path], **options: object) -> Iterator[Holder]:
    require_other()
    holder = Holder(command, **options)
    try:
        yield holder
    finally:
        holder.process.kill()
        holder.process.communicate(timeout=TIMEOUT)


def build(folder: Path, *compiler: str) -> Path:
    require(shutil.which(compiler[0]) is not None, f"{compiler[0]} is needed")
    program = folder / "holder"
    subprocess.run([*compiler, "-O1", "-o", program, HERE / "weld_holder.c", "-pthread"], check=True, timeout=TIMEOUT)
    return program


@pytest.mark.parametrize("compiler", [("gcc",), ("gcc", "-static"), ("musl-gcc", "-static"), ("gcc", "-no-pie")])
def test_however_it_is_linked(tmp_path: Path, compiler: tuple[str, ...]) -> None:
    """And its robust mutexes, which lie in what is welded, stay robust: the kernel walks their list by address."""
    with holding([build(tmp_path, *compiler)]) as holder:
        holder.weld()
        for _again in range(3):
            assert holder.ask("robust") == "owner died"
        holder.goes_on()


def test_a_program_that_gave_itself_another_user(tmp_path: Path) -> None:
    """Root may weld it. Its caller may not, though the process is his: it is not dumpable."""
    program = build(tmp_path, "gcc")
    for part in (tmp_path, *tmp_path.parents):
        if part.stat().st_uid == os.getuid() and len(part.parts) > 2:
            part.chmod(part.stat().st_mode | 0o055)
    os.chown(program, 0, 0)
    program.chmod(0o4755)
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    with holding([*command, program]) as holder:
        assert procfs.status(holder.pid).uid == NOBODY
        done = subprocess.run(
            [*command, sys.executable, "-m", "vmaweld", "weld", "--yes", str(holder.pid)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert (done.returncode, done.stdout) == (3, "")
        assert len(done.stderr.splitlines()) == 1
        assert "not permitted" in done.stderr
        holder.weld()


@pytest.mark.parametrize(
    ("tracer", "last"),
    [(("strace", "-f", "-o", "/dev/null", "-p"), ""), (("gdb", "-nx", "-q", "-p"), "detach\nquit\n")],
)
def test_under_a_debugger(tmp_path: Path, tracer: tuple[str, ...], last: str) -> None:
    require(shutil.which(tracer[0]) is not None, f"{tracer[0]} is needed")
    with holding([build(tmp_path, "gcc")]) as holder:
        watcher = subprocess.Popen(
            [*tracer, str(holder.pid)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            end = time.monotonic() + TIMEOUT
            while f"TracerPid:\t{watcher.pid}\n" not in Path(f"/proc/{holder.pid}/status").read_text():
                assert time.monotonic() < end, watcher.poll()
                time.sleep(0.02)
            with pytest.raises(Refused, match=f"already traced, by process {watcher.pid} "):
                remote.weld(holder.pid)
            assert vmas(holder.pid, holder.start, holder.end) == COUNT
        finally:
            if not last:
                watcher.terminate()
            watcher.communicate(last.encode(), timeout=TIMEOUT)
        holder.weld()


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV])
def test_a_core_dump_while_it_is_welded_again_and_again(tmp_path: Path, number: signal.Signals) -> None:
    """The dump waits for no welder, and none waits for it: the process ends by the signal that it got."""
    with holding(
        [build(tmp_path, "gcc")],
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (1 << 26, 1 << 26)),
    ) as holder:
        timer = threading.Timer(0.3, os.kill, (holder.pid, number))
        timer.start()
        with pytest.raises(ProcessGone):
            _weld_seam_by_seam(holder)
        timer.join()
        assert holder.process.wait(TIMEOUT) == -number


def _weld_seam_by_seam(holder: Holder) -> None:
    """A standstill for each seam; then on, with nothing to do, as long as there is time."""
    end = time.monotonic() + TIMEOUT
    size = (holder.end - holder.start) // COUNT
    high = holder.start + size
    while time.monotonic() < end:
        high = min(high + size, holder.end)
        remote.weld(holder.pid, remote.Options(low=holder.start, high=high))


def test_a_thread_is_told_by_its_process(tmp_path: Path) -> None:
    with holding([build(tmp_path, "gcc")]) as holder:
        other = next(int(tid) for tid in os.listdir(f"/proc/{holder.pid}/task") if int(tid) != holder.pid)
        with pytest.raises(NotAProcess, match=f"^{other} is a thread of process {holder.pid} "):
            remote.weld(other)
        holder.weld()


SHELL = """
import os, subprocess, sys
sys.path[:0] = ["tests"]
from weld_target import fragments
start = fragments(5, 3)
area = f"{start:x}-{start + 5 * 3 * 4096:x}"
weld = [sys.executable, "-m", "vmaweld", "weld", "--yes", "--range", area, *sys.argv[1:]]
for command in (weld + [str(os.getpid())], ["sh", "-c", 'exec "$@"', "sh", *weld, str(os.getpid())]):
    fragments(5, 3, at=start)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    print(done.returncode, done.stderr, [line for line in done.stdout.splitlines() if line.startswith("closed")])
shell = subprocess.run(["bash", "-c", f"{sys.executable} -m vmaweld weld --yes {' '.join(sys.argv[1:])} $$; echo $?"],
    capture_output=True, text=True, timeout=60)
print(shell.returncode, shell.stderr, shell.stdout.splitlines()[-1:])
"""


@pytest.mark.parametrize("options", [(), ("--max-pause", "1"), ("--verify",)])
def test_ancestors_of_the_welder(options: tuple[str, ...]) -> None:
    """Its parent, its parent's parent and the shell that started it: they wait for it, and it stops them meanwhile."""
    require_other()
    done = subprocess.run(
        [sys.executable, "-c", SHELL, *options],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        cwd=HERE.parent,
        stdin=subprocess.DEVNULL,
    )
    first, second, shell = done.stdout.splitlines()
    for line in (first, second):
        assert line.startswith("0  ['closed 4 seams"), done
    assert shell == "0  ['0']", done


def test_the_standing_parent_of_a_pipe(tmp_path: Path) -> None:
    """Who reads what the command writes may be the one it welds: it never writes while that one stands still."""
    require_other()
    code = """
import subprocess, sys, os
sys.path[:0] = ["tests"]
from weld_target import fragments
start = fragments(400, 3)
weld = [sys.executable, "-m", "vmaweld", "weld", "--yes", "--json", "--max-pause", "0.1", str(os.getpid())]
with subprocess.Popen(weld, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pipesize=4096) as process:
    text = process.stdout.read()
print(process.returncode, len(text) > 100)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, cwd=HERE.parent
    )
    assert (done.stdout, done.stderr) == ("0 True\n", "")


@pytest.fixture
def khugepaged() -> Iterator[None]:
    """The kernel's thread that makes huge pages, at work all the time; as it was at the end."""
    folder = Path("/sys/kernel/mm/transparent_hugepage/khugepaged")
    require(not os.geteuid() and folder.exists(), "khugepaged needs root and CONFIG_TRANSPARENT_HUGEPAGE")
    wanted = {"pages_to_scan": "65536", "alloc_sleep_millisecs": "0", "scan_sleep_millisecs": "0"}
    before = {name: (folder / name).read_text() for name in wanted}
    try:
        for name, value in wanted.items():
            (folder / name).write_text(value)
        yield
    finally:
        for name, value in before.items():
            (folder / name).write_text(value)


HALVES = """
import ctypes, sys
sys.path[:0] = ["tests"]
from weld_target import PAGE, content, fragments
from vmaweld import abi
from vmaweld.kernel import syscalls
COUNT, PAGES = 8, 128  # a quarter of a huge page each
at = 0
for seed, _line in enumerate(sys.stdin):
    at = fragments(COUNT, PAGES, seed=seed, at=at)
    syscalls.madvise(at, COUNT * PAGES * PAGE, abi.MADV_HUGEPAGE)
    print(f"{at:x}", flush=True)
    sys.stdin.readline()
    print(all(ctypes.c_uint64.from_address(at + (index * PAGES + page) * PAGE + 8).value == content(seed, index, page)
        for index in range(COUNT) for page in range(PAGES)), flush=True)
"""


def test_khugepaged_makes_huge_pages_of_what_was_welded(khugepaged: None) -> None:
    """Fragments are too small for it; it works on them before, during and after the weld."""
    require_other()
    with subprocess.Popen(
        [sys.executable, "-c", HALVES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE.parent
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        size = 8 * 128 * 4096

        def ask() -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        def huge(start: int) -> int:
            text = Path(f"/proc/{process.pid}/smaps").read_text()
            (entry,) = [part for part in text.split("\n") if part.startswith(f"{start:x}-")]
            return int(text.partition(entry)[2].partition("AnonHugePages:")[2].split()[0])

        def whole(start: int) -> bool:
            return huge(start) == size >> 10

        try:
            for _again in range(3):
                start = int(ask(), 16)
                assert huge(start) == 0
                report = remote.weld(process.pid, remote.Options(low=start, high=start + size, verify=True))
                assert (report.closed, vmas(process.pid, start, start + size)) == (7, 1)
                assert wait_until(partial(whole, start))
                report = remote.weld(process.pid, remote.Options(verify=True))
                assert report.left == []
                assert ask() == "True"
        finally:
            process.kill()
