# SPDX-License-Identifier: GPL-2.0-or-later
"""Negate each rule of the merge in turn: does a test notice?

    python tests/mutations.py            every mutant; exit status 1 if one survives
    python tests/mutations.py --list     what would be tried

A mutant is a copy of the package in which one condition of `model/merge.py` is changed: a whole test negated, a
comparison turned round, an operand of `and` or `or` dropped or negated, `and` and `or` exchanged, a case left out of a
tuple, a statement left out. The fast tests of the model run against it, the cheapest first, and must fail; against an
unchanged copy they must pass.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = "vmaweld/model/merge.py"
FUNCTIONS = (
    "anon_vmas_answer",
    "_forked",
    "_neighbour_answer",
    "_ask",
    "_both_answer",
    "decide",
    "_case",
    "apply_merge",
    "_hand_over",
    "_remove",
    "_move_start",
)
TESTS = (
    "tests/test_model_cases.py",
    "tests/test_model_series.py",
    "tests/test_model_merge_exhaustive.py",
)
_TIMEOUT = 300

_OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
}

EQUIVALENT: dict[str, str] = {}
"""Mutants that no test can tell from the original, by their text, and why."""


class Mutant:
    """One change. text: where and what, unique.     source: the mutated module."""

    def __init__(self, text: str, source: str) -> None:
        self.text = text
        self.source = source


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of the module `source`."""
    tree = ast.parse(source)
    for function in tree.body:
        if isinstance(function, ast.FunctionDef) and function.name in FUNCTIONS:
            asserts = {
                id(part) for node in ast.walk(function) if isinstance(node, ast.Assert) for part in ast.walk(node)
            }
            for node in ast.walk(function):
                if id(node) not in asserts:
                    yield from _mutants_of(tree, function.name, node)


def _mutants_of(tree: ast.Module, function: str, node: ast.AST) -> Iterator[Mutant]:
    if isinstance(node, (ast.If, ast.IfExp, ast.While)) and not _has_own_mutant(node.test):
        yield _mutant(tree, function, node, "negated test", lambda it: setattr(it, "test", _negated(it.test)))
    elif isinstance(node, ast.Compare):
        for position, operator in enumerate(node.ops):
            opposite = _OPPOSITE[type(operator)]
            yield _mutant(
                tree,
                function,
                node,
                f"comparison turned round to {opposite.__name__}",
                lambda it, position=position, opposite=opposite: it.ops.__setitem__(position, opposite()),
            )
        if isinstance(node.ops[0], ast.In) and isinstance(node.comparators[0], ast.Tuple):
            for position, element in enumerate(node.comparators[0].elts):
                yield _mutant(
                    tree,
                    function,
                    node,
                    f"without {ast.unparse(element)}",
                    lambda it, position=position: it.comparators[0].elts.pop(position),
                )
    elif isinstance(node, ast.BoolOp):
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield _mutant(tree, function, node, f"{other.__name__} in its place", lambda it: setattr(it, "op", other()))
        for position, operand in enumerate(node.values):
            name = ast.unparse(operand)
            yield _mutant(
                tree, function, node, f"without {name}", lambda it, position=position: it.values.pop(position)
            )
            if not _has_own_mutant(operand):
                yield _mutant(
                    tree,
                    function,
                    node,
                    f"with {name} negated",
                    lambda it, position=position: it.values.__setitem__(position, _negated(it.values[position])),
                )
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield _mutant(tree, function, node, "without not", lambda it: setattr(it, "operand", _negated(it.operand)))
    elif isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield _mutant(tree, function, node, "left out", _leave_out)


def _has_own_mutant(test: ast.expr) -> bool:
    """True if negating `test` is what another mutant does: turning the comparison round, or taking the not away."""
    return (isinstance(test, ast.Compare) and len(test.ops) == 1) or isinstance(test, ast.UnaryOp)


def _leave_out(statement: ast.AugAssign | ast.Expr) -> None:
    """Make it do nothing."""
    if isinstance(statement, ast.AugAssign):
        statement.op, statement.value = ast.BitOr(), ast.Constant(0)
    else:
        statement.value = ast.Constant(None)


def _negated(test: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.Not(), test)


def _mutant(tree: ast.Module, function: str, node: ast.AST, what: str, change: object) -> Mutant:
    number = next(position for position, other in enumerate(ast.walk(tree)) if other is node)
    changed = copy.deepcopy(tree)
    twin = next(other for position, other in enumerate(ast.walk(changed)) if position == number)
    assert callable(change)
    change(twin)
    shown = ast.unparse(node.test if isinstance(node, (ast.If, ast.IfExp, ast.While)) else node)
    line = getattr(node, "lineno", 0)
    return Mutant(f"{function}:{line}: {shown}: {what}", ast.unparse(ast.fix_missing_locations(changed)))


def run_tests(source: str) -> str:
    """The first test that fails with `source` as the merge, "" if none does."""
    with tempfile.TemporaryDirectory(prefix="vmaweld-mutant-") as directory:
        package = Path(directory) / "vmaweld"
        shutil.copytree(
            ROOT / "src" / "vmaweld", package, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.pyd")
        )
        (Path(directory) / TARGET).write_text(source)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
        command += ["-p", "no:xdist", "--no-header", "--tb=no", *TESTS]
        environment = {**os.environ, "PYTHONPATH": directory, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired:
            return "a test that no longer ends"
    if done.returncode == 0:
        return ""
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if not failed or done.returncode > 2:
        raise RuntimeError(f"the tests could not run:\n{done.stdout}{done.stderr}")
    return failed[0].split(" ")[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--list", action="store_true", help="print the mutants and try none")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="how many at a time")
    parser.add_argument("--only", default="", help="only mutants whose text contains this")
    options = parser.parse_args()
    source = (ROOT / "src" / TARGET).read_text()
    tried = [mutant for mutant in mutants(source) if options.only in mutant.text]
    if options.list:
        for mutant in tried:
            print(mutant.text)
        return 0
    broken = run_tests(source)
    if broken:
        print(f"the tests fail without any change: {broken}")
        return 1
    survivors = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for mutant, caught in zip(tried, pool.map(lambda it: run_tests(it.source), tried), strict=True):
            known = EQUIVALENT.get(_without_line(mutant.text), "")
            if not caught and not known:
                survivors.append(mutant)
            if sys.stdout.isatty() or not caught:
                print(
                    f"{'caught' if caught else 'equivalent' if known else 'SURVIVES'}  {mutant.text}  {caught or known}"
                )
    print(f"{len(tried)} mutants, {len(survivors)} survive")
    return 1 if survivors else 0


def _without_line(text: str) -> str:
    function, _, rest = text.partition(":")
    return f"{function}:{rest.partition(':')[2]}"


if __name__ == "__main__":
    sys.exit(main())
