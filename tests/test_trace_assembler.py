# SPDX-License-Identifier: GPL-2.0-or-later
"""Observations in order of time become events in order of effect."""

import random
from pathlib import Path

import pytest

from vmaweld import abi
from vmaweld.events import READ_ONLY_FILE, Event
from vmaweld.trace.assembly.assembler import Assembler
from vmaweld.trace.assembly.exec_image import settle

ROOT = 100
PAGE = 4096
A = 0x7F00_0000_0000
ANON = (0, 0, 0)
PRIVATE = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS


class Scene:
    """An assembler whose root has just exec'd, a clock, and what came out since."""

    def __init__(self) -> None:
        self.out: list[Event] = []
        self.assembler = Assembler(self.out.append, ROOT)
        self.now = 0
        self.exec(ROOT)
        self.out.clear()

    def tick(self) -> int:
        self.now += 10
        return self.now

    def exec(self, pid: int, program: str = "/bin/prog") -> None:
        self.assembler.execing(self.tick(), pid, pid)
        self.assembler.execed(self.tick(), pid, program)

    def enter(self, name: str, *arguments: int, pid: int = ROOT, tid: int = 0) -> None:
        padded = tuple(a & (1 << 64) - 1 for a in arguments) + (0,) * (6 - len(arguments))
        self.assembler.enter(self.tick(), pid, tid or pid, name, padded)

    def leave(self, name: str, result: int, pid: int = ROOT, tid: int = 0) -> None:
        self.assembler.leave(self.tick(), pid, tid or pid, name, result)

    def call(self, name: str, *arguments: int, result: int, pid: int = ROOT, tid: int = 0) -> None:
        self.enter(name, *arguments, pid=pid, tid=tid)
        self.leave(name, result, pid, tid)

    def mapped(
        self, addr: int, length: int, name: str = "//anon", inode: int = 0, pid: int = ROOT, tid: int = 0
    ) -> None:
        self.assembler.mapped(
            self.tick(), pid, tid or pid, addr, length, 0, 3, abi.MAP_PRIVATE, (0, 1, inode), name
        )  # fmt: skip

    def fault(self, addr: int, write: bool = True, pid: int = ROOT) -> None:
        self.assembler.fault(self.tick(), pid, addr, write)

    def fork(self, child: int, flags: int = 0, pid: int = ROOT, tid: int = 0) -> None:
        group = pid if flags & abi.CLONE_THREAD else child
        self.assembler.forked(self.tick(), group, child, pid, tid or pid)
        self.assembler.new_task(self.tick(), pid, tid or pid, flags)

    def told(self) -> list[str]:
        """What came out since the last time, as text without pids of the root."""
        self.assembler.finish()
        text = [repr(event) for event in self.out]
        self.out.clear()
        return text


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_nothing_counts_before_the_root_has_execed() -> None:
    out: list[Event] = []
    assembler = Assembler(out.append, ROOT)
    assembler.enter(1, ROOT, ROOT, "munmap", (A, PAGE, 0, 0, 0, 0))
    assembler.leave(2, ROOT, ROOT, "munmap", 0)
    assembler.fault(3, ROOT, A, True)
    assembler.execing(4, 7, 7)
    assembler.execed(5, 7, "/bin/other")
    assembler.finish()
    assert out == []


def test_a_call_becomes_an_event_with_its_result(scene: Scene) -> None:
    scene.call("mmap", 0, PAGE, 3, PRIVATE, -1, 0, result=A)
    scene.call("munmap", A, PAGE, result=0)
    scene.call("mremap", A, PAGE, 2 * PAGE, 1, 0, result=-12)
    scene.call("pkey_mprotect", A, PAGE, 1, -1, result=0)
    scene.call("pkey_mprotect", A, PAGE, 1, 2, result=0)
    assert scene.told() == [
        f"mmap(pid=100, length=0x1000, prot=3, flags=0x22, result={A:#x})",
        f"munmap(pid=100, addr={A:#x}, length=0x1000, result=0)",
        f"mremap(pid=100, addr={A:#x}, length=0x1000, flags=0x1, new_length=0x2000, result=-12)",
        f"mprotect(pid=100, addr={A:#x}, length=0x1000, prot=1, result=0)",
        f"mprotect(pid=100, addr={A:#x}, length=0x1000, prot=1, flags=0x3, result=0)",
    ]


def test_neighbouring_faults_of_a_kind_are_one_run_until_something_happens(scene: Scene) -> None:
    for page in (0, 1, 2, -1, 0):
        scene.fault(A + page * PAGE + 8)
    scene.fault(A + 9 * PAGE, write=False)
    scene.fault(A + 3 * PAGE)
    scene.call("madvise", A, PAGE, 4, result=0)
    scene.fault(A + 4 * PAGE)
    assert scene.told() == [
        f"write(pid=100, addr={A - PAGE:#x}, length=0x5000)",
        f"read(pid=100, addr={A + 9 * PAGE:#x}, length=0x1000)",
        f"madvise(pid=100, addr={A:#x}, length=0x1000, flags=0x4, result=0)",
        f"write(pid=100, addr={A + 4 * PAGE:#x}, length=0x1000)",
    ]


def test_a_fault_on_a_kernel_address_is_none_of_the_programs(scene: Scene) -> None:
    scene.fault(0xFFFF_8000_0000_0000)
    assert scene.told() == []


def test_a_munmap_still_under_way_comes_before_the_mmap_that_got_its_place(scene: Scene) -> None:
    # Thread 101 unmaps and is still tearing down pages while 102 maps, gets the same place and is back first.
    scene.fork(101, abi.CLONE_VM | abi.CLONE_THREAD)
    scene.fork(102, abi.CLONE_VM | abi.CLONE_THREAD)
    scene.enter("munmap", A, 4 * PAGE, tid=101)
    scene.enter("mmap", 0, PAGE, 3, PRIVATE, -1, 0, tid=102)
    scene.leave("mmap", A + PAGE, tid=102)
    scene.fault(A + PAGE)
    scene.leave("munmap", 0, tid=101)
    assert [text.split("(")[0] for text in scene.told()] == ["munmap", "mmap", "write"]


def test_an_mmap_with_map_fixed_waits_for_nobody(scene: Scene) -> None:
    scene.fork(101, abi.CLONE_VM | abi.CLONE_THREAD)
    scene.enter("munmap", A, 4 * PAGE, tid=101)
    scene.call("mmap", A, PAGE, 3, PRIVATE | abi.MAP_FIXED, -1, 0, result=A)
    scene.leave("munmap", 0, tid=101)
    assert [text.split("(")[0] for text in scene.told()] == ["mmap", "munmap"]


def test_the_kernels_announcement_is_the_moment_of_a_mapping(scene: Scene) -> None:
    scene.fork(101, abi.CLONE_VM | abi.CLONE_THREAD)
    scene.enter("mmap", 0, PAGE, 3, PRIVATE | abi.MAP_POPULATE, -1, 0, tid=101)
    scene.mapped(A, PAGE, tid=101)  # mapped, now populating
    scene.call("mprotect", A, PAGE, 1, result=0)
    scene.leave("mmap", A, tid=101)
    assert [text.split("(")[0] for text in scene.told()] == ["mmap", "mprotect"]


def test_threads_are_no_events_and_a_process_ends_with_its_last_thread(scene: Scene) -> None:
    scene.fork(101, abi.CLONE_VM | abi.CLONE_THREAD)
    scene.assembler.ended(scene.tick(), ROOT, ROOT)
    scene.call("munmap", A, PAGE, result=0, tid=101)
    scene.assembler.ended(scene.tick(), ROOT, 101)
    assert [text.split("(")[0] for text in scene.told()] == ["munmap", "exit"]


def test_a_fork_comes_before_what_the_child_does_even_where_it_has_to_wait(scene: Scene) -> None:
    scene.fork(101, abi.CLONE_VM | abi.CLONE_THREAD)
    scene.enter("mmap", 0, PAGE, 3, PRIVATE | abi.MAP_POPULATE, -1, 0, tid=101)
    scene.mapped(A, PAGE, tid=101)  # this mmap is known to have happened, but not yet its result
    scene.fork(200)
    scene.fault(A, pid=200)
    scene.call("munmap", A, PAGE, result=0, pid=200)
    scene.exec(200)
    scene.call("brk", 0, result=A, pid=200)
    assert scene.out == []
    scene.leave("mmap", A, tid=101)
    assert [event.op for event in scene.out] == ["mmap", "fork", "write", "munmap", "exec", "brk"]
    assert [event.time for event in scene.out] == sorted(event.time for event in scene.out)


def test_what_a_vforked_child_does_stays_in_its_parents_address_space(scene: Scene) -> None:
    scene.enter("vfork")
    scene.fork(200, abi.CLONE_VM | abi.CLONE_VFORK)
    scene.fault(A, pid=200)
    scene.exec(200, "/bin/true")
    scene.leave("vfork", 200)
    scene.fault(A + PAGE)
    assert scene.told() == [
        "fork(pid=100, flags=0x100, child=200)",
        f"write(pid=200, addr={A:#x}, length=0x1000)",
        "exec(pid=200, file='/bin/true')",
        f"write(pid=100, addr={A + PAGE:#x}, length=0x1000)",
    ]


def test_a_stack_that_grows_is_no_mapping_of_its_own(scene: Scene) -> None:
    scene.fault(0x7FFF_FFF0_0000)
    scene.mapped(0x7FFF_FFF0_0000, 0x22000, "[stack]")
    scene.enter("mmap", 0, PAGE, 3, PRIVATE, -1, 0)
    scene.mapped(0x7FFF_FFE0_0000, 0x24000, "[stack]")  # the call's own copy_from_user grew it
    scene.mapped(A, PAGE)
    scene.leave("mmap", A)
    assert [text.split("(")[0] for text in scene.told()] == ["write", "mmap"]


def test_exec_places_what_the_kernel_mapped_and_writes_what_it_wrote(tmp_path: Path) -> None:
    out: list[Event] = []
    assembler = Assembler(out.append, ROOT)
    assembler.execing(1, ROOT, ROOT)
    base, stack = 0x5555_5555_0000, 0x7FFF_FFFD_0000
    rows: list[tuple[int, int, int, int, str]] = [
        (stack, 0x21000, 0x7FFF_FFFD_E000, 3, "[stack]"),
        (base, 0x8000, 0, 1, "/nowhere/prog"),  # the whole span first
        (base + 0x2000, 0x3000, 0x2000, 5, "/nowhere/prog"),
        (base + 0x5000, 0x2000, 0x4000, 3, "/nowhere/prog"),
        (base + 0x7000, 0x1000, base + 0x7000, 3, "//anon"),
        (0x7FFF_FFFF_8000, 0x2000, 0, 5, "[vdso]"),
    ]
    for time, (addr, length, pgoff, prot, name) in enumerate(rows, start=2):
        assembler.mapped(time, ROOT, ROOT, addr, length, pgoff, prot, abi.MAP_PRIVATE, (8, 1, 5), name)
    assembler.fault(20, ROOT, base + 0x6FF0, True)  # padzero
    assembler.fault(21, ROOT, stack + 0x1F800, True)  # create_elf_tables
    assembler.execed(22, ROOT, "/nowhere/prog")
    assembler.finish()
    may = 0x70
    assert out[0] == Event("exec", ROOT, file="/nowhere/prog", time=22)
    assert [(e.addr, e.length, e.flags, e.file, e.pgoff) for e in out if e.op == "place"] == [
        (base, 0x2000, may | 1, "/nowhere/prog", 0),
        (base + 0x2000, 0x3000, may | 5, "/nowhere/prog", 2),
        (base + 0x5000, 0x2000, may | 3 | abi.VM_ACCOUNT, "/nowhere/prog", 4),
        (base + 0x7000, 0x1000, may | 3 | abi.VM_ACCOUNT, "", (base + 0x7000) >> 12),
        (stack, 0x21000, may | 3 | abi.VM_ACCOUNT | abi.VM_GROWSDOWN, "[stack]", 0x7FFF_FFFD_E),
        (0x7FFF_FFFF_8000, 0x2000, may | 5, "[vdso]", 0),
    ]
    written = {page for e in out if e.op == "write" for page in range(e.addr, e.addr + e.length, PAGE)}
    assert written == {base + 0x6000, stack + 0x1F000, stack + 0x20000}


def test_settle_keeps_what_lies_uppermost() -> None:
    def place(addr: int, length: int, file: str, pgoff: int = 0) -> Event:
        return Event("place", 1, addr=addr, length=length, file=file, pgoff=pgoff)

    #   AAAAAAAA        the first mapping
    #     BB            over its middle
    #          CCC      beside it
    rows = settle([place(0x1000, 0x8000, "[a]", 1), place(0x3000, 0x2000, "[b]"), place(0x9000, 0x3000, "[c]")])
    assert [(row.addr, row.length, row.file, row.pgoff) for row in rows] == [
        (0x1000, 0x2000, "[a]", 1),
        (0x3000, 0x2000, "[b]", 0),
        (0x5000, 0x4000, "[a]", 5),
        (0x9000, 0x3000, "[c]", 0),
    ]


def test_a_32_bit_program_is_left_out_and_counted(scene: Scene) -> None:
    scene.assembler.execing(scene.tick(), ROOT, ROOT)
    scene.mapped(0xFFFD_0000, 0x21000, "[stack]")
    scene.assembler.execed(scene.tick(), ROOT, "/bin/old")
    scene.call("mmap", 0, PAGE, 3, PRIVATE, -1, 0, result=0xF700_0000)  # that number is link(2) there
    scene.fault(0xF700_0000)
    assert scene.told() == ["exec(pid=100, file='/bin/old')"]
    assert scene.assembler.losses == {"processes_32_bit": 1}
    scene.exec(ROOT, "/bin/new")
    scene.call("munmap", A, PAGE, result=0)
    assert len(scene.told()) == 2


def map_file(scene: Scene, fd: int, inode: int, addr: int, *, flags: int = abi.MAP_PRIVATE, prot: int = 1) -> Event:
    scene.enter("mmap", 0, PAGE, prot, flags, fd, 0)
    scene.mapped(addr, PAGE, "/lib/x.so", inode)
    scene.leave("mmap", addr)
    return scene.out[-1]


def test_one_open_file_has_one_name_and_another_open_of_it_a_second(scene: Scene) -> None:
    scene.call("openat", 0, 0, 0, result=3)
    assert map_file(scene, 3, 5, A).file == "/lib/x.so"
    assert map_file(scene, 3, 5, A + PAGE).file == "/lib/x.so"
    scene.call("dup", 3, result=4)
    assert map_file(scene, 4, 5, A + 2 * PAGE).file == "/lib/x.so"
    scene.enter("close", 3)
    scene.call("openat", 0, 0, 0, result=3)
    assert map_file(scene, 3, 5, A + 3 * PAGE).file == "/lib/x.so#2"
    assert map_file(scene, 4, 5, A + 4 * PAGE).file == "/lib/x.so"
    scene.fork(200)
    scene.enter("mmap", 0, PAGE, 1, abi.MAP_PRIVATE, 3, 0, pid=200)
    scene.mapped(A + 5 * PAGE, PAGE, "/lib/x.so", 5, pid=200)
    scene.leave("mmap", A + 5 * PAGE, pid=200)
    assert scene.out[-1].file == "/lib/x.so#2"
    assert map_file(scene, 3, 6, A + 6 * PAGE).file == "/lib/x.so#3"  # the path leads to another inode now


def test_a_failed_open_changes_nothing_and_a_lost_exit_cannot_mix_calls(scene: Scene) -> None:
    scene.call("openat", 0, 0, 0o2, result=3)
    scene.call("openat", 0, 0, 0, result=-2)
    scene.enter("openat", 0, 0, 0)  # its failure is not even recorded
    scene.enter("mmap", 0, PAGE, 3, abi.MAP_SHARED, 3, 0)
    scene.mapped(A, PAGE, "/tmp/db", 9)
    scene.leave("mmap", A)
    assert not scene.out[-1].flags & READ_ONLY_FILE
    scene.enter("munmap", A, PAGE)
    scene.leave("mprotect", 0)  # the records between are lost
    scene.call("madvise", A, PAGE, 4, result=0)
    assert [event.op for event in scene.out] == ["mmap", "madvise"]


def test_a_shared_mapping_of_a_file_opened_for_reading_says_so(scene: Scene) -> None:
    scene.call("openat", 0, 0, 0, result=3)
    scene.call("openat", 0, 0, 0o2, result=4)
    assert map_file(scene, 3, 5, A, flags=abi.MAP_SHARED).flags == abi.MAP_SHARED | READ_ONLY_FILE
    assert map_file(scene, 4, 5, A + PAGE, flags=abi.MAP_SHARED).flags == abi.MAP_SHARED
    assert map_file(scene, 3, 5, A + 2 * PAGE).flags == abi.MAP_PRIVATE
    # Received over a socket: what it was opened for is not seen, the protection is the best guess.
    assert map_file(scene, 9, 6, A + 3 * PAGE, flags=abi.MAP_SHARED).flags & READ_ONLY_FILE
    assert not map_file(scene, 9, 6, A + 4 * PAGE, flags=abi.MAP_SHARED, prot=3).flags & READ_ONLY_FILE


def test_exec_closes_what_was_to_be_closed(scene: Scene) -> None:
    scene.call("openat", 0, 0, 0o2, result=3)
    scene.call("openat", 0, 0, 0o2000002, result=4)
    scene.call("openat", 0, 0, 0o2, result=5)
    scene.call("fcntl", 5, 2, 1, result=0)
    scene.exec(ROOT)
    flags = [map_file(scene, fd, fd, A + fd * PAGE, flags=abi.MAP_SHARED).flags for fd in (3, 4, 5)]
    assert [bool(each & READ_ONLY_FILE) for each in flags] == [False, True, True]


def test_a_kernel_made_ring_is_placed_and_unmapped(scene: Scene) -> None:
    scene.enter("io_setup", 8, 0)
    scene.mapped(A, 2 * PAGE, "/[aio] (deleted)", 7)
    scene.leave("io_setup", 0)
    scene.call("io_destroy", A, result=0)
    assert [text.split("(")[0] for text in scene.told()] == ["place", "munmap"]


def test_at_rest_means_nothing_entered_or_waiting(scene: Scene) -> None:
    quiet = scene.assembler.quiet_since
    assert quiet(999) is None
    scene.fault(A)
    assert quiet(ROOT) == scene.now
    assert scene.out[-1].op == "write"  # given out: a snapshot comes after it
    scene.enter("munmap", A, PAGE)
    assert quiet(ROOT) is None
    scene.leave("munmap", 0)
    assert quiet(ROOT) == scene.now
    scene.enter("vfork")
    scene.fork(200, abi.CLONE_VM)
    assert quiet(ROOT) == quiet(200) == scene.now
    scene.assembler.execing(scene.tick(), 200, 200)
    assert quiet(200) is None


@pytest.mark.parametrize("seed", range(20))
def test_threads_at_random_never_map_over_what_is_mapped(seed: int) -> None:
    """A little kernel: effects happen in one order, entries and exits in any other that is possible."""
    generator = random.Random(seed)
    scene = Scene()
    mapped: list[int] = []
    running: dict[int, tuple[str, int]] = {}  # tid -> (call, its address once it has taken effect)
    effected: set[int] = set()
    for tid in range(101, 106):
        scene.fork(tid, abi.CLONE_VM | abi.CLONE_THREAD)
    for _ in range(600):
        tid = generator.randrange(101, 106)
        if tid not in running:
            if mapped and generator.random() < 0.5:
                addr = mapped.pop(generator.randrange(len(mapped)))  # nobody else unmaps it then
                scene.enter("munmap", addr, PAGE, tid=tid)
                running[tid] = "munmap", addr
            else:
                scene.enter("mmap", 0, PAGE, 3, PRIVATE, -1, 0, tid=tid)
                running[tid] = "mmap", 0
        elif tid not in effected:
            effected.add(tid)
            name, addr = running[tid]
            if name == "mmap":
                taken = set(mapped) | {a for t, (n, a) in running.items() if a and (n == "mmap" or t not in effected)}
                addr = next(a for a in range(A, A + 100 * PAGE, PAGE) if a not in taken)
                running[tid] = name, addr
        else:
            name, addr = running.pop(tid)
            effected.discard(tid)
            scene.leave(name, addr if name == "mmap" else 0, tid=tid)
            if name == "mmap":
                mapped.append(addr)
    scene.assembler.finish()
    there: set[int] = set()
    for event in scene.out:
        if event.op == "mmap":
            assert event.result is not None
            assert event.result not in there
            there.add(event.result)
        else:
            assert event.addr in there
            there.discard(event.addr)
