# SPDX-License-Identifier: GPL-2.0-or-later
"""`vmaweld record` as a user meets it: on a terminal and in a pipe, with signals, failures and JSON."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import require

from vmaweld.trace.recorders import perf, strace
from vmaweld.trace.store import open_trace

VMAWELD = (sys.executable, "-c", "from vmaweld.cli import main; main()")
RECORDERS = ("perf", "strace")
WORKS = {"perf": perf.PerfRecorder.available(), "strace": strace.StraceRecorder.available()}


def run(*arguments: str, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*VMAWELD, *arguments],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=120,
    )


@pytest.mark.live
@pytest.mark.parametrize("recorder", RECORDERS)
def test_the_command_keeps_its_input_its_output_and_its_status(recorder: str, tmp_path: Path) -> None:
    require(*WORKS[recorder])
    script = "cat; echo mistake >&2; exit 7"
    done = run(
        "record", "--recorder", recorder, "-o", "x.trace", "--", "sh", "-c", script, cwd=tmp_path, stdin="hello\n"
    )
    assert done.returncode == 7
    assert done.stdout == "hello\n"
    lines = done.stderr.splitlines()
    assert lines[0] == "mistake"
    assert lines[-1].startswith("vmaweld: x.trace: 2 processes, ")
    assert all(line.startswith("vmaweld: ") for line in lines[1:])
    trace = open_trace(tmp_path / "x.trace")
    assert trace.metadata.exit_status == 7
    assert trace.metadata.command == ["sh", "-c", script]
    assert [path.name for path in tmp_path.iterdir()] == ["x.trace"]


@pytest.mark.live
def test_json_is_the_last_line_and_the_trace_is_named_after_the_command(tmp_path: Path) -> None:
    require(*WORKS["perf"])
    done = run("record", "--json", "/bin/echo", "hello", cwd=tmp_path)
    assert done.returncode == 0
    first, last = done.stdout.splitlines()
    assert first == "hello"
    summary = json.loads(last)
    assert summary["trace"] == "echo.trace"
    assert summary["recorder"] == "perf"
    assert summary["faults"] == "seen"
    assert summary["losses"] == {}
    assert summary["events"] == len(open_trace(tmp_path / "echo.trace"))
    assert summary["bytes"] == (tmp_path / "echo.trace").stat().st_size
    assert done.stderr == ""


@pytest.mark.live
@pytest.mark.parametrize("recorder", RECORDERS)
def test_a_signal_that_ends_the_command_is_told_as_a_shell_tells_it(recorder: str, tmp_path: Path) -> None:
    require(*WORKS[recorder])
    done = run("record", "--recorder", recorder, "-o", "x.trace", "--", "sh", "-c", "kill -KILL $$", cwd=tmp_path)
    assert done.returncode == 137
    assert open_trace(tmp_path / "x.trace").metadata.exit_status == -signal.SIGKILL


@pytest.mark.live
@pytest.mark.parametrize("recorder", RECORDERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_sent_to_the_recorder_reaches_the_command(recorder: str, number: int, tmp_path: Path) -> None:
    require(*WORKS[recorder])
    script = (
        f"import signal, time\nsignal.signal({number}, lambda *_: exit(5))\nprint('ready', flush=True)\ntime.sleep(30)"
    )
    with subprocess.Popen(
        [*VMAWELD, "record", "--recorder", recorder, "-o", "x.trace", "--", sys.executable, "-I", "-c", script],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(60) == 5
    assert len(open_trace(tmp_path / "x.trace")) > 50


def on_a_terminal(arguments: list[str], cwd: Path) -> tuple[int, str]:
    """Run vmaweld on a terminal, press Ctrl-C at its first "ready"; exit status and all output."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execv(sys.executable, [*VMAWELD, *arguments])
    output = b""
    pressed = False
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ready, _, _ = select.select([terminal], [], [], 1)
        if ready:
            try:
                piece = os.read(terminal, 4096)
            except OSError:  # the other side is closed
                break
            output += piece
        if b"ready" in output and not pressed:
            pressed = True
            os.write(terminal, b"\x03")
    else:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), output.decode()


@pytest.mark.live
@pytest.mark.parametrize("recorder", RECORDERS)
def test_ctrl_c_ends_the_command_and_the_trace_is_whole(recorder: str, tmp_path: Path) -> None:
    require(*WORKS[recorder])
    arguments = ["record", "--recorder", recorder, "-o", "x.trace", "--", "sh", "-c", "echo ready; exec sleep 30"]
    status, output = on_a_terminal(arguments, tmp_path)
    assert status == 130, output
    assert "Traceback" not in output
    assert "vmaweld: x.trace:" in output
    trace = open_trace(tmp_path / "x.trace")
    assert trace.metadata.exit_status == -signal.SIGINT
    events = [event.op for event in trace.events()]
    assert (events[0], events[-1]) == ("exec", "exit")


@pytest.mark.live
def test_a_command_that_handles_ctrl_c_goes_its_own_way(tmp_path: Path) -> None:
    require(*WORKS["perf"])
    script = "test -t 0 && test -t 1 && trap 'echo trapped; exit 6' INT; echo ready; sleep 30"
    status, output = on_a_terminal(["record", "-o", "x.trace", "--", "sh", "-c", script], tmp_path)
    assert status == 6, output
    assert "trapped" in output


@pytest.mark.live
@pytest.mark.parametrize("recorder", RECORDERS)
def test_the_command_sees_nothing_of_us(recorder: str, tmp_path: Path) -> None:
    """Signals blocked or ignored, open descriptors and the user are what they would be without us."""
    require(*WORKS[recorder])
    script = (
        "import os, signal\n"
        "print(os.getuid(), os.geteuid(), signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"
        "print(sorted(os.listdir('/proc/self/fd')))\n"
        "print([line for line in open('/proc/self/status') if line.startswith('SigIgn')])"
    )
    command = ["python3", "-I", "-c", script]
    alone = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL, timeout=60)
    done = run("record", "--recorder", recorder, "-o", "x.trace", "--", *command, cwd=tmp_path)
    assert done.stdout == alone.stdout


ODD = """
import mmap, os, sys, time
name = os.fsencode(sys.argv[1])
descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
os.ftruncate(descriptor, 8192)
mapping = mmap.mmap(descriptor, 8192)
mapping[0] = 1
time.sleep(0.3)
"""


@pytest.mark.live
@pytest.mark.parametrize("recorder", RECORDERS)
def test_names_that_are_no_utf8_are_recorded_and_read_by_every_command(recorder: str, tmp_path: Path) -> None:
    require(*WORKS[recorder])
    program, argument, trace_name = (
        os.fsdecode(name) for name in (b"pr\xffog", rb"d\\" + b"\xfe\xe4", b"tr\xfface.trace")
    )
    (tmp_path / program).symlink_to(sys.executable)
    command = [f"./{program}", "-I", "-c", ODD, argument]
    done = run("record", "--recorder", recorder, "-o", trace_name, "--", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    trace = open_trace(tmp_path / trace_name)
    assert trace.metadata.command == command
    files = {event.file for event in trace.events()}
    assert str(tmp_path / argument) in files
    assert f"./{program}" in files
    for arguments in (
        ["replay", trace_name],
        ["replay", "--json", trace_name],
        ["replay", "--check", "--threshold", "0", trace_name],
        ["replay", "--trace-pipe", trace_name],
        ["replay", trace_name, trace_name],
        ["replay", "--verbose", trace_name],
        ["report", trace_name],
        ["study", "--recorder", recorder, "--", *command],
        ["record", "--json", "--recorder", recorder, "--", *command],
    ):
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 0, (arguments, done.stderr)
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["no-such-command"], 2, "vmaweld: no-such-command: command not found\n"),
        (["--", "/etc/passwd"], 2, "vmaweld: /etc/passwd: not executable\n"),
        (["--"], 2, None),
        ([], 2, None),
        (["--recorder", "guess", "true"], 2, None),
        (["-o", "/no/such/x", "true"], 1, "vmaweld: cannot write /no/such/x: No such file or directory\n"),
    ],
)  # fmt: skip
def test_what_cannot_be_recorded_is_one_line(
    arguments: list[str], status: int, message: str | None, tmp_path: Path
) -> None:
    if status == 1:
        require(WORKS["perf"][0] or WORKS["strace"][0], "no recorder works here")
    done = run("record", *arguments, cwd=tmp_path)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    if message is not None:
        assert done.stderr == message
    assert list(tmp_path.iterdir()) == []


def test_no_recorder_is_told_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("true", "sh"):
        (tmp_path / name).symlink_to("/bin/" + name)
    monkeypatch.setenv("PATH", str(tmp_path))
    done = run("record", "-o", "x", "true", cwd=tmp_path)
    assert done.returncode == 3
    assert "apt install linux-perf" in done.stderr
    assert "apt install strace" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.live
def test_strace_stands_in_for_perf_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(*WORKS["strace"])
    for name in ("true", "strace"):
        path = next(Path(part, name) for part in os.environ["PATH"].split(":") if Path(part, name).exists())
        (tmp_path / name).symlink_to(path)
    monkeypatch.setenv("PATH", str(tmp_path))
    done = run("record", "-o", "x.trace", "true", cwd=tmp_path)
    assert done.returncode == 0
    assert "recording with strace, page faults assumed (perf is not installed" in done.stderr
    assert open_trace(tmp_path / "x.trace").metadata.faults == "assumed"


def test_help_shows_examples(tmp_path: Path) -> None:
    done = run("record", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Examples:" in done.stdout
