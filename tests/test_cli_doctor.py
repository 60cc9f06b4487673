"""`vmaweld doctor` tells what works here and how to get the rest."""

import json
import subprocess
import sys
from pathlib import Path

from vmaweld.kernel import snapshots
from vmaweld.trace import capabilities, perf


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
    assert found["perf"]["ok"] == perf.available()[0]
    assert found["bpf"]["ok"] == snapshots.bpf_available()[0]
    assert found["vm.max_map_count"]["value"] == Path("/proc/sys/vm/max_map_count").read_text().strip()
    for each in found.values():
        assert each["means"]
        assert (each["ok"] is not False) or each["how"], f"{each['name']} is missing and nobody says how to get it"


def test_text_has_a_line_for_each_and_a_verdict() -> None:
    done = run()
    assert done.returncode == 0
    assert done.stderr == ""
    for each in capabilities.examine():
        assert each.name in done.stdout
    assert done.stdout.splitlines()[-1].startswith(("Everything works here", "Missing here: "))
    assert "\x1b" not in done.stdout  # no colour in a pipe


def test_what_is_not_installed_names_its_package(tmp_path: Path) -> None:
    found = {each["name"]: each for each in json.loads(run("--json", path=str(tmp_path)).stdout)["capabilities"]}
    assert not found["perf"]["ok"]
    assert found["perf"]["how"] == "perf is not installed: apt install linux-perf"
    assert not found["strace"]["ok"]
    assert found["strace"]["how"] == "strace is not installed: apt install strace"
