# SPDX-License-Identifier: GPL-2.0-or-later
"""Making seams where a program has none of its own, so that real programs can be welded in the midst of their work."""

from collections.abc import Sequence

from vmaweld import abi
from vmaweld.kernel import pagemap, snapshots, syscalls, x86_64
from vmaweld.snapshot import Row
from vmaweld.welding.puppet import Puppet
from vmaweld.welding.standstill import Standstill

PLAIN = (
    *(abi.VM_READ, abi.VM_WRITE, abi.VM_MAYREAD, abi.VM_MAYWRITE, abi.VM_MAYEXEC, abi.VM_ACCOUNT),
    *(abi.VM_SOFTDIRTY, abi.VM_NORESERVE),
)


def crack(pid: int, count: int, pages: int = 4) -> int:
    """Replace up to `count` pieces of `pages` pages of the heaps of `pid` by copies of themselves, moved there.

    Contents stay, but each has a page offset and an anon_vma of its own. Returns how many it was.
    """
    made = 0
    with Standstill(pid) as still:
        rows = snapshots.take(pid).rows
        puppet = Puppet(still, rows)
        try:
            places = _places(pid, rows, pages)
            for place, noreserve in places[:: max(1, len(places) // count)][:count]:
                _replace(puppet, place, pages * abi.PAGE_SIZE, noreserve)
                made += 1
        finally:
            puppet.restore()
    return made


def crack_at(pid: int, place: int, pages: int, row: Row) -> None:
    """Replace that piece of `row`, clipped to it, by a copy."""
    end = min(place + pages * abi.PAGE_SIZE, row.end)
    place = max(place, row.start)
    with Standstill(pid) as still:
        puppet = Puppet(still, snapshots.take(pid).rows)
        try:
            _replace(puppet, place, end - place, bool(row.flags & abi.VM_NORESERVE))
        finally:
            puppet.restore()


def _replace(puppet: Puppet, place: int, size: int, noreserve: bool) -> None:
    flags = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS | (abi.MAP_NORESERVE if noreserve else 0)
    copy = puppet.call(x86_64.NR_MMAP, 0, size, abi.PROT_READ | abi.PROT_WRITE, flags, (1 << 64) - 1, 0)
    assert copy > 0, copy
    assert syscalls.write_memory(puppet.pid, copy, syscalls.read_memory(puppet.pid, place, size)) == size
    moved = abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED
    assert puppet.call(x86_64.NR_MREMAP, copy, size, size, moved, place) == place


def _places(pid: int, rows: Sequence[Row], pages: int) -> list[tuple[int, bool]]:
    """Where that many pages lie together, all populated, in plain anonymous memory; never two places side by side."""
    size = pages * abi.PAGE_SIZE
    found = []
    wanted = sum(PLAIN)
    with pagemap.Pagemap(pid) as map_:
        for row in rows:
            if row.file or row.name.startswith("[stack") or row.flags & ~wanted or not row.flags & abi.VM_WRITE:
                continue
            for start, end, kind in map_.runs(row.start, row.end):
                if kind & pagemap.ZERO:
                    continue
                found += [
                    (at, bool(row.flags & abi.VM_NORESERVE))
                    for at in range(start + size, end - size, 2 * size)
                    if kind & pagemap.EXCLUSIVE
                ]
    return found
