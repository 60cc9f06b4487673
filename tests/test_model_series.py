# SPDX-License-Identifier: GPL-2.0-or-later
"""The series on Linux 5.17, patch by patch, and where it stops: memory shared with a parent or child."""

import pytest
from drawing import BASE, World, page, play

from vmaweld.abi import PAGE_SHIFT, PAGE_SIZE
from vmaweld.model.pages import PageRun, SharedPages
from vmaweld.model.tracepoints import obstacle_names

STOCK = "linux-5.17"
PGOFF = "linux-5.17+pgoff"
ANON_VMA = "linux-5.17+anon-vma"
SERIES = "linux-5.17+series"
ALL = f"{STOCK} {PGOFF} {ANON_VMA} {SERIES}"


# patch 1: the refactor changes nothing ----------------------------------------------------------------


def test_patch_1_what_merges_without_the_series_merges_with_it() -> None:
    """Every case once, unfaulted and faulted, the same under every policy."""
    play(
        ALL,
        """
        aaaa....cccc   mmap
        ....bbbb       mmap
        aaaaaaaaaaaa   case 1
        AAAAAAAAAAAA   write
        ....xxxx       mprotect r
        AAAABBBBCCCC
        ..xx           mprotect r
        AABBBBBBCCCC   case 4
        ..x            mprotect rw
        AAABBBBBCCCC   case 5
        ...x           mprotect rw
        ....xxxx       mprotect rw
        AAAAAAAAAAAA   case 6
        111111111111   av
        ....xx         mprotect r
        ....xx         mprotect rw
        AAAAAAAAAAAA   case 6
        0123456789ab   pgoff
        """,
    )


# patch 2: the page offset on mremap -------------------------------------------------------------------


def test_patch_2_a_moved_vma_takes_the_offset_of_its_new_place() -> None:
    play(
        f"{STOCK} {ANON_VMA}",
        """
        AAAA               mmap
        xxxx               mremap ........aaaa
        ........AAAA
        ........0123       pgoff       # the page offset tells where it was born
        ........1111       av
        """,
    )
    play(
        f"{PGOFF} {SERIES}",
        """
        AAAA               mmap
        xxxx               mremap ........aaaa
        ........AAAA
        ........89ab       pgoff
        ........1111       av
        ........xxxx       pages
        """,
    )


def test_patch_2_alone_joins_the_halves_of_one_vma_again() -> None:
    timeline = """
        AAAAAAAAAAAAAA     mmap
        ....xxxxxx         munmap
        1111......1111     av
        ..........xxxx     mremap ....bbbb
        """
    play(
        f"{STOCK} {ANON_VMA}",
        timeline
        + """
        AAAABBBB           case 0
        0123abcd           pgoff
        """,
    )
    play(
        f"{PGOFF} {SERIES}",
        timeline
        + """
        AAAAAAAA           case 2
        01234567           pgoff
        11111111           av
        xxxxxxxx           pages
        """,
    )


def test_patch_2_alone_leaves_two_anon_vmas_apart() -> None:
    world = play(
        PGOFF,
        """
        AAAA......BBBB     mmap
        ..........xxxx     mremap ....bbbb
        AAAABBBB           case 0
        01234567           pgoff       # the offset would fit now
        11112222           av
        """,
    )
    assert world.last.missed() == [page(4)]
    assert obstacle_names(world.last.prev_obstacles) == ["anon_vma"]
    assert world.last.faulted
    assert world.last.updated


def test_patch_2_a_part_moves_and_the_rest_keeps_its_offset() -> None:
    play(
        f"{PGOFF} {SERIES}",
        """
        AAAAAAAA           mmap
        ..xxxx             mremap ..........bbbb
        AA....CC..BBBB
        01....67..abcd     pgoff
        11....11..1111     av
        """,
    )


def test_patch_2_a_move_may_merge_with_its_own_source() -> None:
    play(
        STOCK,
        """
        AAAA               mmap
        xx                 mremap ....aa
        ..AABB             case 0
        ..2301             pgoff
        """,
    )
    play(
        f"{PGOFF} {SERIES}",
        """
        AAAA               mmap
        xx                 mremap ....aa
        ..AAAA             case 2
        ..2345             pgoff
        ..xxxx             pages
        """,
    )
    play(
        f"{PGOFF} {SERIES}",
        """
        ....AAAA           mmap
        ......xx           mremap ..aa
        ..AAAA             case 3
        ..2345             pgoff
        """,
    )


def test_patch_2_a_move_may_merge_with_both_neighbours_of_the_target() -> None:
    play(
        f"{PGOFF} {SERIES}",
        """
        AAAAAAAAAAAAAAAA   mmap
        ....xxxx....       munmap
        ............xxxx   mremap ....bbbb
        AAAAAAAAAAAA       case 1
        0123456789ab       pgoff
        111111111111       av
        """,
    )


def test_patch_2_a_move_may_merge_with_its_source_and_the_one_before() -> None:
    play(
        f"{PGOFF} {SERIES}",
        """
        AAAAAAAAAAAA       mmap
        ....xxxx           munmap
        ........xxxx       mremap ....bbbb
        AAAAAAAA           case 1
        01234567           pgoff
        xxxxxxxx           pages
        """,
    )
    play(
        SERIES,
        """
        AAAA....BBBB       mmap        # not the same anon_vma
        ........xxxx       mremap ....bbbb
        AAAAAAAA           case 1
        11111111           av
        """,
    )


def test_patch_2_dontunmap() -> None:
    """Until 6.18 target and source may be one VMA, where the source has no offset of its own to keep."""
    play(
        f"{PGOFF} {SERIES}",
        """
        AAAA               mmap
        xxxx               mremap ....aaaa dontunmap
        aaaaAAAA           case 2
        01234567           pgoff
        11111111           av
        ....xxxx           pages
        """,
    )
    play(
        "linux-7.2+series",
        """
        AAAA               mmap
        xxxx               mremap ....aaaa dontunmap
        aaaaBBBB           case 0
        01234567           pgoff
        ----1111           av
        """,
    )


def test_patch_2_growing_while_moving() -> None:
    play(
        f"{PGOFF} {SERIES}",
        """
        AAaa               mmap
        ....BBBB           mmap
        xxxx               mremap ..........aaaaaa
        ....BBBB..AAaaaa
        ....4567..abcdef   pgoff
        """,
    )


def test_patch_2_private_file_memory_keeps_its_offset() -> None:
    play(
        f"{PGOFF} {SERIES}",
        """
        AAAA               mmap file=lib pgoff=3
        xxxx               mremap ........aaaa
        ........AAAA
        ........3456       pgoff
        """,
    )


def test_unfaulted_memory_always_took_the_new_offset() -> None:
    play(
        ALL,
        """
        AAAA......bbbb     mmap
        ..........xxxx     mremap ....bbbb
        AAAAaaaa           case 2
        01234567           pgoff
        """,
    )


# patch 3: different anon_vmas -------------------------------------------------------------------------


def test_patch_3_alone_joins_two_neighbours_over_a_hole() -> None:
    timeline = """
        AAAA....CCCC       mmap
        1111....2222       av
        ....bbbb           mmap
        """
    play(f"{STOCK} {PGOFF}", timeline + "AAAAaaaaCCCC           case 2")
    play(
        f"{ANON_VMA} {SERIES}",
        timeline
        + """
        AAAAaaaaAAAA       case 1
        111111111111       av          # the successor's pages are the predecessor's now
        xxxx....xxxx       pages
        """,
    )


def test_patch_3_alone_joins_a_whole_vma_with_the_one_before() -> None:
    timeline = """
        AAAA....CCCC       mmap noreserve
        1111....2222       av
        ....bbbb           mmap r noreserve
        ....xxxx           mprotect rw
        """
    play(
        f"{STOCK} {PGOFF}",
        timeline
        + """
        AAAAaaaaCCCC       case 7
        111111112222       av
        """,
    )
    play(
        f"{ANON_VMA} {SERIES}",
        timeline
        + """
        AAAAaaaaAAAA       case 6
        111111111111       av
        """,
    )


_SIDE_BY_SIDE = """
        AAAA               mmap rw noreserve
        ....bbbb           mmap r noreserve
        ....xxxx           madvise DONTFORK   # so that the first write finds no anon_vma to reuse
        ....xxxx           mprotect rw
        ....XXXX           write
        AAAABBBB
        11112222           av
"""


def test_patch_3_case_7_a_whole_vma_goes_to_the_one_before() -> None:
    timeline = _SIDE_BY_SIDE + "....xxxx           madvise DOFORK\n"
    play(
        f"{STOCK} {PGOFF}",
        timeline
        + """
        AAAABBBB           case 0
        11112222           av
        """,
    )
    play(
        f"{ANON_VMA} {SERIES}",
        timeline
        + """
        AAAAAAAA           case 7
        11111111           av
        xxxxxxxx           pages
        """,
    )


def test_patch_3_case_5_the_start_of_a_vma_goes_to_the_one_before() -> None:
    play(
        f"{ANON_VMA} {SERIES}",
        _SIDE_BY_SIDE
        + """
        ....xx             madvise DOFORK
        AAAAAABB           case 5
        11111122           av
        01234567           pgoff
        """,
    )


def test_patch_3_case_4_the_end_of_a_vma_goes_to_the_next() -> None:
    play(
        f"{ANON_VMA} {SERIES}",
        _SIDE_BY_SIDE
        + """
        ..xx               madvise DONTFORK
        AABBBBBB           case 4
        11222222           av
        01234567           pgoff
        """,
    )


def test_patch_3_case_8_a_whole_vma_goes_to_the_next() -> None:
    play(
        f"{ANON_VMA} {SERIES}",
        _SIDE_BY_SIDE
        + """
        xxxx               madvise DONTFORK
        AAAAAAAA           case 8
        22222222           av
        """,
    )


def test_patch_3_case_6_three_anon_vmas_become_one() -> None:
    play(
        f"{ANON_VMA} {SERIES}",
        _SIDE_BY_SIDE
        + """
        ........cccc       mmap r noreserve
        ........xxxx       madvise RANDOM
        ........xxxx       mprotect rw
        ........XXXX       write
        111122223333       av
        ........xxxx       madvise NORMAL
        ....xxxx           madvise DOFORK
        AAAAAAAAAAAA       case 6
        111111111111       av
        """,
    )


def test_patch_3_needs_linear_offsets_all_the_same() -> None:
    world = play(
        ANON_VMA,
        """
        AAAA......BBBB     mmap
        ..........xxxx     mremap ....bbbb
        AAAABBBB           case 0
        """,
    )
    assert obstacle_names(world.last.prev_obstacles) == ["page offset"]


# both ---------------------------------------------------------------------------------------------------


def test_the_series_joins_what_was_born_apart() -> None:
    play(
        SERIES,
        """
        AAAA......BBBB     mmap
        ..........xxxx     mremap ....bbbb
        AAAAAAAA           case 2
        01234567           pgoff
        11111111           av
        xxxxxxxx           pages
        """,
    )
    play(
        SERIES,
        """
        ....AAAA....BBBB   mmap
        ............xxxx   mremap bbbb
        AAAAAAAA           case 3
        01234567           pgoff
        """,
    )


def test_the_series_joins_three_anon_vmas_at_once() -> None:
    play(
        SERIES,
        """
        AAAA....CCCC....BBBB   mmap
        1111....2222....3333   av
        ................xxxx   mremap ....bbbb
        AAAAAAAAAAAA           case 1
        111111111111           av
        xxxxxxxxxxxx           pages
        """,
    )


# who is first -------------------------------------------------------------------------------------------


def test_the_request_goes_to_a_shared_neighbour_where_it_is_unshared_itself() -> None:
    """The request's pages are those that change, so it alone must be unshared."""
    play(
        SERIES,
        """
        AAAA               mmap
        fork 2
        ..........BBBB     mmap        # after the fork
        1111......2222     av
        ..........xxxx     mremap ....bbbb
        AAAAAAAA           case 2
        11111111           av
        ssssxxxx           pages
        """,
    )


def test_a_shared_request_goes_to_nobody() -> None:
    play(
        SERIES,
        """
        ..........BBBB     mmap
        fork 2
        AAAA               mmap        # after the fork
        ..........xxxx     mremap ....bbbb
        AAAABBBB           case 0
        reason             shared with child
        0123abcd           pgoff
        xxxxssss           pages
        """,
    )


def test_of_two_neighbours_the_successor_must_be_unshared() -> None:
    """For "both" the third version passes the successor's anon_vma first: its pages are those that change."""
    play(
        f"{ANON_VMA} {SERIES}",
        """
        AAAA               mmap
        fork 2
        ........CCCC       mmap
        ....bbbb           mmap
        AAAAaaaaAAAA       case 1      # A shared, C not
        111111111111       av
        """,
    )
    play(
        f"{ANON_VMA} {SERIES}",
        """
        ........CCCC       mmap
        fork 2
        AAAA               mmap
        ....bbbb           mmap
        AAAAaaaaCCCC       case 2      # C shared, A not
        111111112222       av
        """,
    )


def test_of_two_neighbours_a_shared_successor_stays_though_the_request_goes_both_ways() -> None:
    play(
        SERIES,
        """
        ........CCCC           mmap
        fork 2
        AAAA............BBBB   mmap
        1111....2222....3333   av
        ................xxxx   mremap ....bbbb
        AAAAAAAACCCC           case 2
        111111112222           av
        """,
    )


# the limitation -----------------------------------------------------------------------------------------


def test_shared_with_a_living_child() -> None:
    play(
        SERIES,
        """
        AAAA......BBBB     mmap
        fork 2
        ..........xxxx     mremap ....bbbb
        AAAABBBB           case 0
        0123abcd           pgoff
        11112222           av
        reason             shared with child
        ssssssss           pages
        """,
    )


def test_shared_with_a_child_that_has_copied_every_page() -> None:
    """The child's VMA still hangs on the parent's anon_vma, though no page of it is shared any more."""
    play(
        SERIES,
        """
        AAAA......BBBB     mmap
        fork 2
        2: XXXX            write
        2: ..........XXXX  write
        kkkk......kkkk     pages
        ..........xxxx     mremap ....bbbb
        AAAABBBB           case 0
        reason             shared with child
        """,
    )


def test_a_child_that_is_gone_shares_nothing() -> None:
    play(
        SERIES,
        """
        AAAA......BBBB     mmap
        fork 2
        2: exit
        kkkk......kkkk     pages       # not exclusive again before they are written
        ..........xxxx     mremap ....bbbb
        AAAAAAAA           case 2
        01234567           pgoff
        kkkkkkkk           pages
        XXXXXXXX           write
        xxxxxxxx           pages
        """,
    )


@pytest.mark.parametrize("leaves", ["2: exec", "2: xxxxxxxxxxxxxx munmap", "2: exit"])
def test_a_child_may_leave_in_more_than_one_way(leaves: str) -> None:
    play(
        SERIES,
        f"""
        AAAA......BBBB     mmap
        fork 2
        {leaves}
        ..........xxxx     mremap ....bbbb
        AAAAAAAA           case 2
        """,
    )


def test_a_child_does_not_get_what_is_not_for_forks() -> None:
    play(
        SERIES,
        """
        AAAA......BBBB     mmap
        ..........xxxx     madvise DONTFORK
        fork 2
        ..........xxxx     madvise DOFORK
        2: AAAA
        ..........xxxx     mremap ....bbbb
        AAAAAAAA           case 2      # B is unshared; A may be shared
        """,
    )


def test_in_the_child_everything_inherited_is_shared_with_the_parent() -> None:
    play(
        SERIES,
        """
        AAAA......BBBB     mmap
        fork 2
        2: ..........xxxx  mremap ....bbbb
        2: AAAABBBB        case 0
        2: 0123abcd        pgoff
        reason             shared with parent
        """,
    )


def test_in_the_child_it_stays_so_when_the_parent_is_gone() -> None:
    """Its anon_vma is not its own root, for good."""
    play(
        SERIES,
        """
        AAAA......BBBB     mmap
        fork 2
        exit
        2: XXXX            write
        2: ..........XXXX  write
        2: xxxx......xxxx  pages
        2: ..........xxxx  mremap ....bbbb
        2: AAAABBBB        case 0
        reason             shared with parent
        """,
    )


def test_what_the_child_made_itself_is_unshared() -> None:
    play(
        SERIES,
        """
        AAAA               mmap
        fork 2
        2: ..........BBBB  mmap
        2: ..........xxxx  mremap ....bbbb
        2: AAAAAAAA        case 2
        2: 01234567        pgoff
        2: ssssxxxx        pages
        """,
    )


def test_shared_page_by_page() -> None:
    """Patch 2 looks at the mapcount of every page of the range that moves, and of no other.

    No fork can make such a page without a child on the anon_vma, as same-page merging could; so it is put there.
    """

    def world_with_a_shared_page() -> World:
        world = play(SERIES, "AAAAAAAA           mmap")
        space = world.space(1)
        (run,) = space.pages.all_runs()
        space.pages.drop(page(2), page(3))
        group = SharedPages((BASE >> PAGE_SHIFT) + 2, (BASE >> PAGE_SHIFT) + 3, 2)
        shared = PageRun(page(2), page(3), (BASE >> PAGE_SHIFT) + 2, run.anon_vma, group)
        space.pages._add(shared)
        assert world.draw_pages(1) == "xxsxxxxx"
        return world

    world = world_with_a_shared_page()
    for event in world.events(1, "xxxx", "mremap", ["..........aaaa"]):
        world.system.apply(event)
    assert world.last.shared == "a page is mapped elsewhere"
    assert not world.last.updated
    assert world.draw_pgoff(1) == "....4567..0123"

    world = world_with_a_shared_page()
    for event in world.events(1, "....xxxx", "mremap", ["..........aaaa"]):
        world.system.apply(event)
    assert world.last.shared == ""
    assert world.last.updated
    assert world.draw_pgoff(1) == "0123......abcd"


def test_a_process_that_shares_the_address_space_shares_no_page() -> None:
    """CLONE_VM is no fork."""
    play(
        SERIES,
        """
        AAAA......BBBB     mmap
        fork 2 vm
        2: ..........xxxx  mremap ....bbbb
        AAAAAAAA           case 2
        2: AAAAAAAA
        exit
        2: AAAAAAAA
        """,
    )


# grow ---------------------------------------------------------------------------------------------------


def test_grow_merges_with_the_next_vma_that_it_touches() -> None:
    timeline = """
        aaaa....bbbb       mmap
        xxxx               mremap aaaaaaaa
        """
    play(f"{STOCK} {SERIES} linux-5.10", timeline + "aaaaaaaabbbb           count 2")
    play(
        "linux-5.17+grow linux-6.1 linux-6.12 linux-6.18 linux-7.2",
        timeline
        + """
        aaaaaaaaaaaa       case 1
        count 1
        """,
    )


def test_grow_stops_before_the_next_vma() -> None:
    play(
        "linux-5.10 linux-5.17 linux-5.17+grow linux-6.12 linux-7.2",
        """
        AAAA....bbbb       mmap
        xxxx               mremap aaaaaa
        AAAAaa..bbbb       count 2
        111111..----       av
        ..xxxx             mremap ..aaa
        AAAAa...bbbb
        """,
    )


def test_grow_with_different_anon_vmas_needs_patch_3() -> None:
    timeline = """
        AAAA....BBBB       mmap
        xxxx               mremap aaaaaaaa
        """
    play("linux-5.17+grow linux-5.17+grow+pgoff linux-6.12", timeline + "AAAAaaaaBBBB           case 2")
    play(
        "linux-5.17+grow+anon-vma linux-5.17+series+grow linux-6.12+series",
        timeline
        + """
        AAAAaaaaAAAA       case 1
        111111111111       av
        """,
    )


def test_pages_of_a_swallowed_vma_are_found_by_the_reverse_map() -> None:
    """`System.check` walks from every page; here the walk is spelled out once."""
    world = play(
        SERIES,
        """
        AAAA......BBBB     mmap
        ..........xxxx     mremap ....bbbb
        AAAAAAAA           case 2
        """,
    )
    (run,) = world.space(1).pages.all_runs()
    (vma,) = world.space(1).vmas
    assert run.anon_vma is vma.anon_vma
    assert run.index << PAGE_SHIFT == run.start == vma.start
    assert [vma.address_of(run.index + n) for n in range(8)] == [run.start + n * PAGE_SIZE for n in range(8)]
    assert list(run.anon_vma.vmas) == [vma]
