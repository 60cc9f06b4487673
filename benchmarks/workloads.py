# SPDX-License-Identifier: GPL-2.0-or-later
"""The lists of calls that the benchmarks perform, on the model and on the running kernel alike.

A workload is made of the project's own events. The model applies them as they are; `write_for_kernel` writes the very
same list as the records that kernel_reference.c performs.
"""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from vmaweld import abi
from vmaweld import events as ev
from vmaweld.events import Event

BASE = 0x1000_0000_0000
"""Start of the part of the address space that every workload keeps to; nothing of a C program's own lies there."""
END = 0x2000_0000_0000
PID = 1
PAGE = abi.PAGE_SIZE
READ_WRITE = abi.PROT_READ | abi.PROT_WRITE
FIXED = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS | abi.MAP_FIXED
HINT = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS
MOVE = abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED

_CODES = (ev.MMAP, ev.MUNMAP, ev.MPROTECT, ev.MREMAP, ev.MADVISE, ev.READ, ev.WRITE, ev.FORK, ev.EXIT)


class Workload:
    """Calls to measure, after a set-up that is not.

    name: short, the key in every output.      what: one line for the reader.
    unit: what one unit of work is ("pair", "call", "page" ...).     units: how many of them the measured calls make.
    """

    def __init__(self, name: str, what: str, unit: str, units: int, setup: list[Event], measured: list[Event]) -> None:
        self.name = name
        self.what = what
        self.unit = unit
        self.units = units
        self.setup = setup
        self.measured = measured


def _map(addr: int, pages: int, prot: int = READ_WRITE) -> Event:
    return Event(ev.MMAP, PID, addr=addr, length=pages * PAGE, prot=prot, flags=FIXED)


def _small_pages(addr: int, pages: int) -> Event:
    """Keep transparent huge pages out: one fault a page, whatever the machine's setting."""
    return Event(ev.MADVISE, PID, addr=addr, length=pages * PAGE, flags=abi.MADV_NOHUGEPAGE)


def mmap_munmap() -> Workload:
    """Map four pages and unmap them, at changing places among a hundred other VMAs."""
    setup = [_map(BASE + i * 64 * PAGE, 1) for i in range(100)]
    calls = []
    for i in range(5000):
        addr = BASE + (i * 37 % 100 * 64 + 8) * PAGE
        calls.append(Event(ev.MMAP, PID, addr=addr, length=4 * PAGE, prot=READ_WRITE, flags=HINT))
        calls.append(Event(ev.MUNMAP, PID, addr=addr, length=4 * PAGE))
    return Workload("mmap+munmap", "map 4 pages, unmap them, among 100 VMAs", "pair", 5000, setup, calls)


def mmap_merging() -> Workload:
    """Extend one mapping piece by piece, then give the pieces back from its end."""
    calls = []
    for _ in range(50):
        for i in range(100):
            calls.append(_map(BASE + i * 4 * PAGE, 4))
        for i in reversed(range(100)):
            calls.append(Event(ev.MUNMAP, PID, addr=BASE + i * 4 * PAGE, length=4 * PAGE))
    return Workload("mmap merging", "100 mmaps that each extend the last, and back", "pair", 5000, [], calls)


def _split_and_merge() -> list[Event]:
    calls = []
    for i in range(5000):
        addr = BASE + (1 + i * 37 % 1000) * PAGE
        calls.append(Event(ev.MPROTECT, PID, addr=addr, length=PAGE, prot=abi.PROT_READ))
        calls.append(Event(ev.MPROTECT, PID, addr=addr, length=PAGE, prot=READ_WRITE))
    return calls


def mprotect_unfaulted() -> Workload:
    """Split one VMA in three and merge it again, where no page was ever touched: VMA work alone."""
    setup = [_map(BASE, 1024)]
    return Workload("mprotect", "split in three and merge, untouched memory", "call", 10_000, setup, _split_and_merge())


def mprotect_faulted() -> Workload:
    """The same where every page is there, so that anon_vma chains are cloned and page tables change."""
    setup = [_map(BASE, 1024), _small_pages(BASE, 1024), Event(ev.WRITE, PID, addr=BASE, length=1024 * PAGE)]
    return Workload(
        "mprotect faulted", "split in three and merge, written memory", "call", 10_000, setup, _split_and_merge()
    )


def mremap_append() -> Workload:
    """Move untouched pieces one after another to the end of a growing mapping: every move merges."""
    pieces = 2000
    far = BASE + (1 << 32)
    setup = [_map(BASE, 4)]
    calls = []
    for i in range(pieces):
        setup.append(_map(far + i * 8 * PAGE, 4))
        calls.append(
            Event(
                ev.MREMAP,
                PID,
                addr=far + i * 8 * PAGE,
                length=4 * PAGE,
                new_length=4 * PAGE,
                flags=MOVE,
                new_addr=BASE + (i + 1) * 4 * PAGE,
            )
        )
    return Workload("mremap merging", "untouched pieces moved to a mapping's end", "call", pieces, setup, calls)


def mremap_and_back() -> Workload:
    """Move written pages out of a mapping and back: the move back merges with both sides."""
    far = BASE + (1 << 32)
    setup = [_map(BASE, 1024), _small_pages(BASE, 1024), Event(ev.WRITE, PID, addr=BASE, length=1024 * PAGE)]
    calls = []
    for i in range(2000):
        addr = BASE + (1 + i * 37 % 1000) * PAGE
        for source, target in ((addr, far), (far, addr)):
            calls.append(Event(ev.MREMAP, PID, addr=source, length=PAGE, new_length=PAGE, flags=MOVE, new_addr=target))
    return Workload("mremap there and back", "a written page moved away and back", "call", 4000, setup, calls)


def faults_in_runs() -> Workload:
    """Write runs of 64 pages in order, and drop them all again."""
    pages = 4096
    setup = [_map(BASE, pages), _small_pages(BASE, pages)]
    calls = []
    for _ in range(4):
        for at in range(0, pages, 64):
            calls.append(Event(ev.WRITE, PID, addr=BASE + at * PAGE, length=64 * PAGE))
        calls.append(Event(ev.MADVISE, PID, addr=BASE, length=pages * PAGE, flags=abi.MADV_DONTNEED))
    return Workload("faults in runs", "write faults, 64 pages in order at a time", "page", 4 * pages, setup, calls)


def fork_and_copy() -> Workload:
    """Fork a process of 100 written VMAs; the child writes to a part of each and exits."""
    setup = []
    for i in range(100):
        addr = BASE + i * 64 * PAGE
        setup += [_map(addr, 16), _small_pages(addr, 16), Event(ev.WRITE, PID, addr=addr, length=16 * PAGE)]
    calls = []
    for child in range(2, 42):
        calls.append(Event(ev.FORK, PID, child=child))
        for i in range(100):
            calls.append(Event(ev.WRITE, child, addr=BASE + (i * 64 + 4) * PAGE, length=4 * PAGE))
        calls.append(Event(ev.EXIT, child))
        calls.append(Event(ev.WRITE, PID, addr=BASE, length=PAGE))
    return Workload("fork and copy", "fork 100 VMAs, copy 400 pages in the child, exit", "fork", 40, setup, calls)


WORKLOADS: Sequence[Callable[[], Workload]] = (
    mmap_munmap,
    mmap_merging,
    mprotect_unfaulted,
    mprotect_faulted,
    mremap_append,
    mremap_and_back,
    faults_in_runs,
    fork_and_copy,
)


def workload(name: str) -> Workload:
    """The workload called `name`. Raises KeyError."""
    for make in WORKLOADS:
        made = make()
        if made.name == name:
            return made
    raise KeyError(name)


def write_for_kernel(load: Workload, path: Path) -> None:
    """Write `load` as kernel_reference.c reads it: a header of four words, then seven words a call."""
    words = [struct.pack("<4Q", len(load.setup), len(load.measured), BASE, END)]
    for event in (*load.setup, *load.measured):
        words.append(
            struct.pack(
                "<7Q",
                _CODES.index(event.op),
                event.addr,
                event.length,
                event.prot,
                event.flags,
                event.new_addr,
                event.new_length,
            )
        )
    path.write_bytes(b"".join(words))
