# SPDX-License-Identifier: GPL-2.0-or-later
"""The README: its drawing is what the command prints, its commands are there. Its links: see test_documents."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_drawing_is_the_commands() -> None:
    shown = README.partition("$ vmaweld explain mremap-back\n")[2].partition("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", "from vmaweld.cli import main; main()", "explain", "mremap-back"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for part in shown.split("...\n"):
        assert part in done.stdout


def test_every_command_is_there() -> None:
    commands = set(re.findall(r"\$ vmaweld (\w+)|`vmaweld (\w+)", README))
    names = {name for pair in commands for name in pair if name}
    done = subprocess.run(
        [sys.executable, "-c", "from vmaweld.cli import main; main()", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert names <= set(re.findall(r"^  (\w+) ", done.stdout, re.MULTILINE))


def test_make_study_runs_the_environments_own_python() -> None:
    """`python3` may be a shim of pyenv or its like, and the study would tell of the shim."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-n", "study"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert "-- .venv/bin/python examples/growing_buffers.py" in done.stdout
    for text in (README, (ROOT / "src/vmaweld/cli/study_command.py").read_text()):
        assert "python examples/growing_buffers.py" in text
        assert "python3 examples" not in text
