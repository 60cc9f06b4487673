# SPDX-License-Identifier: GPL-2.0-or-later
"""study, replay, report and explain as a user meets them. What records is marked live; the rest needs no privilege."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import require
from study_support import write_trace

from vmaweld.events import Event
from vmaweld.model.system import System
from vmaweld.policy import parse_policy
from vmaweld.study.scenarios import SCENARIOS
from vmaweld.trace.recorders import perf, strace

VMAWELD = (sys.executable, "-c", "from vmaweld.cli import main; main()")
DOCS = Path(__file__).parents[1] / "docs"
EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*arguments: str, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*VMAWELD, *arguments], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Two programs; one misses a merge that the series recovers, one a merge of shared memory."""
    events = [
        Event("exec", 1, file="/usr/bin/mover"),
        *SCENARIOS["mremap-back"].events,
        Event("exec", 1, file="/usr/bin/forker"),
        *SCENARIOS["limitation-child"].events,
    ]
    system = System(parse_policy("linux-6.18"))
    for event in events:
        system.apply(event)
    return write_trace(tmp_path / "two.trace", [*events, system.snapshot(1)])


def test_why_there_are_no_snapshots_depends_on_the_recorder(tmp_path: Path) -> None:
    for recorder, advice in (("strace", "Record with perf"), ("perf", "without --no-snapshots")):
        write_trace(tmp_path / "bare.trace", SCENARIOS["mremap-back"].events, recorder=recorder)
        done = run("replay", "bare.trace", "--check", cwd=tmp_path)
        text = " ".join(done.stdout.split())
        assert done.returncode == 1
        assert text.startswith("The trace holds no true snapshots: nothing to compare.")
        assert advice in text
        assert "as root" not in text


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


ODD_ROWS = {"op": pa.array(["fly"]), "op ": pa.nulls(1, pa.string()), "pid": pa.nulls(1, pa.int32())}


@pytest.mark.parametrize("column", ODD_ROWS)
@pytest.mark.parametrize("command", ["replay", "replay --trace-pipe", "replay --check", "replay -j 2", "report"])
def test_a_trace_with_cells_that_mean_nothing_is_one_line(command: str, column: str, tmp_path: Path) -> None:
    path = write_trace(tmp_path / "odd.trace", [Event("mmap", 1, length=4096, prot=3, flags=0x22, result=0x10000)])
    table = pq.read_table(path)
    name = column.strip()
    table = table.set_column(table.schema.get_field_index(name), name, ODD_ROWS[column])
    pq.write_table(table.replace_schema_metadata({"vmaweld": '{"format": 1}'}), path)
    done = run(*command.split(), "odd.trace", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"vmaweld: odd\.trace is damaged \(.*\): record again\n", done.stderr)


def test_replay_answers(trace: Path, tmp_path: Path) -> None:
    done = run("replay", "two.trace", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = lines_of(done.stdout)
    assert lines[0] == "./program 'with space': exit status 0"
    assert lines[1].startswith("2 processes, 13 events in 0.0 s, recorded with perf on Linux 6.18.0")
    assert "2 merges were missed under linux-5.17" in done.stdout
    assert any(re.fullmatch(r"linux-5\.17\+series +1 +1 \(50 %\) +2 +the same", line) for line in lines)
    assert any(re.fullmatch(r"left: shared with a parent or child +1 +50 %", line) for line in lines)
    assert any(re.fullmatch(r"mremap +2 +1 +1", line) for line in lines)
    assert not any(line.startswith("Note:") for line in lines)


def test_what_cannot_be_trusted_is_said(trace: Path, tmp_path: Path) -> None:
    events = [*SCENARIOS["mremap-back"].events, Event("munmap", 1, addr=0x100001, length=4096, result=0)]
    write_trace(
        tmp_path / "lossy.trace", events, faults="assumed", losses={"perf_records": 1234}, notes=["a\x1b[2Jnote"]
    )
    done = run("replay", "lossy.trace", "--verbose", cwd=tmp_path)
    text = " ".join(done.stdout.split())
    assert "(faults assumed)" in text
    assert "Note: Page faults were not recorded but assumed" in text
    assert "Note: Lost while recording: 1,234 perf records." in text
    assert "Note: a\\x1b[2Jnote" in text
    assert "otherwise than in the recording, under every policy: 1 munmap refused (replay --verbose)." in text
    assert "event 5: refused: munmap(" in text
    assert "\x1b" not in done.stdout


def test_json_has_the_documented_keys_alone(trace: Path, tmp_path: Path) -> None:
    documented = (DOCS / "study.md").read_text()
    for arguments in (
        ("replay", "two.trace"),
        ("replay", "two.trace", "--check"),
        ("report", "two.trace"),
        ("explain", "mremap-back"),
    ):
        data = json.loads(run(*arguments, "--json", cwd=tmp_path).stdout)
        assert data["schema"] == 1
        for key in _keys(data):
            assert f"`{key}`" in documented, f"docs/study.md does not tell of {key}"


def _keys(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_keys, value)) if value else set()
    if not isinstance(value, dict):
        return set()
    named_by_policy = {key for key in value if key.startswith("linux-")}
    named_by_cause = {"page offset", "borders", "flags"} & set(value)
    return (set(value) - named_by_policy - named_by_cause).union(*(_keys(part) for part in value.values()))


def test_json_tells_the_numbers(trace: Path, tmp_path: Path) -> None:
    data = json.loads(run("replay", "two.trace", "--json", cwd=tmp_path).stdout)
    missed = data["missed"]
    assert (missed["total"], missed["both"], missed["recovered_by_series"], missed["needs_both"]) == (2, 2, 1, 1)
    assert (missed["shared"], missed["shared_percent"]) == (1, 50.0)
    assert [policy["name"] for policy in data["policies"]] == [
        "linux-5.17",
        "linux-5.17+pgoff",
        "linux-5.17+anon-vma",
        "linux-5.17+series",
    ]
    assert [(p["program"], p["missed"], p["shared"]) for p in data["programs"] if p["missed"]] == [
        ("/usr/bin/mover", 1, 0),
        ("/usr/bin/forker", 1, 1),
    ]


def test_another_base_and_policies_of_choice(trace: Path, tmp_path: Path) -> None:
    data = json.loads(run("replay", "two.trace", "--base", "linux-6.18", "--json", cwd=tmp_path).stdout)
    assert (data["base"], data["missed"]["recovered_by_series"]) == ("linux-6.18", 1)
    data = json.loads(run("replay", "two.trace", "-p", "linux-6.1", "-p", "linux-7.2", "--json", cwd=tmp_path).stdout)
    assert [policy["name"] for policy in data["policies"]] == ["linux-6.1", "linux-7.2"]
    assert data["missed"]["recovered_by_series"] is None


def test_report_says_what_it_wrote(trace: Path, tmp_path: Path) -> None:
    done = run("report", "two.trace", "--html", "two.html", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    assert (data["schema"], data["trace"], data["html"]) == (1, "two.trace", "two.html")
    assert data["bytes"] == (tmp_path / "two.html").stat().st_size
    replayed = json.loads(run("replay", "two.trace", "--json", cwd=tmp_path).stdout)
    for key in ("command", "exit_status", "processes", "events", "base", "missed"):
        assert data[key] == replayed[key]


def test_trace_pipe(trace: Path, tmp_path: Path) -> None:
    done = run("replay", "two.trace", "--trace-pipe", cwd=tmp_path)
    column = re.compile(r" +\S+-\d+ +\[000\] \.\.\.\.\. +\d+\.\d{6}: (vm_av_merge|vm_pgoff_merge): \S+=\S+")
    lines = done.stdout.splitlines()
    assert lines
    assert all(column.match(line) for line in lines)
    assert sum("diff_count=1" in line for line in lines) == 1
    assert sum("vm_pgoff_merge: faulted=1 updated=1" in line for line in lines) == 1
    assert run("replay", "two.trace", "--trace-pipe", "--pid", "99", cwd=tmp_path).stdout == ""


def test_check_says_yes_and_no(trace: Path, tmp_path: Path) -> None:
    done = run("replay", "two.trace", "--check", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("2 of 2 rows exact (100 %, at least 99.9 % wanted: yes)")
    done = run("replay", "two.trace", "--check", "--policy", "linux-5.17+series", "--json", cwd=tmp_path)
    data = json.loads(done.stdout)
    assert done.returncode == 0  # nothing merges in the parent under either
    assert data["exact_percent"] == 100.0
    system = System(parse_policy("linux-6.18"))
    for event in SCENARIOS["mremap-back"].events:
        system.apply(event)
    write_trace(tmp_path / "one.trace", [*SCENARIOS["mremap-back"].events, system.snapshot(1)])
    done = run("replay", "one.trace", "--check", "--policy", "linux-6.18+series", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.startswith("0 of 2 rows exact (0 %, at least 99.9 % wanted: NO)")
    assert "Not exact: 2 borders" in done.stdout
    done = run("replay", "one.trace", "--check", "--policy", "linux-6.18+series", "--threshold", "0", cwd=tmp_path)
    assert done.returncode == 0


def test_check_without_snapshots_is_a_no(tmp_path: Path) -> None:
    write_trace(tmp_path / "bare.trace", SCENARIOS["case-1"].events)
    done = run("replay", "bare.trace", "--check", cwd=tmp_path)
    assert done.returncode == 1
    assert "no true snapshots" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["replay", "nothing.trace"], 1, "cannot read nothing.trace: No such file"),
        (["replay", "two.trace", "-p", "linux-9.9"], 2, "no kernel called 'linux-9.9'"),
        (["replay", "two.trace", "-p", "linux-5.17+magic"], 2, "no change called '+magic'"),
        (["replay", "two.trace", "-p", "linux-5.17", "-p", "linux-5.17"], 2, "given twice"),
        (["replay", "two.trace", "--base", "linux-5.17", "-p", "linux-5.17"], 2, "--base or --policy"),
        (["replay", "two.trace", "--trace-pipe", "--check"], 2, "--trace-pipe prints trace lines"),
        (["replay", "two.trace", "--pid", "1"], 2, "--pid chooses among the lines"),
        (["replay", "two.trace", "--check", "-p", "linux-5.17", "-p", "linux-6.1"], 2, "under one policy"),
        (["report", "nothing.trace"], 1, "cannot read nothing.trace"),
        (["report", "two.trace", "--html", "/nowhere/x.html"], 1, "cannot write /nowhere/x.html"),
        (["explain", "nonsense"], 2, "no scenario is called nonsense"),
        (["explain", "case-1", "--file", "x.json"], 2, "one of the two"),
        (["explain", "--file", "x.json"], 2, "cannot read x.json"),
        (["study"], 2, "vmaweld study -- COMMAND"),
        (["study", "--"], 2, "vmaweld study -- COMMAND"),
        (["study", "--base", "linux-0.1", "--", "true"], 2, "no kernel called 'linux-0.1'"),
        (["study", "--sample", "nonsense"], 2, "there is no sample 'nonsense': choose forking-workers"),
        (["study", "--sample", "growing-buffers", "--", "true"], 2, "a command to study, or --sample"),
        (["study", "--sample", "growing-buffers", "-o", "x.trace"], 2, "recorded already"),
    ],
)
def test_failures_are_one_line(arguments: list[str], status: int, complaint: str, trace: Path, tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == status
    assert done.stdout == ""
    assert complaint in done.stderr
    assert done.stderr.startswith("vmaweld: ")
    assert done.stderr.count("\n") == 1


def test_report_needs_nothing_else(trace: Path, tmp_path: Path) -> None:
    write_trace(tmp_path / "odd.trace", SCENARIOS["mremap-back"].events, command=["<script>alert(1)</script>"])
    done = run("report", "odd.trace", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("odd.html: 1 merge was missed under linux-5.17")
    page = (tmp_path / "odd.html").read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"<(script|img|iframe)[^>]+src=|<link", page[: page.index("</head>")])
    for heading in ("Policies", "VMAs over time", "What became of the missed merges", "Calls that lose most"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("plotly-graph-div") >= 4


def test_report_of_a_trace_that_misses_nothing(tmp_path: Path) -> None:
    write_trace(tmp_path / "calm.trace", SCENARIOS["case-6"].events)
    assert run("report", "calm.trace", "--html", "x.html", cwd=tmp_path).returncode == 0
    page = (tmp_path / "x.html").read_text()
    assert "No merge was missed under linux-5.17" in page
    assert "Calls that lose most" not in page


def test_explain_draws_and_lists(tmp_path: Path) -> None:
    done = run("explain", cwd=tmp_path)
    assert done.returncode == 0
    assert all(name in lines_of(done.stdout) for name in SCENARIOS)
    done = run("explain", "mremap-back", cwd=tmp_path)
    assert "after, under linux-5.17+series" in done.stdout
    assert "VMA       AAAAAAAAAAAAAAAAAA.................." in done.stdout
    done = run("explain", "case-1", cwd=tmp_path)
    assert "after, under linux-5.17 and linux-5.17+series" in done.stdout
    (tmp_path / "mine.json").write_text('[{"op": "mmap", "addr": "0x100000", "length": 4096, "flags": 50}]')
    done = run("explain", "--file", "mine.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1. mmap page 0 ---" in done.stdout


def test_help_shows_examples(tmp_path: Path) -> None:
    for name in ("study", "replay", "report", "explain"):
        done = run(name, "--help", cwd=tmp_path)
        assert done.returncode == 0
        assert f"vmaweld {name}" in done.stdout.partition("Examples:")[2]


def test_a_sample_needs_no_privilege(tmp_path: Path) -> None:
    done = run("study", "--sample", "growing-buffers", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    assert data["missed"]["total"] > 100
    assert data["missed"]["recovered_by_series"] > 0.9 * data["missed"]["total"]
    data = json.loads(run("study", "--sample", "forking-workers", "--json", cwd=tmp_path).stdout)
    assert data["missed"]["shared"] > 0


def test_where_nothing_records_a_sample_stands_in_and_says_so(tmp_path: Path) -> None:
    arguments = ("study", "--or-sample", "growing-buffers", "--", sys.executable, "-c", "print('ran')")
    nothing = tmp_path / "bin"
    nothing.mkdir()
    done = subprocess.run(
        [*VMAWELD, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PATH": str(nothing)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0
    assert "cannot record here" in done.stderr
    assert "apt install" in done.stderr
    assert "the sample growing-buffers instead" in done.stderr
    assert "ran" not in done.stdout
    assert "growing_buffers.py" in done.stdout


def _recorder() -> tuple[bool, str]:
    ok, why = perf.PerfRecorder.available()
    return (ok, why) if ok else strace.StraceRecorder.available()


@pytest.mark.live
def test_study_of_growing_buffers_finds_and_recovers(tmp_path: Path) -> None:
    require(*perf.PerfRecorder.available())
    script = str(EXAMPLES / "growing_buffers.py")
    command = [sys.executable, script, "--buffers", "60", "--kilobytes", "400"]
    done = run("study", "-o", "kept.trace", "--json", "--", *command, cwd=tmp_path)
    assert done.returncode == 0
    data = json.loads(done.stdout)
    assert "60 buffers" in done.stderr  # the program's own output stays out of the JSON
    assert (data["exit_status"], data["faults"]) == (0, "seen")
    assert data["missed"]["total"] > 20
    assert data["missed"]["recovered_by_series"] > 0.9 * data["missed"]["total"]
    highest = {policy["name"]: policy["max_vmas"] for policy in data["policies"]}
    assert highest["linux-5.17+series"] < highest["linux-5.17"]
    done = run("replay", "kept.trace", "--check", "--json", cwd=tmp_path)
    data = json.loads(done.stdout)
    assert data["snapshots"] > 0
    assert data["passed"], data["inexact"][:5]


@pytest.mark.live
def test_study_of_a_compile_and_its_fidelity(tmp_path: Path) -> None:
    require(*perf.PerfRecorder.available())
    project = tmp_path / "project"
    project.mkdir()
    for file in (EXAMPLES / "small_c_project").iterdir():
        if file.suffix in (".c", ".h") or file.name == "Makefile":
            (project / file.name).write_bytes(file.read_bytes())
    done = run("study", "-o", "make.trace", "--", "make", "-C", str(project), cwd=tmp_path)
    assert done.returncode == 0
    ours, theirs = done.stdout.partition("vmaweld study")[0], done.stdout.partition("vmaweld study")[2]
    assert "cc " in ours
    assert f"make -C {project}: exit status 0" in theirs
    assert "linux-5.17+series" in theirs
    assert "Next: `vmaweld report make.trace` draws it" in theirs
    checked = json.loads(run("replay", "make.trace", "--check", "--json", cwd=tmp_path).stdout)
    assert checked["passed"], checked["inexact"][:5]


@pytest.mark.live
def test_the_commands_failure_is_reported_not_ours(tmp_path: Path) -> None:
    require(*_recorder())
    done = run("study", "--", "sh", "-c", "echo before; exit 7", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("before\n")
    assert "exit status 7" in done.stdout
    assert "Next: `vmaweld study -o FILE -- COMMAND` keeps the recording" in done.stdout
    assert not [name for name in os.listdir(tmp_path) if name != "two.trace"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--kernel", ""],
        ["--kernel", "6.01"],
        ["--kernel", "6.6+pgoff"],
        ["--kernel", "5.9"],
        ["--kernel", "6.6", "--against", ""],
        ["--against", "6.1"],
        ["mremap-back", "--kernel", "6.6"],
        ["--kernel", "6.6", "-p", "linux-6.1"],
    ],
    ids=" ".join,
)
def test_kernels_that_cannot_be_compared_are_one_line(arguments: list[str], tmp_path: Path) -> None:
    done = run("explain", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_kernels_are_compared(tmp_path: Path) -> None:
    told = run("explain", "--kernel", "6.6", "--against", "linux-6.1.30", cwd=tmp_path).stdout
    assert "linux-6.6: " in told
    assert "close-never-merges (until 6.4): only in linux-6.1.30" in told
    data = json.loads(run("explain", "--kernel", "6.18", "--against", "6.17", "--json", cwd=tmp_path).stdout)
    assert [kernel["held"] for kernel in data["kernels"]] == [True, True]
    assert {difference["holds_in"] for difference in data["differences"]} <= {"linux-6.18", "linux-6.17"}
    same = run("explain", "--kernel", "6.6", "--against", "6.6", cwd=tmp_path).stdout
    assert same.count("linux-6.6: ") == 1
    assert "differ in no rule" in same
