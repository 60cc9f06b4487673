# SPDX-License-Identifier: GPL-2.0-or-later
"""What every command that writes does with its outputs, and every command with a stdout that takes nothing."""

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import TIMEOUT, command, make_device, mounted, run, waiting_in
from conftest import require
from study_support import write_trace

from vmaweld.study.scenarios import SCENARIOS
from vmaweld.trace.recorders import perf, strace
from vmaweld.trace.store import open_trace

RECORDERS = ("perf", "strace")
WORKS = {"perf": perf.PerfRecorder.available(), "strace": strace.StraceRecorder.available()}
ONE_RECORDER = (WORKS["perf"][0] or WORKS["strace"][0], "no recorder works here")
MANY_PROCESSES = "for i in $(seq 300); do /bin/true; done"
SCRATCH = ".vmaweld-"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write_trace(tmp_path / "run.trace", SCENARIOS["mremap-back"].events)


WRITERS: dict[str, tuple[str | int, ...]] = {
    "record": ("record", "-o", "OUTPUT", "--", "touch", "ran"),
    "study": ("study", "-o", "OUTPUT", "--", "touch", "ran"),
    "report": ("report", "run.trace", "--html", "OUTPUT"),
    "inspect --html": ("inspect", os.getpid(), "--html", "OUTPUT"),
    "inspect --svg": ("inspect", os.getpid(), "--svg", "OUTPUT"),
}


def writing(writer: str, output: str) -> list[str | int]:
    return [output if word == "OUTPUT" else word for word in WRITERS[writer]]


RECORDING = ("record", "study")


def scratches(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(SCRATCH)]


@pytest.mark.live
@pytest.mark.parametrize("writer", WRITERS)
def test_a_device_stays_a_device(writer: str, trace: Path, tmp_path: Path) -> None:
    require(*ONE_RECORDER)
    device = tmp_path / "full"
    make_device(device, stat.S_IFCHR, 1, 7)
    done = run(*writing(writer, "full"), cwd=tmp_path)
    assert stat.S_ISCHR(device.lstat().st_mode)
    if writer in RECORDING:
        assert done.returncode == 2
        assert done.stderr == "vmaweld: cannot write full: it is a device, and this format needs a regular file\n"
        assert not (tmp_path / "ran").exists()
    else:
        assert (done.returncode, done.stderr) == (1, "vmaweld: cannot write full: No space left on device\n")
    assert scratches(tmp_path) == []


@pytest.mark.live
@pytest.mark.parametrize("writer", WRITERS)
def test_a_fifo_is_written_to_where_the_format_is_a_stream(writer: str, trace: Path, tmp_path: Path) -> None:
    require(*ONE_RECORDER)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    if writer in RECORDING:
        done = run(*writing(writer, "fifo"), cwd=tmp_path)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert not (tmp_path / "ran").exists()
    else:
        found: list[str] = []
        reader = threading.Thread(target=lambda: found.append(fifo.read_text()), daemon=True)
        reader.start()
        done = run(*writing(writer, "fifo"), cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        reader.join(TIMEOUT)
        assert found[0].rstrip().endswith(("</html>", "</svg>"))
    assert fifo.is_fifo()


@pytest.mark.live
@pytest.mark.parametrize("writer", WRITERS)
def test_a_directory_is_refused_in_one_line(writer: str, trace: Path, tmp_path: Path) -> None:
    require(*ONE_RECORDER)
    done = run(*writing(writer, "."), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "vmaweld: cannot write .: it is a directory\n")


@pytest.mark.live
@pytest.mark.parametrize("writer", WRITERS)
def test_a_link_stays_and_its_file_is_replaced(writer: str, trace: Path, tmp_path: Path) -> None:
    require(*ONE_RECORDER)
    target = tmp_path / "target"
    target.write_bytes(b"old")
    target.chmod(0o640)
    (tmp_path / "link").symlink_to("target")
    done = run(*writing(writer, "link"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "link").readlink() == Path("target")
    assert len(target.read_bytes()) > 100
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert scratches(tmp_path) == []


def test_a_report_does_not_replace_its_recording(trace: Path, tmp_path: Path) -> None:
    before = trace.read_bytes()
    (tmp_path / "hard").hardlink_to(trace)
    (tmp_path / "soft").symlink_to("hard")
    for name in ("run.trace", "hard", "soft", str(trace)):
        done = run("report", "run.trace", "--html", name, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr == f"vmaweld: cannot write {name}: it is what this command reads; name another file\n"
    trace.rename(tmp_path / "page.html")
    done = run("report", "page.html", cwd=tmp_path)  # the default name is the recording's own
    assert done.returncode == 2
    assert (tmp_path / "page.html").read_bytes() == before


@pytest.mark.live
def test_a_recording_does_not_replace_its_program_or_its_output(tmp_path: Path) -> None:
    require(*ONE_RECORDER)
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho said\n")
    program.chmod(0o755)
    done = run("record", "-o", "program", "--", "./program", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert program.read_text().startswith("#!/bin/sh")
    with (tmp_path / "out").open("w") as out:
        done = run("record", "-o", "out", "--", "./program", cwd=tmp_path, stdout=out)
    assert done.returncode == 2
    assert "it is the standard input or output of this command" in done.stderr
    assert (tmp_path / "out").read_text() == ""


def test_two_pictures_in_one_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b").symlink_to("a")
    done = run("inspect", os.getpid(), "--html", "a", "--svg", "b", cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert not (tmp_path / "a").exists()


@pytest.mark.live
def test_an_output_that_cannot_be_written_is_known_before_the_work(trace: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command("report", "run.trace", "--html", "/nowhere/x", first=waiting_in("vmaweld.cli.replaying:replay")),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "vmaweld: cannot write /nowhere/x: No such file or directory\n")


# Full disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 KiB, too small for what the recorders leave of `MANY_PROCESSES`."""
    (tmp_path / "disk").mkdir()
    with mounted("-t", "tmpfs", "-o", "size=100k", "none", at=tmp_path / "disk") as disk:
        yield disk


@pytest.mark.live
@pytest.mark.parametrize("recorder", RECORDERS)
def test_a_disk_that_fills_up_while_recording_is_said(recorder: str, disk: Path, tmp_path: Path) -> None:
    require(*WORKS[recorder])
    (disk / "run.trace").write_bytes(b"old")
    script = f"{MANY_PROCESSES}; echo done; echo mistake >&2"
    done = run("record", "--recorder", recorder, "-o", "disk/run.trace", "--", "sh", "-c", script, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "done\n")  # the command itself was not disturbed
    first, last = done.stderr.splitlines()
    assert first == "mistake"
    assert last.startswith("vmaweld: cannot write disk/run.trace: ")
    assert "No space left on device" in last
    assert (disk / "run.trace").read_bytes() == b"old"
    assert [path.name for path in disk.iterdir()] == ["run.trace"]


@pytest.mark.live
@pytest.mark.parametrize("recorder", RECORDERS)
def test_a_full_directory_for_temporary_files_is_said(recorder: str, disk: Path, tmp_path: Path) -> None:
    require(*WORKS[recorder])
    environment = {**os.environ, "TMPDIR": str(disk)}
    arguments = ("study", "--recorder", recorder, "--", "sh", "-c", MANY_PROCESSES)
    done = run(*arguments, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "No space left on device" in done.stderr
    assert str(disk) in done.stderr
    assert list(disk.iterdir()) == []


@pytest.mark.live
@pytest.mark.parametrize("left", [0, 4096, 8192, 20480])
@pytest.mark.parametrize("recorder", RECORDERS)
def test_a_disk_that_is_full_from_the_beginning_is_said(recorder: str, left: int, disk: Path, tmp_path: Path) -> None:
    require(*WORKS[recorder])
    (disk / "filler").write_bytes(bytes((100 << 10) - left))
    script = MANY_PROCESSES if left else "true"
    done = run("record", "--recorder", recorder, "-o", "disk/run.trace", "--", "sh", "-c", script, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "No space left on device" in done.stderr
    assert [path.name for path in disk.iterdir()] == ["filler"]


# A stdout that takes nothing

PRINTING = {
    "--version": ("--version",),
    "--help": ("--help",),
    "study": ("study", "--sample", "growing-buffers"),
    "record": ("record", "--json", "-o", "new.trace", "--", "true"),
    "replay": ("replay", "run.trace"),
    "replay --json": ("replay", "run.trace", "--json"),
    "replay --trace-pipe": ("replay", "run.trace", "--trace-pipe"),
    "replay --check": ("replay", "run.trace", "--check"),
    "replay --jobs": ("replay", "run.trace", "--jobs", "2"),
    "report": ("report", "run.trace"),
    "inspect": ("inspect", os.getpid()),
    "inspect --maps": ("inspect", os.getpid(), "--maps"),
    "inspect --json": ("inspect", os.getpid(), "--json", "--maps"),
    "inspect --all": ("inspect", "--all"),
    "inspect --watch": ("inspect", os.getpid(), "--watch", "0.1"),
    "export --help": ("export", "--help"),
    "top --help": ("top", "--help"),
    "weld": ("weld", "--dry-run", os.getpid()),
    "verify": ("verify", "--events", "100"),
    "explain": ("explain",),
    "explain one": ("explain", "mremap-back"),
    "doctor": ("doctor",),
}


@pytest.mark.live
@pytest.mark.parametrize("name", PRINTING)
def test_a_full_stdout_is_said(name: str, trace: Path, tmp_path: Path) -> None:
    require(*ONE_RECORDER)
    with open("/dev/full", "w") as full:
        done = run(*PRINTING[name], cwd=tmp_path, stdout=full)
    assert (done.returncode, done.stderr) == (1, "vmaweld: cannot write to stdout: No space left on device\n")


@pytest.mark.live
@pytest.mark.parametrize("name", PRINTING)
def test_a_closed_stdout_is_said_before_anything_is_done(name: str, trace: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command(*PRINTING[name])],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "vmaweld: stdout is closed, so nothing can be told; > /dev/null throws it away\n"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.live
def test_closed_stdin_and_stderr_harm_nothing(tmp_path: Path) -> None:
    """Their numbers must not go to the next file that is opened: what is meant for stderr would land in it."""
    require(*ONE_RECORDER)
    script = "echo mistake >&2; cat; ls -l /proc/self/fd"
    done = subprocess.run(
        ["sh", "-c", '"$@" <&- 2>&-', "sh", *command("record", "-o", "run.trace", "--", "sh", "-c", script)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.count("-> /dev/null") == 2
    with open_trace(tmp_path / "run.trace") as trace:
        assert len(list(trace.events())) > 50


def test_a_reader_that_leaves_is_no_error(trace: Path, tmp_path: Path) -> None:
    for arguments in (("explain", "mremap-back"), ("replay", "run.trace", "--json"), ("--help",)):
        receive, send = os.pipe()
        os.close(receive)
        done = run(*arguments, cwd=tmp_path, stdout=send)
        os.close(send)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_full_stderr_does_not_end_the_work(trace: Path, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        assert run("replay", "nosuch.trace", cwd=tmp_path, stderr=full).returncode == 1
        assert run("report", "run.trace", cwd=tmp_path, stderr=full).returncode == 0


# What a killed run leaves


@pytest.mark.live
@pytest.mark.parametrize("recorder", RECORDERS)
def test_the_next_run_clears_what_a_killed_one_left_but_nothing_of_a_live_one(recorder: str, tmp_path: Path) -> None:
    require(*WORKS[recorder])
    running = []
    try:
        for name in ("live", "killed"):
            script = "import sys\nprint('ready', flush=True)\nsys.stdin.read()"
            process = subprocess.Popen(
                command("record", "--recorder", recorder, "-o", name, "--", sys.executable, "-Ic", script),
                cwd=tmp_path,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            running.append(process)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        live, killed = running
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait(TIMEOUT)
        assert len(scratches(tmp_path)) == 2
        done = run("record", "--recorder", recorder, "-o", "next", "--", "true", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(scratches(tmp_path)) == 1
        live.communicate(timeout=TIMEOUT)  # closes its stdin
        assert live.returncode == 0
        assert len(open_trace(tmp_path / "live")) > 50
        assert sorted(path.name for path in tmp_path.iterdir()) == ["live", "next"]
    finally:
        for process in running:
            process.kill()
            process.communicate(timeout=TIMEOUT)
