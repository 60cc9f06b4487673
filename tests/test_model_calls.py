# SPDX-License-Identifier: GPL-2.0-or-later
"""Every call as drawings: what it changes, and what it leaves when it fails."""

import errno

import drawing
import pytest
from drawing import World, page, play

from vmaweld import abi
from vmaweld.abi import PAGE_SIZE
from vmaweld.events import OPERATIONS, Event
from vmaweld.model.calls import CALLS
from vmaweld.model.errors import LinuxError

STOCK = "linux-5.10 linux-5.17 linux-6.1 linux-6.12 linux-6.18 linux-7.2"
SINCE_5_17 = "linux-5.17 linux-6.1 linux-6.12 linux-6.18 linux-7.2"


# mmap ---------------------------------------------------------------------------------------------------


def test_mmap_fixed_over_what_is_there() -> None:
    play(
        STOCK,
        """
        AAAAAAAA       mmap
        ..bb           mmap r
        AAbbCCCC
        11--1111       av
        01234567       pgoff
        ..bb           mmap rw
        AAaaAAAA       case 1
        xx..xxxx       pages
        xxxxxxxx       mmap none
        aaaaaaaa
        --------       av
        """,
    )


def test_mmap_fixed_over_several_vmas_and_holes() -> None:
    play(
        STOCK,
        """
        aa..BB..cccc   mmap
        .xxxxxxxx      mmap r
        abbbbbbbbccc
        """,
    )


def test_mmap_noreplace() -> None:
    play(
        STOCK,
        """
        aaaa           mmap
        ..bbbb         mmap noreplace => EEXIST
        aaaa
        ....bb         mmap noreplace
        aaaaaa
        """,
    )


def test_mmap_with_a_hint() -> None:
    play(
        STOCK,
        """
        aaaa           mmap r
        ......bb       mmap hint      # free: taken
        aaaa..bb
        """,
    )
    world = play(
        STOCK,
        """
        aaaa           mmap r
        ..bb           mmap hint      # not free: the kernel looks from the top down
        """,
    )
    assert world.draw() == "aaaa" + "." * 56 + "bb"


def test_mappings_without_a_place_grow_downwards_and_merge() -> None:
    world = play(STOCK, "")
    for _ in range(3):
        world.apply(Event("mmap", 1, length=2 * PAGE_SIZE, prot=3, flags=0x22))
    assert world.draw() == "." * 56 + "aaaaaa"
    assert world.last.case == 3


def test_mmap_populate_and_locked_write_at_once() -> None:
    play(
        STOCK,
        """
        aaaa           mmap populate
        AAAA
        ......bb       mmap locked
        AAAA..BB
        ......xx       has LOCKED
        ........cc     mmap r populate   # read faults leave no page of their own
        AAAA..BBcc
        """,
    )


def test_accounting_is_for_private_writable_memory() -> None:
    play(
        STOCK,
        """
        aa             mmap rw
        ..bb           mmap r
        ....cc         mmap rw noreserve
        ......dd       mmap rw shared
        xx             has ACCOUNT
        ..xx           lacks ACCOUNT
        ....xx         lacks ACCOUNT
        ....xx         has NORESERVE
        ......xx       lacks ACCOUNT
        ..xx           mprotect rw
        ..xx           has ACCOUNT
        """,
    )


def test_droppable_memory() -> None:
    play(
        "linux-6.12 linux-6.18",
        """
        aa             mmap droppable
        xx             has DROPPABLE WIPEONFORK DONTDUMP NORESERVE
        ..b            mmap droppable locked => EINVAL
        xx             mlock
        xx             lacks LOCKED
        xx             madvise KEEPONFORK => EINVAL
        xx             madvise DODUMP => EINVAL
        """,
    )
    play("linux-6.1", "aa             mmap droppable => EINVAL")


def test_stack_hint_is_against_huge_pages_since_6_7() -> None:
    play("linux-6.1", "aa             mmap stack\nxx             lacks NOHUGEPAGE")
    play("linux-6.12", "aa             mmap stack\nxx             has NOHUGEPAGE")


def errno_of(world: World, event: Event) -> str:
    with pytest.raises(LinuxError) as failed:
        world.apply(event)

    return "EOPNOTSUPP" if failed.value.errno == errno.EOPNOTSUPP else errno.errorcode[failed.value.errno]


def test_mmap_refuses() -> None:
    world = play("linux-6.12", "aaaa           mmap")
    private = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS
    fixed = private | abi.MAP_FIXED
    refused = [
        ("EINVAL", Event("mmap", 1, prot=3, flags=private)),
        ("ENOMEM", Event("mmap", 1, length=1 << 47, prot=3, flags=private)),
        ("ENOMEM", Event("mmap", 1, addr=abi.TASK_SIZE, length=PAGE_SIZE, flags=fixed)),
        ("EINVAL", Event("mmap", 1, addr=page(1) + 1, length=PAGE_SIZE, flags=fixed)),
        ("EPERM", Event("mmap", 1, addr=PAGE_SIZE, length=PAGE_SIZE, flags=fixed)),
        ("EINVAL", Event("mmap", 1, addr=page(9), length=PAGE_SIZE, flags=abi.MAP_ANONYMOUS | abi.MAP_FIXED)),
        ("EBADF", Event("mmap", 1, addr=page(9), length=PAGE_SIZE, flags=abi.MAP_PRIVATE | abi.MAP_FIXED)),
        ("EINVAL", Event("mmap", 1, addr=page(9), length=PAGE_SIZE, flags=abi.MAP_FIXED, file="lib")),
        (
            "EOPNOTSUPP",
            Event("mmap", 1, addr=page(9), length=PAGE_SIZE, flags=abi.MAP_SHARED_VALIDATE | abi.MAP_SYNC, file="lib"),
        ),
        (
            "EINVAL",
            Event("mmap", 1, addr=page(9), length=PAGE_SIZE, flags=abi.MAP_SHARED | abi.MAP_GROWSDOWN, file="lib"),
        ),
        (
            "EINVAL",
            Event("mmap", 1, addr=page(9), length=PAGE_SIZE, flags=0x21 | abi.MAP_GROWSDOWN | abi.MAP_FIXED),
        ),
        (
            "EACCES",
            Event(
                "mmap",
                1,
                addr=page(9),
                length=PAGE_SIZE,
                prot=3,
                flags=abi.MAP_SHARED | abi.MAP_FIXED | (1 << 32),
                file="lib",
            ),
        ),
    ]
    for wanted, event in refused:
        assert errno_of(world, event) == wanted, repr(event)
        assert world.draw() == "aaaa"


# munmap -------------------------------------------------------------------------------------------------


def test_munmap_in_the_middle() -> None:
    play(
        STOCK,
        """
        AAAAAAAA       mmap
        ..xxx          munmap
        AA...BBB
        01...567       pgoff
        11...111       av
        ..xxx          munmap          # again: nothing there, no failure
        AA...BBB
        xxxxxxxx       munmap
        count 0
        """,
    )


def test_munmap_of_ends_and_of_several() -> None:
    play(
        STOCK,
        """
        aaaa..bbbb     mmap
        ..cc           mmap r
        .xxxxxx        munmap
        a......bbb
        """,
    )


def test_munmap_refuses() -> None:
    world = play("linux-6.12", "aaaa           mmap")
    for event in (
        Event("munmap", 1, addr=page(0) + 1, length=PAGE_SIZE),
        Event("munmap", 1, addr=page(0)),
        Event("munmap", 1, addr=page(0), length=abi.TASK_SIZE),
        Event("munmap", 1, addr=abi.TASK_SIZE + PAGE_SIZE, length=PAGE_SIZE),
    ):
        assert errno_of(world, event) == "EINVAL"
    assert world.draw() == "aaaa"


# brk ----------------------------------------------------------------------------------------------------

HEAP = "aa             place rw ACCOUNT name=[heap]\n"


def test_brk_grows_and_shrinks() -> None:
    play(
        STOCK,
        """
        x              brk             # unknown: no heap, nothing happens
        count 0
        """,
    )
    world = play("linux-5.17", "")
    space = world.space(1)
    space.start_brk = space.brk = page(0)

    def brk(address: int) -> int:
        result = world.apply(Event("brk", 1, addr=address))
        world.system.check()
        return result

    assert brk(0) == page(0)
    assert brk(page(0) - 1) == page(0)
    assert brk(page(2)) == page(2)
    assert world.draw() == "aa"
    assert brk(page(2) + 5) == page(2) + 5
    assert world.draw() == "aaa"
    assert brk(page(3)) == page(3)
    assert world.draw() == "aaa"
    assert brk(page(1)) == page(1)
    assert world.draw() == "a"
    assert brk(page(0)) == page(0)
    assert world.draw() == ""


def test_brk_merges_with_the_heap_below() -> None:
    world = play("linux-5.17 linux-6.12", "")
    space = world.space(1)
    space.start_brk = space.brk = page(2)
    for column in (4, 6):
        world.apply(Event("brk", 1, addr=page(column)))
    assert world.draw() == "..aaaa"
    world.apply(Event("madvise", 1, addr=page(4), length=2 * PAGE_SIZE, flags=abi.MADV_DONTFORK))
    world.apply(Event("brk", 1, addr=page(8)))
    assert world.draw() == "..aabbcc"


def test_brk_joined_the_vma_above_until_5_19() -> None:
    """The page that brk keeps free below the next mapping is about growing; here the mapping comes later."""
    for policy, drawn in (("linux-5.17", "...aa"), ("linux-6.1", "...ab")):
        world = play(policy, "")
        space = world.space(1)
        space.start_brk = space.brk = page(2)
        world.apply(Event("brk", 1, addr=page(4)))
        world.apply(Event("brk", 1, addr=page(3)))
        world.apply(Event("munmap", 1, addr=page(2), length=PAGE_SIZE))
        world.apply(Event("mmap", 1, addr=page(5), length=PAGE_SIZE, prot=3, flags=0x32))
        assert world.apply(Event("brk", 1, addr=page(4))) == page(4)
        assert world.draw() == "...a.b", drawn


def test_brk_stops_below_a_mapping() -> None:
    world = play("linux-6.12", "......bb       mmap")
    space = world.space(1)
    space.start_brk = space.brk = page(2)
    assert world.apply(Event("brk", 1, addr=page(6))) == page(2)  # one page stays free
    assert world.apply(Event("brk", 1, addr=page(5))) == page(5)
    assert world.draw() == "..aaa.bb"


def test_brk_below_a_stack_keeps_its_gap() -> None:
    world = play("linux-6.12", "")
    space = world.space(1)
    space.start_brk = space.brk = page(0)
    stack = page(300)
    world.apply(Event("mmap", 1, addr=stack, length=PAGE_SIZE, prot=3, flags=0x32 | abi.MAP_GROWSDOWN))
    assert world.apply(Event("brk", 1, addr=page(300 - 256))) == page(0)
    assert world.apply(Event("brk", 1, addr=page(300 - 257))) == page(43)


# mprotect -----------------------------------------------------------------------------------------------


def test_mprotect_stops_at_a_hole_and_keeps_what_it_did() -> None:
    play(
        STOCK,
        """
        aaaa..bb       mmap
        ..xxxxxx       mprotect r => ENOMEM
        aabb..cc
        ....xx         mprotect r => ENOMEM
        ....xxxx       mprotect r => ENOMEM   # nothing before the hole
        aabb..cc
        """,
    )


def test_mprotect_over_several_vmas_merges_as_it_goes() -> None:
    play(
        STOCK,
        """
        aaaa           mmap rw
        ....bbbb       mmap r
        ........cccc   mmap none
        .xxxxxxxxxx.   mprotect rwx
        abbbbbbbbbbc
        """,
    )


def test_mprotect_stack_grows_with_growsdown() -> None:
    play(
        STOCK,
        """
        aaaaaa         mmap growsdown
        ...x           mprotect r growsdown   # from the start of the VMA
        aaaabb
        """,
    )
    play(
        STOCK,
        """
        aaaaaa         mmap
        ...x           mprotect r growsdown => EINVAL
        """,
    )


def test_mprotect_with_a_protection_key() -> None:
    world = play(
        "linux-6.12",
        """
        aaaa           mmap
        ..xx           mprotect rw pkey=3
        aabb
        ..xx           mprotect rw      # mprotect keeps the key
        aabb
        ..xx           mprotect rw pkey=0
        aaaa
        """,
    )
    assert world.last.case == 7


def test_mprotect_refuses() -> None:
    world = play(
        "linux-6.12",
        """
        aaaa           mmap
        ......bb       place r file=/ro
        """,
    )
    vma = world.space(1).vmas.find(page(6))
    assert vma is not None
    vma.flags &= ~abi.VM_MAYWRITE
    refused = [
        ("EINVAL", Event("mprotect", 1, addr=page(0), length=PAGE_SIZE, prot=1 | 0x0300_0000)),
        ("EINVAL", Event("mprotect", 1, addr=page(0) + 1, length=PAGE_SIZE, prot=1)),
        ("EINVAL", Event("mprotect", 1, addr=page(0), length=PAGE_SIZE, prot=0x40)),
        ("EINVAL", Event("mprotect", 1, addr=page(0), length=PAGE_SIZE, prot=1 | abi.PROT_GROWSUP)),
        ("ENOMEM", Event("mprotect", 1, addr=page(40), length=PAGE_SIZE, prot=1)),
        ("ENOMEM", Event("mprotect", 1, addr=page(0), length=(1 << 64) - 1, prot=1)),
        ("EACCES", Event("mprotect", 1, addr=page(6), length=PAGE_SIZE, prot=3)),
    ]
    for wanted, event in refused:
        assert errno_of(world, event) == wanted, repr(event)
        assert world.draw() == "aaaa..bb"
    assert world.apply(Event("mprotect", 1, addr=page(0), prot=1)) == 0
    assert world.draw() == "aaaa..bb"


# mlock --------------------------------------------------------------------------------------------------


def test_mlock_splits_populates_and_merges() -> None:
    play(
        STOCK,
        """
        Aaaaaaaa       mmap
        ..xxx          mlock
        AaBBBccc
        ..xxx          has LOCKED
        ..xxx          munlock
        AaAAAaaa       case 6
        ..xxx          lacks LOCKED
        .....xx        mlock onfault
        AaAAAbbc                          # writes nothing
        .....xx        has LOCKED LOCKONFAULT
        .....x         mlock
        AaAAABcd
        .....x         lacks LOCKONFAULT
        """,
    )


def test_mlock_over_a_hole() -> None:
    play(
        STOCK,
        """
        aaaa..bb       mmap
        ..xxxxxx       mlock => ENOMEM
        aabb..cc                          # locked up to the hole, but not populated
        ..xx           has LOCKED
        ......xx       lacks LOCKED
        """,
    )


def test_mlock_of_memory_without_access() -> None:
    play(
        STOCK,
        """
        aaaa           mmap
        ..xx           mprotect none
        xxxx           mlock => ENOMEM
        AAbb                              # locked all the same, and populated where it may be
        xxxx           has LOCKED
        """,
    )


def test_making_locked_memory_writable_populates_it() -> None:
    play(
        STOCK,
        """
        aaaa           mmap r
        xxxx           mlock
        aaaa
        ..xx           mprotect rw
        aaBB
        """,
    )


def test_mlockall() -> None:
    play(
        STOCK,
        """
        aaaa..bb       mmap
        mlockall       current
        AAAA..BB
        xxxx           has LOCKED
        .........c     mmap
        .........x     lacks LOCKED
        mlockall       future
        ...........dd  mmap
        ...........xx  has LOCKED
        AAAA..BB.c.DD
        munlockall
        AAAA..BB.c.DD
        xxxx           lacks LOCKED
        .............e mmap
        AAAA..BB.c.DDd
        mlockall       onfault => EINVAL
        mlockall       => EINVAL
        """,
    )


def test_a_child_inherits_no_mlock() -> None:
    play(
        STOCK,
        """
        aaaa           mmap
        ..xx           mlock
        fork 2
        2: aaBB
        2: ..xx        lacks LOCKED
        """,
    )


# madvise ------------------------------------------------------------------------------------------------

ADVICE = [
    ("SEQUENTIAL", "SEQ_READ", "NORMAL"),
    ("RANDOM", "RAND_READ", "NORMAL"),
    ("DONTFORK", "DONTCOPY", "DOFORK"),
    ("WIPEONFORK", "WIPEONFORK", "KEEPONFORK"),
    ("DONTDUMP", "DONTDUMP", "DODUMP"),
    ("MERGEABLE", "MERGEABLE", "UNMERGEABLE"),
]


@pytest.mark.parametrize(("advice", "flag", "undo"), ADVICE)
def test_advice_that_is_kept_splits_and_merges(advice: str, flag: str, undo: str) -> None:
    play(
        STOCK,
        f"""
        AAAAAAAA       mmap
        ..xxx          madvise {advice}
        AABBBCCC
        ..xxx          has {flag}
        ..xxx          madvise {advice}   # again: nothing
        AABBBCCC
        ..xxx          madvise {undo}
        AAAAAAAA       case 6
        ..xxx          lacks {flag}
        """,
    )


@pytest.mark.parametrize(
    ("first", "then", "has", "lacks"),
    [
        ("SEQUENTIAL", "RANDOM", "RAND_READ", "SEQ_READ"),
        ("RANDOM", "SEQUENTIAL", "SEQ_READ", "RAND_READ"),
        ("HUGEPAGE", "NOHUGEPAGE", "NOHUGEPAGE", "HUGEPAGE"),
        ("NOHUGEPAGE", "HUGEPAGE", "HUGEPAGE", "NOHUGEPAGE"),
    ],
)
def test_advice_that_takes_other_advice_back(first: str, then: str, has: str, lacks: str) -> None:
    play(
        STOCK,
        f"""
        aaaa           mmap
        xxxx           madvise {first}
        xxxx           has {lacks}
        xxxx           madvise {then}
        xxxx           has {has}
        xxxx           lacks {lacks}
        """,
    )


def test_advice_that_discards_pages() -> None:
    play(
        SINCE_5_17,
        """
        AAAAAAAA       mmap
        ..xx           madvise DONTNEED
        AAaaAAAA
        11111111       av                 # the anon_vma stays
        .....x         madvise FREE       # stays mapped until memory is short
        AAaaAAAA
        ..xx           madvise POPULATE_READ
        AAaaAAAA
        ..xx           madvise POPULATE_WRITE
        AAAAAAAA
        xx             madvise COLD
        xx             madvise WILLNEED
        count 1
        """,
    )


def test_advice_that_locked_memory_refuses() -> None:
    play(
        STOCK,
        """
        AAAA           mmap
        xxxx           mlock
        xxxx           madvise DONTNEED => EINVAL
        xxxx           madvise FREE => EINVAL
        xxxx           madvise COLD => EINVAL
        xxxx           madvise PAGEOUT => EINVAL
        AAAA
        """,
    )
    play(
        "linux-6.1 linux-6.12",
        """
        AAAA           mmap
        xxxx           mlock
        ..xx           madvise DONTNEED_LOCKED
        AAaa
        """,
    )


def test_advice_for_other_memory() -> None:
    play(
        STOCK,
        """
        aaaa           mmap file=lib
        xxxx           madvise FREE => EINVAL
        xxxx           madvise WIPEONFORK => EINVAL
        xxxx           madvise REMOVE => EACCES
        ....bb         mmap
        ....xx         madvise REMOVE => EINVAL
        ......cc       mmap file=data shared
        ......xx       madvise REMOVE
        ......xx       madvise MERGEABLE   # in silence, to no effect
        ......xx       lacks MERGEABLE
        ........dd     place rw DONTEXPAND file=dev
        ........xx     madvise DODUMP => EINVAL
        """,
    )
    play("linux-6.12", "aa             place rw IO PFNMAP file=dev\nxx             madvise DOFORK => EINVAL")


def test_advice_over_a_hole_advises_the_rest() -> None:
    play(
        STOCK,
        """
        aaaa..bb       mmap
        ..xxxxxx       madvise DONTFORK => ENOMEM
        aabb..cc
        ..xx           has DONTCOPY
        ......xx       has DONTCOPY
        ....xx         madvise DONTFORK => ENOMEM
        ........xxx    madvise DONTFORK => ENOMEM
        """,
    )


def test_advice_that_fails_stops_where_it_fails() -> None:
    play(
        STOCK,
        """
        aa             mmap
        ..bb           mmap file=lib
        ....cc         mmap
        xxxxxx         madvise WIPEONFORK => EINVAL
        xx             has WIPEONFORK
        ....xx         lacks WIPEONFORK
        """,
    )


def test_populate_advice() -> None:
    play(
        "linux-6.12 linux-6.18",
        """
        aaaa..bb       mmap
        ..xxxxxx       madvise POPULATE_WRITE => ENOMEM
        aaAA..bb                            # up to the hole (since 6.9)
        ......xx       mprotect r
        ......xx       madvise POPULATE_WRITE => EINVAL
        ......xx       madvise POPULATE_READ
        aaAA..bb
        """,
    )
    play("linux-5.10", "aaaa           mmap\nxxxx           madvise POPULATE_WRITE => EINVAL")


def test_madvise_refuses() -> None:
    world = play("linux-6.12", "aaaa           mmap")
    for event in (
        Event("madvise", 1, addr=page(0), length=PAGE_SIZE, flags=77),
        Event("madvise", 1, addr=page(0) + 1, length=PAGE_SIZE, flags=abi.MADV_DONTFORK),
        Event("madvise", 1, addr=page(0), length=(1 << 64) - PAGE_SIZE, flags=abi.MADV_DONTFORK),
    ):
        assert errno_of(world, event) == "EINVAL"
    assert world.apply(Event("madvise", 1, addr=page(0), flags=abi.MADV_DONTFORK)) == 0
    for advice, policy in (
        ("COLLAPSE", "linux-5.17"),
        ("DONTNEED_LOCKED", "linux-5.17"),
        ("GUARD_INSTALL", "linux-6.12"),
    ):
        play(policy, f"aaaa           mmap\nxxxx           madvise {advice} => EINVAL")


def test_collapse_needs_room_for_a_huge_page() -> None:
    play(
        "linux-6.1 linux-6.12 linux-7.2",
        """
        aaaa           mmap
        xxxx           madvise COLLAPSE => EINVAL
        """,
    )
    world = play("linux-6.12", "")
    huge = abi.HUGE_PAGE_SIZE
    for start, length, fits in ((0, huge, True), (2 * huge + 4096, huge, False), (4 * huge - 4096, huge + 8192, True)):
        addr = drawing.BASE + start
        advice = Event("madvise", 1, addr=addr, length=length, flags=abi.MADV_COLLAPSE)
        world.apply(Event("mmap", 1, addr=addr, length=length, prot=3, flags=0x32))
        assert errno_of(world, advice) == "EINVAL"  # nothing to make a huge page of
        world.apply(Event("write", 1, addr=addr + huge // 2, length=1))
        if not fits:
            assert errno_of(world, advice) == "EINVAL"
            continue
        assert world.apply(advice) == 0
        block = (addr + huge - 1) & -huge
        assert world.space(1).pages.populated(block, block + huge) == huge // PAGE_SIZE


def test_wipe_and_dontfork_in_the_child() -> None:
    play(
        STOCK,
        """
        AAAAAAAA       mmap
        ..xx           madvise WIPEONFORK
        ....xx         madvise DONTFORK
        fork 2
        2: AAbb..CC
        2: 22--..33    av
        2: ..xx        write
        11111111       av
        """,
    )


def test_guard_pages() -> None:
    play(
        "linux-6.18 linux-7.2",
        """
        AAAA           mmap
        .x             madvise GUARD_INSTALL
        AaAA
        .x             madvise GUARD_REMOVE
        AaAA
        ......bb       mmap
        ......x        madvise GUARD_INSTALL   # makes an anon_vma, so that fork copies the markers
        1111..22       av
        """,
    )


# names, memory policies, userfaultfd --------------------------------------------------------------------


def test_anonymous_names() -> None:
    play(
        SINCE_5_17,
        """
        AAAAAA         mmap
        ..xx           name heap
        AABBCC
        ..xx           name heap
        AABBCC
        xx             name heap
        AAAABB         case 8
        xxxx           name -
        AAAAAA
        ......bb       mmap file=lib
        ....xxxx       name heap => EBADF
        AAAABBcc                             # anonymous memory before it has the name
        """,
    )
    play("linux-5.10", "aaaa           mmap\nxxxx           name heap => EINVAL")
    play("linux-6.12", "aaaa           mmap\nxxxx           name heap => EINVAL", anon_names=False)
    play(
        "linux-6.12",
        """
        aa..bb         mmap
        xxxxxx         name heap => ENOMEM
        ..xx           name heap => ENOMEM
        xx             name -
        ....xx         name -
        aa..bb
        """,
    )


def test_memory_policies() -> None:
    play(
        STOCK,
        """
        AAAAAA         mmap
        ..xx           mbind bind:0
        AABBCC
        ....xx         mbind bind:0
        AABBBB         case 7
        ..x            mbind -
        AAABBB         case 5
        ...xxx         mbind -
        AAAAAA
        ........bb     mmap
        .....xxxx      mbind bind:0 => EFAULT
        AAAAAA..bb                             # nothing, for a hole is seen first
        ......xx       mbind bind:0 => EFAULT
        """,
    )


def test_userfaultfd() -> None:
    play(
        STOCK,
        """
        aaaaaa         mmap
        ..xx           uffd wp 1
        aabbcc
        ..xx           has UFFD_WP
        ..xx           uffd missing 1
        ..xx           has UFFD_MISSING
        ..xx           lacks UFFD_WP
        ..xx           uffd wp 2 => EBUSY
        ....xx         uffd missing 1
        aabbbb
        ...x           unuffd 1
        aabcdd
        uffd_close 2
        aabcdd
        uffd_close 1
        aaaaaa
        xxxxxx         lacks UFFD_MISSING UFFD_WP
        """,
    )


def test_a_child_leaves_the_userfaultfd() -> None:
    play(
        STOCK,
        """
        aaaaaa         mmap
        ..xx           uffd wp 1
        fork 2
        2: aabbcc                              # apart still, for nobody asks
        2: ..xx        lacks UFFD_WP
        2: xx          mprotect r
        2: xx          mprotect rw
        2: aaaabb      case 8
        """,
    )


def test_userfaultfd_refuses() -> None:
    play(
        "linux-6.12",
        """
        aaaa           mmap
        ......bb       mmap file=lib
        xxxxxxxx       uffd wp 1 => EINVAL
        aaaa..bb
        xxxx           lacks UFFD_WP
        xxxx           uffd none 1 => EINVAL
        .....x         uffd wp 1 => EINVAL
        xxxx           uffd minor 1 => EINVAL
        """,
    )
    world = play("linux-6.12", "aaaa           mmap")
    for event in (
        Event("uffd_register", 1, addr=page(0) + 1, length=PAGE_SIZE, flags=2, new_addr=1),
        Event("uffd_register", 1, addr=page(0), flags=2, new_addr=1),
        Event("uffd_register", 1, addr=page(0), length=abi.TASK_SIZE, flags=2, new_addr=1),
        Event("uffd_register", 1, addr=page(0), length=PAGE_SIZE, flags=8, new_addr=1),
    ):
        assert errno_of(world, event) == "EINVAL"
    vma = world.space(1).vmas.first
    assert vma is not None
    vma.flags &= ~abi.VM_MAYWRITE
    assert errno_of(world, Event("uffd_register", 1, addr=page(0), length=PAGE_SIZE, flags=2, new_addr=1)) == "EPERM"


def test_uffd_move_gives_pages_another_home() -> None:
    play(
        "linux-6.12 linux-6.18 linux-7.2",
        """
        AAaA....bbbb   mmap
        ........xxxx   uffd missing 1
        xxxx           uffd_move ........bbbb
        aaaa....BBbB
        0123....89ab   pgoff
        1111....2222   av
        ........xx.x   pages
        """,
    )


def test_uffd_move_refuses() -> None:
    play(
        "linux-6.12",
        """
        AAAA....bbbb   mmap
        xxxx           uffd_move ........bbbb => EINVAL     # not registered
        ........xxxx   uffd missing 1
        ......xx       uffd_move ........bb => ENOENT
        xx             uffd_move ......bb => ENOENT
        xxxxxx         uffd_move ........bbbbbb => EINVAL
        ........X      write
        xxxx           uffd_move ........bbbb => EEXIST
        fork 2
        ..xx           uffd_move ..........bb => EBUSY      # shared with a child
        AAAA....Bbbb
        """,
    )
    play(
        "linux-6.1",
        """
        AAAA....bbbb   mmap
        ........xxxx   uffd missing 1
        xxxx           uffd_move ........bbbb => EINVAL
        """,
    )


# segments, old calls, sealing ---------------------------------------------------------------------------


def test_shmat_and_shmdt() -> None:
    play(
        STOCK,
        """
        aaaa           shmat file=SYSV1
        ......bb       shmat file=SYSV2 r
        ..x            munmap
        aa.b..cc
        x              shmdt
        ......cc                             # every piece of the one
        x              shmdt => EINVAL
        ......x        shmdt
        count 0
        """,
    )


def test_shmdt_leaves_what_is_sealed() -> None:
    """ksys_shmdt (ipc/shm.c) asks nobody whether the unmapping worked."""
    play(
        "linux-6.12 linux-6.18",
        """
        aaaa           shmat file=SYSV1
        ..x            mseal
        aabc
        x              shmdt
        ..b
        """,
    )


def test_remap_file_pages() -> None:
    play(
        STOCK,
        """
        aaaa           mmap file=data shared pgoff=0
        .x             remap_file_pages pgoff=7
        abcc
        0723           pgoff
        .xx            remap_file_pages pgoff=1   # over two VMAs of the file, and all is one again
        aaaa           case 1
        0123           pgoff
        ....d          mmap
        ....x          remap_file_pages pgoff=1 => EINVAL
        ...xx          remap_file_pages pgoff=1 => EINVAL
        ...xxx         remap_file_pages pgoff=1 => EINVAL
        .......x       remap_file_pages pgoff=1 => EINVAL
        ......ee       mmap file=data pgoff=0
        ......xx       remap_file_pages pgoff=1 => EINVAL   # not shared
        aaaad.ee
        .x             mprotect r
        .xx            remap_file_pages pgoff=1 => EINVAL   # not alike
        """,
    )
    play(
        STOCK,
        """
        aaaa           mmap file=data shared pgoff=0
        xx             madvise RANDOM
        xx             mlock
        x              remap_file_pages pgoff=0
        abcc
        x              lacks RAND_READ
        x              has LOCKED
        """,
    )


def test_remap_file_pages_keeps_the_size_of_a_segment() -> None:
    """Its pages past the end can be touched neither before nor after."""
    play(
        "linux-6.12",
        """
        aaaa           shmat file=SYSV1
        .x             remap_file_pages pgoff=3
        abcc
        .x             write
        .x             remap_file_pages pgoff=4
        .x             write => EFAULT
        """,
    )


def test_sealed_memory_stays() -> None:
    play(
        "linux-6.12 linux-6.18 linux-7.2",
        """
        aaaaaa         mmap
        ..xx           mseal
        aabbcc
        .xx            munmap => EPERM
        ..xx           mprotect r => EPERM
        ..xx           mremap ........bb => EPERM
        ..xx           madvise DONTFORK
        ..dd           mmap => EPERM
        ..x            mseal
        ....xxxx       mseal => ENOMEM
        xxxxxx         mseal
        """,
    )
    world = play("linux-6.1", "aaaa           mmap")
    assert errno_of(world, Event("mseal", 1, addr=page(0), length=PAGE_SIZE)) == "ENOSYS"


# faults and stacks --------------------------------------------------------------------------------------


def test_faults_stop_where_they_may_not_go() -> None:
    play(
        STOCK,
        """
        aaaa..bb       mmap
        ......xx       mprotect r
        ..XXXX         write => EFAULT
        aaAA..bb
        ......XX       write => EFAULT
        ......xx       read
        ......xx       mprotect none
        ......xx       read => EFAULT
        ....xx         read => EFAULT
        """,
    )


def test_a_stack_grows_down_to_what_is_touched() -> None:
    play(
        STOCK,
        """
        ..........aa   mmap growsdown
        ....x          write
        ....Aaaaaaaa
        ....456789ab   pgoff
        ....11111111   av
        ....xxxxxxxx   has GROWSDOWN
        ..x            read               # a read grows it too
        ..aaAaaaaaaa
        """,
    )


def test_a_stack_keeps_its_gap() -> None:
    """256 pages below it stay free of mappings that can be touched."""
    for policy in STOCK.split():
        world = play(policy, "a              mmap")
        top = 400
        stack = 0x32 | abi.MAP_GROWSDOWN
        world.apply(Event("mmap", 1, addr=page(top), length=PAGE_SIZE, prot=3, flags=stack))
        space = world.space(1)
        assert errno_of(world, Event("write", 1, addr=page(256), length=1)) == "EFAULT"
        world.apply(Event("write", 1, addr=page(257), length=1))
        assert [vma.pages for vma in space.vmas] == [1, top - 257 + 1]
        assert errno_of(world, Event("write", 1, addr=page(256), length=1)) == "EFAULT"
        world.apply(Event("mprotect", 1, addr=page(0), length=PAGE_SIZE, prot=0))
        world.apply(Event("write", 1, addr=page(256), length=1))  # what cannot be touched keeps no gap
        world.system.check()


def test_a_stack_grows_up_to_another_stack_and_not_past_its_limit() -> None:
    world = play("linux-6.12", "a              mmap growsdown")
    world.apply(Event("mmap", 1, addr=page(9), length=PAGE_SIZE, prot=3, flags=0x32 | abi.MAP_GROWSDOWN))
    world.apply(Event("write", 1, addr=page(1), length=1))
    assert world.draw() == "aBbbbbbbbb"
    limit = (8 << 20) // PAGE_SIZE
    top = drawing.BASE + (32 << 20)
    world.apply(Event("mmap", 1, addr=top, length=PAGE_SIZE, prot=3, flags=0x32 | abi.MAP_GROWSDOWN))
    world.apply(Event("write", 1, addr=top - (limit - 1) * PAGE_SIZE, length=1))
    assert errno_of(world, Event("write", 1, addr=top - limit * PAGE_SIZE, length=1)) == "EFAULT"


def test_mmap_keeps_out_of_a_stacks_gap_unless_it_is_told_where() -> None:
    world = play("linux-6.12", "")
    top = page(400)
    world.apply(Event("mmap", 1, addr=top, length=PAGE_SIZE, prot=3, flags=0x32 | abi.MAP_GROWSDOWN))
    hinted = Event("mmap", 1, addr=page(399), length=PAGE_SIZE, prot=3, flags=0x22)
    assert world.apply(hinted) != page(399)
    hinted.addr = page(400 - 257)
    assert world.apply(hinted) == page(400 - 257)
    assert world.apply(Event("mmap", 1, addr=page(398), length=PAGE_SIZE, prot=3, flags=0x32)) == page(398)


# processes ----------------------------------------------------------------------------------------------


def test_fork_makes_an_anon_vma_for_each_faulted_vma() -> None:
    play(
        STOCK,
        """
        AAAA..bb       mmap
        fork 2
        fork 3
        2: AAAA..bb
        2: 2222..--    av
        3: 3333..--    av
        2: ssss        pages
        2: X           write
        2: xsss        pages
        ssss           pages              # two others still share the first
        2: exit
        3: exit
        kkkk           pages
        X              write
        xkkk           pages
        """,
    )


def test_fork_reuses_an_ancestors_anon_vma_that_lost_its_vmas() -> None:
    """A chain of short-lived parents does not grow without end; the root is never reused."""
    timeline = """
        AAAA           mmap
        fork 2
        2: fork 3
        1111           av
        2: 2222        av
        3: 3333        av
        2: exit                            # the anon_vma 2 has no VMA of its own any more
        3: fork 4
        """
    play("linux-5.10 linux-6.1 linux-6.12 linux-6.18", timeline + "4: 2222        av")
    play("linux-5.17", timeline + "4: 2222        av")


def test_exec_and_exit_leave_nothing_behind() -> None:
    world = play(
        STOCK,
        """
        AAAA           mmap
        fork 2
        2: exec
        2: count 0
        2: aa          mmap
        exit
        2: aa
        """,
    )
    assert list(world.system.processes) == [2]


def test_clone_vm_shares_everything() -> None:
    play(
        STOCK,
        """
        aaaa           mmap
        fork 2 vm
        2: ..xx        munmap
        aa
        exit
        2: aa
        2: exec
        2: count 0
        """,
    )


# What releases do differently, found by holding them against their kernels ------------------------------


def called(policy: str, *events: Event) -> str:
    """The errno of the last of `events` under `policy`, "" where it succeeds."""
    world = World(policy)
    for event in events[:-1]:
        world.apply(event)
    try:
        world.apply(events[-1])
    except LinuxError as error:
        return errno.errorcode[error.errno]
    return ""


def test_remove_needs_a_mapping_that_is_or_may_become_writable() -> None:
    flags = abi.MAP_SHARED | abi.MAP_ANONYMOUS | abi.MAP_FIXED
    shared = Event("mmap", 1, addr=page(0), length=PAGE_SIZE, flags=flags)
    remove = Event("madvise", 1, addr=page(0), length=PAGE_SIZE, flags=abi.MADV_REMOVE)
    found = {policy: called(policy, shared, remove) for policy in STOCK.split()}
    assert found == {**dict.fromkeys(STOCK.split(), ""), "linux-5.17": "EACCES"}  # 5.10 and 6.1 took it from 6.7


@pytest.mark.parametrize(("file", "since_6_2"), [("/memfd:a", ""), ("", ""), ("/usr/lib/x", "EBADF")])
def test_names_of_shared_memory(file: str, since_6_2: str) -> None:
    flags = abi.MAP_SHARED | abi.MAP_FIXED | (0 if file else abi.MAP_ANONYMOUS)
    shared = Event("mmap", 1, addr=page(0), length=PAGE_SIZE, prot=abi.PROT_READ, flags=flags, file=file)
    name = Event("set_name", 1, addr=page(0), length=PAGE_SIZE, file="a")
    found = [called(policy, shared, name) for policy in SINCE_5_17.split()]
    assert found == ["EBADF", "EBADF", since_6_2, since_6_2, since_6_2]


# the table ----------------------------------------------------------------------------------------------


def test_every_event_is_performed() -> None:
    assert set(CALLS) == set(OPERATIONS)


def test_an_event_of_no_such_name() -> None:
    with pytest.raises(ValueError, match="no event is called 'mumap'"):
        World("linux-5.17").system.apply(Event("mumap", 1))
