"""The README: its links lead somewhere, its drawing is what the command prints."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


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
