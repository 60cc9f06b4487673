# SPDX-License-Identifier: GPL-2.0-or-later
"""Shared by all tests: what a live test does where it cannot run."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from terminal_support import Terminal

from vmaweld.guests import guest
from vmaweld.kernel.errors import KernelError
from vmaweld.verify.check import Bench
from vmaweld.verify.run import make_bench

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Who starts the tests from a script with "&" has them ignore Ctrl-C, and all that they start with them.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def require(condition: bool, reason: str) -> None:
    """Skip with `reason` unless `condition`; in CI fail, for there a skip would hide a hole."""
    if condition:
        return
    if os.environ.get("CI"):
        pytest.fail(f"in CI this must be able to run: {reason}")
    pytest.skip(reason)


def require_guest(version: str) -> None:
    """That kernel can be booted. Its image is fetched in CI only: elsewhere a test must not load 70 MB unasked."""
    works, reason = guest.available(version)
    require(works or bool(os.environ.get("CI") and shutil.which("qemu-system-x86_64")), reason)


@pytest.fixture
def swap(tmp_path: Path) -> Iterator[None]:
    """Sixteen megabytes of swap, in a file that goes again."""
    require(not os.geteuid() and shutil.which("mkswap") is not None, "swap needs root and mkswap")
    file = tmp_path / "swap"
    file.write_bytes(bytes(16 << 20))
    file.chmod(0o600)
    subprocess.run(["mkswap", file], check=True, capture_output=True, timeout=60)
    on = subprocess.run(["swapon", file], check=False, capture_output=True, text=True, timeout=60)
    require(on.returncode == 0, f"no swap here: {on.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["swapoff", file], check=True, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """Programs and an executor for the running kernel."""
    try:
        made = make_bench()
    except (KernelError, OSError) as error:
        require(False, f"no executor here: {error}")
        raise
    with made.executor:
        yield made


@pytest.fixture
def open_terminal() -> Iterator[Callable[..., Terminal]]:
    require(shutil.which("tmux") is not None, "tmux is not installed")
    opened: list[Terminal] = []

    def start(command: str, columns: int = 80, rows: int = 24) -> Terminal:
        opened.append(Terminal(command, columns, rows))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()
