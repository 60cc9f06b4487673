# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests: another kernel, booted over this machine's files."""

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
from conftest import require_guest

from vmaweld.guests import guest
from vmaweld.guests import image as guest_image
from vmaweld.guests.guest import Guest, GuestError

VERSION = "6.1"

SNAPSHOT = """
import json, os, sys
from vmaweld.kernel import snapshots
snapshot = snapshots.take(os.getpid())
told = {"release": os.uname().release, "source": snapshot.source, "rows": len(snapshot.rows),
        "consistent": snapshot.consistent, "anon_vmas": len(snapshot.anon_vmas)}
with open(os.environ["VMAWELD_OUTPUT"] + "/told.json", "w") as file:
    json.dump(told, file)
print("done")
print("half way", file=sys.stderr)
sys.exit(7)
"""


@pytest.mark.live
def test_a_command_runs_under_another_kernel(tmp_path: Path) -> None:
    require_guest(VERSION)
    booted = Guest(VERSION)
    heard: list[str] = []
    finished = booted.run(
        [sys.executable, "-c", SNAPSHOT],
        timeout=240,
        output=tmp_path,
        environment={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        on_stderr=heard.append,
    )
    assert (finished.status, finished.stdout) == (7, "done\n")
    assert "half way" in finished.stderr
    assert "".join(heard) in finished.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["release"] == booted.release
    assert told["release"].startswith(f"{VERSION}.")
    assert (told["source"], told["consistent"]) == ("bpf", True)
    assert told["rows"] > 20
    assert told["anon_vmas"] > 5
    assert [path.name for path in tmp_path.iterdir()] == ["told.json"]


@pytest.mark.live
def test_the_hosts_files_stay_as_they_are(tmp_path: Path) -> None:
    require_guest(VERSION)
    mark = tmp_path / "mark"
    mark.write_text("host")
    script = f"echo guest > {mark}; cat {mark}; kill -9 $$"
    finished = Guest(VERSION).run(["/bin/sh", "-c", script], timeout=240)
    assert finished.status == 128 + 9
    assert finished.stdout == "guest\n"
    assert mark.read_text() == "host"


@pytest.mark.live
def test_a_guest_that_takes_too_long_is_ended() -> None:
    require_guest(VERSION)
    with pytest.raises(GuestError, match="did not end within 1 s"):
        Guest(VERSION).run(["true"], timeout=1)


@pytest.mark.live
def test_a_command_that_is_not_there() -> None:
    require_guest(VERSION)
    finished = Guest(VERSION).run(["/no/such/program"], timeout=240)
    assert finished.status == 127
    assert "No such file" in finished.stderr


def test_what_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(GuestError, match="is no kernel version"):
        guest_image.fetch("latest")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(GuestError, match="install qemu"):
        Guest(VERSION)
    assert guest.available(VERSION) == (False, "no qemu-system-x86_64: install qemu-system-x86")
    with pytest.raises(GuestError, match="no apt-get to fetch it"):
        guest_image.fetch(VERSION)


def test_a_damaged_image_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    home = guest_image.cache_directory() / VERSION
    home.mkdir(parents=True)
    assert guest_image.cached(VERSION) is None
    (home / "vmlinuz").write_bytes(b"kernel")
    (home / "a.ko").write_bytes(b"module")
    digest = "f8e3cd1b7dcf56d4e8e2bcb5ab4b0aa8f0ea2bbd76ab2a44c2d1c0b1a2bd1c39"
    manifest = {"release": "6.1.0-1-amd64", "modules": ["a.ko"], "sha256": {"vmlinuz": digest}}
    (home / "manifest.json").write_text(json.dumps(manifest))
    assert guest_image.cached(VERSION) is None
    manifest["sha256"] = {"vmlinuz": hashlib.sha256(b"kernel").hexdigest()}
    (home / "manifest.json").write_text(json.dumps(manifest))
    image = guest_image.cached(VERSION)
    assert image == ("6.1.0-1-amd64", home / "vmlinuz", [home / "a.ko"])
    (home / "manifest.json").write_text("{")
    assert guest_image.cached(VERSION) is None


def test_modules_come_after_what_they_need() -> None:
    modules = {"a": b"\0depends=b,c-d\0", "b": b"\0depends=c_d\0", "c_d": b"\0depends=\0"}
    order: list[str] = []
    guest_image._add_with_dependencies("a", modules, {"virtio"}, order)
    guest_image._add_with_dependencies("virtio", modules, {"virtio"}, order)
    assert order == ["c_d", "b", "a"]
    with pytest.raises(GuestError, match="no module overlay"):
        guest_image._add_with_dependencies("overlay", modules, set(), order)


def test_why_a_guest_died_is_told() -> None:
    panic = "x\n[ 1.0] no init found\n[ 1.1] Kernel panic - not syncing: no init\n[ 1.2] Call Trace:\n"
    assert guest._last_line(panic) == "[ 1.0] no init found [ 1.1] Kernel panic - not syncing: no init"
    assert guest._last_line("\nvmaweld-guest: mount 9p on /host\n[ 2.0] reboot\n") == "vmaweld-guest: mount 9p on /host"
    assert guest._last_line("") == "its console is empty"
