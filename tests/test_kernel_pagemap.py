# SPDX-License-Identifier: GPL-2.0-or-later
"""Page kinds of real memory of this process."""

import ctypes
import itertools
import os
from collections.abc import Iterator

import pytest
from conftest import require

from vmaweld import abi, mempolicy
from vmaweld.kernel import pagemap, syscalls, userfaultfd
from vmaweld.kernel.errors import ProcessGone
from vmaweld.kernel.pagemap import EXCLUSIVE, FILE, PRESENT, ZERO, Pagemap, Run, Totals

PAGE = abi.PAGE_SIZE
RW = abi.PROT_READ | abi.PROT_WRITE
PRIVATE = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS


@pytest.fixture
def arena() -> Iterator[int]:
    """64 pages of anonymous memory, small pages only."""
    start = syscalls.mmap(0, 64 * PAGE, RW, PRIVATE)
    syscalls.madvise(start, 64 * PAGE, abi.MADV_NOHUGEPAGE)
    yield start
    syscalls.munmap(start, 64 * PAGE)


def can_scan() -> bool:
    with Pagemap(os.getpid()) as pages:
        return pages._scan(0x10000, 0x20000) is not None


@pytest.mark.parametrize("scan", [True, False])
def test_written_pages_are_exclusive(arena: int, scan: bool) -> None:
    ctypes.memset(arena + 3 * PAGE, 1, 2 * PAGE)
    ctypes.memset(arena + 9 * PAGE, 1, PAGE)
    with Pagemap(os.getpid()) as pages:
        pages._can_scan = scan
        assert pages.runs(arena, arena + 64 * PAGE) == [
            Run(arena + 3 * PAGE, arena + 5 * PAGE, PRESENT | EXCLUSIVE),
            Run(arena + 9 * PAGE, arena + 10 * PAGE, PRESENT | EXCLUSIVE),
        ]
        assert pages.totals(arena, arena + 64 * PAGE) == Totals(3, 3, 0, 0, 0, 0)


def test_zero_page_is_not_shared_memory(arena: int) -> None:
    require(can_scan(), "PAGEMAP_SCAN came with Linux 6.7")
    ctypes.memset(arena, 1, 2 * PAGE)
    ctypes.string_at(arena + 2 * PAGE, 3 * PAGE)
    ctypes.memset(arena + 5 * PAGE, 1, PAGE)
    with Pagemap(os.getpid()) as pages:
        kinds = [(r.start - arena) // PAGE for r in pages.runs(arena, arena + 64 * PAGE) if r.kind & ZERO]
        assert kinds == [2]
        assert pages.totals(arena, arena + 64 * PAGE) == Totals(3, 3, 0, 0, 0, 3)


def test_fork_takes_exclusivity_and_a_write_gives_it_back(arena: int) -> None:
    ctypes.memset(arena, 1, 4 * PAGE)
    gate, wake = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(wake)
        os.read(gate, 1)
        os._exit(0)
    try:
        with Pagemap(os.getpid()) as pages:
            assert pages.totals(arena, arena + 4 * PAGE) == Totals(4, 0, 4, 0, 0, 0)
            ctypes.memset(arena, 2, PAGE)
            assert pages.totals(arena, arena + 4 * PAGE) == Totals(4, 1, 3, 0, 0, 0)
        with Pagemap(child) as pages:
            assert pages.totals(arena, arena + 4 * PAGE).shared == 4 - pages.totals(arena, arena + 4 * PAGE).exclusive
    finally:
        os.close(wake)
        os.close(gate)
        os.waitpid(child, 0)


def test_shared_memory_counts_as_file() -> None:
    start = syscalls.mmap(0, 4 * PAGE, RW, abi.MAP_SHARED | abi.MAP_ANONYMOUS)
    ctypes.memset(start, 1, PAGE)
    with Pagemap(os.getpid()) as pages:
        assert [run.kind & FILE for run in pages.runs(start, start + 4 * PAGE)] == [FILE]
        assert pages.totals(start, start + 4 * PAGE).file == 1
    syscalls.munmap(start, 4 * PAGE)


def test_holes_of_terabytes_cost_nothing() -> None:
    require(can_scan(), "PAGEMAP_SCAN came with Linux 6.7")
    with Pagemap(os.getpid()) as pages:
        runs = pages.runs(abi.MMAP_MIN_ADDR, abi.TASK_SIZE)
    assert runs == sorted(runs)
    assert all(a.end <= b.start for a, b in itertools.pairwise(runs))


def test_marking_zero_pages_splits_runs() -> None:
    runs = [Run(0, 100, 1), Run(100, 200, 9), Run(300, 400, 1)]
    assert pagemap._mark_zero(runs, [(50, 120), (300, 400)]) == [
        Run(0, 50, 1),
        Run(50, 100, 1 | ZERO),
        Run(100, 120, 9 | ZERO),
        Run(120, 200, 9),
        Run(300, 400, 1 | ZERO),
    ]


def test_no_such_process() -> None:
    with pytest.raises(ProcessGone):
        Pagemap(2**22 + 1)


def test_errors_name_the_call() -> None:
    with pytest.raises(OSError, match=r"mmap\(0x123, 0x1000, .*Invalid argument"):
        syscalls.mmap(0x123, PAGE, RW, PRIVATE | abi.MAP_FIXED)
    with pytest.raises(OSError, match=r"mremap\(0x10000, "):
        syscalls.mremap(0x10000, PAGE, 2 * PAGE)
    with pytest.raises(ValueError, match="unknown memory policy"):
        mempolicy.parse_policy("nowhere:1")
    assert mempolicy.parse_policy("bind:0-1,3") == (2, 0b1011)


def test_memory_is_read_and_written_through_the_kernel(arena: int) -> None:
    assert syscalls.write_memory(os.getpid(), arena, b"abc") == 3
    assert syscalls.read_memory(os.getpid(), arena, 3) == b"abc"
    syscalls.munmap(arena + PAGE, PAGE)
    assert len(syscalls.read_memory(os.getpid(), arena, 2 * PAGE)) == PAGE
    with pytest.raises(OSError, match="Bad address"):
        syscalls.read_memory(os.getpid(), arena + PAGE, 1)


@pytest.mark.live
def test_uffd_moves_pages(arena: int) -> None:
    require(*userfaultfd.available(userfaultfd.FEATURE_MOVE))
    ctypes.memset(arena, 7, 2 * PAGE)
    with userfaultfd.Userfaultfd() as uffd:
        target = arena + 32 * PAGE
        uffd.register(target, 4 * PAGE)
        assert uffd.move(target, arena, 4 * PAGE) == 4 * PAGE
        uffd.unregister(target, 4 * PAGE)
        with pytest.raises(OSError, match="UFFDIO_MOVE"):
            uffd.move(target, arena, 3)
    assert ctypes.string_at(target, 2 * PAGE) == b"\7" * (2 * PAGE)
    with Pagemap(os.getpid()) as pages:
        assert pages.totals(target, target + 4 * PAGE).populated == 2
