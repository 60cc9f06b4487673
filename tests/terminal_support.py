# SPDX-License-Identifier: GPL-2.0-or-later
"""A real terminal to run a program in: tmux."""

import os
import subprocess
import uuid
from collections.abc import Callable

from inspect_support import wait_until


class Terminal:
    """A tmux of its own with one command in it."""

    def __init__(self, command: str, columns: int = 80, rows: int = 24) -> None:
        self._socket = f"vmaweld-{uuid.uuid4().hex[:12]}"
        # The shell stays behind the command, to show what it left on the screen and with which status.
        self._tmux(
            "-f", "/dev/null", "new-session", "-d", "-x", str(columns), "-y", str(rows),
            f"{command}; echo status $?; sleep 60",
        )  # fmt: skip

    def _tmux(self, *arguments: str) -> str:
        environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "SHELL": "/bin/sh"}
        done = subprocess.run(
            ["tmux", "-L", self._socket, *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            env=environment,
            check=True,
        )
        return done.stdout

    def keys(self, *keys: str) -> None:
        for key in keys:
            self._tmux("send-keys", key)

    def lines(self) -> list[str]:
        return self._tmux("capture-pane", "-p").splitlines()

    def whole_lines(self) -> list[str]:
        """The screen's lines, those that the terminal itself wrapped put together, as one copies them."""
        return self._tmux("capture-pane", "-p", "-J").splitlines()

    def resize(self, columns: int, rows: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def wait(self, true: Callable[[list[str]], bool]) -> list[str]:
        """The screen once it is so."""
        assert wait_until(lambda: true(self.lines())), "\n".join(self.lines())
        return self.lines()

    def wait_for(self, text: str) -> list[str]:
        return self.wait(lambda lines: any(text in line for line in lines))

    def close(self) -> None:
        self._tmux("kill-server")
