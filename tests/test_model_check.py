# SPDX-License-Identifier: GPL-2.0-or-later
"""`System.check`: what it takes for granted, and that it finds what is broken."""

import pytest
from drawing import World, page, play

from vmaweld.abi import PAGE_SIZE
from vmaweld.model.anon_vma import AnonVma
from vmaweld.model.pages import SharedPages
from vmaweld.model.vma import VMA


def test_offsets_may_repeat_within_one_anon_vma() -> None:
    """mremap keeps the offset while it grows the copy, so two pages may have one offset; the walk tells them apart."""
    play(
        "linux-5.17 linux-6.12",
        """
        AAAA           mmap
        x              mremap ......aaaa
        .AAA..Bbbb
        .123..0123     pgoff
        .111..1111     av
        ......XXXX     write
        .xxx..xxxx     pages
        fork 2
        2: ......XXXX  write
        """,
    )


def forked() -> World:
    return play(
        "linux-5.17",
        """
        AAAAAAAA    mmap
        ..xx        munmap
        fork 2
        2: AA       write
        2: xx..ssss pages
        kk..ssss    pages
        """,
    )


def first(world: World) -> VMA:
    vma = world.space(1).vmas.first
    assert vma is not None
    return vma


def break_offset(world: World) -> None:
    first(world).pgoff += 1


def break_alignment(world: World) -> None:
    first(world).end += 1


def break_overlap(world: World) -> None:
    first(world).end += 8 * PAGE_SIZE


def break_emptiness(world: World) -> None:
    world.space(1).pages.drop(page(0), page(2))
    first(world).end = first(world).start


def break_link(world: World) -> None:
    anon_vma = first(world).anon_vma
    assert anon_vma is not None
    del anon_vma.vmas[first(world)]


def break_chain(world: World) -> None:
    first(world).chain = ()


def break_owner(world: World) -> None:
    first(world).anon_vma = AnonVma(99)


def break_active_count(world: World) -> None:
    anon_vma = first(world).anon_vma
    assert anon_vma is not None
    anon_vma.num_active_vmas += 1


def break_child_count(world: World) -> None:
    anon_vma = first(world).anon_vma
    assert anon_vma is not None
    anon_vma.num_children -= 1


def break_mapping(world: World) -> None:
    next(iter(world.space(1).pages.all_runs())).anon_vma = AnonVma(99)


def break_index(world: World) -> None:
    next(iter(world.space(1).pages.all_runs())).index += 1


def break_mapcount(world: World) -> None:
    run = list(world.space(1).pages.all_runs())[-1]
    assert run.shared is not None
    run.shared.add(run.index, run.index_end, 1)


def break_group(world: World) -> None:
    run = list(world.space(1).pages.all_runs())[-1]
    run.shared = SharedPages(run.index, run.index_end, 2)


def break_exclusivity(world: World) -> None:
    list(world.space(1).pages.all_runs())[-1].shared = None


def break_hole(world: World) -> None:
    """Pages where nothing is mapped."""
    run = next(iter(world.space(1).pages.all_runs()))
    run.end += PAGE_SIZE


def break_space(world: World) -> None:
    first(world).page_table = world.space(2).pages


def break_death(world: World) -> None:
    """A process that went without unlinking its VMAs."""
    del world.system.processes[2]


@pytest.mark.parametrize(
    "breaks",
    [
        break_offset,
        break_alignment,
        break_overlap,
        break_emptiness,
        break_link,
        break_chain,
        break_owner,
        break_active_count,
        break_child_count,
        break_mapping,
        break_index,
        break_mapcount,
        break_group,
        break_exclusivity,
        break_hole,
        break_space,
        break_death,
    ],
)
def test_check_finds_what_is_broken(breaks: object) -> None:
    world = forked()
    world.system.check()
    assert callable(breaks)
    breaks(world)
    with pytest.raises(AssertionError):
        world.system.check()
