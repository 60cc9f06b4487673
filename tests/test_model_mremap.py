# SPDX-License-Identifier: GPL-2.0-or-later
"""mremap in all its ways, as drawings."""

import errno

import drawing
import pytest
from drawing import World, page, play

from vmaweld import abi
from vmaweld.abi import PAGE_SIZE
from vmaweld.events import Event
from vmaweld.model.errors import LinuxError

STOCK = "linux-5.10 linux-5.17 linux-6.1 linux-6.12 linux-6.18 linux-7.2"
UNTIL_6_16 = "linux-5.10 linux-5.17 linux-6.1 linux-6.12"
SINCE_6_17 = "linux-6.18 linux-7.2"


# shrink and grow ----------------------------------------------------------------------------------------


def test_shrink() -> None:
    play(
        STOCK,
        """
        AAAAAAAA           mmap
        xxxxxxxx           mremap aaaaa
        AAAAA
        .xx                mremap .a          # out of the middle: what follows stays
        AA.BB
        01.34              pgoff
        11.11              av
        xx                 mremap aa          # nothing to do
        AA.BB
        """,
    )


def test_shrink_cuts_whatever_lies_there() -> None:
    """Shrinking unmaps the rest of the old range, be it of other VMAs or a hole."""
    play(
        STOCK,
        """
        aaaa..             mmap
        ....bb             mmap r
        xxxxxx             mremap aa
        aa
        """,
    )


def test_grow_in_place() -> None:
    play(
        STOCK,
        """
        AA..               mmap
        xx                 mremap aaaa
        AAaa
        1111               av
        ..xx               mremap ..aaa       # from its end
        AAaaa
        .xx                mremap .aaaa => ENOMEM   # not from its middle
        AAaaa
        """,
    )


def test_grow_of_locked_memory_populates_it() -> None:
    play(
        STOCK,
        """
        aa                 mmap
        xx                 mlock
        xx                 mremap aaaa
        AAAA
        xxxx               has LOCKED
        xxxx               mremap aaaaaa anywhere
        AAAAAA
        """,
    )


def test_grow_without_room_moves_or_fails() -> None:
    world = play(
        STOCK,
        """
        AAAA               mmap
        ....bb             mmap r
        xxxx               mremap aaaaaa => ENOMEM
        AAAAbb
        xxxx               mremap aaaaaa anywhere
        """,
    )
    assert world.draw() == "....aa" + "." * 50 + "BBBBbb"
    assert world.draw_pgoff(1).lstrip(".").startswith("45")


def test_moving_elsewhere_while_growing_keeps_the_offset() -> None:
    play(
        "linux-5.17 linux-6.12",
        """
        AAAA               mmap
        xxxx               mremap ........aaaaaa
        ........AAAAaa
        ........012345     pgoff
        """,
    )


# move ---------------------------------------------------------------------------------------------------


def test_move_of_a_faulted_vma_keeps_its_offset() -> None:
    play(
        STOCK,
        """
        AAAA               mmap
        xxxx               mremap ........aaaa
        ........AAAA
        ........0123       pgoff
        ........1111       av
        ........xxxx       mremap aaaa        # and back
        AAAA
        0123               pgoff
        """,
    )


def test_move_of_an_unfaulted_vma_gives_it_the_offset_of_its_new_place() -> None:
    play(
        STOCK,
        """
        aaaa....bbbb       mmap
        ........xxxx       mremap ....bbbb
        aaaaaaaa
        01234567           pgoff
        """,
    )


def test_move_of_a_middle_leaves_both_ends() -> None:
    play(
        STOCK,
        """
        AAAAAAAA           mmap
        ..xxxx             mremap ..........bbbb
        AA....CC..BBBB
        01....67..2345     pgoff
        11....11..1111     av
        ..........xxxx     mremap ..bbbb      # home again: everything fits
        AAAAAAAA           case 1
        01234567           pgoff
        """,
    )


def test_move_onto_what_is_there_replaces_it() -> None:
    play(
        STOCK,
        """
        AAAA....BBBB       mmap
        xxxx               mremap ......aaaa
        ......AAAABB
        ......0123ab       pgoff
        ......111122     av
        """,
    )


def test_move_and_shrink() -> None:
    play(
        STOCK,
        """
        AAAA               mmap
        xxxx               mremap ........aa
        ........AA
        ........01         pgoff
        """,
    )


def test_move_and_grow() -> None:
    play(
        STOCK,
        """
        AAAA               mmap
        ....bb             mmap r
        ..xx               mremap ........aaaa
        AA..bb..AAaa
        01..45..2345       pgoff
        """,
    )


def test_an_unfaulted_move_merges_with_its_own_source() -> None:
    play(
        STOCK,
        """
        aaaa               mmap
        xx                 mremap ....aa
        ..aaaa             case 2
        ..2345             pgoff
        """,
    )
    play(
        STOCK,
        """
        ....aaaa           mmap
        ......xx           mremap ..aa
        ..aaaa             case 3
        ..2345             pgoff
        """,
    )


def test_a_faulted_move_merges_where_offsets_happen_to_go_on() -> None:
    play(
        STOCK,
        """
        AAAAAAAA           mmap
        ....xxxx           mremap ..............bbbb
        ....cc             mmap r noreserve
        ..............xxxx mremap ....bbbb
        AAAAAAAA           case 2
        """,
    )


def test_a_private_file_mapping_moves_with_its_offset() -> None:
    play(
        STOCK,
        """
        aaaa               mmap file=lib pgoff=0
        ........bbbb       mmap file=lib pgoff=4
        ........xxxx       mremap ....bbbb
        aaaaaaaa           case 2
        01234567           pgoff
        """,
    )


def test_a_moved_vma_leaves_its_userfaultfd() -> None:
    play(
        STOCK,
        """
        aaaa               mmap
        xxxx               uffd wp 1
        xxxx               mremap ........aaaa
        ........xxxx       lacks UFFD_WP
        """,
    )


def test_everything_else_moves_along() -> None:
    world = play(
        "linux-5.17 linux-6.12 linux-6.18",
        """
        AAAA               mmap
        xxxx               name cache
        xxxx               mbind bind:0
        xxxx               madvise DONTDUMP
        xxxx               mlock
        xxxx               mremap ........aaaa
        ........xxxx       has DONTDUMP LOCKED ACCOUNT
        """,
    )
    (vma,) = world.space(1).vmas
    assert (vma.name, vma.mempolicy) == ("cache", "bind:0")


def test_pages_shared_with_a_child_move_too() -> None:
    play(
        STOCK,
        """
        AAAA               mmap
        fork 2
        xxxx               mremap ........aaaa
        2: ssss            pages
        ........ssss       pages
        ........X          write
        ........xsss       pages
        2: ksss            pages
        """,
    )


# DONTUNMAP ----------------------------------------------------------------------------------------------


def test_dontunmap_moves_the_pages_and_leaves_the_vma() -> None:
    play(
        "linux-5.17 linux-6.1 linux-6.12 linux-6.18",
        """
        AAAA               mmap
        xxxx               mremap ........aaaa dontunmap
        aaaa....BBBB
        0123....0123       pgoff
        ----....1111       av
        """,
    )
    play(
        "linux-5.10",  # until 5.13 the links stayed
        """
        AAAA               mmap
        xxxx               mremap ........aaaa dontunmap
        aaaa....BBBB
        1111....1111       av
        """,
    )


def test_dontunmap_of_what_was_moved_before() -> None:
    """The empty VMA keeps the foreign offset; since 7.0 and its fix in stable releases it takes that of its address."""
    timeline = """
        AAAA               mmap
        xxxx               mremap ........aaaa
        ........xxxx       mremap ................aaaa dontunmap
        ........aaaa....BBBB
        ........----....1111   av
        """
    play("linux-5.17 linux-6.18", timeline + "........0123....0123   pgoff")
    play("linux-7.2 linux-6.12", timeline + "........89ab....0123   pgoff")


def test_dontunmap_of_a_part_keeps_the_links_of_the_rest() -> None:
    play(
        STOCK,
        """
        AAAAAA             mmap
        ..xx               mremap ..........bb dontunmap
        AAaaAA....BB
        111111....11       av
        012345....23       pgoff
        """,
    )


def test_dontunmap_unlocks_what_it_leaves() -> None:
    play(
        STOCK,
        """
        aaaa               mmap
        xxxx               mlock
        xxxx               mremap ........aaaa dontunmap
        aaaa....BBBB
        xxxx               lacks LOCKED
        ........xxxx       has LOCKED
        """,
    )


def test_dontunmap_of_a_part_of_locked_memory() -> None:
    """Until the fix of 7.1 all of the VMA was unlocked."""
    play(
        "linux-5.17 linux-6.18",
        """
        aaaaaa             mmap
        xxxxxx             mlock
        ..xx               mremap ..........bb dontunmap
        AAaaAA....BB
        xxxxxx             lacks LOCKED
        """,
    )
    play(
        "linux-7.2",
        """
        aaaaaa             mmap
        xxxxxx             mlock
        ..xx               mremap ..........bb dontunmap
        AAbbCC....DD
        xx                 has LOCKED
        ..xx               lacks LOCKED
        ....xx             has LOCKED
        """,
    )


def test_dontunmap_of_files_since_5_13() -> None:
    timeline = """
        aaaa               mmap file=data shared pgoff=0
        ....bbbb           mmap file=lib pgoff=0
        """
    play("linux-5.10", timeline + "xxxx               mremap ..........aaaa dontunmap => EINVAL")
    play(
        "linux-5.17 linux-6.12 linux-6.18",
        timeline
        + """
        xxxx               mremap ..........aaaa dontunmap
        ....xxxx           mremap ...............bbbb dontunmap
        aaaabbbb..cccc.dddd
        01230123..0123.0123   pgoff
        """,
    )


def test_dontunmap_of_an_unfaulted_vma_beside_its_target() -> None:
    play(
        "linux-5.10 linux-5.17 linux-6.18",
        """
        aaaa               mmap
        xxxx               mremap ....aaaa dontunmap
        aaaaaaaa           case 2
        """,
    )
    play(
        "linux-6.12 linux-7.2",
        """
        aaaa               mmap
        xxxx               mremap ....aaaa dontunmap
        aaaabbbb           case 0
        """,
    )


# old size 0 ---------------------------------------------------------------------------------------------


def test_old_size_0_maps_shared_memory_once_more() -> None:
    play(
        STOCK,
        """
        aaaa               mmap file=data shared pgoff=2
        xxxx               mremap ........aaaa from=0
        aaaa....bbbb
        2345....2345       pgoff
        ..x                mremap ..............bb from=0
        aaaa....bbbb..cc
        2345....2345..45   pgoff
        """,
    )
    play(
        STOCK,
        """
        aaaa               mmap
        xxxx               mremap ........aaaa from=0 => EINVAL
        ........bb         mmap file=lib
        ........xx         mremap ............bb from=0 => EINVAL
        """,
    )


# several at once ----------------------------------------------------------------------------------------


def test_several_vmas_at_once_since_6_17() -> None:
    timeline = """
        AAAA..bb           mmap
        ......xx           mprotect r
        ..cc               mmap none
        """
    play(
        UNTIL_6_16,
        timeline + "xxxxxxxx           mremap ............aaaaaaaa => EFAULT\n        AAbb..cc",
    )
    play(
        SINCE_6_17,
        timeline
        + """
        xxxxxxxx           mremap ............aaaaaaaa
        ............AAbb..cc
        ............01ef..ij       pgoff
        """,
    )


def test_several_vmas_at_once_only_where_nothing_else_is_asked() -> None:
    play(
        SINCE_6_17,
        """
        aaaa               mmap
        ..bb               mmap none
        xxxx               mremap ............aaaaa => EFAULT
        xxxx               mremap aaaaaa => EFAULT
        ....xx             mremap ............aa => EFAULT
        .....x             mremap ............a => EFAULT
        aabb
        """,
    )


def test_several_vmas_at_once_stop_at_a_userfaultfd() -> None:
    play(
        SINCE_6_17,
        """
        aaaa               mmap
        ..xx               uffd wp 1
        xxxx               mremap ............aaaa => EFAULT
        ..bb........aa
        ..xx               mremap ..............bb
        ............aabb                      # it left the userfaultfd after the question of merging
        """,
    )


# errors -------------------------------------------------------------------------------------------------


def refused(world: World, addr: int, length: int, new_length: int, flags: int, new_addr: int = 0) -> int:
    event = Event("mremap", 1, addr=addr, length=length, new_length=new_length, flags=flags, new_addr=new_addr)
    with pytest.raises(LinuxError) as error:
        world.apply(event)
    return error.value.errno


@pytest.mark.parametrize("policy", STOCK.split())
def test_mremap_refuses(policy: str) -> None:
    world = play(
        policy,
        """
        aaaa               mmap
        ....bb             place rw DONTEXPAND file=device
        """,
    )
    fixed = abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED
    dontunmap = abi.MREMAP_MAYMOVE | abi.MREMAP_DONTUNMAP
    two = 2 * PAGE_SIZE
    a, b, far = page(0), page(4), page(20)
    assert refused(world, a, two, two, 8) == errno.EINVAL
    assert refused(world, a + 1, two, two, 1) == errno.EINVAL
    assert refused(world, a, two, two, abi.MREMAP_FIXED, far) == errno.EINVAL
    assert refused(world, a, two, two, abi.MREMAP_DONTUNMAP, far) == errno.EINVAL
    assert refused(world, a, two, 0, 1) == errno.EINVAL
    assert refused(world, a, two, two + PAGE_SIZE, dontunmap) == errno.EINVAL
    assert refused(world, a, two, two, fixed, far + 1) == errno.EINVAL
    assert refused(world, a, two, two, fixed, a + PAGE_SIZE) == errno.EINVAL
    assert refused(world, a, two, two, fixed, abi.TASK_SIZE) == errno.EINVAL
    assert refused(world, a, two, two, fixed, PAGE_SIZE) == errno.EPERM
    assert refused(world, far, two, two, fixed, page(30)) == errno.EFAULT
    assert refused(world, far, two, two + PAGE_SIZE, 1) == errno.EFAULT
    assert refused(world, a, 5 * PAGE_SIZE, 6 * PAGE_SIZE, 1) == errno.EFAULT
    assert refused(world, b, two, two + PAGE_SIZE, 1) == errno.EFAULT
    assert refused(world, b, two, two, dontunmap) == errno.EINVAL
    assert world.draw() == "aaaabb"


def test_a_target_is_gone_though_the_move_failed_until_6_16() -> None:
    """mremap_to unmapped the target before it looked at the source."""
    timeline = """
        ........bbbb       mmap
        xxxx               mremap ........aaaa => EFAULT
        """
    play(SINCE_6_17, timeline + "........bbbb")
    play(UNTIL_6_16, "aa                 mmap\n" + timeline + "aa")


def test_the_offset_cannot_wrap() -> None:
    """Growing far beyond the end of user space fails for lack of room."""
    world = play("linux-6.12", "aaaa               mmap")
    huge = abi.TASK_SIZE
    with pytest.raises(LinuxError, match=r"ENOMEM|EINVAL"):
        world.apply(Event("mremap", 1, addr=drawing.BASE, length=4 * PAGE_SIZE, new_length=huge, flags=1))
    assert world.draw() == "aaaa"
