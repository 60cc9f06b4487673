# SPDX-License-Identifier: GPL-2.0-or-later
"""Why two VMAs that touch are two: each case a drawing of the address space, one letter a page."""

import itertools
import random
from itertools import pairwise

import pytest

from vmaweld.abi import (
    PAGE_SIZE,
    VM_ACCOUNT,
    VM_DONTDUMP,
    VM_DONTEXPAND,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_MAYBE_GUARD,
    VM_MAYSHARE,
    VM_NOHUGEPAGE,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_SOFTDIRTY,
    VM_SPECIAL,
    VM_UFFD_MISSING,
    VM_UFFD_WP,
    VM_WRITE,
)
from vmaweld.seams import REASONS, mask_counts, open_seams, reason_counts, runs_of_open_seams, seams
from vmaweld.snapshot import Row, Snapshot

BASE = 0x10000
WORDS = {
    "r": VM_READ,
    "w": VM_WRITE,
    "x": VM_EXEC,
    "shared": VM_SHARED | VM_MAYSHARE,
    "account": VM_ACCOUNT,
    "dontdump": VM_DONTDUMP,
    "nohugepage": VM_NOHUGEPAGE,
    "locked": VM_LOCKED,
    "growsdown": VM_GROWSDOWN,
    "softdirty": VM_SOFTDIRTY,
    "guard": VM_MAYBE_GUARD,
    "pfnmap": VM_PFNMAP,
    "dontexpand": VM_DONTEXPAND,
    "missing": VM_UFFD_MISSING,
    "wp": VM_UFFD_WP,
}


def draw(picture: str, *, hidden: bool = True, **legend: str) -> Snapshot:
    """A snapshot of `picture`: each run of a letter is a VMA, a dot a page that nothing maps.

    The legend says for each letter its flags and ``key=value`` fields. Unless told, a VMA is "r w", unfaulted,
    private and anonymous, and its page offset is that of its address.
    """
    rows = []
    position = 0
    for letter, group in itertools.groupby(picture):
        pages = len(list(group))
        if letter != ".":
            words = legend.get(letter, "r w").split()
            fields = dict(word.split("=") for word in words if "=" in word)
            flags = 0
            for word in words:
                if "=" not in word:
                    flags |= WORDS[word]
            start = BASE + position * PAGE_SIZE
            shown = hidden or "file" in fields
            rows.append(
                Row(
                    start,
                    start + pages * PAGE_SIZE,
                    flags,
                    pgoff=int(fields.get("pgoff", start // PAGE_SIZE)) if shown else None,
                    anon_vma=int(fields.get("av", 0)) if hidden else None,
                    chain=int(fields.get("chain", bool(int(fields.get("av", 0))))) if hidden else None,
                    file=fields.get("file", ""),
                    name=fields.get("name", ""),
                    mempolicy=fields.get("policy", "") if hidden else None,
                    uffd=int(fields.get("uffd", 0)) if hidden else None,
                    file_id=int(fields["open"]) if "open" in fields else None,
                    close="close" in fields if hidden else None,
                )
            )
        position += pages
    return Snapshot(1, rows, source="model", flags_exact=hidden, hidden=hidden)


def reasons(snapshot: Snapshot) -> list[tuple[str, ...]]:
    return [seam.reasons for seam in seams(snapshot)]


def test_a_gap_is_no_seam() -> None:
    assert seams(draw("AAAA.BBBB", B="r w pgoff=99")) == []
    assert seams(draw("AAAA")) == []
    assert seams(draw("")) == []


def test_where_a_seam_is() -> None:
    snapshot = draw("..AAAA.BBCC", A="r", B="r", C="r w")
    (seam,) = seams(snapshot)
    assert (seam.index, seam.address) == (1, BASE + 9 * PAGE_SIZE)
    assert (seam.left, seam.right) == (snapshot.rows[1], snapshot.rows[2])


ONE_REASON = [
    # left, right, the reason, whether the seam is open
    ("r w av=1", "r w av=1", "not-attempted", True),
    ("r w", "r w", "not-attempted", True),
    ("r w av=1", "r w", "not-attempted", True),
    ("r w", "r w av=1", "not-attempted", True),
    ("r w av=1", "r w av=2", "anon-vma", True),
    ("r w av=1 chain=2", "r w", "anon-vma", True),
    ("r w", "r w av=1 chain=2", "anon-vma", True),
    ("r w av=1 chain=2", "r w av=1 chain=2", "not-attempted", True),
    ("r w av=1", "r w av=1 pgoff=99", "page-offset", True),
    ("r w pgoff=99", "r w", "page-offset", True),
    ("r", "r w", "protection", False),
    ("r", "r x", "protection", False),
    ("r w", "r w dontdump", "flags", False),
    ("r w", "r w locked", "flags", False),
    ("r w growsdown", "r w", "flags", False),
    ("r w account", "r w", "flags", False),
    ("r w softdirty", "r w", "not-attempted", True),
    ("r w guard", "r w", "not-attempted", True),
    ("r w name=[anon:x]", "r w", "anon-name", False),
    ("r w name=[anon:x]", "r w name=[anon:y]", "anon-name", False),
    ("r w name=[anon:x]", "r w name=[anon:x]", "not-attempted", True),
    ("r w shared file=z pgoff=0 name=[anon_shmem:x]", "r w shared file=z pgoff=2", "anon-name", False),
    ("r w name=[heap]", "r w", "not-attempted", True),
    ("r w", "r w name=[stack]", "not-attempted", True),
    ("r w policy=bind:0", "r w", "mempolicy", False),
    ("r w policy=bind:0", "r w policy=bind:1", "mempolicy", False),
    ("r w policy=bind:0", "r w policy=bind:0", "not-attempted", True),
    ("r w missing uffd=1", "r w missing uffd=2", "userfaultfd", False),
    ("r w missing uffd=1", "r w", "userfaultfd", False),
    ("r w missing uffd=1", "r w wp uffd=1", "userfaultfd", False),
    ("r w missing uffd=1", "r w missing uffd=1", "not-attempted", True),
    ("r pfnmap", "r pfnmap", "special", False),
    ("r dontexpand", "r dontexpand", "special", False),
    ("r name=[vvar]", "r name=[vdso]", "special", False),
    ("r file=a pgoff=0", "r file=b pgoff=2", "file", False),
    ("r file=a pgoff=0", "r", "file", False),
    ("r file=a pgoff=0", "r file=a pgoff=3", "file-offset", False),
    ("r file=a pgoff=0", "r file=a pgoff=2", "not-attempted", True),
    ("r w file=a pgoff=0 av=1", "r w file=a pgoff=2 av=2", "anon-vma", True),
    ("r file=a open=1 pgoff=0", "r file=a open=2 pgoff=2", "file", False),
    ("r file=a open=1 pgoff=0", "r file=a open=1 pgoff=2", "not-attempted", True),
    ("r shared file=a open=1 pgoff=0 close=1", "r shared file=a open=1 pgoff=2 close=1", "special", False),
]


@pytest.mark.parametrize(("left", "right", "reason", "is_open"), ONE_REASON)
def test_each_reason_alone(left: str, right: str, reason: str, is_open: bool) -> None:
    (seam,) = seams(draw("AABB", A=left, B=right))
    assert seam.reasons == (reason,)
    assert seam.open is is_open
    assert seam.exact


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("r w av=1", "r w av=2 pgoff=99", ("page-offset", "anon-vma")),
        ("r w av=1", "r av=2 pgoff=99", ("protection", "page-offset", "anon-vma")),
        ("r w account", "x nohugepage", ("protection", "flags")),
        ("r x file=a pgoff=0", "r w file=a pgoff=7 av=1", ("protection", "file-offset")),
        ("r w file=a pgoff=0 av=1", "r w av=2 name=[heap]", ("file", "anon-vma")),
        ("r w name=[anon:x] policy=bind:0", "r w pgoff=0", ("anon-name", "mempolicy", "page-offset")),
        ("r pfnmap name=[vvar]", "r x dontexpand name=[vdso]", ("protection", "flags", "special")),
        ("r w missing uffd=1 av=1", "r w av=1 dontdump", ("flags", "userfaultfd")),
    ],
)
def test_all_reasons_are_told(left: str, right: str, expected: tuple[str, ...]) -> None:
    assert reasons(draw("AABB", A=left, B=right)) == [expected]


def test_the_differing_flags_have_names() -> None:
    (seam,) = seams(draw("AABB", A="r w dontdump softdirty", B="r w locked"))
    assert seam.flag_names == ["locked", "dontdump"]


def test_without_the_hidden_fields_what_is_left_over_is_open() -> None:
    (seam,) = seams(draw("AABB", hidden=False))
    assert seam.reasons == ("page-offset-or-anon-vma",)
    assert seam.open
    assert not seam.exact


@pytest.mark.parametrize(
    ("left", "right", "expected", "is_open"),
    [
        ("r w", "r", ("protection",), False),
        ("r w", "r w dontdump", ("flags",), False),
        ("r w file=a pgoff=0", "r w", ("file",), False),
        ("r w file=a pgoff=0", "r w file=a pgoff=5", ("file-offset",), False),
        ("r w name=[heap]", "r w name=[anon:x]", ("anon-name",), False),
        # Same path, offsets that go on: copied pages if it was writable, else opened twice.
        ("r w account file=a pgoff=0", "r w account file=a pgoff=2", ("anon-vma",), True),
        ("r account file=a pgoff=0", "r account file=a pgoff=2", ("anon-vma",), True),
        ("r file=a pgoff=0", "r file=a pgoff=2", ("file",), False),
        ("r w shared file=a pgoff=0", "r w shared file=a pgoff=2", ("file",), False),
    ],
)
def test_by_elimination(left: str, right: str, expected: tuple[str, ...], is_open: bool) -> None:
    (seam,) = seams(draw("AABB", hidden=False, A=left, B=right))
    assert seam.reasons == expected
    assert seam.open is is_open
    assert not seam.exact


def test_runs_are_as_long_as_they_can_be() -> None:
    #                  | open: page offset and anon_vma         | shut: dontdump
    snapshot = draw(
        "AAABBBCC.DDEEFFGG.HHII",
        A="r w av=1",
        B="r w av=2",
        C="r w av=3",
        D="r w av=4",
        E="r w av=4 pgoff=1",
        F="r w dontdump",
        G="r w dontdump pgoff=5",
        H="r",
        I="r w",
    )
    found = seams(snapshot)
    runs = runs_of_open_seams(found)
    assert [(run.first, run.last, run.saved) for run in runs] == [(0, 2, 2), (3, 4, 1), (5, 6, 1)]
    assert [(run.start, run.end) for run in runs] == [
        (snapshot.rows[run.first].start, snapshot.rows[run.last].end) for run in runs
    ]
    assert sum(run.saved for run in runs) == len(open_seams(found)) == 4


def test_counts_name_every_reason() -> None:
    found = seams(draw("AABBCC", A="r w av=1", B="r w av=2 pgoff=0", C="r"))
    counts = reason_counts(mask_counts(found))
    assert tuple(counts) == REASONS
    assert {name: count for name, count in counts.items() if count} == {
        "protection": 1,
        "page-offset": 2,
        "anon-vma": 1,
    }


def mergeable(a: Row, b: Row) -> bool:
    """The kernel's question put as a yes or no, written apart from `seams`: would these two ever merge?"""
    if any(row.flags & VM_SPECIAL for row in (a, b)):
        return False
    if (a.flags ^ b.flags) & ~(VM_SOFTDIRTY | VM_MAYBE_GUARD):
        return False
    names = [row.name if row.name.startswith("[anon:") else "" for row in (a, b)]
    if (a.file, a.mempolicy, a.uffd, names[0]) != (b.file, b.mempolicy, b.uffd, names[1]):
        return False
    assert a.pgoff is not None
    if b.pgoff != a.pgoff + a.pages:
        return False
    if a.anon_vma == b.anon_vma:
        return True
    if a.anon_vma and b.anon_vma:
        return False
    return (a if a.anon_vma else b).chain == 1


def test_nothing_holds_a_seam_when_and_only_when_the_kernel_would_merge() -> None:
    chance = random.Random(4)
    kinds = set()
    for _ in range(3000):
        rows = []
        address = BASE
        for _ in range(2):
            uffd = chance.choice([0, 0, 0, 1, 2])
            av = chance.choice([0, 0, 1, 2])
            flags = chance.choice([VM_READ | VM_WRITE] * 8 + [VM_READ, VM_READ | VM_WRITE | VM_LOCKED, VM_PFNMAP])
            flags |= chance.choice([0, VM_SOFTDIRTY]) | (VM_UFFD_MISSING if uffd else 0)
            pages = chance.randint(1, 4)
            rows.append(
                Row(
                    address,
                    address + pages * PAGE_SIZE,
                    flags,
                    pgoff=address // PAGE_SIZE + chance.choice([0, 0, 0, 7]),
                    anon_vma=av,
                    chain=chance.choice([1, 1, 2]) if av else 0,
                    file=chance.choice(["", "", "", "a"]),
                    name=chance.choice(["", "", "[heap]", "[anon:x]"]),
                    mempolicy=chance.choice(["", "", "", "bind:0"]),
                    uffd=uffd,
                )
            )
            address += pages * PAGE_SIZE
        (seam,) = seams(Snapshot(1, rows, source="model", flags_exact=True, hidden=True))
        assert (seam.reasons == ("not-attempted",)) is mergeable(*rows), rows
        # Open: with offset and anon_vma made right, nothing would be left to hold it.
        for row in rows:
            row.anon_vma = row.chain = 0
        assert rows[0].pgoff is not None
        rows[1].pgoff = rows[0].pgoff + rows[0].pages
        held_by_offset_of_a_file = "file-offset" in seam.reasons
        assert seam.open is (mergeable(*rows) and not held_by_offset_of_a_file), rows
        kinds.add(seam.mask)
    assert len(kinds) > 50


def test_many_rows() -> None:
    snapshot = draw("AB" * 1000, A="r w av=1 pgoff=0", B="r w av=2 pgoff=0")
    found = seams(snapshot)
    assert len(found) == 1999
    assert all(a.right is b.left for a, b in pairwise(found))
    (run,) = runs_of_open_seams(found)
    assert run.saved == 1999
