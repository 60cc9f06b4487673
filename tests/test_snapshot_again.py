# SPDX-License-Identifier: GPL-2.0-or-later
"""A snapshot made from the last one and what differs is the one that would be read as a whole."""

from hypothesis import given
from hypothesis import strategies as st

from vmaweld.kernel.bpf import program
from vmaweld.kernel.bpf import records as bpf_records
from vmaweld.kernel.bpf.program import NAME_TAG, RECORD, SEQUENCE, WORDS
from vmaweld.snapshot import ROW_FIELDS, Snapshot

Spec = tuple[int, int, str]
"""One VMA: flags, anon_vma, name."""

VMAS = st.lists(
    st.tuples(st.sampled_from([3, 7]), st.integers(0, 2), st.sampled_from(["", "", "one", "two"])), max_size=12
)


def records(vmas: list[Spec], sequence: int) -> bytes:
    data = b""
    for at, (flags, anon_vma, name) in enumerate(vmas):
        words = [0] * WORDS
        words[:5] = [at << 12, at + 1 << 12, flags, at, anon_vma]
        words[program.BITS] = program.KIND_NAMED << 8 if name else 0
        words[SEQUENCE] = sequence << 32 | len(vmas)
        data += RECORD.pack(*words)
        if name:
            data += NAME_TAG.to_bytes(8, "little") + name.encode().ljust(RECORD.size - 8, b"\0")
    return data


def plain(snapshot: Snapshot) -> list[list[object]]:
    return [[getattr(row, field) for field in ROW_FIELDS] for row in snapshot.rows]


@given(VMAS, VMAS, VMAS, VMAS)
def test_it_is_what_a_whole_reading_gives(
    front: list[Spec], old: list[Spec], new: list[Spec], back: list[Spec]
) -> None:
    before, after = records(front + old + back, 1), records(front + new + back, 2)
    last = bpf_records.parse(1, before)
    again = bpf_records.parse_again(last, before, after)
    assert plain(again) == plain(bpf_records.parse(1, after))
    assert set(again.anon_vmas) == {anon_vma for _, anon_vma, _ in front + new + back if anon_vma}
    assert again.consistent


@given(VMAS)
def test_it_is_the_same_object_where_nothing_differs(vmas: list[Spec]) -> None:
    last = bpf_records.parse(1, records(vmas, 1))
    assert bpf_records.parse_again(last, records(vmas, 1), records(vmas, 5)) is last
    assert not bpf_records.parse_again(last, records(vmas, 1), records(vmas, 5), consistent=False).consistent
