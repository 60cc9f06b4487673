"""The policies of a study, and docs/policies.md, which must tell every row of policy.py."""

from pathlib import Path

import pytest

from vmaweld.policy import CHANGES, KERNELS, PolicyError
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
    """The table of docs/policies.md, from policy.py."""
    kernels = list(KERNELS)
    rows: dict[str, None] = {}
    for kernel in kernels:
        rows |= dict.fromkeys(sorted(KERNELS[kernel] - rows.keys()))
    lines = [
        "| row | " + " | ".join(kernel.removeprefix("linux-") for kernel in kernels) + " |",
        "|---|" + ":-:|" * len(kernels),
    ]
    lines += [
        f"| `{row}` | " + " | ".join("x" if row in KERNELS[kernel] else "" for kernel in kernels) + " |" for row in rows
    ]
    return lines


def test_the_document_tells_every_row_and_change() -> None:
    text = DOC.read_text()
    wanted = "\n".join(matrix())
    assert wanted in text, f"docs/policies.md wants this table:\n{wanted}"
    for change in CHANGES:
        assert f"`+{change}`" in text
