# SPDX-License-Identifier: GPL-2.0-or-later
"""Welding the memory of this process: what becomes of all kinds of memory, of failures, and of the caller's bytes."""

import ctypes
import errno
import mmap
import os
import platform
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import require
from weld_random import Failing, Helper, flags_of, one, picture
from weld_support import open_seams, require_own, vmas
from weld_target import content, fragments

import vmaweld
from vmaweld import abi
from vmaweld.kernel import procfs, snapshots, syscalls
from vmaweld.kernel.errors import KernelError
from vmaweld.kernel.pagemap import Pagemap
from vmaweld.seams import runs_of_open_seams, seams
from vmaweld.welding import WeldError, local, plan, support
from vmaweld.welding.program import Outcome, Program

pytestmark = pytest.mark.live

PAGE, HUGE = abi.PAGE_SIZE, abi.HUGE_PAGE_SIZE
ANON = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS
RW = abi.PROT_READ | abi.PROT_WRITE
PID = os.getpid()


@pytest.fixture
def four() -> Iterator[tuple[int, int]]:
    """Four fragments of three pages, (start, end)."""
    require_own()
    start = fragments(4, 3)
    yield start, start + 12 * PAGE
    syscalls.munmap(start, 12 * PAGE)


def intact(start: int, count: int, pages: int) -> bool:
    return all(
        ctypes.c_uint64.from_address(start + (index * pages + page) * PAGE + 8).value == content(1, index, page)
        for index in range(count)
        for page in range(pages)
    )


def test_fragments_become_one(four: tuple[int, int]) -> None:
    start, end = four
    assert vmas(PID, start, end) == 4
    before = picture(PID, start, end)
    report = vmaweld.weld(start, end - start)
    assert (report.seams, report.closed, report.pages, report.left) == (3, 3, 9, [])
    assert vmas(PID, start, end) == 1
    assert picture(PID, start, end) == before
    assert intact(start, 4, 3)
    assert report.as_json()["seams"] == {"before": 3, "closed": 3, "left": 0}


def test_importing_vmaweld_is_light() -> None:
    code = "import sys, vmaweld; vmaweld.__version__; assert not [m for m in sys.modules if m.startswith('vmaweld.')]"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
    third = "import sys, vmaweld; vmaweld.weld; print({'click', 'rich', 'pyarrow', 'psutil'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", third], check=True, timeout=30, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_only_what_lies_inside_the_range_is_touched(four: tuple[int, int]) -> None:
    start, end = four
    report = vmaweld.weld(start + 3 * PAGE, 6 * PAGE)
    assert report.closed == 1
    assert vmas(PID, start, end) == 3
    assert intact(start, 4, 3)
    # The kept VMA may begin before the range: then its part inside is enough.
    assert vmaweld.weld(start + 2 * PAGE, end - start - 2 * PAGE).closed == 2
    assert vmas(PID, start, end) == 1
    assert intact(start, 4, 3)


def test_a_range_without_seams_is_fine(four: tuple[int, int]) -> None:
    report = vmaweld.weld(four[0], PAGE)
    assert (report.seams, report.closed, report.left) == (0, 0, [])


@pytest.mark.parametrize("prot", [abi.PROT_READ, abi.PROT_NONE, abi.PROT_READ | abi.PROT_EXEC])
def test_protection_is_put_back(four: tuple[int, int], prot: int) -> None:
    start, end = four
    syscalls.mprotect(start, end - start, prot)
    flags, before = flags_of(PID, start, end), picture(PID, start, end)
    assert vmaweld.weld(start, end - start).closed == 3
    assert vmas(PID, start, end) == 1
    assert flags_of(PID, start, end) == flags
    assert picture(PID, start, end) == before


@pytest.mark.parametrize("lock", [0, abi.MLOCK_ONFAULT])
def test_locks_are_put_back(four: tuple[int, int], lock: int) -> None:
    start, end = four
    require(not support.relock_reason(PID), "swap is on")
    syscalls.mlock(start, end - start, lock)
    flags = flags_of(PID, start, end)
    assert vmaweld.weld(start, end - start).closed == 3
    assert flags_of(PID, start, end) == flags
    assert vmas(PID, start, end) == 1
    assert intact(start, 4, 3)


def test_locked_with_holes_is_left(four: tuple[int, int]) -> None:
    start, end = four
    require(not support.relock_reason(PID), "swap is on")
    syscalls.mlock(start, end - start)
    syscalls.madvise(start + 7 * PAGE, PAGE, abi.MADV_DONTNEED_LOCKED)
    report = vmaweld.weld(start, end - start)
    assert report.closed == 0
    assert "holes" in report.left[0].reason


@pytest.mark.parametrize(
    "advice", [abi.MADV_DONTDUMP, abi.MADV_DONTFORK, abi.MADV_WIPEONFORK, abi.MADV_RANDOM, abi.MADV_NOHUGEPAGE]
)
def test_advice_and_policy_stay(four: tuple[int, int], advice: int) -> None:
    start, end = four
    syscalls.madvise(start, end - start, advice)
    syscalls.mbind(start, end - start, "bind:0")
    flags = flags_of(PID, start, end)
    assert vmaweld.weld(start, end - start).closed == 3
    assert flags_of(PID, start, end) == flags
    assert vmas(PID, start, end) == 1


def test_a_policy_on_one_side_keeps_the_seam(four: tuple[int, int]) -> None:
    start, end = four
    syscalls.mbind(start + 6 * PAGE, 3 * PAGE, "bind:0")
    assert vmaweld.weld(start, end - start).closed == 1
    assert vmas(PID, start, end) == 3


def test_huge_pages_stay_huge() -> None:
    require_own()
    start = _huge(HUGE * 4)
    try:
        before = _huge_kib(start, start + 4 * HUGE)
        require(bool(before), "no huge page to be had")
        assert vmas(PID, start, start + 4 * HUGE) == 4
        assert vmaweld.weld(start, 4 * HUGE).closed == 3
        assert vmas(PID, start, start + 4 * HUGE) == 1
        assert _huge_kib(start, start + 4 * HUGE) == before
    finally:
        syscalls.munmap(start, 4 * HUGE)


def _huge(length: int) -> int:
    """Fragments of a huge page each."""
    reserved = syscalls.mmap(0, length + HUGE, abi.PROT_NONE, ANON | abi.MAP_NORESERVE)
    start = (reserved + HUGE - 1) & -HUGE
    for at in range(start, start + length, HUGE):
        away = syscalls.mmap(0, 3 * HUGE, abi.PROT_NONE, ANON | abi.MAP_NORESERVE)
        place = (away + HUGE) & -HUGE
        syscalls.mprotect(place, HUGE, RW)
        syscalls.madvise(place, HUGE, abi.MADV_HUGEPAGE)
        ctypes.memset(place, 7, HUGE)
        syscalls.mremap(place, HUGE, HUGE, abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED, at)
    return start


def _huge_kib(start: int, end: int) -> int:
    """KiB of huge pages in that range."""
    total, inside = 0, False
    with open("/proc/self/smaps", encoding="ascii", errors="replace") as file:
        for line in file:
            head = line.split(None, 1)[0]
            if "-" in head and not head.endswith(":"):
                first, last = (int(part, 16) for part in head.split("-"))
                inside = first < end and last > start
            elif inside and head == "AnonHugePages:":
                total += int(line.split()[1])
    return total


def test_holes_stay_holes_and_nothing_is_added() -> None:
    require_own()
    start = fragments(3, 64)
    end = start + 192 * PAGE
    try:
        for page in range(0, 192, 3):
            syscalls.madvise(start + page * PAGE, 2 * PAGE, abi.MADV_DONTNEED)
        before = picture(PID, start, end)
        assert vmaweld.weld(start, end - start).closed == 2
        assert picture(PID, start, end) == before
    finally:
        syscalls.munmap(start, end - start)


def test_swapped_out_pages_move_as_they_are(four: tuple[int, int], swap: None) -> None:
    start, end = four
    syscalls.madvise(start + 3 * PAGE, 6 * PAGE, abi.MADV_PAGEOUT)
    with Pagemap(PID) as pages:
        before = pages.totals(start, end)
        assert before.swapped > 0
        assert vmaweld.weld(start, end - start).closed == 3
        assert pages.totals(start, end) == before
    assert intact(start, 4, 3)


def test_shared_pages_are_left_and_can_be_unshared(four: tuple[int, int]) -> None:
    start, end = four
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        before = picture(PID, start, end)
        report = vmaweld.weld(start, end - start)
        assert report.closed == 0
        assert {left.reason for left in report.left} == {plan.SHARED}
        assert sum(left.pages for left in report.left) == 9
        assert picture(PID, start, end) == before
        report = vmaweld.weld(start, end - start, unshare=True)
        assert (report.closed, report.copied) == (3, 9)
        assert picture(PID, start, end) == before
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_one_shared_page_costs_one_seam(four: tuple[int, int]) -> None:
    start, end = four
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        for page in range(12):
            if page != 7:  # in the third fragment
                slot = ctypes.c_uint64.from_address(start + page * PAGE + 8)
                slot.value = int(slot.value)
        report = vmaweld.weld(start, end - start)
        assert report.closed == 2
        assert [left.pages for left in report.left] == [1]
        assert intact(start, 4, 3)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("unshare", [False, True])
@pytest.mark.parametrize("quick", [False, True])
def test_the_page_of_zeroes_stays_where_the_kernel_cannot_move_it(
    four: tuple[int, int], unshare: bool, quick: bool
) -> None:
    start, end = four
    syscalls.madvise(start + 7 * PAGE, PAGE, abi.MADV_DONTNEED)  # in the third fragment
    assert ctypes.string_at(start + 7 * PAGE, 1) == b"\0"
    limits = plan.Limits(start, end, unshare=unshare)
    snapshot = snapshots.take(PID)
    with Pagemap(PID) as pages:
        assert plan.make(snapshot, pages, limits, quick=quick).left == []
        made = plan.make(snapshot, pages, limits._replace(zero_stays=True), quick=quick)
    left = plan.Left(start + 6 * PAGE, start + 9 * PAGE, 1, plan.ZEROES, 1)
    assert (made.seams, made.left) == (2, [left])


@pytest.mark.parametrize(
    ("release", "stays"),
    [
        *(("6.8.0-151-generic", True), ("6.9.1", False), ("6.12.117+deb13-amd64", False), ("6.15.11", False)),
        *(("6.16.0", True), ("6.17.0-42-generic", True), ("6.18", True), ("6.18.20", True), ("6.18.21", False)),
        *(("6.18.44-x", False), ("6.19.10", True), ("6.19.11", False), ("7.0.0-43-generic", False), ("7.2.13", False)),
    ],
)
def test_which_kernels_cannot_move_zeroes(monkeypatch: pytest.MonkeyPatch, release: str, stays: bool) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)
    assert support.zero_stays() is stays


def test_pages_once_shared_cost_nothing_to_unshare(four: tuple[int, int]) -> None:
    start, end = four
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    report = vmaweld.weld(start, end - start)
    assert report.closed == 0
    assert all("since a fork" in left.reason for left in report.left)
    report = vmaweld.weld(start, end - start, unshare=True)
    assert (report.closed, report.copied) == (3, 0)
    assert intact(start, 4, 3)


def test_pinned_pages_are_left(four: tuple[int, int]) -> None:
    start, end = four
    ring = mmap.mmap(-1, 120)  # struct io_uring_params
    fd = syscalls.raw(425, 4, ctypes.addressof(ctypes.c_char.from_buffer(ring)))
    require(fd >= 0, f"io_uring: {os.strerror(max(-fd, 0))}")
    try:
        vector = (ctypes.c_uint64 * 2)(start + 4 * PAGE, PAGE)
        syscalls.check(syscalls.raw(427, fd, 0, ctypes.addressof(vector), 1), "IORING_REGISTER_BUFFERS")
        before = picture(PID, start, end)
        report = vmaweld.weld(start, end - start)
        # The VMA with the pinned page keeps what follows it, and is itself not folded.
        assert report.closed == 2
        assert "pinned" in report.left[0].reason
        assert picture(PID, start, end) == before
    finally:
        os.close(fd)
    assert intact(start, 4, 3)


def test_guard_pages_keep_their_place(four: tuple[int, int]) -> None:
    start, end = four
    try:
        syscalls.madvise(start + 4 * PAGE, PAGE, abi.MADV_GUARD_INSTALL)
    except OSError as error:
        require(False, str(error))
    report = vmaweld.weld(start, end - start)
    assert report.closed == 2
    assert "guard" in report.left[0].reason
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        ctypes.string_at(start + 4 * PAGE, 1)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGSEGV


def test_what_cannot_be_welded_is_told_and_stays(tmp_path: Path) -> None:
    require_own()
    size = 2 * PAGE
    (tmp_path / "file").write_bytes(bytes(8 * PAGE))
    with (tmp_path / "file").open("rb") as file:
        start = syscalls.mmap(0, 4 * size, RW, abi.MAP_PRIVATE, file.fileno())
        away = syscalls.mmap(0, 2 * size, RW, abi.MAP_PRIVATE, file.fileno(), 4 * PAGE)
    ctypes.c_uint8.from_address(start).value = 1
    ctypes.c_uint8.from_address(away + 2 * size - 1).value = 1
    syscalls.mremap(away, 2 * size, 2 * size, abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED, start + 2 * size)
    try:
        report = vmaweld.weld(start, 4 * size)
        assert report.closed == 0
        assert all("file" in left.reason for left in report.left)
    finally:
        syscalls.munmap(start, 4 * size)


def test_sealed_memory_is_left() -> None:
    require_own()
    # In a process of its own: what is sealed stays.
    code = """
import sys; sys.path.insert(0, 'tests')
from weld_target import fragments
from vmaweld.kernel import syscalls
import vmaweld
start = fragments(3, 2)
try:
    syscalls.mseal(start, 6 * 4096)
except OSError:
    print('sealed'); sys.exit()
print(vmaweld.weld(start, 6 * 4096).left[0].reason)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "sealed" in done.stdout


STEPS = (
    *("reserve", "mprotect", "register", "take", "make room", "grow", "register spare", "move", "unregister spare"),
    *("protect", "put back", "wake"),
)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("prot", [RW, abi.PROT_READ])
def test_every_call_made_to_fail(four: tuple[int, int], step: str, prot: int) -> None:
    start, end = four
    syscalls.mprotect(start, end - start, prot)
    before, flags = picture(PID, start, end), flags_of(PID, start, end)

    class OneFails(Failing):
        done = False

        def finish(self) -> None:
            Program.finish(self)
            if step in self.steps and not OneFails.done:
                OneFails.done = True
                for at, name in enumerate(self.steps):
                    if name == step:
                        self.fail(at)
                        if name != "move":
                            break

    report = vmaweld.weld(start, end - start, program=OneFails)
    assert picture(PID, start, end) == before
    assert flags_of(PID, start, end) == flags
    # A failure that can be got round is got round, by a second try or seam by seam.
    assert (report.closed, vmas(PID, start, end)) == (3, 1)


UNWATCHED = """
import os
from tests.weld_target import ANON, RW, fragments
from tests.weld_random import Failing, picture
from vmaweld import abi
from vmaweld.kernel import syscalls
from vmaweld.welding import local
from vmaweld.welding.program import Program

class Failed(Failing):
    def finish(self):
        Program.finish(self)
        for at, step in enumerate(self.steps):
            if step in ("move", "unregister", "unregister rest"):
                self.fail(at)

start, size = fragments(4, 4), 4 * abi.PAGE_SIZE
# The second has no page. As the one to keep it gets its anon_vma by a write to a hole, one that was watched before.
place = syscalls.mmap(0, size, RW, ANON)
syscalls.mremap(place, size, size, abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED, start + size)
before = picture(os.getpid(), start, start + 4 * size)
report = local.weld(start, 4 * size, program=Failed)
assert picture(os.getpid(), start, start + 4 * size) == before
print(report.seams, report.closed, *sorted({left.reason for left in report.left}), sep="; ")
print(local.weld(start, 4 * size).closed)
"""


def test_a_watch_that_cannot_be_taken_off_keeps_nothing_waiting() -> None:
    require_own()
    command = [sys.executable, "-c", UNWATCHED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first.startswith("3; 0; ")
    assert "the batch was stopped before its turn: try again" in first
    assert second == "3"


def test_a_weld_that_always_fails_changes_nothing(four: tuple[int, int]) -> None:
    start, end = four

    class MovesFail(Failing):
        def finish(self) -> None:
            Program.finish(self)
            for at, name in enumerate(self.steps):
                if name == "move":
                    self.fail(at)

    before = picture(PID, start, end)
    report = vmaweld.weld(start, end - start, program=MovesFail)
    assert (report.closed, sum(left.seams for left in report.left)) == (0, 3)
    assert picture(PID, start, end) == before
    assert vmas(PID, start, end) == 4
    assert vmaweld.weld(start, end - start).closed == 3


def test_no_address_space_left_undoes_itself(four: tuple[int, int]) -> None:
    start, end = four
    before = picture(PID, start, end)
    used = sum(row_end - row_start for row_start, row_end, *_ in flags_of(PID, 0, abi.TASK_SIZE))
    limits = resource.getrlimit(resource.RLIMIT_AS)
    vmaweld.weld(start, PAGE)  # everything that it imports is there
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), limits[1]))
    try:
        big = syscalls.mmap(0, (1 << 20) - 16 * PAGE, abi.PROT_NONE, ANON)
        try:
            report = vmaweld.weld(start, end - start)
            left = sum(left.seams for left in report.left)
        except (MemoryError, OSError):
            report, left = None, 3
        finally:
            syscalls.munmap(big, (1 << 20) - 16 * PAGE)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert report is None or report.closed + left == 3
    assert picture(PID, start, end) == before
    assert intact(start, 4, 3)


def test_the_whole_of_this_process_but_its_own_stack_and_thread_area() -> None:
    """Nobody touches it meanwhile, for there is no other thread; Python's own heap goes with it."""
    require_own()
    code = """
import sys; sys.path.insert(0, 'tests')
from weld_target import fragments
import vmaweld
start = fragments(30, 2)
for _ in range(3):
    report = vmaweld.weld(1 << 16, (1 << 47) - (1 << 20))
    own = [left for left in report.left if 'own stack' in left.reason]
    assert len(own) == len(report.left), report
    assert report.closed >= (29 if not _ else 0)
print('fine', len([bytes(100) for _ in range(10000)]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "fine 10000\n", done.stderr


# mremap


def _neighbours(left: bool, right: bool) -> tuple[int, int, int]:
    """(hole between faulted neighbours, its size, start of all): a hole of 4 pages, 3 pages on either side."""
    start = syscalls.mmap(0, 10 * PAGE, RW, ANON)
    ctypes.memset(start, 3, 10 * PAGE)
    syscalls.munmap(start + 3 * PAGE, 4 * PAGE)
    if not left:
        syscalls.mprotect(start, 3 * PAGE, abi.PROT_READ)
    if not right:
        syscalls.mprotect(start + 7 * PAGE, 3 * PAGE, abi.PROT_READ)
    return start + 3 * PAGE, 4 * PAGE, start


def _buffer(pages: int, byte: int = 9) -> int:
    room = syscalls.mmap(0, (pages + 2) * PAGE, abi.PROT_NONE, ANON)
    syscalls.mprotect(room + PAGE, pages * PAGE, RW)
    ctypes.memset(room + PAGE, byte, pages * PAGE)
    return room + PAGE


@pytest.mark.parametrize("must_merge", [False, True])
@pytest.mark.parametrize(("left", "right"), [(True, True), (True, False), (False, True)])
def test_mremap_merges_with_its_neighbours(left: bool, right: bool, must_merge: bool) -> None:
    require_own()
    hole, size, start = _neighbours(left, right)
    buffer = _buffer(4)
    result = vmaweld.mremap(buffer, size, size, new_address=hole, must_merge=must_merge)
    assert result == hole
    assert vmas(PID, start, start + 10 * PAGE) == 3 - left - right
    assert ctypes.string_at(start, 10 * PAGE) == b"\3" * (3 * PAGE) + b"\t" * size + b"\3" * (3 * PAGE)
    assert vmas(PID, buffer, buffer + size) == 0
    syscalls.munmap(start, 10 * PAGE)


def test_mremap_looks_again_when_a_neighbour_has_changed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    require_own()
    hole, size, start = _neighbours(left=True, right=False)
    buffer = _buffer(4)
    original = local.run
    outcomes: list[Outcome] = []

    def run(program: Program) -> tuple[tuple[str, int], list[Outcome]]:
        if not outcomes:  # the neighbour is not what it was when the weld was planned
            syscalls.mprotect(start, PAGE, abi.PROT_READ)
        found = original(program)
        syscalls.mprotect(start, PAGE, RW)
        outcomes.extend(found[1])
        return found

    monkeypatch.setattr(local, "run", run)
    assert vmaweld.mremap(buffer, size, size, new_address=hole, must_merge=True) == hole
    assert [(outcome.step, outcome.error) for outcome in outcomes] == [("take", errno.EFAULT), ("", 0)]
    assert vmas(PID, start, hole + size) == 1
    assert ctypes.string_at(start, 7 * PAGE) == b"\3" * (3 * PAGE) + b"\t" * size
    syscalls.munmap(start, 10 * PAGE)


@pytest.mark.parametrize("must_merge", [False, True])
def test_mremap_that_cannot_merge(must_merge: bool) -> None:
    require_own()
    hole, size, start = _neighbours(left=True, right=False)
    buffer = _buffer(4)
    child = os.fork()  # now nothing is this process's alone
    if child == 0:
        signal.pause()
    try:
        if must_merge:
            with pytest.raises(WeldError, match="shared"):
                vmaweld.mremap(buffer, size, size, new_address=hole, must_merge=True)
            assert ctypes.string_at(buffer, size) == b"\t" * size
            assert vmas(PID, hole, hole + size) == 0
        else:
            assert vmaweld.mremap(buffer, size, size, new_address=hole) == hole
            assert ctypes.string_at(hole, size) == b"\t" * size
            assert vmas(PID, start, hole + size) == 2
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_mremap_that_must_merge_keeps_what_lay_at_the_new_place() -> None:
    require_own()
    hole, size, start = _neighbours(left=True, right=False)
    syscalls.mmap(hole, size, abi.PROT_READ | abi.PROT_WRITE, ANON | abi.MAP_FIXED)
    ctypes.memset(hole, 5, size)
    buffer = _buffer(6)
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        with pytest.raises(WeldError):
            vmaweld.mremap(buffer, 6 * PAGE, size, new_address=hole, must_merge=True)
        assert ctypes.string_at(buffer, 6 * PAGE) == b"\t" * 6 * PAGE
        assert ctypes.string_at(hole, size) == b"\5" * size
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    for address in range(buffer, buffer + 6 * PAGE, PAGE):
        ctypes.memset(address, 9, 1)
    assert vmaweld.mremap(buffer, 6 * PAGE, size, new_address=hole, must_merge=True) == hole
    assert ctypes.string_at(hole, size) == b"\t" * size
    assert vmas(PID, buffer, buffer + 6 * PAGE) == 0
    assert vmas(PID, start, hole + size) == 1


def test_mremap_grows_and_shrinks_like_the_plain_call() -> None:
    require_own()
    buffer = _buffer(4)
    grown = vmaweld.mremap(buffer, 4 * PAGE, 9 * PAGE)
    assert ctypes.string_at(grown, 9 * PAGE) == b"\t" * 4 * PAGE + bytes(5 * PAGE)
    assert vmaweld.mremap(grown, 9 * PAGE, 2 * PAGE, must_merge=True) == grown
    assert ctypes.string_at(grown, 2 * PAGE) == b"\t" * 2 * PAGE
    assert vmas(PID, grown + 2 * PAGE, grown + 9 * PAGE) == 0
    with pytest.raises(OSError, match="mremap"):
        vmaweld.mremap(1 << 20, PAGE, PAGE, new_address=grown, must_merge=True)
    assert ctypes.string_at(grown, 2 * PAGE) == b"\t" * 2 * PAGE


# At random


@pytest.mark.parametrize("part", range(4))
def test_random_welds(part: int) -> None:
    require_own()
    require(not os.geteuid(), "as root only: others may not lock so much, and do not see which pages are the zero page")
    for seed in range(1_000_000 + part * 50, 1_000_000 + part * 50 + 50):
        one(seed)


def test_random_welds_by_another_process() -> None:
    require_own()
    require(not os.geteuid(), "as root only")
    helper = Helper()
    try:
        for seed in range(2_000_000, 2_000_050):
            one(seed, helper)
    finally:
        helper.close()


def test_the_layout_is_found_by_elimination_too(four: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without BPF: smaps and numa_maps tell what could differ."""
    start, end = four
    monkeypatch.setattr("vmaweld.kernel.bpf.iterator.available", lambda: (False, "not wanted"))
    syscalls.madvise(start + 9 * PAGE, 3 * PAGE, abi.MADV_DONTDUMP)
    report = vmaweld.weld(start, end - start)
    assert report.closed == 2
    syscalls.madvise(start + 9 * PAGE, 3 * PAGE, abi.MADV_DODUMP)
    syscalls.mbind(start + 9 * PAGE, 3 * PAGE, "bind:0")
    assert vmaweld.weld(start, end - start).closed == 0
    syscalls.mbind(start + 9 * PAGE, 3 * PAGE, "")
    assert vmaweld.weld(start, end - start).closed == 1
    assert vmas(PID, start, end) == 1
    assert open_seams(PID, start, end) == 0
    assert intact(start, 4, 3)


def test_pages_stay_exclusive(four: tuple[int, int]) -> None:
    start, end = four
    vmaweld.weld(start, end - start)
    with Pagemap(PID) as pages:
        assert pages.totals(start, end).exclusive == 12


def test_the_short_look_finds_the_seams_that_the_long_one_does() -> None:
    looked = 0
    for pid in (*procfs.pids()[:60], PID):
        try:
            snapshot = snapshots.take(pid)
        except KernelError:
            continue
        found = [(run.first, run.last) for run in runs_of_open_seams(seams(snapshot))]
        assert list(plan._open_runs(snapshot)) == found
        looked += 1
    assert looked
