# SPDX-License-Identifier: GPL-2.0-or-later
"""vm.max_map_count: what every call refuses at the limit, and what it has done by then."""

import pytest
from drawing import play

from vmaweld.events import Event

STOCK = "linux-5.10 linux-5.17 linux-6.1 linux-6.12 linux-6.18 linux-7.2"
OLD_MREMAP = "linux-5.10 linux-5.17 linux-6.1 linux-6.12 linux-6.18"

# Three VMAs that cannot merge, at the limit of three.
FULL = """
        aaaa           mmap r
        ....bbbb       mmap rw
        ........cccc   mmap none
        count 3
"""


def test_mmap_stops_one_above_the_limit() -> None:
    """do_mmap asks whether there are more than the limit, not whether there will be."""
    play(
        STOCK,
        FULL
        + """
        ..............d     mmap rwx
        count 4
        ................e   mmap rwx => ENOMEM
        ...............e    mmap rwx => ENOMEM    # though it would merge
        ..............d     mmap rwx => ENOMEM    # though it would replace one
        aaaabbbbcccc..d
        """,
        max_map_count=3,
    )


def test_munmap_refuses_a_hole_but_no_end() -> None:
    play(
        STOCK,
        FULL
        + """
        .....x         munmap => ENOMEM
        aaaabbbbcccc
        ....x          munmap
        .......x       munmap
        aaaa.bb.cccc
        ..xxxxxxx      munmap               # ends of two, and the one between them
        aa.......ccc
        """,
        max_map_count=3,
    )


def test_mmap_over_the_middle_needs_room_for_the_hole() -> None:
    play(
        STOCK,
        FULL
        + """
        .....d         mmap rwx => ENOMEM
        aaaabbbbcccc
        ....d          mmap rwx
        aaaadbbbcccc
        """,
        max_map_count=3,
    )


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("mprotect rwx", "ENOMEM"),
        ("mlock", "ENOMEM"),
        ("mlock onfault", "ENOMEM"),
        ("madvise DONTFORK", "EAGAIN"),
        ("mbind bind:0", "ENOMEM"),
        ("uffd wp 1", "ENOMEM"),
        ("name cache", "EAGAIN"),
        ("mseal", "ENOMEM"),
    ],
)
def test_a_split_at_the_limit(call: str, error: str) -> None:
    kernels = "linux-6.12 linux-6.18 linux-7.2" if call == "mseal" else "linux-5.17 linux-6.1 linux-6.12 linux-7.2"
    play(
        kernels,
        FULL
        + f"""
        ....xx         {call} => {error}
        ......xx       {call} => {error}
        .....xx        {call} => {error}
        aaaabbbbcccc
        """,
        max_map_count=3,
    )


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("mprotect rwx", "ENOMEM"),
        ("mlock onfault", "ENOMEM"),
        ("madvise DONTFORK", "EAGAIN"),
        ("mbind bind:0", "ENOMEM"),
        ("uffd wp 1", "ENOMEM"),
        ("name cache", "EAGAIN"),
    ],
)
def test_a_second_split_at_the_limit_leaves_the_first(call: str, error: str) -> None:
    """Two splits are needed and there is room for one: it stays, though nothing else came of the call."""
    world = play(
        "linux-5.17 linux-6.1 linux-6.12 linux-7.2",
        FULL
        + f"""
        .....xx        {call} => {error}
        aaaabcccdddd
        count 4
        """,
        max_map_count=4,
    )
    lower, upper = list(world.space(1).vmas)[1:3]
    assert (lower.flags, lower.name, lower.uffd, lower.mempolicy) == (
        upper.flags,
        upper.name,
        upper.uffd,
        upper.mempolicy,
    )


def test_madvise_told_enomem_before_5_17() -> None:
    play("linux-5.10", FULL + "....xx         madvise DONTFORK => ENOMEM", max_map_count=3)


def test_a_merge_needs_no_room() -> None:
    play(
        STOCK,
        """
        aaaa           mmap r noreserve
        ....bbbb       mmap rw noreserve
        ........cccc   mmap r noreserve
        ....xx         mprotect r
        aaaaaabbcccc   case 5
        ......xx       mprotect r
        aaaaaaaaaaaa   case 6
        """,
        max_map_count=3,
    )


def test_munlock_and_the_end_of_advice_at_the_limit() -> None:
    play(
        STOCK,
        """
        aaaa           mmap
        xxxx           mlock
        ..xx           munlock => ENOMEM
        xxxx           has LOCKED
        xxxx           munlock
        xxxx           lacks LOCKED
        """,
        max_map_count=1,
    )


def test_mlockall_ignores_the_limit_for_it_splits_nothing() -> None:
    play(
        STOCK,
        FULL
        + """
        mlockall       current
        xxxxxxxxxxxx   has LOCKED
        """,
        max_map_count=3,
    )


def test_mremap_keeps_its_distance_from_the_limit() -> None:
    """A move may need to split; rather than fail half way it asks for room beforehand."""
    play(
        OLD_MREMAP,
        FULL
        + """
        ....xxxx       mremap ................bbbb => ENOMEM    # 3 + 2 >= 8 - 3
        ....xxxx       mremap ....bbb                           # shrinking asks nobody
        ....xxx        mremap ....bbbb
        aaaabbbbcccc
        """,
        max_map_count=8,
    )
    play(
        OLD_MREMAP,
        FULL
        + """
        ....xxxx       mremap ................bbbb
        aaaa....cccc....bbbb
        """,
        max_map_count=9,
    )
    play(
        OLD_MREMAP,
        FULL
        + """
        ....xxxx       mremap bbbbb anywhere => ENOMEM          # 3 >= 6 - 3
        """,
        max_map_count=6,
    )
    world = play(
        OLD_MREMAP,
        FULL
        + """
        ....xxxx       mremap ....bbbbb anywhere
        """,
        max_map_count=7,
    )
    assert world.draw() == "aaaa....bbbb" + "." * 45 + "ccccc"


def test_mremap_counts_exactly_since_7_1() -> None:
    play(
        "linux-7.2",
        FULL
        + """
        ....xxxx       mremap ....bbb => ENOMEM                 # even to shrink
        """,
        max_map_count=6,
    )
    play(
        "linux-7.2",
        FULL
        + """
        ....xxxx       mremap ................bbbb dontunmap => ENOMEM
        ....xxxx       mremap ................bbbb
        aaaa....cccc....bbbb
        """,
        max_map_count=7,
    )
    play(
        "linux-7.2",
        FULL
        + """
        ....xxxx       mremap ................bbbb dontunmap
        aaaabbbbcccc....bbbb
        """,
        max_map_count=8,
    )


def test_brk_stops_at_the_limit() -> None:
    world = play("linux-5.17 linux-6.12", FULL, max_map_count=2)
    space = world.space(1)
    space.start_brk = space.brk = 0x1010_0000
    assert world.apply(Event("brk", 1, addr=0x1010_2000)) == 0x1010_0000
    world = play("linux-5.17 linux-6.12", FULL, max_map_count=3)
    space = world.space(1)
    space.start_brk = space.brk = 0x1010_0000
    assert world.apply(Event("brk", 1, addr=0x1010_2000)) == 0x1010_2000
    assert space.vmas.count == 4
    assert world.apply(Event("brk", 1, addr=0x1010_3000)) == 0x1010_2000


def test_a_fork_copies_whatever_there_is() -> None:
    play(
        STOCK,
        FULL
        + """
        ..............d     mmap rwx
        fork 2
        2: aaaabbbbcccc..d
        2: count 4
        """,
        max_map_count=3,
    )
