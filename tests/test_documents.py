# SPDX-License-Identifier: GPL-2.0-or-later
"""The documents: what they link to is there, and the index leads to each of them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"(?<!!)\[[^]]*\]\(([^)\s]+)\)")


def links(document: Path) -> list[tuple[Path, str]]:
    """(file, anchor) of every link within the repository."""
    found = []
    for link in LINK.findall(document.read_text()):
        if "://" not in link:
            file, _, anchor = link.partition("#")
            found.append(((document.parent / file).resolve() if file else document, anchor))
    return found


def anchors(document: Path) -> set[str]:
    """What GitHub and its like make of the headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for file, anchor in links(document):
        assert file.exists(), f"{file} is not there"
        assert not anchor or anchor in anchors(file), f"{file.name} has no heading #{anchor}"


def test_the_index_leads_to_every_document() -> None:
    linked = {file for file, _ in links(ROOT / "docs" / "index.md")}
    assert set(DOCUMENTS) - linked <= {ROOT / "docs" / "index.md"}


def test_every_source_names_its_licence() -> None:
    for folder in ("src", "tests", "benchmarks", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            lines = path.read_text().splitlines()[:2]
            assert not lines or any("SPDX-License-Identifier" in line for line in lines), path
