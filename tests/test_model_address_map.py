# SPDX-License-Identifier: GPL-2.0-or-later
"""The sorted map below VMAs and page runs, against a dict that is sorted for every question."""

import random

import pytest

from vmaweld.model.address_map import AddressMap


@pytest.mark.parametrize("seed", range(4))
def test_it_answers_as_a_sorted_dict_does(seed: int) -> None:
    """Grows over several chunks, shrinks to nothing and grows again."""
    chooser = random.Random(seed)
    tree: AddressMap[str] = AddressMap()
    known: dict[int, str] = {}
    for turn in range(6000):
        growing = turn // 2500 % 2 == 0
        key = chooser.randrange(4000) << 12
        below = [other for other in known if other <= key]
        above = [other for other in known if other >= key]
        if turn % 20 == 0:  # the sorted side is slow
            assert tree.at_or_before(key) == (known[max(below)] if below else None)
            assert tree.at_or_after(key) == (known[min(above)] if above else None)
            assert tree.get(key) == known.get(key)
            tree.check()
        if key in known:
            if not growing or chooser.random() < 0.2:
                tree.remove(key)
                del known[key]
        elif growing or chooser.random() < 0.2:
            known[key] = f"{key:#x}"
            before = known[max(below)] if below else None
            assert tree.insert(key, known[key]) == before
        elif known and below:
            near = max(below)
            tree.rekey(near, near + 1)
            known[near + 1] = known.pop(near)
            tree.rekey(near + 1, near)
            known[near] = known.pop(near + 1)
        assert len(tree) == len(known)
    assert list(tree.values()) == [known[key] for key in sorted(known)]
    for key in list(known):
        tree.remove(key)
    assert tree.at_or_before(1 << 40) is None
    assert tree.at_or_after(0) is None
    tree.check()


def test_order_of_insertion_does_not_matter() -> None:
    """Upwards, downwards: every chunk is split at its end or at its front."""
    for keys in (range(3000), reversed(range(3000))):
        tree: AddressMap[int] = AddressMap()
        for key in keys:
            tree.insert(key, -key)
        tree.check()
        assert list(tree.values()) == [-key for key in range(3000)]
