# SPDX-License-Identifier: GPL-2.0-or-later
"""inspect on live processes: against a brute-force reading of the BPF snapshot, with and without privilege, and
where the process is gone, forbidden, odd or on the move."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import require
from inspect_support import (
    AS_NOBODY,
    NOBODY,
    Started,
    Target,
    brute_force,
    family,
    inspect_json,
    vmaweld,
    wait_until,
)

from vmaweld.inspect.census import Census
from vmaweld.inspect.collect import inspect_process
from vmaweld.kernel import snapshots
from vmaweld.kernel.bpf import iterator
from vmaweld.kernel.bpf import records as bpf_records
from vmaweld.kernel.errors import NoAddressSpace, NotPermitted, ProcessGone
from vmaweld.seams import seams

pytestmark = pytest.mark.live

EXAMPLE = Path(__file__).parent.parent / "examples" / "growing_buffers.py"
CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NODE_SCRIPT = (
    "let kept = []; for (let i = 0; i < 200; i++) kept.push(new Uint8Array(1 << 18).fill(i));"
    "console.log('ready'); setInterval(() => kept.length, 1000)"
)
JAVA_PROGRAM = (
    "public class Hold { public static void main(String[] a) throws Exception {"
    "byte[][] kept = new byte[400][]; for (int i = 0; i < 400; i++) kept[i] = new byte[100_000];"
    "System.in.read(); System.out.println(kept.length); } }"
)


def need_bpf() -> None:
    require(*snapshots.bpf_available())


def need_root() -> None:
    require(os.geteuid() == 0 and shutil.which("setpriv") is not None, "runs processes as other users: needs root")


def check_against_brute_force(pid: int) -> tuple[int, int]:
    """No border of `pid` classified otherwise than by the brute-force reading; (seams, open seams)."""
    with iterator.loaded().watch(pid) as watch:
        records, _ = watch.read_consistent()
    found = seams(bpf_records.parse(pid, records))
    assert {seam.address: set(seam.reasons) for seam in found} == brute_force(records)
    assert all(seam.exact for seam in found)
    opened = {seam.address for seam in found if seam.open}
    assert opened == {
        address
        for address, reasons in brute_force(records).items()
        if reasons <= {"page-offset", "anon-vma", "not-attempted"}
    }
    return len(found), len(opened)


# ---- what we made ourselves ---------------------------------------------------------------------------------------


def test_the_seams_we_made_are_open_and_told_with_their_reasons() -> None:
    need_bpf()
    with Target("mixed") as target:
        report = inspect_process(target.pid)
        by_address = {one.seam.address: one for one in report.open}
        *moved, apart = target.seams
        for address in moved:
            assert by_address[address].seam.reasons == ("page-offset", "anon-vma")
            assert (by_address[address].populated, by_address[address].shared) == (2, 0)
            assert by_address[address].obstacle == ""
        assert by_address[apart].seam.reasons == ("anon-vma",)
        assert report.after_welding <= report.vmas - len(target.seams)
        check_against_brute_force(target.pid)


def test_pages_shared_with_a_child_stand_in_the_way() -> None:
    need_bpf()
    with Target("forked") as target:
        report = inspect_process(target.pid)
        made = [one for one in report.open if one.seam.address in target.seams]
        assert [one.obstacle for one in made] == ["shared-pages"] * 3
        assert [one.shared for one in made] == [2] * 3
        assert report.obstacle_counts()["shared-pages"] >= 3


def test_growing_buffers_held_open() -> None:
    need_bpf()
    with Started([sys.executable, str(EXAMPLE), "--buffers", "60", "--kilobytes", "300", "--hold"]) as held:
        assert f"pid {held.pid}" in held.line()
        os.kill(held.pid, signal.SIGSTOP)
        _, opened = check_against_brute_force(held.pid)
        assert opened > 0
        data = inspect_json(held.pid)
        assert data["open"] == opened
        assert all(one["reasons"] for one in data["open_seams"])


# ---- real programs --------------------------------------------------------------------------------------------------


def need_program(name: str) -> str:
    path = shutil.which(name)
    require(path is not None, f"{name} is not installed")
    assert path is not None
    return path


def test_redis_server(tmp_path: Path) -> None:
    need_bpf()
    path = tmp_path / "socket"
    command = [
        need_program("redis-server"),
        "--port",
        "0",
        "--unixsocket",
        str(path),
        "--save",
        "",
        "--dir",
        str(tmp_path),
    ]
    with Started(command) as redis:
        assert wait_until(path.exists)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"DEBUG POPULATE 50000 key 100\r\nSET a b\r\nBGSAVE\r\n")
            assert client.recv(1)
        check_against_brute_force(redis.pid)


def test_node() -> None:
    need_bpf()
    with Started([need_program("node"), "-e", NODE_SCRIPT]) as node:
        assert node.line() == "ready"
        check_against_brute_force(node.pid)


def java_command(folder: Path) -> list[str]:
    """A Java virtual machine that stays: a program of ours or, without the compiler, one that asks for a password."""
    java = need_program("java")
    modules = subprocess.run([java, "--list-modules"], capture_output=True, text=True, timeout=60, check=True).stdout
    if "jdk.compiler@" in modules:
        source = folder / "Hold.java"
        source.write_text(JAVA_PROGRAM)
        return [java, "-Xmx256m", str(source)]
    return [java, "-m", "java.base/sun.security.tools.keytool.Main", "-genkeypair", "-keystore", str(folder / "keys")]


def is_up(pid: int) -> bool:
    """The virtual machine has its heap, its code cache and its threads."""
    return Path(f"/proc/{pid}/maps").read_bytes().count(b"\n") > 100


def test_java(tmp_path: Path) -> None:
    need_bpf()
    with Started(java_command(tmp_path), stderr=subprocess.DEVNULL) as java:
        assert wait_until(lambda: is_up(java.pid))
        count, _ = check_against_brute_force(java.pid)
        assert count > 80


def test_chromium(tmp_path: Path) -> None:
    need_bpf()
    page = tmp_path / "page.html"
    page.write_text(
        "<title>t</title><script>kept = []; for (let i = 0; i < 50; i++) kept.push(new Uint8Array(1e6))</script>"
    )
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        Started(
            [
                need_program("chromium"),
                *CHROMIUM,
                f"--user-data-dir={profile}",
                "--remote-debugging-port=0",
                page.as_uri(),
            ],
            group=True,
            stderr=subprocess.DEVNULL,
        ) as chromium,
    ):
        assert wait_until(lambda: (Path(profile) / "DevToolsActivePort").exists())
        assert wait_until(lambda: len(family(chromium.pid)) >= 4)
        checked = 0
        for pid in family(chromium.pid):
            try:
                checked += check_against_brute_force(pid)[0] > 0
            except (ProcessGone, ProcessLookupError):
                continue
        assert checked >= 3


# ---- privilege ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", ["mixed", "apart", "forked"])
def test_with_and_without_privilege_the_same_seams_are_open(scene: str) -> None:
    need_bpf()
    need_root()
    with Target(scene, nobody=True) as target:
        exact = inspect_json(target.pid)
        guessed = inspect_json(target.pid, nobody=True)
        assert (exact["exact"], guessed["exact"]) == (True, False)
        assert (exact["source"], guessed["source"]) == ("bpf", "procfs")
        assert exact["uid"] == guessed["uid"] == NOBODY
        assert guessed["vmas"] == exact["vmas"]
        assert guessed["open"] == exact["open"] >= len(target.seams)
        assert [one["address"] for one in guessed["open_seams"]] == [one["address"] for one in exact["open_seams"]]
        pages = [(one["left"]["populated_pages"], one["right"]["shared_pages"]) for one in exact["open_seams"]]
        assert pages == [
            (one["left"]["populated_pages"], one["right"]["shared_pages"]) for one in guessed["open_seams"]
        ]


def test_growing_buffers_with_and_without_privilege() -> None:
    need_bpf()
    need_root()
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", sys.executable, str(EXAMPLE)]
    with Started([*command, "--buffers", "60", "--kilobytes", "300", "--hold"]) as held:
        assert "pid" in held.line()
        os.kill(held.pid, signal.SIGSTOP)
        assert inspect_json(held.pid, nobody=True)["open"] == inspect_json(held.pid)["open"] > 0


@pytest.mark.parametrize("program", ["redis-server", "node", "java", "chromium"])
def test_real_programs_with_and_without_privilege(program: str) -> None:
    need_bpf()
    need_root()
    need_program(program)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o777)
        command = {
            "redis-server": [
                "redis-server",
                "--port",
                "0",
                "--unixsocket",
                f"{name}/ready",
                "--save",
                "",
                "--dir",
                name,
            ],
            "node": ["node", "-e", NODE_SCRIPT],
            "java": java_command(folder),
            "chromium": [
                "chromium",
                *CHROMIUM,
                f"--user-data-dir={name}/p",
                "--remote-debugging-port=0",
                "about:blank",
            ],
        }[program]
        environment = {**os.environ, "HOME": name}
        with Started([*AS_NOBODY, *command], group=True, stderr=subprocess.DEVNULL, env=environment) as running:
            if program == "node":
                assert running.line() == "ready"
            elif program == "java":
                assert wait_until(lambda: is_up(running.pid))
            else:
                ready = folder / ("ready" if program == "redis-server" else "p/DevToolsActivePort")
                assert wait_until(ready.exists)
            pids = family(running.pid)
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            compared = 0
            for pid in pids:
                if Path(f"/proc/{pid}/status").read_text().partition("State:\t")[2].startswith("Z"):
                    continue
                exact, guessed = inspect_json(pid), inspect_json(pid, nobody=True)
                assert [one["address"] for one in guessed["open_seams"]] == [
                    one["address"] for one in exact["open_seams"]
                ]
                assert (guessed["vmas"], guessed["seams"]) == (exact["vmas"], exact["seams"])
                compared += 1
            assert compared >= (3 if program == "chromium" else 1)


def test_another_users_process_is_refused_in_one_line() -> None:
    need_root()
    for arguments in ((), ("--maps",), ("--json",), ("--watch", "1")):
        done = vmaweld("inspect", os.getpid(), *arguments, nobody=True)
        assert done.returncode == 3
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert f"process {os.getpid()}" in done.stderr
        assert "root" in done.stderr


def test_all_without_privilege_tells_what_it_leaves_out() -> None:
    need_root()
    with Target("mixed", nobody=True) as target:
        done = vmaweld("inspect", "--all", "--json", nobody=True)
        data = json.loads(done.stdout)
        assert data["refused"] > 0
        assert data["exact"] is False
        (line,) = [one for one in data["processes"] if one["pid"] == target.pid]
        assert line["open"] >= len(target.seams)
        assert {one["uid"] for one in data["processes"]} == {NOBODY}
        assert "cannot be read" in vmaweld("inspect", "--all", nobody=True).stdout


# ---- gone, odd, on the move -----------------------------------------------------------------------------------------


def test_a_process_that_is_not_there() -> None:
    done = vmaweld("inspect", 2**22 - 1)
    assert done.returncode == 1
    assert done.stderr.startswith("vmaweld: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_kernel_thread() -> None:
    require(Path("/proc/2/status").exists() and os.geteuid() == 0, "pid 2 is not kthreadd here")
    with pytest.raises(NoAddressSpace):
        inspect_process(2)
    done = vmaweld("inspect", 2)
    assert done.returncode == 1
    assert "kernel thread" in done.stderr
    assert 2 not in [one.pid for one in Census().take()]


def test_a_zombie() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    try:
        assert wait_until(lambda: "Z (zombie)" in Path(f"/proc/{child}/status").read_text())
        with pytest.raises(ProcessGone, match="zombie"):
            inspect_process(child)
        assert child not in [one.pid for one in Census().take()]
    finally:
        os.waitpid(child, 0)


def test_processes_that_exec_and_die_meanwhile() -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9 10; do /bin/true; sh -c 'exec /bin/true'; done; sh -c 'exec sleep 0.05'"
    census = Census()
    with Started(["sh", "-c", f"while :; do {script}; done"], group=True) as shell:
        for _ in range(15):
            counted = census.take()
            assert all(one.vmas > 0 for one in counted)
            for pid in family(shell.pid):
                try:
                    report = inspect_process(pid)
                except (ProcessGone, NoAddressSpace, NotPermitted):
                    continue
                assert report.vmas > 0
        assert shell.process.poll() is None


def test_a_process_that_changes_its_memory_all_the_time() -> None:
    need_bpf()
    with Target("busy") as target:
        for _ in range(10):
            report = inspect_process(target.pid)
            rows = report.snapshot.rows
            assert report.vmas > 20
            assert all(a.end <= b.start for a, b in pairwise(rows))
            assert vmaweld("inspect", target.pid, "--maps").returncode == 0


def test_sixty_thousand_vmas(tmp_path: Path) -> None:
    need_bpf()
    with Target("many") as target:
        count, opened = check_against_brute_force(target.pid)
        assert count > 59_000
        assert opened >= len(target.seams) == 29_999
        report = inspect_process(target.pid)
        assert report.vmas > 60_000
        assert len(report.runs) < 10
        made = set(target.seams)
        assert {one.populated for one in report.open if one.seam.address in made} == {2}
        done = vmaweld("inspect", target.pid, "--warn", "80%")
        assert done.returncode == 1
        assert "80 % or more" in done.stderr


def test_odd_names(tmp_path: Path) -> None:
    need_bpf()
    with Target("odd_file_name", str(tmp_path)) as target:
        check_against_brute_force(target.pid)
        done = vmaweld("inspect", target.pid, "--maps")
        (line,) = [line for line in done.stdout.splitlines() if "odd" in line]
        assert "odd\\n\\x1b[31m<script>'\"&[b]\\" in line
        assert "\\xff" in line
        assert "\x1b" not in done.stdout
        maps = json.loads(vmaweld("inspect", target.pid, "--maps", "--json").stdout)["maps"]
        (row,) = [row for row in maps if "odd" in row["file"]]
        assert row["file"].startswith(f"{tmp_path}/odd\n\x1b[31m<script>")
        html, svg = tmp_path / "odd.html", tmp_path / "odd.svg"
        assert vmaweld("inspect", target.pid, "--html", html, "--svg", svg).returncode == 0
        assert html.read_text().count("<script") == 2  # the data and the program, not the file
        assert "<script" not in svg.read_text()


# ---- watching -------------------------------------------------------------------------------------------------------


def test_watch_ends_with_the_process() -> None:
    command = [str(Path(sys.executable).with_name("vmaweld")), "inspect"]
    with Started(["sleep", "600"]) as sleeper, Started([*command, str(sleeper.pid), "--watch", "0.1"]) as watching:
        for _ in range(2):
            assert f" sleep pid={sleeper.pid} vmas=" in watching.line()
        sleeper.process.kill()
        sleeper.process.wait(20)
        assert watching.process.wait(20) == 0  # all that was to be watched has been, and --warn was not reached


def test_watch_interrupted_is_no_warning() -> None:
    command = [str(Path(sys.executable).with_name("vmaweld")), "inspect", str(os.getpid()), "--watch", "0.1"]
    with Started(command, stderr=subprocess.PIPE) as watching:
        assert f"pid={os.getpid()}" in watching.line()
        os.kill(watching.pid, signal.SIGINT)
        assert watching.process.wait(20) == 130


def test_watch_warns_and_says_no() -> None:
    with Target("mixed") as target:
        done = vmaweld("inspect", target.pid, "--watch", "0.1", "--warn", "0.01%", "--json")
        assert done.returncode == 1
        data = json.loads(done.stdout)
        assert data["pid"] == target.pid
        assert data["vmas"] / data["limit"] == pytest.approx(data["share"], abs=1e-5)
        assert "0.01 % or more" in done.stderr
        assert vmaweld("inspect", target.pid, "--warn", "99%").returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("1", "--all"),
        ("--all", "--maps"),
        ("1", "--watch", "1", "--maps"),
        ("1", "--warn", "0"),
        ("1", "--warn", "x"),
        ("0",),
    ],
)
def test_bad_usage(arguments: tuple[str, ...]) -> None:
    assert vmaweld("inspect", *arguments).returncode == 2


def test_a_picture_that_cannot_be_written() -> None:
    done = vmaweld("inspect", os.getpid(), "--html", "/proc/nowhere/picture.html")
    assert done.returncode == 1
    assert "cannot write /proc/nowhere/picture.html" in done.stderr
