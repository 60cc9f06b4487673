# SPDX-License-Identifier: GPL-2.0-or-later
"""`vmaweld doctor` tells what works here and how to get the rest."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from terminal_support import Terminal

from vmaweld import doctor
from vmaweld.kernel import snapshots
from vmaweld.trace.recorders import perf


def run(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = None if path is None else {"PATH": path}
    return subprocess.run(
        [sys.executable, "-c", "from vmaweld.cli import main; main()", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )


def test_json_has_stable_keys_and_agrees_with_what_works() -> None:
    done = run("--json")
    assert done.returncode == 0
    found = {each["name"]: each for each in json.loads(done.stdout)["capabilities"]}
    assert all(sorted(each) == ["how", "means", "name", "ok", "value"] for each in found.values())
    assert list(found)[:9] == [
        "vmaweld", "kernel", "perf", "strace", "bpf", "ptrace", "userfaultfd", "uffdio_move", "anon_names",
    ]  # fmt: skip
    assert found["perf"]["ok"] == perf.PerfRecorder.available()[0]
    assert found["bpf"]["ok"] == snapshots.bpf_available()[0]
    assert found["vm.max_map_count"]["value"] == Path("/proc/sys/vm/max_map_count").read_text().strip()
    for each in found.values():
        assert each["means"]
        assert (each["ok"] is not False) or each["how"], f"{each['name']} is missing and nobody says how to get it"


def test_text_has_a_line_for_each_and_a_verdict() -> None:
    done = run()
    assert done.returncode == 0
    assert done.stderr == ""
    for each in doctor.examine():
        assert each.name in done.stdout
    assert done.stdout.splitlines()[-1].startswith(("Everything works here", "Missing here: "))
    assert "\x1b" not in done.stdout  # no colour in a pipe


def test_what_is_not_installed_names_its_package(tmp_path: Path) -> None:
    found = {each["name"]: each for each in json.loads(run("--json", path=str(tmp_path)).stdout)["capabilities"]}
    assert not found["perf"]["ok"]
    assert found["perf"]["how"] == "perf is not installed: apt install linux-perf"
    assert not found["strace"]["ok"]
    assert found["strace"]["how"] == "strace is not installed: apt install strace"


@pytest.mark.live
def test_nothing_is_cut_off_at_forty_columns(open_terminal: Callable[..., Terminal]) -> None:
    program = str(Path(sys.executable).with_name("vmaweld"))
    doctor = open_terminal(f"{program} doctor", 40, 120)
    doctor.wait_for("status 0")
    lines = doctor.whole_lines()
    assert "\N{HORIZONTAL ELLIPSIS}" not in "".join(lines)
    words = " ".join(" ".join(lines).split())
    for each in json.loads(run("--json").stdout)["capabilities"]:
        assert each["name"] in words
        assert each["means"] in words
        if each["how"]:  # a command to copy is one line, which the terminal alone may wrap
            assert [line for line in lines if line.endswith(f"it: {each['how']}")], each["how"]


def test_no_command_is_wrapped_in_a_pipe() -> None:
    lines = run().stdout.splitlines()
    for each in json.loads(run("--json").stdout)["capabilities"]:
        if each["how"]:
            assert [line for line in lines if line.endswith(f"it: {each['how']}")], each["how"]
