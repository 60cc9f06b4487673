# SPDX-License-Identifier: GPL-2.0-or-later
"""The mutants of the merge, without running them (`make mutations` does): each is a module of its own."""

from mutations import EQUIVALENT, FUNCTIONS, ROOT, TARGET, _without_line, mutants

SOURCE = (ROOT / "src" / TARGET).read_text()


def test_every_function_of_the_merge_has_mutants_and_all_differ() -> None:
    made = list(mutants(SOURCE))
    assert len(made) > 150
    assert {mutant.text.split(":")[0] for mutant in made} >= set(FUNCTIONS) - {"_move_start"}
    assert len({mutant.text for mutant in made}) == len(made)
    for mutant in made:
        compile(mutant.source, mutant.text, "exec")


def test_what_is_called_equivalent_is_still_there() -> None:
    assert set(EQUIVALENT) <= {_without_line(mutant.text) for mutant in mutants(SOURCE)}
