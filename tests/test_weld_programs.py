# SPDX-License-Identifier: GPL-2.0-or-later
"""Real programs, welded while they serve: redis-server under load, node, a JVM, and the project's own example."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import require
from weld_crack import crack
from weld_support import TIMEOUT, open_seams, require_other

from vmaweld.welding import remote

pytestmark = pytest.mark.live
EXAMPLES = Path(__file__).parent.parent / "examples"
SOURCES = Path(__file__).parent / "torture" / "sources"


def weld_twice(pid: int, alive: Callable[[], None], pieces: int = 150) -> None:
    """Crack and weld twice, at once and in slices, contents compared in the standstill; `alive` asks the program."""
    for options in (remote.Options(verify=True), remote.Options(max_pause=0.005)):
        made = crack(pid, pieces)
        assert made > 20
        alive()
        before = open_seams(pid)
        report = remote.weld(pid, options)
        assert before > 20
        # The program goes on meanwhile: a page may be busy, a new seam may open.
        assert open_seams(pid) <= before // 10, report
        assert report.closed >= before * 9 // 10
        alive()


def test_growing_buffers_goes_on_and_verifies_itself() -> None:
    require_other()
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / "growing_buffers.py"), "--hold", "--buffers", "120", "--kilobytes", "200"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert "ok" in process.stdout.readline()
            assert open_seams(process.pid) > 10
            report = remote.weld(process.pid, remote.Options(verify=True))
            assert (open_seams(process.pid), report.left) == (0, [])
            for _ in range(3):
                assert ", ok" in process.stdout.readline()
        finally:
            process.kill()


def test_redis_under_load(tmp_path: Path) -> None:
    require_other()
    require(bool(shutil.which("redis-server") and shutil.which("redis-benchmark")), "redis is needed")
    path = str(tmp_path / "socket")
    server = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--io-threads", "2"],
        stdout=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    try:
        end = time.monotonic() + TIMEOUT
        while not os.path.exists(path):
            assert time.monotonic() < end
            time.sleep(0.05)
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(TIMEOUT)
        client.connect(path)
        answers = client.makefile("rb")

        def ask(*words: bytes) -> bytes:
            client.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
            line = answers.readline()
            if line[:1] == b"$" and line != b"$-1\r\n":
                return answers.read(int(line[1:]) + 2)[:-2]
            return line[1:-2]

        def value(number: int) -> bytes:
            return b"%d." % number * (100 + number % 700)

        ask(b"SELECT", b"3")
        for number in range(3000):
            assert ask(b"SET", b"check:%d" % number, value(number)) == b"OK"

        def alive() -> None:
            for number in range(3000):
                assert ask(b"GET", b"check:%d" % number) == value(number)

        load = subprocess.Popen(
            ["redis-benchmark", "-s", path, "-q", "-n", "100000000", "-r", "20000", "-d", "300", "-t", "set,get,lpush"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            time.sleep(0.5)
            weld_twice(server.pid, alive)
            assert load.poll() is None
        finally:
            load.kill()
            load.wait(TIMEOUT)
        # A child for a snapshot shares all pages while it lives; then it is welded again.
        digest = ask(b"DEBUG", b"DIGEST")
        assert crack(server.pid, 50) > 10
        ask(b"CONFIG", b"SET", b"dbfilename", b"dump.rdb")
        ask(b"BGSAVE")
        remote.weld(server.pid)
        while b"rdb_bgsave_in_progress:1" in ask(b"INFO", b"persistence"):
            time.sleep(0.05)
        report = remote.weld(server.pid, remote.Options(unshare=True, verify=True))
        assert report.copied == 0
        assert open_seams(server.pid) <= 3
        assert ask(b"DEBUG", b"DIGEST") == digest
        assert server.poll() is None
    finally:
        server.kill()
        server.wait(TIMEOUT)


def _program(command: list[str], folder: Path) -> None:
    """Weld a program that checks itself all the time and says so, a line a round."""
    output = folder / "output"
    with output.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file, cwd=folder) as process:
        try:

            def alive() -> None:
                seen = output.read_bytes().count(b"ok")
                end = time.monotonic() + TIMEOUT
                while output.read_bytes().count(b"ok") < seen + 5:
                    assert time.monotonic() < end
                    assert process.poll() is None, output.read_text()[-2000:]
                    time.sleep(0.05)
                assert b"bad" not in output.read_bytes()

            alive()
            weld_twice(process.pid, alive)
            process.send_signal(signal.SIGTERM)
            process.wait(TIMEOUT)
        finally:
            process.kill()


def test_node(tmp_path: Path) -> None:
    require_other()
    require(shutil.which("node") is not None, "node is needed")
    _program(["node", str(SOURCES / "check.js")], tmp_path)


@pytest.mark.parametrize("collector", ["-XX:+UseG1GC", "-XX:+UseZGC", "-XX:+UseSerialGC"])
def test_java(tmp_path: Path, collector: str) -> None:
    require_other()
    require(shutil.which("java") is not None, "java is needed")
    _program(["java", "-Xmx256m", "-Xss512k", collector, str(SOURCES / "Check.java")], tmp_path)
