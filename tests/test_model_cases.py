# SPDX-License-Identifier: GPL-2.0-or-later
"""The eight cases of the merge, and the rules about anon_vmas, each as a drawing."""

import pytest
from drawing import play

STOCK = "linux-5.10 linux-5.17 linux-6.1 linux-6.12 linux-6.18 linux-7.2"
OLD_AND_NEW = "linux-5.17 linux-6.12"


# a range that is new ----------------------------------------------------------------------------------


def test_case_1_the_range_fills_the_hole() -> None:
    play(
        STOCK,
        """
        aaaa....cccc   mmap
        ....bbbb       mmap
        aaaaaaaaaaaa   case 1
        0123456789ab   pgoff
        count 1
        """,
    )


def test_case_1_when_both_neighbours_have_one_anon_vma() -> None:
    play(
        STOCK,
        """
        AAAAAAAAAAAA   mmap
        ....xxxx       munmap
        1111....1111   av
        ....BBBB       mmap
        AAAAAAAAAAAA   case 1
        111111111111   av
        """,
    )


def test_case_1_when_only_the_predecessor_is_faulted() -> None:
    play(
        STOCK,
        """
        AAAA....cccc   mmap
        ....bbbb       mmap
        AAAAaaaaaaaa   case 1
        111111111111   av
        """,
    )


def test_case_1_when_only_the_successor_is_faulted() -> None:
    play(
        "linux-5.10 linux-5.17 linux-6.12 linux-6.18 linux-7.2",
        """
        aaaa....CCCC   mmap
        ----....1111   av
        ....bbbb       mmap
        aaaaaaaaAAAA   case 1
        111111111111   av             # the survivor took the successor's over
        ........xxxx   pages
        """,
    )


def test_from_6_1_to_6_11_mmap_asks_the_successor_first() -> None:
    """mmap_region of those releases takes the neighbour above, then looks below with that one's anon_vma."""
    play(
        "linux-6.1",
        """
        aaaa....CCCC   mmap
        ....bbbb       mmap
        aaaaccccCCCC   case 3         # an unfaulted VMA below goes with no faulted one
        ----11111111   av
        """,
    )
    play(
        "linux-6.1",
        """
        AAAA....CCCC   mmap
        ....bbbb       mmap
        AAAAccccCCCC   case 3
        111122222222   av
        """,
    )
    play(
        "linux-6.1",
        """
        AAAA....cccc   mmap
        ....bbbb       mmap
        AAAAaaaaaaaa   case 1
        """,
    )
    play(
        "linux-6.1",  # growing asks vma_merge, as ever
        """
        aaaa....CCCC   mmap
        xxxx           mremap aaaaaaaa
        aaaaaaaaAAAA   case 1
        """,
    )


def test_case_2_the_successor_is_another_kind() -> None:
    play(
        STOCK,
        """
        aaaa....       mmap
        ........cccc   mmap r
        ....bbbb       mmap
        aaaaaaaacccc   case 2
        """,
    )


def test_case_2_there_is_no_successor() -> None:
    play(
        STOCK,
        """
        AAAA           mmap
        ....bb         mmap
        AAAAaa         case 2
        111111         av
        ......b        mmap
        AAAAaaa        case 2
        ........b      mmap           # a hole between them
        AAAAaaa.b      case 0
        """,
    )


def test_case_2_two_anon_vmas_keep_the_neighbours_apart() -> None:
    play(
        "linux-5.10 linux-5.17 linux-6.12 linux-6.18 linux-7.2",
        """
        AAAA....CCCC   mmap
        1111....2222   av
        ....bbbb       mmap
        AAAAaaaaCCCC   case 2         # the range goes with one of them only
        111111112222   av
        """,
    )


def test_case_3_the_predecessor_is_another_kind() -> None:
    play(
        STOCK,
        """
        aaaa           mmap r
        ........CCCC   mmap
        ....bbbb       mmap
        aaaaccccCCCC   case 3
        ----11111111   av
        0123456789ab   pgoff          # the survivor's offset went down with its start
        """,
    )


def test_case_3_there_is_no_predecessor() -> None:
    play(
        STOCK,
        """
        ....bbbb       mmap
        ..aa           mmap
        ..bbbbbb       case 3
        a              mmap
        a.bbbbbb       case 0
        """,
    )


# a part of a VMA that changes -------------------------------------------------------------------------


def test_case_4_the_end_of_a_vma_goes_with_the_next() -> None:
    play(
        STOCK,
        """
        aaaa           mmap rw noreserve
        ....bbbb       mmap r noreserve
        ..xx           mprotect r
        aabbbbbb       case 4
        01234567       pgoff
        """,
    )


def test_case_4_with_pages() -> None:
    play(
        STOCK,
        """
        AAAABBBB       mmap
        ....xxxx       mprotect r
        AAAABBBB
        ..xx           mprotect r
        AABBBBBB       case 4
        11111111       av
        xxxxxxxx       pages
        """,
    )


def test_case_5_the_start_of_a_vma_goes_with_the_one_before() -> None:
    play(
        STOCK,
        """
        aaaa           mmap rw
        ....bbbb       mmap r
        ....xx         mprotect rw
        aaaaaabb       case 5
        01234567       pgoff          # what is left of the lower end moved up
        """,
    )


def test_case_5_the_predecessor_takes_the_anon_vma_over() -> None:
    play(
        "linux-6.18 linux-7.2",
        """
        aaaa....       mmap r noreserve
        ....BBBB       mmap rw noreserve
        ....xx         mprotect r
        aaaaAABB       case 5         # since 6.16 an unfaulted neighbour takes a faulted range
        11111111       av
        """,
    )
    play(
        "linux-5.10 linux-5.17 linux-6.1 linux-6.12",
        """
        aaaa....       mmap r noreserve
        ....BBBB       mmap rw noreserve
        ....xx         mprotect r
        aaaaBBCC       case 0
        ----1111       av
        """,
    )


def test_case_6_a_whole_vma_joins_both() -> None:
    play(
        STOCK,
        """
        aaaabbbbcccc   mmap
        ....xxxx       mprotect r
        aaaabbbbcccc
        ....xxxx       mprotect rw
        aaaaaaaaaaaa   case 6
        count 1
        0123456789ab   pgoff
        """,
    )


def test_case_6_with_pages() -> None:
    play(
        STOCK,
        """
        AAAAAAAAAAAA   mmap
        ....xxxx       mprotect r
        111111111111   av
        ....xxxx       mprotect rw
        AAAAAAAAAAAA   case 6
        111111111111   av
        xxxxxxxxxxxx   pages
        """,
    )


def test_case_6_takes_the_anon_vma_of_whichever_has_one() -> None:
    play(
        STOCK,
        """
        aaaabbbbCCCC   mmap           # one VMA, its upper third written
        111111111111   av
        ....xxxx       mprotect r
        ....xxxx       mprotect rw
        aaaaaaaaAAAA   case 6
        """,
    )
    play(
        STOCK,
        """
        aaaa           mmap rw noreserve
        ....bbbb       mmap r noreserve
        ........CCCC   mmap rw noreserve        # alone faulted
        --------1111   av
        ....xxxx       mprotect rw
        aaaaaaaaAAAA   case 6
        111111111111   av
        """,
    )
    play(
        "linux-6.18 linux-7.2",
        """
        aaaa           mmap r noreserve
        ....BBBB       mmap rw noreserve        # alone faulted
        ........cccc   mmap r noreserve
        ....xxxx       mprotect r
        aaaaAAAAaaaa   case 6
        111111111111   av
        """,
    )
    play(
        STOCK,
        """
        AAAA           mmap rw noreserve        # alone faulted
        ....bbbb       mmap r noreserve
        ........cccc   mmap rw noreserve
        ....xxxx       mprotect rw
        AAAAaaaaaaaa   case 6
        111111111111   av
        """,
    )


def test_case_7_the_predecessor_takes_a_whole_vma() -> None:
    play(
        STOCK,
        """
        aaaa           mmap rw
        ....bbbb       mmap r
        ........cccc   mmap none
        ....xxxx       mprotect rw
        aaaaaaaacccc   case 7
        """,
    )
    play(
        STOCK,
        """
        AAAABBBB       mmap rw
        ....xxxx       mprotect r
        ....xxxx       mprotect rw
        AAAAAAAA       case 7
        11111111       av
        """,
    )


def test_case_7_the_predecessor_takes_the_anon_vma_over() -> None:
    play(
        "linux-6.18 linux-7.2",
        """
        aaaa           mmap r noreserve
        ....BBBB       mmap rw noreserve
        ....xxxx       mprotect r
        aaaaAAAA       case 7
        11111111       av
        ....xxxx       pages
        """,
    )


def test_case_8_the_successor_takes_a_whole_vma() -> None:
    play(
        STOCK,
        """
        aaaa           mmap none
        ....bbbb       mmap r
        ........cccc   mmap rw
        ....xxxx       mprotect rw
        aaaabbbbbbbb   case 8
        0123456789ab   pgoff
        count 2
        """,
    )
    play(
        STOCK,
        """
        ....BBBBCCCC   mmap rw
        ....xxxx       mprotect r
        ....xxxx       mprotect rw
        ....BBBBBBBB   case 8
        ....11111111   av
        ....xxxxxxxx   pages
        """,
    )


def test_case_8_the_successor_takes_the_anon_vma_over() -> None:
    play(
        "linux-6.18 linux-7.2",
        """
        BBBB           mmap rw noreserve
        ....cccc       mmap r noreserve
        xxxx           mprotect r
        AAAAaaaa       case 8
        11111111       av
        """,
    )


def test_the_middle_of_a_vma_is_never_a_merge() -> None:
    play(
        STOCK,
        """
        aaaaaaaa       mmap
        ...xx          mprotect r
        aaabbccc
        ...x           mprotect rw
        aaaabccc       case 5
        ....x          mprotect rw
        aaaaaaaa       case 6
        """,
    )


# what keeps neighbours apart --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "difference",
    [
        "mprotect r",
        "madvise DONTFORK",
        "madvise SEQUENTIAL",
        "mlock onfault",
        "mbind bind:0",
        "uffd wp 1",
        "name cache",
    ],
)
def test_one_difference_keeps_neighbours_apart(difference: str) -> None:
    """The new range is like neither, then like the first once the difference is gone."""
    play(
        "linux-5.17 linux-6.12 linux-7.2",
        f"""
        aaaa           mmap
        xxxx           {difference}
        ....bbbb       mmap
        aaaabbbb       case 0
        """,
    )
    play(
        "linux-5.17 linux-6.12 linux-7.2",
        f"""
        ....bbbb       mmap
        ....xxxx       {difference}
        aaaa           mmap
        aaaabbbb       case 0
        xxxx           {difference}
        aaaaaaaa       case 8         # both have it now
        """,
    )


def test_files_merge_where_file_and_offset_go_on() -> None:
    play(
        STOCK,
        """
        aaaa           mmap file=lib pgoff=0
        ....bbbb       mmap file=lib pgoff=4
        aaaaaaaa       case 2
        01234567       pgoff
        ........cc     mmap file=lib pgoff=9
        aaaaaaaacc     case 0
        ..........dd   mmap file=other pgoff=11
        aaaaaaaaccdd   case 0
        """,
    )


def test_private_and_shared_maps_of_a_file_stay_apart() -> None:
    play(
        STOCK,
        """
        aaaa           mmap file=lib pgoff=0
        ....bbbb       mmap file=lib pgoff=4 shared
        aaaabbbb       case 0
        ........cccc   mmap file=lib pgoff=8 shared
        aaaabbbbbbbb   case 2
        """,
    )


def test_shared_anonymous_mappings_are_files_of_their_own() -> None:
    play(
        STOCK,
        """
        aaaa           mmap shared
        ....bbbb       mmap shared
        aaaabbbb
        xxxx           mprotect r
        xxxx           mprotect rw
        aaaabbbb
        """,
    )


def test_special_mappings_never_merge() -> None:
    play(
        STOCK,
        """
        aaaa           place rw DONTEXPAND file=device pgoff=0
        ....bbbb       place rw DONTEXPAND file=device pgoff=4
        xxxx           mprotect r
        ....xxxx       mprotect r
        aaaabbbb       case 0
        """,
    )


def test_soft_dirty_never_keeps_neighbours_apart() -> None:
    play(
        STOCK,
        """
        aaaa           place rw SOFTDIRTY ACCOUNT
        ....bbbb       place r ACCOUNT
        ....xxxx       mprotect rw
        aaaaaaaa       case 7
        """,
    )


def test_the_guard_flag_sticks_to_what_swallows_it() -> None:
    """VM_MAYBE_GUARD keeps nobody apart and is never lost (VM_STICKY, 6.19 and stable releases of 6.18)."""
    kernels = "linux-6.18 linux-7.2"
    play(
        kernels,
        """
        aa..cc         mmap
        ....x          madvise GUARD_INSTALL
        xx             lacks MAYBE_GUARD
        ..bb           mmap
        aaaaaa         case 1
        xxxxxx         has MAYBE_GUARD
        """,
    )
    play(
        kernels,
        """
        aa             mmap
        ..bb           mmap r
        ....cc         mmap
        ....x          madvise GUARD_INSTALL
        ..xx           mprotect rw
        aaaaaa         case 6
        xxxxxx         has MAYBE_GUARD
        """,
    )
    play(
        kernels,
        """
        aa             mmap noreserve
        ..bb           mmap r noreserve
        ..x            madvise GUARD_INSTALL
        ..xx           mprotect rw
        aaaa           case 7
        xxxx           has MAYBE_GUARD
        """,
    )
    play(
        "linux-6.18+series",
        """
        aa....bb       mmap
        ......x        madvise GUARD_INSTALL
        ......xx       mremap ..bb
        aaaa           case 2
        xxxx           has MAYBE_GUARD
        """,
    )
    play(
        "linux-6.12",
        """
        aa             mmap
        xx             madvise GUARD_INSTALL => EINVAL
        """,
    )


def test_the_offset_of_a_moved_vma_keeps_it_apart() -> None:
    play(
        STOCK,
        """
        aaaa....BBBB   mmap
        ........xxxx   mremap ....bbbb
        aaaaBBBB       case 0
        012389ab       pgoff
        ----1111       av
        xxxx           mprotect r
        ....xxxx       mprotect r
        aaaaBBBB       case 0         # nor later
        """,
    )


# close ------------------------------------------------------------------------------------------------


def test_segments_with_close_never_merged_until_6_4() -> None:
    play(
        "linux-5.10 linux-5.17 linux-6.1",
        """
        aaaa           shmat file=SYSV1
        ..xx           mprotect r
        ..xx           mprotect rw
        aabb           case 0
        """,
    )


def test_a_segment_with_close_may_grow_but_not_go() -> None:
    play(
        "linux-6.12 linux-6.18 linux-7.2",
        """
        aaaaaa         shmat file=SYSV1
        ..xxxx         mprotect r
        ..x            mprotect rw
        aaabbb         case 5         # nobody goes
        ...xxx         mprotect rw
        aaabbb         case 0         # a whole VMA would
        .....x         mprotect r
        aaabbc
        ....x          mprotect r
        aaabcc         case 4
        """,
    )


def test_both_neighbours_degrade_to_one_where_the_successor_has_close() -> None:
    """A new range between two pieces of one file whose mappings have close: the predecessor grows alone."""
    world = play(
        "linux-6.12 linux-7.2",
        """
        aa..cc         place rw SHARED MAYSHARE file=seg pgoff=0
        ....xx         munmap
        ....cc         place rw SHARED MAYSHARE file=seg pgoff=4
        """,
    )
    for vma in world.space(1).vmas:
        vma.close = True
    for event in world.events(1, "..bb", "mmap", ["shared", "file=seg", "pgoff=2"]):
        world.apply(event)
    assert world.last.case == 2
    assert world.draw() == "aaaabb"


def test_accounted_and_unaccounted_memory_stay_apart() -> None:
    """Written memory stays accounted when it becomes read-only; memory born read-only never was."""
    play(
        STOCK,
        """
        AAAA           mmap rw
        ....bbbb       mmap r
        xxxx           mprotect r
        AAAAbbbb       case 0
        xxxx           has ACCOUNT
        ....xxxx       lacks ACCOUNT
        """,
    )
    play(
        "linux-6.12 linux-6.18 linux-7.2",  # since 6.5 unfaulted memory gives its account back
        """
        aaaa           mmap rw
        ....bbbb       mmap r
        xxxx           mprotect r
        aaaaaaaa
        xxxx           mprotect rw
        xxxx           has ACCOUNT
        """,
    )
    play(
        "linux-5.10 linux-5.17 linux-6.1",
        """
        aaaa           mmap rw
        ....bbbb       mmap r
        xxxx           mprotect r
        aaaabbbb       case 0
        """,
    )


# anon_vmas: forks -------------------------------------------------------------------------------------


def test_a_forked_vma_takes_no_unfaulted_range() -> None:
    """Its chain is not singular: a neighbour would hang on the parent's anon_vma too."""
    play(
        STOCK,
        """
        AAAA           mmap
        1111           av
        fork 2
        2: 2222        av
        2: ....bb      mmap
        2: AAAAbb      case 0
        ....bb         mmap           # the parent's chain is singular
        AAAAaa         case 2
        """,
    )


def test_a_forked_range_goes_to_no_unfaulted_neighbour() -> None:
    play(
        STOCK,
        """
        AAAAbbbb       mmap
        ....xxxx       mprotect r
        11111111       av
        ....xxxx       munmap
        fork 2
        2: ....bbbb    mmap r
        2: xxxx        mprotect r
        2: AAAAbbbb    case 0
        """,
    )


def test_both_halves_of_a_forked_vma_merge_again() -> None:
    play(
        STOCK,
        """
        AAAAAAAA       mmap
        fork 2
        2: ..xx        mprotect r
        2: AABBCCCC
        2: 22222222    av
        2: ..xx        mprotect rw
        2: AAAAAAAA    case 6
        2: 22222222    av
        2: ssssssss    pages
        """,
    )


# who takes whose anon_vma at the first write ----------------------------------------------------------


def test_a_first_write_reuses_the_neighbours_anon_vma() -> None:
    """find_mergeable_anon_vma: the next one's first, then the previous one's; access bits may differ."""
    play(
        STOCK,
        """
        aaaa           mmap rw
        ....bbbb       mmap rwx
        ........cccc   mmap rw
        X              write
        1111--------   av
        ........X      write          # b is unfaulted: nothing to reuse
        1111----2222   av
        ....X          write
        111122222222   av             # next before prev
        """,
    )


@pytest.mark.parametrize("difference", ["madvise DONTFORK", "mbind bind:0"])
def test_a_first_write_reuses_nothing_of_another_kind(difference: str) -> None:
    play(
        STOCK,
        f"""
        AAAA           mmap rw
        ....bbbb       mmap rwx
        ....xxxx       {difference}
        ....X          write
        11112222       av
        """,
    )


def test_a_first_write_reuses_no_anon_vma_from_before_a_fork() -> None:
    play(
        STOCK,
        """
        AAAA           mmap rw
        fork 2
        2: ....bbbb    mmap rwx
        2: ....X       write
        1111           av
        2: 22223333    av
        """,
    )


def test_a_first_write_needs_linear_offsets() -> None:
    play(
        STOCK,
        """
        AAAA           mmap rw
        xxxx           mremap ........aaaa
        ....bbbb       mmap rwx
        ....X          write
        ....BbbbAAAA
        ....22221111   av
        ....45670123   pgoff
        """,
    )


def test_a_read_makes_no_anon_vma() -> None:
    play(
        STOCK,
        """
        aaaa           mmap
        xxxx           read
        aaaa
        ----           av
        """,
    )


def test_a_split_keeps_the_anon_vma_on_both_sides() -> None:
    play(
        STOCK,
        """
        AAAAaaaa       mmap
        ...xx          munmap
        AAA..aaa
        111..111       av
        .....X         write
        AAA..Aaa
        111..111       av
        """,
    )
