# SPDX-License-Identifier: GPL-2.0-or-later
"""Outputs and scratch directories by themselves: what is replaced, what never, what a dead owner leaves."""

import multiprocessing
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import TIMEOUT, make_device, mounted
from conftest import require

from vmaweld.output import Output, OutputError
from vmaweld.scratch import LOCK, PREFIX, Scratch, clear
from vmaweld.trace.store import Metadata, TraceError, TraceWriter, open_trace

NOBODY = 65534


def write(path: Path, data: bytes = b"new", **options: bool) -> None:
    with Output(path, **options) as output:  # type: ignore[arg-type]
        output.write(data)


def _half(output: Output, error: type[BaseException]) -> None:
    output.write(b"half")
    raise error


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_new_file_has_the_mode_that_any_program_gives_it(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "a")
    finally:
        os.umask(before)
    assert ((tmp_path / "a").read_bytes(), stat.S_IMODE((tmp_path / "a").stat().st_mode)) == (b"new", 0o640)
    assert names(tmp_path) == ["a"]


def test_a_replaced_file_keeps_its_mode_and_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    before = path.stat()
    write(path)
    after = path.stat()
    assert path.read_bytes() == b"new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_what_fails_or_is_interrupted_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error), Output(path) as output:
            _half(output, error)
        assert path.read_bytes() == b"old"
        assert names(tmp_path) == ["a"]


def test_links_stay_and_what_they_lead_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    target = tmp_path / "deep" / "target"
    target.write_bytes(b"old")
    (tmp_path / "deep" / "second").symlink_to("target")
    (tmp_path / "first").symlink_to(Path("deep", "second"))
    write(tmp_path / "first")
    assert (tmp_path / "first").readlink() == Path("deep", "second")
    assert target.read_bytes() == b"new"
    assert not target.is_symlink()
    assert names(tmp_path / "deep") == ["second", "target"]
    (tmp_path / "dangling").symlink_to(Path("deep", "made"))
    write(tmp_path / "dangling")
    assert (tmp_path / "deep" / "made").read_bytes() == b"new"
    assert (tmp_path / "dangling").is_symlink()
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OutputError, match=r"cannot write .*/round: Too many levels of symbolic links"):
        Output(tmp_path / "round")


def test_the_input_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"old")
    (tmp_path / "hard").hardlink_to(path)
    (tmp_path / "soft").symlink_to("hard")
    for name in ("in", "hard", "soft"):
        with pytest.raises(OutputError, match="what this command reads") as caught:
            Output(tmp_path / name, inputs=[path])
        assert caught.value.refused
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["hard", "in", "soft"]


def special(kind: str, path: Path) -> None:
    if kind == "directory":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(path))
    else:
        # /dev/full, and a loop device that is not there
        make_device(path, *((stat.S_IFCHR, 1, 7) if kind == "device" else (stat.S_IFBLK, 7, 250)))


KINDS = ("directory", "FIFO", "socket", "device", "block device")


@pytest.mark.live
@pytest.mark.parametrize("by_link", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_never_replaced(kind: str, by_link: bool, tmp_path: Path) -> None:
    path = tmp_path / "special"
    special(kind, path)
    before = path.lstat()
    named = path
    if by_link:
        named = tmp_path / "link"
        named.symlink_to("special")
    with pytest.raises(OutputError, match=f"cannot write {named}: it is a {kind}") as caught:
        Output(named)
    assert caught.value.refused
    if kind == "FIFO":
        threading.Thread(target=write, args=(named,), kwargs={"stream": True}).start()
        assert path.read_bytes() == b"new"
    elif kind == "device":
        with pytest.raises(OutputError, match=f"cannot write {named}: No space left on device"):
            write(named, stream=True)
    else:
        with pytest.raises(OutputError, match=f"it is a {kind}"):
            Output(named, stream=True)
    after = path.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert [name for name in names(tmp_path) if name.startswith(".")] == []


def test_a_pipe_by_its_number_is_written_to(tmp_path: Path) -> None:
    receive, send = os.pipe()
    write(Path(f"/dev/fd/{send}"), stream=True)
    os.close(send)
    with open(receive, "rb") as pipe:
        assert pipe.read() == b"new"


def test_a_file_without_a_name_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        (tmp_path / "a").unlink()
        with pytest.raises(OutputError, match="no name any more"):
            Output(f"/proc/self/fd/{file.fileno()}")


def test_a_file_that_became_a_fifo_meanwhile_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a"

    def meanwhile() -> None:
        with Output(path) as output:
            output.write(b"new")
            os.mkfifo(path)

    with pytest.raises(OutputError, match="meanwhile"):
        meanwhile()
    assert path.is_fifo()
    assert names(tmp_path) == ["a"]


@pytest.mark.live
def test_nobody_else_can_lead_root_astray(tmp_path: Path) -> None:
    """A link or a file planted in a directory like /tmp is not ours to follow or to replace."""
    require(os.geteuid() == 0, "only root can make another user's files")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    victim = tmp_path / "victim"
    victim.write_bytes(b"old")
    (shared / "link").symlink_to(victim)
    (shared / "new").symlink_to(tmp_path / "made")
    (shared / "file").write_bytes(b"theirs")
    for name in names(shared):
        os.lchown(shared / name, NOBODY, NOBODY)
        with pytest.raises(OutputError, match="somebody else's"):
            Output(shared / name)
    assert victim.read_bytes() == b"old"
    assert not (tmp_path / "made").exists()
    assert (shared / "file").read_bytes() == b"theirs"
    write(shared / "ours")
    write(shared / "ours")
    os.chown(shared / "file", 0, 0)
    write(shared / "file")
    assert names(shared) == ["file", "link", "new", "ours"]


@pytest.mark.live
def test_a_mount_point_is_refused_beforehand(tmp_path: Path) -> None:
    path = tmp_path / "a b"
    path.write_bytes(b"old")
    with mounted("--bind", path, at=path), pytest.raises(OutputError, match="something is mounted there"):
        Output(path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    (tmp_path / "disk").mkdir()
    with mounted("-t", "tmpfs", "-o", "size=256k", "none", at=tmp_path / "disk") as disk:
        yield disk


@pytest.mark.live
def test_a_full_disk_leaves_the_old_file_and_nothing_else(small_disk: Path) -> None:
    path = small_disk / "a"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match=r"cannot write .*/a: No space left on device"):
        write(path, bytes(1 << 20))
    (small_disk / "filler").write_bytes(bytes((256 << 10) - 4096))
    with pytest.raises(OutputError, match="No space left on device"):
        write(path)
    with pytest.raises(OutputError, match="No space left on device"), TraceWriter(path, Metadata()):
        pass
    assert path.read_bytes() == b"old"
    assert names(small_disk) == ["a", "filler"]


def test_an_interrupted_trace_is_kept_only_where_no_file_stood(tmp_path: Path) -> None:
    for old in (False, True):
        path = tmp_path / str(old)
        if old:
            path.write_bytes(b"old")
        with pytest.raises(KeyboardInterrupt), TraceWriter(path, Metadata()):
            raise KeyboardInterrupt
        if old:
            assert path.read_bytes() == b"old"
            with pytest.raises(TraceError):
                open_trace(path)
        else:
            assert open_trace(path).metadata.interrupted


# Scratch directories


def _left_by_a_dead_owner(directory: Path) -> Path:
    """A scratch directory whose owner was killed; it holds a file, a directory and a link out of it."""
    script = (
        "import os, sys, time\n"
        "from vmaweld.scratch import Scratch\n"
        "scratch = Scratch(sys.argv[1])\n"
        "(scratch.path / 'file').write_bytes(b'x')\n"
        "(scratch.path / 'sub').mkdir()\n"
        "(scratch.path / 'sub' / 'out').symlink_to(sys.argv[1] + '/kept')\n"
        "(scratch.path / 'out').symlink_to(sys.argv[1] + '/kept')\n"
        "print(scratch.place, flush=True)\n"
        "time.sleep(60)\n"
    )
    (directory / "kept").mkdir(exist_ok=True)
    (directory / "kept" / "precious").write_bytes(b"x")
    with subprocess.Popen([sys.executable, "-c", script, directory], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        place = Path(owner.stdout.readline().strip())
        with Scratch(directory):  # the owner lives: nothing of its is touched
            assert sorted(names(place)) == ["file", "out", "sub", LOCK]
        owner.send_signal(signal.SIGKILL)
    return place


def test_what_a_killed_owner_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    place = _left_by_a_dead_owner(tmp_path)
    assert place.is_dir()
    with Scratch(tmp_path) as scratch:
        assert not place.exists()
        assert names(tmp_path) == [scratch.place.name, "kept"]
    assert names(tmp_path) == ["kept"]
    assert names(tmp_path / "kept") == ["precious"]


def _clear(directory: Path) -> None:
    fd = os.open(directory, os.O_PATH)
    clear(fd)
    os.close(fd)


def test_what_is_not_proved_to_be_ours_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(0o700)
    (elsewhere / LOCK).touch()
    (tmp_path / f"{PREFIX}link").symlink_to(elsewhere)  # planted: leads to what looks like ours
    for name, mode, content in (
        ("open", 0o755, LOCK),  # others may enter: not ours
        ("full", 0o700, "something"),  # without a lock, but not empty
        ("linked", 0o700, None),  # its lock is a link
    ):
        directory = tmp_path / (PREFIX + name)
        directory.mkdir(mode)
        if content is None:
            (directory / LOCK).symlink_to(elsewhere / LOCK)
        else:
            (directory / content).touch()
    (tmp_path / f"{PREFIX}file").touch()
    (tmp_path / f"{PREFIX}empty").mkdir(0o700)
    if os.geteuid() == 0:
        theirs = tmp_path / f"{PREFIX}theirs"
        theirs.mkdir(0o700)
        (theirs / LOCK).touch()
        os.chown(theirs, NOBODY, NOBODY)
    before = names(tmp_path)
    _clear(tmp_path)
    assert names(tmp_path) == [name for name in before if name != f"{PREFIX}empty"]
    assert names(elsewhere) == [LOCK]


def test_a_name_that_changed_its_directory_is_not_emptied(tmp_path: Path) -> None:
    """Who may rename in the directory around it cannot make us delete what is not ours."""
    scratch = Scratch(tmp_path)
    (scratch.path / "mine").touch()
    place = scratch.place
    place.rename(tmp_path / "moved")
    place.mkdir(0o700)
    (place / "precious").touch()
    scratch.close()
    assert names(place) == ["precious"]
    assert names(tmp_path / "moved") == []


def _many(directory: Path, count: int) -> None:
    for _ in range(count):
        with Scratch(directory) as scratch:
            (scratch.path / "file").write_bytes(b"x")
            assert (scratch.path / "file").read_bytes() == b"x"
            assert names(scratch.place) == ["file", LOCK]


def test_many_at_once_leave_one_another_alone(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_many, args=(tmp_path, 150)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(TIMEOUT)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert names(tmp_path) == []
