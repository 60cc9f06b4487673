"""The two builds: the one that was asked for is the one that runs, and plain Python is there without a compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vmaweld.model.merge
from vmaweld import build
from vmaweld.events import EVENT_FIELDS, Event
from vmaweld.snapshot import ROW_FIELDS, Row

ROOT = Path(__file__).parent.parent


def test_the_build_that_runs_is_the_one_asked_for() -> None:
    expected = os.environ.get("VMAWELD_EXPECT", "compiled" if build.compiled() else "pure")
    assert build.compiled() == (expected == "compiled")
    assert vmaweld.model.merge.__file__.endswith(".so") == (expected == "compiled")


def test_version_names_the_build() -> None:
    printed = subprocess.run(
        [sys.executable, "-c", "from vmaweld.cli import main; main()", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert printed.stdout.strip().endswith(f"({build.describe()})")


def _build(target: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``setup.py build`` into `target`, leaving nothing behind in the tree."""
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(target), "build"]
    return subprocess.run(
        [*command, "--build-base", str(target), "--build-lib", str(target / "lib")],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_without_a_compiler_the_build_is_plain_python(tmp_path: Path) -> None:
    built = _build(tmp_path, CC="false", VMAWELD_COMPILE="")
    assert built.returncode == 0, built.stderr
    assert "building as plain Python" in built.stderr
    assert (tmp_path / "lib/vmaweld/model/merge.py").exists()
    assert not list((tmp_path / "lib").rglob("*.so"))


def test_a_wish_that_means_nothing_is_refused(tmp_path: Path) -> None:
    built = _build(tmp_path, VMAWELD_COMPILE="yes")
    assert built.returncode != 0
    assert "VMAWELD_COMPILE" in built.stderr


@pytest.mark.parametrize("command", ["editable_wheel", "egg_info", "sdist"])
def test_only_builds_compile(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editable install must stay what the editor shows, even where compiling is asked for."""
    seen: dict[str, object] = {}
    monkeypatch.setattr("setuptools.setup", lambda **keywords: seen.update(keywords))
    monkeypatch.setattr(sys, "argv", ["setup.py", command])
    monkeypatch.setenv("VMAWELD_COMPILE", "1")
    monkeypatch.chdir(ROOT)
    exec((ROOT / "setup.py").read_text(), {"__name__": "setup"})
    assert seen == {"ext_modules": []}


def test_the_fields_are_told_in_both_builds() -> None:
    """A compiled class has no ``__slots__``: who goes through fields goes by these."""
    event = Event("mmap", 1)
    row = Row(0, 4096, 0)
    if not build.compiled():
        assert type(event).__slots__ == EVENT_FIELDS
        assert type(row).__slots__ == ROW_FIELDS
    assert all(hasattr(event, name) for name in EVENT_FIELDS)
    assert all(hasattr(row, name) for name in ROW_FIELDS)


def test_a_part_of_a_row_is_alike_in_all_else() -> None:
    values = {
        name: number for number, name in enumerate(ROW_FIELDS[3:]) if name not in ("file", "name", "mempolicy", "close")
    }
    row = Row(4096, 3 * 4096, 7, file="file", name="name", mempolicy="bind:0", close=True, **values)
    part = row.below(2 * 4096)
    assert [name for name in ROW_FIELDS if getattr(part, name) != getattr(row, name)] == ["end"]
    assert (row.end, part.end) == (3 * 4096, 2 * 4096)
