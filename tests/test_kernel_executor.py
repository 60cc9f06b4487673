# SPDX-License-Identifier: GPL-2.0-or-later
"""The executor: events done to real memory, and what it does when its processes die."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import require

from vmaweld import abi
from vmaweld.abi import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, PAGE_SIZE
from vmaweld.events import Event
from vmaweld.executor.arena import ARENA_LOW, ARENA_SIZE, FILES
from vmaweld.executor.executor import Executor
from vmaweld.executor.process import ExecutorError
from vmaweld.kernel import procfs, snapshots, userfaultfd

LOW = ARENA_LOW
HIGH = ARENA_LOW + ARENA_SIZE
RW = abi.PROT_READ | abi.PROT_WRITE
PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS
FIXED = PRIVATE | MAP_FIXED


def page(number: int) -> int:
    return LOW + number * PAGE_SIZE


def mmap(
    number: int, pages: int, pid: int = 1, prot: int = RW, flags: int = FIXED, file: str = "", pgoff: int = 0
) -> Event:
    return Event(
        "mmap", pid, addr=page(number), length=pages * PAGE_SIZE, prot=prot, flags=flags, file=file, pgoff=pgoff
    )


def over(op: str, number: int, pages: int, pid: int = 1, *, prot: int = 0, flags: int = 0, file: str = "") -> Event:
    return Event(op, pid, addr=page(number), length=pages * PAGE_SIZE, prot=prot, flags=flags, file=file)


@pytest.fixture(scope="module")
def shared_executor() -> Iterator[Executor]:
    with Executor(brk=page(1000)) as executor:
        yield executor


@pytest.fixture
def executor(shared_executor: Executor) -> Iterator[Executor]:
    yield shared_executor
    shared_executor.reset()


def shape(executor: Executor, pid: int = 1) -> list[tuple[int, int, str]]:
    return [((row.start - LOW) >> 12, row.pages, row.perms()) for row in executor.snapshot(pid).rows]


def test_events_change_the_arena(executor: Executor) -> None:
    assert executor.run_batch([mmap(0, 8), over("mprotect", 2, 1, prot=1), over("munmap", 6, 1)]) == [LOW, 0, 0]
    assert shape(executor) == [(0, 2, "rw-p"), (2, 1, "r--p"), (3, 3, "rw-p"), (7, 1, "rw-p")]
    assert executor.run(Event("mremap", 1, addr=page(7), length=4096, new_length=3 * 4096, flags=1)) == page(7)
    assert shape(executor)[-1] == (7, 3, "rw-p")
    assert executor.run(over("mprotect", 20, 1, prot=1)) == -errno.ENOMEM


def test_the_kernel_places_what_has_no_address_at_the_top_of_the_arena(executor: Executor) -> None:
    free = Event("mmap", 1, length=2 * PAGE_SIZE, prot=RW, flags=PRIVATE)
    assert executor.run_batch([free, free]) == [HIGH - 2 * PAGE_SIZE, HIGH - 4 * PAGE_SIZE]
    moved = executor.run(Event("mremap", 1, addr=HIGH - 2 * PAGE_SIZE, length=4096, new_length=8 * 4096, flags=1))
    assert moved == HIGH - 12 * PAGE_SIZE
    assert executor.run(Event("mmap", 1, length=ARENA_SIZE, prot=RW, flags=PRIVATE)) == -errno.ENOMEM


def test_faults_answer_efault_and_keep_what_came_before(executor: Executor) -> None:
    executor.run_batch([mmap(0, 4), mmap(6, 1, prot=abi.PROT_READ), mmap(7, 1, prot=abi.PROT_NONE)])
    assert executor.run(over("write", 10, 1)) == -errno.EFAULT
    assert executor.run(over("read", 10, 1)) == -errno.EFAULT
    assert executor.run(over("write", 6, 1)) == -errno.EFAULT
    assert executor.run(over("read", 7, 1)) == -errno.EFAULT
    assert executor.run(over("read", 6, 1)) == 0
    assert executor.run(over("write", 0, 8)) == -errno.EFAULT
    assert executor.run(over("write", 0, 4)) == 0
    assert executor.run(mmap(100, 3000)) == page(100)
    assert executor.run_batch([over("write", 100, 3000), over("read", 100, 3000)]) == [0, 0]


@pytest.mark.live
def test_a_write_makes_the_anon_vma_and_a_read_does_not(executor: Executor) -> None:
    require(*snapshots.bpf_available())
    assert executor.exact
    results, shown = executor.run_watched([mmap(0, 4), over("read", 0, 4), over("write", 1, 1)])
    assert results == [LOW, 0, 0]
    assert [bool(snapshot.rows[0].anon_vma) for snapshot in shown] == [False, False, True]
    assert all(snapshot.consistent and snapshot.hidden and snapshot.flags_exact for snapshot in shown)


@pytest.mark.live
def test_reading_does_not_unshare_and_writing_does(executor: Executor) -> None:
    require(os.geteuid() == 0, "reads the page map of another process")
    from vmaweld.kernel.pagemap import Pagemap

    executor.run_batch([mmap(0, 2), over("madvise", 0, 2, flags=abi.MADV_NOHUGEPAGE), over("write", 0, 2)])
    assert executor.run(Event("fork", 1, child=2)) == 2
    with Pagemap(executor.real_pid(2)) as pages:
        executor.run(over("read", 0, 2, pid=2))
        assert pages.totals(page(0), page(2)).shared == 2
        executor.run(over("write", 0, 1, pid=2))
        assert (pages.totals(page(0), page(2)).exclusive, pages.totals(page(0), page(2)).shared) == (1, 1)


def test_forked_processes_are_apart(executor: Executor) -> None:
    results = executor.run_batch(
        [
            mmap(0, 2),
            Event("fork", 1, child=7),
            over("munmap", 0, 1),
            mmap(4, 1, pid=7),
            Event("fork", 7, child=8),
            Event("exit", 7),
            over("munmap", 0, 2, pid=8),
        ]
    )
    assert results == [LOW, 7, 0, page(4), 8, 0, 0]
    assert shape(executor) == [(1, 1, "rw-p")]
    assert shape(executor, 8) == [(4, 1, "rw-p")]
    assert executor.pids == [1, 8]


def test_clone_vm_is_another_name_for_the_same_memory(executor: Executor) -> None:
    shared = Event("fork", 1, child=2, flags=abi.CLONE_VM)
    assert executor.run_batch([mmap(0, 1), shared, mmap(1, 1, pid=2)]) == [LOW, 2, page(1)]
    assert shape(executor, 1) == shape(executor, 2) == [(0, 2, "rw-p")]
    assert executor.run_batch([Event("exit", 1), over("munmap", 0, 1, pid=2)]) == [0, 0]
    assert executor.pids == [2]
    results, shown = executor.run_watched([Event("fork", 2, child=3, flags=abi.CLONE_VM), Event("exit", 2)])
    assert results == [3, 0]
    assert [len(snapshot.rows) for snapshot in shown] == [1, 1]


def test_the_break_moves_in_the_arena(executor: Executor) -> None:
    require(executor.can_brk, "PR_SET_MM_MAP needs CONFIG_CHECKPOINT_RESTORE")
    assert executor.run(Event("brk", 1)) == page(1000)
    assert executor.run(Event("brk", 1, addr=page(1003))) == page(1003)
    assert [row.name for row in executor.snapshot(1).rows] == ["[heap]"]
    assert executor.run(Event("brk", 1, addr=page(1001))) == page(1001)
    assert shape(executor) == [(1000, 1, "rw-p")]


def test_files_segments_and_shared_memory_have_names(executor: Executor) -> None:
    events = [
        mmap(0, 1, flags=MAP_SHARED | MAP_FIXED, file="/memfd:a"),
        mmap(2, 1, flags=MAP_PRIVATE | MAP_FIXED, file="file-a", pgoff=3),
        mmap(4, 1, flags=MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED),
        mmap(6, 1, flags=MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED),
        over("shmat", 8, 1, prot=RW, file="segment"),
        Event("fork", 1, child=2),
        over("shmat", 10, 1, pid=2, prot=abi.PROT_READ, file="segment"),
    ]
    assert executor.run_batch(events) == [page(0), page(2), page(4), page(6), page(8), 2, page(10)]
    files = {(row.start - LOW) >> 12: row.file for row in executor.snapshot(2).rows}
    assert (files[0], files[2]) == ("/memfd:a", "file-a")
    assert files[4] != files[6]
    assert files[4].startswith("/dev/zero")
    assert files[8] == files[10]
    assert executor.snapshot(2).rows[-1].perms() == "r--s"
    assert executor.run(Event("shmdt", 2, addr=page(10))) == 0
    assert executor.run(Event("shmdt", 2, addr=page(10))) == -errno.EINVAL


def test_the_other_calls(executor: Executor) -> None:
    events = [
        mmap(0, 8),
        over("madvise", 0, 1, flags=abi.MADV_DONTDUMP),
        over("mbind", 2, 1, file="bind:0"),
        over("mlock", 4, 1),
        over("munlock", 4, 1),
        Event("mlockall", 1, flags=abi.MCL_FUTURE),
        Event("munlockall", 1),
        mmap(16, 2, flags=MAP_SHARED | MAP_FIXED, file="/memfd:a"),
        Event("remap_file_pages", 1, addr=page(16), length=PAGE_SIZE, pgoff=5),
        over("mprotect", 7, 1, prot=1, flags=1),
    ]
    results = executor.run_batch(events)
    assert results[:2] == [LOW, 0]
    assert results[3:9] == [0, 0, 0, 0, page(16), 0]
    assert results[9] in (0, -errno.EINVAL)  # a processor without protection keys
    assert results[2] in (0, -errno.ENOSYS)
    rows = executor.snapshot(1).rows
    assert rows[0].flags & abi.VM_DONTDUMP
    if executor.exact and results[2] == 0:
        assert rows[2].mempolicy == "bind:0"
    assert executor.run(over("set_name", 0, 1, file="buffer")) in (0, -errno.EINVAL)
    assert executor.run(over("mseal", 0, 1)) in (0, -errno.ENOSYS)


@pytest.mark.live
def test_userfaultfd_registers_moves_and_never_blocks(executor: Executor) -> None:
    require(*userfaultfd.available(userfaultfd.FEATURE_MOVE))

    def uffd(op: str, number: int, pages: int, context: int = 0, mode: int = 0) -> Event:
        return Event(op, 1, addr=page(number), length=pages * PAGE_SIZE, flags=mode, new_addr=context)

    move = Event("uffd_move", 1, addr=page(0), length=4 * PAGE_SIZE, new_addr=page(16))
    events = [
        mmap(0, 4),
        over("madvise", 0, 4, flags=abi.MADV_NOHUGEPAGE),
        over("write", 1, 2),
        mmap(16, 4),
        over("madvise", 16, 4, flags=abi.MADV_NOHUGEPAGE),
        move,  # nothing is registered
        uffd("uffd_register", 16, 4, 1, abi.UFFDIO_REGISTER_MODE_MISSING),
        uffd("uffd_register", 16, 4, 2, abi.UFFDIO_REGISTER_MODE_MISSING),  # another context has it
        over("write", 16, 1),
        move,
        over("write", 17, 2),
        uffd("uffd_unregister", 16, 4, 1),
        uffd("uffd_unregister", 16, 4, 9),
        over("write", 16, 1),
        uffd("uffd_register", 16, 4, 1, abi.UFFDIO_REGISTER_MODE_MISSING),
        Event("uffd_close", 1, new_addr=1),
    ]
    results = executor.run_batch(events)
    busy, invalid, fault = -errno.EBUSY, -errno.EINVAL, -errno.EFAULT
    assert results[5:] == [invalid, 0, busy, fault, 0, 0, 0, invalid, 0, 0, 0]
    assert not any(row.flags & abi.VM_UFFD_ANY for row in executor.snapshot(1).rows)


def test_what_reaches_beyond_the_arena_is_refused(executor: Executor) -> None:
    beyond = ARENA_SIZE // PAGE_SIZE
    for event in (
        over("munmap", beyond - 1, 2),
        over("munmap", -1, 1),
        mmap(beyond, 1),
        Event("mremap", 1, addr=page(0), length=4096, new_length=4096, flags=3, new_addr=0x10000),
        Event("brk", 1, addr=0x10000),
        over("munmap", 0, 1 << 40),
        Event("exec", 1, file="/bin/true"),
        mmap(0, 1, file="/etc/passwd"),
    ):
        with pytest.raises(ValueError, match=r"arena|cannot be performed|the files are"):
            executor.run(event)
    # Growing over the border cannot be seen beforehand: there the fillers are in the way.
    assert executor.run(mmap(beyond - 1, 1)) == page(beyond - 1)
    assert executor.run(Event("mremap", 1, addr=page(beyond - 1), length=4096, new_length=8192)) == -errno.ENOMEM


def test_mlockall_of_everything_does_no_harm(executor: Executor) -> None:
    assert executor.run(mmap(0, 2)) == LOW
    everything = Event("mlockall", 1, flags=abi.MCL_CURRENT | abi.MCL_FUTURE)
    if not executor.can_lock_current:
        with pytest.raises(ValueError, match=r"5\.18"):
            executor.run(everything)
    elif executor.run(everything) == 0:
        assert executor.run(mmap(4, 2)) == page(4)
        flags = [row.flags & abi.VM_LOCKED for row in executor.snapshot(1).rows]
        assert flags == [abi.VM_LOCKED] * 2
        assert executor.run(Event("munlockall", 1)) == 0


@pytest.mark.parametrize("exact", [True, False])
def test_both_kinds_of_snapshots_agree(exact: bool) -> None:
    if exact:
        require(*snapshots.bpf_available())
    with Executor(exact=exact) as executor:
        events = [
            mmap(0, 8),
            over("madvise", 1, 1, flags=abi.MADV_DONTFORK),
            over("mprotect", 3, 2, prot=5),
            mmap(9, 1, flags=MAP_SHARED | MAP_FIXED, file="/memfd:b", pgoff=2),
            over("munmap", 0, 20),
        ]
        _results, shown = executor.run_watched(events)
    sizes = [[(row.pages, row.perms()) for row in snapshot.rows] for snapshot in shown]
    assert sizes[0] == [(8, "rw-p")]
    assert sizes[2] == [(1, "rw-p"), (1, "rw-p"), (1, "rw-p"), (2, "r-xp"), (3, "rw-p")]
    assert sizes[4] == []
    assert shown[1].rows[1].flags & abi.VM_DONTCOPY
    assert (shown[3].rows[-1].file, shown[3].rows[-1].pgoff) == ("/memfd:b", 2)
    assert {snapshot.source for snapshot in shown} == {"bpf" if exact else "procfs"}


def test_nothing_of_the_interpreter_gets_into_the_arena(executor: Executor) -> None:
    """Thousands of events at random, then everything unmapped: the arena must be empty, in every process."""
    dice = random.Random(5)
    events: list[Event] = []
    pids = [1]
    for _count in range(6000):
        pid, at, size = dice.choice(pids), dice.randrange(64), dice.randrange(1, 9)
        roll = dice.random()
        if roll < 0.02 and len(pids) < 6:
            events.append(Event("fork", pid, child=len(pids) + 1))
            pids.append(len(pids) + 1)
        elif roll < 0.3:
            events.append(mmap(at, size, pid, dice.choice((0, 1, 3))))
        elif roll < 0.5:
            events.append(over(dice.choice(("read", "write")), at, size, pid))
        elif roll < 0.7:
            events.append(over("mprotect", at, size, pid, prot=dice.choice((0, 1, 3))))
        elif roll < 0.9:
            target = page(dice.randrange(64, 128))
            length = size * PAGE_SIZE
            events.append(
                Event("mremap", pid, addr=page(at), length=length, new_length=length, flags=3, new_addr=target)
            )
        else:
            events.append(over("munmap", at, size, pid))
    for start in range(0, len(events), 1500):
        executor.run_watched(events[start : start + 1500])
    for pid in pids:
        executor.run(over("munmap", 0, 200, pid))
        assert executor.snapshot(pid).rows == []


def dead(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if procfs.status(pid).state in ("Z", "X"):
                return True
        except Exception:
            return True
        time.sleep(0.02)
    return False


def test_a_process_that_dies_is_an_error_and_not_a_hang(executor: Executor) -> None:
    executor.run_batch([mmap(0, 1), Event("fork", 1, child=2)])
    os.kill(executor.real_pid(2), signal.SIGKILL)
    with pytest.raises(ExecutorError, match=r"died: .*munmap"):
        executor.run(over("munmap", 0, 1, pid=2))
    assert shape(executor) == [(0, 1, "rw-p")]  # its parent goes on
    assert executor.pids == [1]


def test_a_process_that_hangs_is_ended() -> None:
    with Executor(timeout=1) as executor:
        executor.run(mmap(0, 1))
        real = executor.real_pid(1)
        os.kill(real, signal.SIGSTOP)
        with pytest.raises(ExecutorError, match="did not answer within 1 s"):
            executor.run(over("munmap", 0, 1))
        assert dead(real)
        assert executor.run(mmap(0, 1)) == LOW  # a fresh process of that name


def test_a_dead_zygote_is_an_error() -> None:
    with Executor() as executor:
        os.kill(executor._zygote.pid, signal.SIGKILL)
        with pytest.raises(ExecutorError, match="the executor died"):
            executor.start(1)


def test_nothing_outlives_its_driver() -> None:
    code = """
import os
from vmaweld.events import Event
from vmaweld.executor.executor import Executor
executor = Executor()
executor.run_batch([Event("fork", 1, child=2), Event("exit", 1), Event("read", 3)])
print(executor._zygote.pid, executor.real_pid(2), executor.real_pid(3), flush=True)
os.kill(os.getpid(), 9)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == -9, run.stderr
    assert all(dead(int(pid)) for pid in run.stdout.split())


def test_closing_leaves_no_process_and_no_descriptor() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    with Executor() as executor:
        executor.run_batch([Event("fork", 1, child=2), mmap(0, 1)])
        pids = [executor.real_pid(pid) for pid in executor.pids]
    executor.close()
    assert descriptors() == before
    assert all(dead(pid) for pid in pids)


def test_wrong_arenas_are_refused() -> None:
    for low, high, brk in ((LOW + 1, HIGH, None), (LOW, LOW, None), (LOW, LOW + (8 << 30), None), (LOW, HIGH, 0x10000)):
        with pytest.raises(ValueError, match="arena"):
            Executor(low=low, high=high, brk=brk)


def test_a_pid_begins_only_once(executor: Executor) -> None:
    executor.start(1)
    executor.run(Event("fork", 1, child=2))
    for again in (Event("fork", 1, child=2), Event("fork", 1, child=1), Event("fork", 1, child=2, flags=abi.CLONE_VM)):
        with pytest.raises(ValueError, match="lives already"):
            executor.run(again)
    with pytest.raises(ValueError, match="lives already"):
        executor.start(2)


def test_many_processes_in_one_batch(executor: Executor) -> None:
    children = range(2, 90)
    forks = [Event("fork", 1, child=child) for child in children]
    assert executor.run_batch(forks) == list(children)
    assert executor.run_batch([mmap(0, 1, pid=child) for child in children]) == [LOW] * len(children)


def test_names_of_files_are_stable() -> None:
    assert len(set(FILES)) == len(FILES)
    assert all(name.startswith(("/memfd:", "file-")) for name in FILES)
    assert Path(sys.modules["vmaweld.executor.child"].__file__ or "").is_file()
