# SPDX-License-Identifier: GPL-2.0-or-later
"""`vmaweld top` in a real terminal: tmux, 80 columns."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import require
from inspect_support import AS_NOBODY, Started, Target, vmaweld
from terminal_support import Terminal

from vmaweld.kernel import snapshots

pytestmark = pytest.mark.live
PROGRAM = str(Path(sys.executable).with_name("vmaweld"))


def row_of(lines: list[str], pid: int) -> list[str]:
    """The words of the process's line, thousands without their commas; [] where it has none."""
    for line in lines:
        words = line.replace(",", "").split()
        if words and words[0] == str(pid):
            return words
    return []


def pids(lines: list[str]) -> list[int]:
    return [int(line.split()[0]) for line in lines[3:-2] if line.split() and line.split()[0].isdigit()]


def typing(lines: list[str]) -> bool:
    """The filter has the keyboard: the keys of the list are not on offer."""
    return lines[-1].startswith("/ Filter")


def test_sorting_and_filtering(open_terminal: Callable[[str], Terminal]) -> None:
    require(*snapshots.bpf_available())
    with Target("mixed") as target:
        top = open_terminal(f"{PROGRAM} top --every 0.5 --filter python")
        lines = top.wait(lambda lines: bool(row_of(lines, target.pid)))
        assert "processes:" in lines[0]
        assert "exact" in lines[1]
        assert "vVMAS" in lines[2]
        assert all(len(line) <= 80 for line in lines)
        words = row_of(lines, target.pid)
        assert int(words[2]) > 30
        assert words[4] == "%"
        assert int(words[-2]) >= len(target.seams)
        top.keys("o")
        lines = top.wait_for("vOPEN")
        opened = [int(row_of(lines, pid)[-2]) for pid in pids(lines)]
        assert opened == sorted(opened, reverse=True)
        top.keys("p", "r")
        lines = top.wait_for("^PID")
        assert pids(lines) == sorted(pids(lines), reverse=True)
        top.keys("/")
        top.wait(typing)
        top.keys(*str(target.pid))  # what was there is selected, so that typing replaces it
        top.wait(lambda lines: lines[0].endswith(f"filter: {target.pid}") and pids(lines) == [target.pid])
        top.keys("Enter")
        top.wait(lambda lines: not typing(lines))
        top.keys("/")
        top.wait(typing)
        top.keys("Escape")
        top.wait(lambda lines: not typing(lines) and len(pids(lines)) > 1)
        top.keys("q")
        top.wait_for("status 0")


def test_one_process_in_detail_until_it_vanishes(open_terminal: Callable[[str], Terminal]) -> None:
    require(*snapshots.bpf_available())
    with Target("mixed") as target:
        top = open_terminal(f"{PROGRAM} top --every 0.3 --filter {target.pid}")
        top.wait(lambda lines: bool(row_of(lines, target.pid)))
        top.keys("Enter")
        lines = top.wait_for("VMAs after welding")
        assert f"pid {target.pid}" in lines[0]
        assert any("anon-vma" in line and "faulted apart" in line for line in lines)
        top.resize(80, 50)
        top.wait(lambda lines: f"{target.seams[0]:x}" in "\n".join(lines))
        target.process.kill()
        target.process.wait(timeout=20)
        top.wait_for("What was last seen")
        top.keys("/", "o", "Escape")
        lines = top.wait_for("processes: 0")
        assert not row_of(lines, target.pid)
        top.keys("q")
        top.wait_for("status 0")


def test_processes_come_and_go(open_terminal: Callable[[str], Terminal]) -> None:
    with Started(["sh", "-c", "while :; do /bin/true & /bin/true; done"], group=True):
        top = open_terminal(f"{PROGRAM} top --every 0.2 --sort pid")
        top.wait_for("processes:")
        top.keys("v", "g", "n", "r", "Down", "Down", "Enter")
        top.wait_for("Back")
        top.keys("Escape")
        top.wait_for("processes:")
        top.keys("o", "Up")
        first = top.lines()
        top.wait(lambda lines: pids(lines) != pids(first) and len(pids(lines)) > 2)
        top.keys("q")
        lines = top.wait_for("status 0")
        assert "Traceback" not in "\n".join(lines)


def test_q_quits_from_the_details_too_and_the_footer_says_so(open_terminal: Callable[..., Terminal]) -> None:
    top = open_terminal(f"{PROGRAM} top --every 0.5")
    top.wait_for("processes:")
    top.keys("Enter")
    lines = top.wait_for("Back")
    assert "esc Back" in lines[-1]
    assert "q Quit" in lines[-1]
    top.keys("q")
    top.wait_for("status 0")


def test_the_table_as_json() -> None:
    with Target("mixed") as target, Target("apart") as other:
        data = json.loads(vmaweld("top", "--json", "--every", "0.2", "--sort", "pid", "--filter", "python").stdout)
        pids = [one["pid"] for one in data["processes"]]
        assert pids == sorted(pids)
        assert {target.pid, other.pid} <= set(pids)
        only = json.loads(vmaweld("top", "--json", "--every", "0.2", "--filter", target.pid).stdout)
        assert [one["pid"] for one in only["processes"]] == [target.pid]
        assert only["processes"][0]["growth_per_second"] == 0
        documented = (Path(__file__).parents[1] / "docs" / "inspect.md").read_text()
        for key in (*only, *only["processes"][0]):
            assert f"`{key}`" in documented


def test_ctrl_c_leaves_a_clean_terminal(open_terminal: Callable[[str], Terminal]) -> None:
    top = open_terminal(f"{PROGRAM} top --every 0.5")
    top.wait_for("processes:")
    top.keys("C-c")
    lines = top.wait_for("status 130")
    assert "Traceback" not in "\n".join(lines)


def test_without_privilege(open_terminal: Callable[[str], Terminal]) -> None:
    require(os.geteuid() == 0 and shutil.which("setpriv") is not None, "needs root, to be somebody else")
    with Target("mixed", nobody=True) as target:
        top = open_terminal(f"{' '.join(AS_NOBODY)} {PROGRAM} top --every 0.3")
        lines = top.wait(lambda lines: bool(row_of(lines, target.pid)))
        assert "by elimination" in lines[1]
        assert "not readable" in lines[1]
        assert int(row_of(lines, target.pid)[-2]) >= len(target.seams)


def test_growth_is_seen(open_terminal: Callable[[str], Terminal], tmp_path: Path) -> None:
    grow = (
        "import mmap, sys, time\nkept = []\nprint('ready', flush=True)\n"
        "while True:\n m = mmap.mmap(-1, 8192)\n kept.append(m)\n m[0] = 1\n"
        " kept.append(mmap.mmap(-1, 4096, prot=mmap.PROT_READ))\n time.sleep(0.01)\n"
        " assert len(kept) < 20000"
    )
    with Started([sys.executable, "-c", grow]) as growing:
        assert growing.line() == "ready"
        top = open_terminal(f"{PROGRAM} top --every 0.5 --sort growth --filter {growing.pid}")
        top.wait(lambda lines: any(word.startswith("+") for word in row_of(lines, growing.pid)))


def test_top_wants_a_terminal() -> None:
    done = vmaweld("top")
    assert done.returncode == 2
    assert "terminal" in done.stderr
