# SPDX-License-Identifier: GPL-2.0-or-later
"""The examples in docstrings: each runs and prints what it says, in the compiled build as in the pure one.

A compiled function has lost its docstring. The examples are therefore read from the sources, and run with the names of
the module as it was imported.
"""

import ast
import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src" / "vmaweld"
AT_LEAST = 39
"""How many examples there were when this test was written. More may come, but none may get lost unseen."""


def module_name(path: Path) -> str:
    parts = ["vmaweld", *path.relative_to(SOURCES).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def docstrings(path: Path) -> Iterator[tuple[str, str, int]]:
    """(name, docstring, line) of the module, its classes and functions, and of what stands under a constant."""
    name = module_name(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for statement in node.body:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                text = statement.value.value
                if isinstance(text, str) and ">>>" in text:
                    yield f"{name}.{getattr(node, 'name', '__doc__')}", text, statement.lineno - 1


def examples(path: Path) -> list[tuple[str, str, int]]:
    """Those docstrings of `path` that hold an example which is to be run."""
    parser = doctest.DocTestParser()
    return [
        found
        for found in docstrings(path)
        if any(not example.options.get(doctest.SKIP) for example in parser.get_examples(found[1]))
    ]


WITH_EXAMPLES = [path for path in sorted(SOURCES.rglob("*.py")) if examples(path)]


def run(path: Path) -> doctest.TestResults:
    module = importlib.import_module(module_name(path))
    runner = doctest.DocTestRunner(verbose=False)
    for name, text, line in examples(path):
        runner.run(doctest.DocTestParser().get_doctest(text, dict(vars(module)), name, str(path), line))
    return runner.summarize(verbose=False)


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=module_name)
def test_examples_print_what_they_say(path: Path) -> None:
    results = run(path)
    assert results.attempted
    assert not results.failed, "see the captured output"


def test_no_example_got_lost() -> None:
    assert sum(run(path).attempted for path in WITH_EXAMPLES) >= AT_LEAST
