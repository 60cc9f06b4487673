# SPDX-License-Identifier: GPL-2.0-or-later
"""Words that every report uses: no count has the wrong number, and there is one place that knows how."""

import re
from pathlib import Path

from vmaweld.words import count_text

SOURCES = Path(__file__).parents[1] / "src" / "vmaweld"


def test_one_of_each_is_singular() -> None:
    assert [count_text(n, "VMA") for n in (0, 1, 2, 1234)] == ["0 VMAs", "1 VMA", "2 VMAs", "1,234 VMAs"]
    assert [count_text(n, "process", "processes") for n in (0, 1, 2)] == ["0 processes", "1 process", "2 processes"]


def test_no_report_builds_a_plural_by_itself() -> None:
    """A number with thousands separators, then a plural noun: only right where the number cannot be one."""
    counted = re.compile(
        r"\{[^{}]+:,\} (?:more |true |open )?(?:process(?:es)?|VMAs|seams|pages|events|snapshots|losses|programs"
        r"|runs|rows|calls|records|traces)\b|'s' \*|'e?s' if \w+ != 1"
    )
    many = {"welding/support.py", "inspect/top.py"}  # counts beyond a limit of thousands, or of 200
    found = [
        f"{path.relative_to(SOURCES)}: {match[0]}"
        for path in SOURCES.rglob("*.py")
        if str(path.relative_to(SOURCES)) not in many
        for match in counted.finditer(path.read_text())
    ]
    assert found == []
