# SPDX-License-Identifier: GPL-2.0-or-later
"""The records of the BPF iterator as rows: the other end of `program`.

A module of its own, so that it can be compiled: a snapshot of 60,000 VMAs is 60,000 times through one loop.
"""

import gc
import os
from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from vmaweld.abi import EARLIER_BITS
from vmaweld.kernel.bpf.program import ACTIVE, ANON_VMA, NAME_TAG, RECORD, ROOT, SEQUENCE, START, WORDS
from vmaweld.mempolicy import node_list, policy_text
from vmaweld.policy import release_numbers
from vmaweld.snapshot import AnonVma, Row, Snapshot

_NAME_TAG: Final = NAME_TAG.to_bytes(8, "little")
_KIND_NAMES: Final = ("", "[heap]", "[stack]", "", "")
_HAS_CLOSE: Final = 1 << 16
_HAS_POLICY: Final = 1 << 24

_RELEASE: Final = release_numbers(os.uname().release)[:2]
_MOVED: Final = tuple((old, new) for first, last, old, new in EARLIER_BITS if first <= _RELEASE <= last)
_MOVED_MASK: Final = sum(old for old, _ in _MOVED)

FileName = Callable[[int, int, int, int], str]


def parse(pid: int, records: bytes, consistent: bool = True, *, file_name: FileName | None = None) -> Snapshot:
    """The records of a `iterator.Watch` as a Snapshot.

    file_name: names the file of the first row that maps it, from (start, end, device, inode); where there is none,
        /proc/PID/map_files is asked. The device is the kernel's number: major << 20 | minor.
    """
    collecting = gc.isenabled()
    gc.disable()  # 60,000 rows are no garbage, but would set off several full collections
    try:
        return _parse(pid, records, consistent, file_name)
    finally:
        if collecting:
            gc.enable()


def _parse(pid: int, records: bytes, consistent: bool, file_name: FileName | None) -> Snapshot:
    rows: list[Row] = []
    paths: dict[int, str] = {0: ""}
    names = _KIND_NAMES
    # fmt: off
    for (start, end, flags, pgoff, anon_vma, bits, file_id, inode, device, uffd, nodes,
         _root, _parent, _children, _active, _mm, _sequence) in RECORD.iter_unpack(records):
        # fmt: on
        if start == NAME_TAG:
            continue  # read below: names are rare, and this loop is what a snapshot costs
        if flags & _MOVED_MASK:
            flags = _flags_today(flags)
        path = paths.get(file_id)
        if path is None:
            ask = (start, end, device, inode)
            path = paths[file_id] = file_name(*ask) if file_name is not None else _path(pid, *ask)
        # The kernel keeps flags of its own beside those that the caller has set: they are left out.
        mode = bits >> 32 & 0x1FFF | bits >> 48 & 0xE000
        mempolicy = policy_text(mode, node_list(nodes)) if bits & _HAS_POLICY else ""
        # fmt: off
        rows.append(Row(  # by position: naming twelve arguments takes as long as all the rest
            start, end, flags, pgoff, anon_vma, path, names[bits >> 8 & 0xFF], mempolicy, uffd, bits & 0xFF, file_id,
            bits & _HAS_CLOSE != 0,
        ))
        # fmt: on
    if len(rows) * RECORD.size != len(records):
        _set_names(rows, records)
    anon_vmas = _AnonVmas(records)
    return Snapshot(pid, rows, source="bpf", flags_exact=True, hidden=True, consistent=consistent, anon_vmas=anon_vmas)


def parse_again(last: Snapshot, before: bytes, records: bytes, consistent: bool = True) -> Snapshot:
    """As `parse`, given the last snapshot of that process and the records it was made of: only what differs is read.

    The very object `last` where nothing does. The count of write locks does not tell: all that these could have changed
    is equal.
    """
    old, new = _without_sequence(before), _without_sequence(records)
    if old == new and last.consistent == consistent:
        return last
    least = min(len(old), len(new)) // RECORD.size
    front = _common(least, lambda low, high: old[low:high] == new[low:high])
    while front and (_is_name(old, front) or _is_name(new, front)):
        front -= 1  # a name belongs to the record before it
    back = _common(
        least - front, lambda low, high: old[len(old) - high : len(old) - low] == new[len(new) - high : len(new) - low]
    )
    while back and _is_name(new, len(new) // RECORD.size - back):
        back -= 1
    start, end = front * RECORD.size, len(records) - back * RECORD.size
    middle = parse(last.pid, records[start:end]).rows
    rows = [*last.rows[: _rows(new, 0, start)], *middle, *last.rows[len(last.rows) - _rows(new, end, len(new)) :]]
    anon_vmas = _AnonVmas(records)
    return Snapshot(
        last.pid, rows, source="bpf", flags_exact=True, hidden=True, consistent=consistent, anon_vmas=anon_vmas
    )


def _common(most: int, equal: Callable[[int, int], bool]) -> int:
    """How many records, of `most`, are equal: as far as `equal`, asked for ranges of bytes, says so."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if equal(low * RECORD.size, middle * RECORD.size):
            low = middle
        else:
            high = middle - 1
    return low


def _is_name(records: bytes, at: int) -> bool:
    return records.startswith(_NAME_TAG, at * RECORD.size)


def _rows(records: bytes, start: int, end: int) -> int:
    """How many rows the records from `start` to `end`, in bytes, are: names are none."""
    words = array("Q")
    words.frombytes(records[start:end])
    return len(words) // WORDS - words[::WORDS].count(NAME_TAG)


def _without_sequence(records: bytes) -> bytes:
    words = array("Q")
    words.frombytes(records)
    words[SEQUENCE::WORDS] = array("Q", bytes(8 * (len(words) // WORDS)))
    return words.tobytes()


def _flags_today(flags: int) -> int:
    for old, new in _MOVED:
        if flags & old:
            flags = flags & ~old | new
    return flags


class _AnonVmas(Mapping[int, AnonVma]):
    """`Snapshot.anon_vmas`, read from the records when it is first asked for: few ask, and it may be 30,000."""

    def __init__(self, records: bytes) -> None:
        self._records = records
        self._found: dict[int, AnonVma] | None = None

    def _read(self) -> dict[int, AnonVma]:
        if self._found is None:
            self._found = {}
            for words in RECORD.iter_unpack(self._records):
                if words[ANON_VMA] and words[START] != NAME_TAG:
                    self._found[words[ANON_VMA]] = AnonVma(*words[ROOT : ACTIVE + 1])
            self._records = b""
        return self._found

    def __getitem__(self, anon_vma: int) -> AnonVma:
        return self._read()[anon_vma]

    def __iter__(self) -> Iterator[int]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())


def _set_names(rows: list[Row], records: bytes) -> None:
    """Give each row the name that a name record after its own tells."""
    row = -1
    for at in range(0, len(records), RECORD.size):
        if records[at : at + 8] != _NAME_TAG:
            row += 1
            continue
        name = records[at + 8 : at + RECORD.size].partition(b"\0")[0].decode(errors="surrogateescape")
        if name.startswith("["):
            rows[row].name = name
        elif name:
            rows[row].name = f"[anon_shmem:{name}]" if rows[row].file else f"[anon:{name}]"


def _path(pid: int, start: int, end: int, device: int, inode: int) -> str:
    """The path of a mapped file; ``inode:MAJOR:MINOR:NUMBER`` where the mapping is gone before it could be asked."""
    try:
        return os.readlink(f"/proc/{pid}/map_files/{start:x}-{end:x}")
    except OSError:
        return f"inode:{device >> 20:x}:{device & 0xFFFFF:x}:{inode}"
