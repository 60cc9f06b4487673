# SPDX-License-Identifier: GPL-2.0-or-later
"""The policies of a study, and docs/policies.md, which must tell every rule."""

from pathlib import Path

import pytest

from vmaweld.policy import CHANGES, RULES, PolicyError
from vmaweld.study.policies import study_policies

DOC = Path(__file__).parents[1] / "docs" / "policies.md"


def test_four_policies_of_a_base() -> None:
    assert [policy.name for policy in study_policies()] == [
        "linux-5.17",
        "linux-5.17+pgoff",
        "linux-5.17+anon-vma",
        "linux-5.17+series",
    ]
    assert study_policies("linux-7.2")[3].name == "linux-7.2+series"


def test_names_of_choice_in_their_order() -> None:
    names = ["linux-6.18", "linux-5.10", "linux-5.17+grow+series"]
    assert [policy.name for policy in study_policies(names=names)] == names


@pytest.mark.parametrize("names", [["linux-5.17", "linux-5.17"], ["linux"], ["linux-5.17+"]])
def test_nonsense_is_refused(names: list[str]) -> None:
    with pytest.raises(PolicyError):
        study_policies(names=names)


def matrix() -> list[str]:
    """The table of docs/policies.md, from the rules."""
    lines = ["| rule | when | commit |", "|---|---|---|"]
    for rule in RULES:
        commits = " ".join(f"`{commit}`" for commit in (rule.commit, rule.ended) if commit)
        lines += [f"| `{rule.name}`: {rule.text} | {rule.span()} | {commits} |"]
    return lines


def test_the_document_tells_every_rule_and_change() -> None:
    text = DOC.read_text()
    wanted = "\n".join(matrix())
    assert wanted in text, f"docs/policies.md wants this table:\n{wanted}"
    for change in CHANGES:
        assert f"`+{change}`" in text
