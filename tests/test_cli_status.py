# SPDX-License-Identifier: GPL-2.0-or-later
"""Exit statuses: each promise of each command's help is kept, and no promise is left untried."""

import importlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from conftest import require
from inspect_support import AS_NOBODY, Started, Target
from study_support import write_trace
from weld_support import require_other

from vmaweld.cli import COMMANDS
from vmaweld.study.scenarios import SCENARIOS
from vmaweld.trace.recorders import perf, strace

pytestmark = pytest.mark.live
TIMEOUT = 300  # for a machine that does other things too
PROGRAM = str(Path(sys.executable).with_name("vmaweld"))


def command_of(name: str) -> click.Command:
    command = importlib.import_module(f"vmaweld.cli.{name}_command").command
    assert isinstance(command, click.Command)
    return command


@dataclass(frozen=True)
class Case:
    """`arguments` end with `status`; what is in braces is filled in by `World`. nobody: as another user.

    bare: with an empty PATH, so that there is no recorder.
    """

    arguments: str
    status: int
    says: str = ""
    nobody: bool = False
    bare: bool = False

    def __str__(self) -> str:
        return f"{self.arguments} -> {self.status}"


CASES = (
    Case("study --sample growing-buffers", 0, "exit status 0"),
    Case("study -- /bin/sh -c exit${IFS}7", 0, "exit status 7"),
    Case("study -o /no/such/x.trace -- /bin/true", 1, "cannot write /no/such/x.trace"),
    Case("study -- /no/such/command", 2, "command not found"),
    Case("study", 2, "give a command"),
    Case("study -- /bin/true", 3, "cannot record", bare=True),
    Case("record -o {world.tmp}/a.trace -- /bin/true", 0, "1 process, "),
    Case("record -o {world.tmp}/a.trace -- /bin/sh -c exit${IFS}7", 7),
    Case("record -o {world.tmp}/a.trace -- /bin/sh -c kill${IFS}-9${IFS}$$", 128 + 9),
    Case("record -o /no/such/x.trace -- /bin/true", 1, "cannot write /no/such/x.trace"),
    Case("record -o {world.tmp}/a.trace -- /no/such/command", 2, "command not found"),
    Case("record -o {world.tmp}/a.trace -- /bin/true", 3, "cannot record", bare=True),
    Case("replay {world.trace}", 0, "linux-5.17+series"),
    Case("replay {world.damaged}", 1, "cut short or damaged"),
    Case("replay --check {world.trace}", 1, "nothing to compare"),
    Case("replay --base linux-5.17 -p linux-6.1 {world.trace}", 2, "one of the two"),
    Case("replay -p linux-0.1 {world.trace}", 2),
    Case("report {world.trace} --html {world.tmp}/a.html", 0, "a.html: "),
    Case("report {world.damaged}", 1, "cut short or damaged"),
    Case("report {world.trace} --html /no/such/a.html", 1, "cannot write /no/such/a.html"),
    Case("report -p linux-0.1 {world.trace}", 2),
    Case("inspect {world.target.pid}", 0, "VMAs by kind"),
    Case("inspect 4194303", 1, "does not exist"),
    Case("inspect 4194303 --watch 1", 1, "does not exist"),
    Case("inspect {world.zombie}", 1, "has ended (a zombie)"),
    Case("inspect {world.target.pid} --warn 0.01%", 1, "0.01 % or more"),
    Case("inspect", 2, "give a PID or --all"),
    Case("inspect {world.tid}", 2, "{world.tid} is a thread of process {world.threads.pid} (python"),
    Case("inspect 1", 3, "not permitted to read maps of process 1", nobody=True),
    Case("inspect 1 --watch 1", 3, "not permitted to read maps of process 1", nobody=True),
    Case("top --json --every 0.2", 0, '"growth_per_second"'),
    Case("top", 2, "top needs a terminal"),
    Case("export --json", 0, "vmaweld_process_vmas"),
    Case("export --port {world.taken}", 1, "cannot listen on 127.0.0.1 port {world.taken}"),
    Case("export --port 70000", 2),
    Case("weld --dry-run {world.target.pid}", 0, "can be welded"),
    Case("weld --yes --range {world.moved} {world.target.pid}", 0, "closed 4 seams"),
    Case("weld --yes --min-gain 5 --range {world.moved} {world.target.pid}", 0, "4 seams stay: fewer seams together"),
    Case("weld --yes --min-gain 5 --range {world.moved} --json {world.target.pid}", 0, '"left": 4'),
    Case("weld --yes --range {world.shared} {world.forked.pid}", 1, "pages shared with another process"),
    Case("weld --yes 4194303", 1, "does not exist"),
    Case("weld --yes {world.zombie}", 1, "has ended (a zombie)"),
    Case("weld {world.target.pid}", 2, "nobody is there to ask"),
    Case("weld --dry-run {world.tid}", 2, "{world.tid} is a thread of process {world.threads.pid} (python"),
    Case("weld --yes 1", 3, "not permitted", nobody=True),
    Case("weld --yes 2", 3, "kernel thread"),
    Case("verify --events 60", 0, "No difference"),
    Case("verify --events 20000 --policy linux-5.10", 1, "differ"),
    Case("verify --events 0", 2),
    Case("verify --guest 6.1 --program 5", 2, "without --guest"),
    Case("verify --guest 6.1 --events 60", 3, "qemu", bare=True),
    Case("explain mremap-back", 0, "merged, case 2"),
    Case("explain no-such-scenario", 2, "no scenario is called"),
    Case("doctor", 0, "kernel"),
    Case("doctor 5", 2),
)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_promised_status_is_tried(name: str) -> None:
    text = CliRunner().invoke(command_of(name), ["--help"]).output
    _, _, told = text.partition("Exit status:")
    assert told, f"{name} --help tells no exit statuses"
    paragraph = " ".join(told.split("\n\n")[0].split())
    promised = {int(number) for number in re.findall(r"(?:^|[ .;:])([0-3])(?= [a-z-])", paragraph)}
    if name == "record":
        promised.add(0)  # the command's own
    tried = {case.status for case in CASES if case.arguments.split()[0] == name and case.status < 4}
    assert promised == tried
    assert "130 interrupted" in paragraph  # tried in test_cli_interrupt.py and, for top and export, in their own tests


class World:
    """What the words in braces stand for; each is made when it is first asked for."""

    def __init__(self, tmp: Path, stack: ExitStack) -> None:
        self.tmp = tmp
        self._stack = stack

    @cached_property
    def trace(self) -> Path:
        return write_trace(self.tmp / "ok.trace", SCENARIOS["mremap-back"].events)

    @cached_property
    def damaged(self) -> Path:
        path = self.tmp / "damaged.trace"
        path.write_bytes(b"PAR1 and then nothing of the kind")
        return path

    @cached_property
    def target(self) -> Target:
        return self._stack.enter_context(Target("mixed"))

    @cached_property
    def forked(self) -> Target:
        return self._stack.enter_context(Target("forked"))

    @property
    def moved(self) -> str:
        """Where the target's moved pieces lie, as --range."""
        first, *_, last, _ = self.target.seams
        return f"{first - 0x4000:x}-{last + 0x4000:x}"

    @property
    def shared(self) -> str:
        return f"{self.forked.seams[0] - 0x1000:x}-{self.forked.seams[-1] + 0x1000:x}"

    @cached_property
    def threads(self) -> Started:
        code = (
            "import threading, time\nthread = threading.Thread(target=time.sleep, args=(600,))\nthread.start()\n"
            "print(thread.native_id, flush=True)\nthread.join()"
        )
        return self._stack.enter_context(Started([sys.executable, "-c", code]))

    @cached_property
    def tid(self) -> str:
        return self.threads.line()

    @cached_property
    def zombie(self) -> int:
        child = self._stack.enter_context(subprocess.Popen(["true"]))
        while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        return child.pid

    @cached_property
    def taken(self) -> int:
        listener = self._stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port: int = listener.getsockname()[1]
        return port

    def fill(self, text: str) -> str:
        return text.format(world=self)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(tmp_path, stack)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_status_is_what_the_help_promises(case: Case, world: World, tmp_path: Path) -> None:
    require(os.geteuid() == 0 and shutil.which("setpriv") is not None, "needs root, to be somebody else")
    if case.arguments.startswith("weld"):
        require_other()
    if case.arguments.startswith(("study --", "record")):
        require(
            *(perf.PerfRecorder.available() if perf.PerfRecorder.available()[0] else strace.StraceRecorder.available())
        )
    before = AS_NOBODY if case.nobody else ()
    done = subprocess.run(
        [*before, PROGRAM, *(word if "${" in word else world.fill(word) for word in case.arguments.split())],
        cwd=tmp_path,
        env={**os.environ, "PATH": "/no/such/directory"} if case.bare else None,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == case.status, said
    assert world.fill(case.says) in " ".join(said.split())
    assert "Traceback" not in said


# ---- numbers --------------------------------------------------------------------------------------------------------


def numbers() -> Iterator[tuple[str, click.Option]]:
    """Every option of every command that takes a number."""
    for name in COMMANDS:
        for option in command_of(name).params:
            kind = option.type
            number = isinstance(kind, click.types.IntParamType | click.types.FloatParamType) or kind.name == "PERCENT"
            if isinstance(option, click.Option) and number:
                yield name, option


@pytest.mark.parametrize("text", ["nan", "-nan", "inf", "-inf", "-1", "1e999", "1,5", "x", ""])
def test_no_option_takes_what_is_no_sensible_number(text: str) -> None:
    tried = list(numbers())
    assert len(tried) > 12
    for name, option in tried:
        flag = option.opts[-1]
        done = CliRunner().invoke(command_of(name), [f"{flag}={text}"])
        assert done.exit_code == 2, (name, flag, done.output)
        assert f"{flag}'" in done.output.partition("Invalid value for ")[2].partition(":")[0], (name, flag, done.output)


@pytest.mark.parametrize("text", ["0", "-1", "99999999999999999999", "nan", "1.5"])
@pytest.mark.parametrize("name", ["inspect", "weld"])
def test_no_command_takes_what_is_no_pid(name: str, text: str) -> None:
    done = CliRunner().invoke(command_of(name), ["--", text])
    assert done.exit_code == 2
    assert "Invalid value for" in done.output


# ---- what is no ordinary process ------------------------------------------------------------------------------------


def run(*arguments: object, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, PROGRAM, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def test_a_process_that_proc_hides_is_not_called_ended() -> None:
    require(os.geteuid() == 0, "needs root, to mount /proc anew")
    command = f"mount -t proc -o hidepid=2 proc /proc && exec {' '.join(AS_NOBODY)} {PROGRAM} inspect 1"
    done = run_shell("unshare", "--mount", "sh", "-c", command)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("vmaweld: not permitted to look at process 1, which /proc hides (hidepid)")


def run_shell(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def test_a_process_that_is_ending_is_no_kernel_thread() -> None:
    """The init of a pid namespace waits, its memory gone, for all others of it to be reaped: one we hold by ptrace."""
    require(os.geteuid() == 0, "needs root, for a pid namespace")
    from vmaweld.kernel import ptrace

    script = "sleep 600 & echo; wait"
    with Started(["unshare", "--pid", "--fork", "sh", "-c", script]) as outer:
        assert outer.line() == ""
        init = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text())
        held = int(Path(f"/proc/{init}/task/{init}/children").read_text())
        ptrace.seize(held)
        try:
            os.kill(init, 9)
            while "VmSize" in Path(f"/proc/{init}/status").read_text():
                time.sleep(0.01)
            for arguments in (["inspect", init], ["weld", "--yes", init]):
                done = run(*arguments)
                assert done.returncode == 1
                assert done.stderr == f"vmaweld: process {init} (sh) is ending\n"
        finally:
            ptrace.reap(held)


def test_a_process_whose_main_thread_has_ended() -> None:
    code = "import ctypes, threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n" \
        "print(flush=True)\nctypes.CDLL(None).syscall(60, 0)"  # fmt: skip
    with Started([sys.executable, "-c", code]) as process:
        assert process.line() == ""
        while "VmSize" in Path(f"/proc/{process.pid}/status").read_text():
            time.sleep(0.01)
        done = run("inspect", process.pid)
        assert done.returncode == 1
        assert done.stderr.startswith(f"vmaweld: the main thread of process {process.pid} (python")


def test_names_are_not_obeyed_by_the_terminal() -> None:
    code = "import ctypes, sys\nctypes.CDLL(None).prctl(15, b'\\x1b[2Jx')\nprint(flush=True)\nsys.stdin.read()"
    with Started([sys.executable, "-c", code]) as process:
        assert process.line() == ""
        done = run("weld", "--dry-run", process.pid)
        assert done.returncode == 0
        assert "(\\x1b[2Jx)" in done.stdout
