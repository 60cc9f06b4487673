# SPDX-License-Identifier: GPL-2.0-or-later
"""The two builds: the one that was asked for is the one that runs, and plain Python is there without a compiler."""

import os
import re
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
    _read_setup()
    assert seen == {"ext_modules": []}


def _read_setup() -> dict[str, Any]:
    """The names that setup.py defines. Its call of `setuptools.setup` must be patched and the directory be ROOT."""
    names: dict[str, Any] = {"__name__": "setup"}
    exec((ROOT / "setup.py").read_text(), names)
    return names


@pytest.fixture
def compiled_modules(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that setup.py compiles, relative to ROOT."""
    monkeypatch.setattr("setuptools.setup", lambda **keywords: None)
    monkeypatch.setattr(sys, "argv", ["setup.py", "egg_info"])
    monkeypatch.chdir(ROOT)
    paths = _read_setup()["COMPILED"]
    assert isinstance(paths, list)
    return paths


def test_every_module_that_is_compiled_exists(compiled_modules: list[str]) -> None:
    assert len(set(compiled_modules)) == len(compiled_modules)
    assert [path for path in compiled_modules if not (ROOT / path).is_file()] == []


def test_the_model_is_compiled_at_any_depth(compiled_modules: list[str]) -> None:
    model = {path.relative_to(ROOT).as_posix() for path in (ROOT / "src/vmaweld/model").rglob("*.py")}
    assert {path for path in model if not path.endswith("/__init__.py")} <= set(compiled_modules)


@pytest.mark.skipif(not build.compiled(), reason="plain Python runs here")
def test_every_module_that_is_compiled_is_an_extension(compiled_modules: list[str]) -> None:
    plain = []
    for path in compiled_modules:
        spec = find_spec(path.removeprefix("src/").removesuffix(".py").replace("/", "."))
        if spec is None or not (spec.origin or "").endswith(tuple(EXTENSION_SUFFIXES)):
            plain.append(path)
    assert plain == []


def test_make_builds_anew_when_any_module_changes() -> None:
    """A module that make does not know may change, and the compiled tests run the old one."""
    # make itself is not asked: even its dry runs look after .venv, which may not be this checkout's.
    (find,) = re.findall(r"^MODULES := \$\(shell (.*)\)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    known = subprocess.run(find, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "src/vmaweld").rglob("*.py")}
    assert modules == set(known.split())


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
