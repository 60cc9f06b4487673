# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots of real processes: what BPF and /proc say, against each other and against what the test did."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import require

from vmaweld import abi, mempolicy
from vmaweld.kernel import procfs, snapshots
from vmaweld.kernel.bpf import iterator
from vmaweld.kernel.bpf import program as bpf_program
from vmaweld.kernel.bpf import records as bpf_records
from vmaweld.kernel.bpf.btf import VMLINUX, Btf, BtfError
from vmaweld.kernel.errors import NoAddressSpace, NotPermitted, ProcessGone
from vmaweld.snapshot import Row, Snapshot

HOLDER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
P = 4096
def mmap(addr, n, prot=3, flags=0x22, fd=-1, off=0):
    return libc.mmap(addr, n * P, prot, flags | (0x10 if addr else 0), fd, off)
"""


class Holder:
    """A process that ran `code` after HOLDER, printed one line, and waits."""

    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER + code + "\nsys.stdout.flush()\nsys.stdin.read()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline().strip()
        self.pid = self.process.pid

    def __enter__(self) -> "Holder":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=20)


def need_bpf() -> None:
    require(*snapshots.bpf_available())


def within(snapshot: Snapshot, start: int, pages: int) -> list[Row]:
    return [row for row in snapshot.rows if row.start < start + pages * abi.PAGE_SIZE and row.end > start]


@pytest.fixture(scope="module")
def unlike() -> Iterator[Holder]:
    """Anonymous memory of every kind next to each other, from one address on (a guard page between groups)."""
    code = """
base = mmap(0, 64, 0)
a = mmap(base, 16)
ctypes.memset(a, 1, 4 * P)                       # faulted: has an anon_vma
libc.madvise(a + 4 * P, P, 10)                   # DONTFORK
libc.madvise(a + 6 * P, P, 16)                   # DONTDUMP
libc.mprotect(a + 8 * P, P, 1)
b = mmap(base + 20 * P, 2); ctypes.memset(b, 1, 2 * P)
libc.mremap(b, 2 * P, 2 * P, 3, base + 30 * P)   # moved: the page offset stays behind
s = mmap(base + 40 * P, 2, 3, 0x21)              # shared anonymous
print(hex(base), hex(base >> 12))
"""
    with Holder(code) as holder:
        yield holder


@pytest.mark.live
def test_bpf_shows_flags_offsets_and_anon_vmas(unlike: Holder) -> None:
    need_bpf()
    base = int(unlike.line.split()[0], 16)
    snapshot = snapshots.take(unlike.pid)
    assert (snapshot.source, snapshot.flags_exact, snapshot.hidden, snapshot.consistent) == ("bpf", True, True, True)
    rows = {(row.start - base) >> 12: row for row in within(snapshot, base, 64)}

    faulted = rows[0]
    assert faulted.pages == 4
    assert faulted.pgoff == base >> 12
    assert faulted.anon_vma
    assert faulted.chain == 1
    anon_vma = snapshot.anon_vmas[faulted.anon_vma]
    assert anon_vma.root == faulted.anon_vma == anon_vma.parent
    assert anon_vma.num_children == 1

    assert rows[4].flags & abi.VM_DONTCOPY
    assert rows[6].flags & abi.VM_DONTDUMP
    assert rows[8].perms() == "r--p"
    # A split clones the chain: all parts keep the anon_vma.
    assert {rows[n].anon_vma for n in (0, 4, 5, 6, 7, 8, 9)} == {faulted.anon_vma}
    assert anon_vma.num_active_vmas == 7
    moved = rows[30]
    assert moved.pgoff == (base >> 12) + 20
    assert moved.anon_vma
    assert moved.anon_vma != faulted.anon_vma
    assert rows[40].file.startswith("/dev/zero")
    assert rows[40].perms() == "rw-s"
    untouched = rows[10 if 10 in rows else 16]
    assert untouched.uffd == 0
    assert untouched.mempolicy == ""


@pytest.mark.live
def test_bpf_and_smaps_agree_on_all_that_both_show(unlike: Holder) -> None:
    need_bpf()
    exact, seen = snapshots.take(unlike.pid), procfs.read_maps(unlike.pid, flags=True)
    assert [(r.start, r.end, r.flags, r.file, r.name) for r in exact.rows] == [
        (r.start, r.end, r.flags, r.file, r.name) for r in seen.rows
    ]
    assert {r.name for r in exact.rows} >= {"[heap]", "[stack]", "[vdso]"}
    assert [r.pgoff for r in exact.rows if r.file] == [r.pgoff for r in seen.rows if r.file]


def test_procfs_hides_what_it_cannot_know(unlike: Holder) -> None:
    base = int(unlike.line.split()[0], 16)
    snapshot = procfs.read_maps(unlike.pid)
    assert (snapshot.source, snapshot.flags_exact, snapshot.hidden) == ("procfs", False, False)
    row = within(snapshot, base, 1)[0]
    assert (row.pgoff, row.anon_vma, row.chain, row.mempolicy, row.uffd) == (None, None, None, None, None)
    assert row.flags == abi.VM_READ | abi.VM_WRITE
    rows = procfs.read_maps(unlike.pid, flags=True).rows
    assert [row.name for row in rows if row.flags & abi.VM_GROWSDOWN] == ["[stack]"]


def test_names_with_newlines_and_escapes(tmp_path: Path) -> None:
    odd = tmp_path / "new\nline \\ back (deleted) and spaces  two"
    odd.write_bytes(b"x" * abi.PAGE_SIZE)
    with Holder(f"fd = os.open({str(odd)!r}, 0); print(hex(mmap(0, 1, 1, 2, fd)))") as holder:
        start = int(holder.line, 16)
        assert within(procfs.read_maps(holder.pid), start, 1)[0].file == str(odd)
        if snapshots.bpf_available()[0]:
            assert within(snapshots.take(holder.pid), start, 1)[0].file == str(odd)
        odd.unlink()
        assert within(snapshots.take(holder.pid), start, 1)[0].file == f"{odd} (deleted)"


@pytest.mark.live
def test_forked_child_has_chains_and_parents() -> None:
    need_bpf()
    code = """
a = mmap(0, 4); ctypes.memset(a, 1, 4 * P)
pid = os.fork()
if pid == 0:
    ctypes.memset(a, 2, P)
    import time; time.sleep(60)
    os._exit(0)
print(hex(a), pid)
"""
    with Holder(code) as holder:
        start, child_pid = int(holder.line.split()[0], 16), int(holder.line.split()[1])
        try:
            parent, child = snapshots.take(holder.pid), snapshots.take(child_pid)
            above, below = within(parent, start, 4)[0], within(child, start, 4)[0]
            assert below.chain == 2
            assert above.anon_vma
            assert below.anon_vma
            assert child.anon_vmas[below.anon_vma].root == child.anon_vmas[below.anon_vma].parent == above.anon_vma
            assert parent.anon_vmas[above.anon_vma].num_children == 2
        finally:
            os.kill(child_pid, signal.SIGKILL)


@pytest.mark.live
def test_sixty_thousand_vmas() -> None:
    limit = procfs.max_map_count()
    require(limit >= 61000, f"vm.max_map_count is {limit}")
    code = """
a = mmap(0, 60000)
for i in range(0, 60000, 2): libc.mprotect(a + i * P, P, 1)
print(hex(a))
"""
    with Holder(code) as holder:
        start = int(holder.line, 16)
        seen = procfs.read_maps(holder.pid)
        assert len(within(seen, start, 60000)) == 60000
        if snapshots.bpf_available()[0]:
            exact = snapshots.take(holder.pid)
            assert exact.consistent
            assert [(r.start, r.end) for r in exact.rows] == [(r.start, r.end) for r in seen.rows]
            assert [r.pgoff for r in within(exact, start, 60000)] == list(range(start >> 12, (start >> 12) + 60000))


@pytest.mark.live
def test_a_changing_process_is_never_called_consistent_wrongly() -> None:
    """A thread maps and unmaps without pause: a snapshot that claims consistency shows pairs only as they were made."""
    need_bpf()
    code = """
base = mmap(0, 4000, 0)
print(hex(base), flush=True)
while True:
    for i in range(0, 4000, 4):           # two mappings appear one after the other: i first, then i + 2
        mmap(base + i * P, 1); mmap(base + (i + 2) * P, 1)
    for i in range(0, 4000, 4):           # and go in the opposite order
        mmap(base + (i + 2) * P, 1, 0); mmap(base + i * P, 1, 0)
"""
    with Holder(code) as holder:
        base = int(holder.line, 16)
        for _round in range(20):
            snapshot = snapshots.take(holder.pid)
            if not snapshot.consistent:
                continue
            present = {(row.start - base) >> 12 for row in within(snapshot, base, 4000) if row.flags & abi.VM_WRITE}
            assert all(page - 2 in present for page in present if page % 4 == 2)
        os.kill(holder.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while procfs.status(holder.pid).state != "T" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert snapshots.take(holder.pid).consistent


def test_gone_kernel_thread_and_zombie() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        deadline = time.monotonic() + 20
        while procfs.status(child.pid).state != "Z" and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(ProcessGone, match="zombie"):
            snapshots.take(child.pid)
    with pytest.raises(ProcessGone):
        snapshots.take(child.pid)
    with pytest.raises(ProcessGone):
        procfs.read_maps(child.pid)
    kernel_threads = [pid for pid in procfs.pids() if pid == 2 and procfs.status(pid).kernel_thread]
    for pid in kernel_threads:
        with pytest.raises(NoAddressSpace, match="kernel thread"):
            snapshots.take(pid)


@pytest.mark.live
def test_unprivileged_reads_its_own_only() -> None:
    """As nobody: BPF says why not, own maps work, another user's are refused."""
    require(os.geteuid() == 0, "needs root to become another user")
    code = """
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
from vmaweld.kernel import snapshots
from vmaweld.kernel.errors import NotPermitted
works, reason = snapshots.bpf_available()
assert not works and ("CAP_BPF" in reason or "5.12" in reason), reason
try:
    snapshots.take(int(sys.argv[1]))
except NotPermitted as error:
    print("refused:", error)
import ctypes; ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)   # setuid made us undumpable
snapshot = snapshots.take(os.getpid())
assert snapshot.source == "procfs" and len(snapshot.rows) > 10
assert any(row.flags & 0x100 for row in snapshot.rows)  # smaps: the stack grows down
assert os.getpid() in {s.pid for s in snapshots.take_all(refused=lambda pid, error: None)}
"""
    # The interpreter and the package must be readable for everyone; where they are not, the import fails before.
    path = os.pathsep.join(p for p in sys.path if p)
    run = subprocess.run(
        [sys.executable, "-c", "import sys; sys.dont_write_bytecode = True\n" + PRELOAD + code, str(os.getpid())],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert run.returncode == 0, run.stderr
    assert "refused: not permitted" in run.stdout


PRELOAD = "import vmaweld.kernel.snapshots, vmaweld.kernel.bpf.iterator, encodings.idna, ctypes\n"


@pytest.mark.live
def test_all_processes() -> None:
    need_bpf()
    taken = {snapshot.pid: snapshot for snapshot in snapshots.take_all()}
    assert os.getpid() in taken
    assert all(snapshot.rows for snapshot in taken.values())
    assert 2 not in taken


@pytest.mark.live
def test_own_snapshot_while_another_thread_waits() -> None:
    need_bpf()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        rows = snapshots.take(os.getpid()).rows
        assert len({row.start for row in rows}) == len(rows)
    finally:
        stop.set()
        thread.join()


@pytest.mark.live
def test_range_of_addresses_only(unlike: Holder) -> None:
    need_bpf()
    base = int(unlike.line.split()[0], 16)
    low, high = base + 4 * abi.PAGE_SIZE, base + 9 * abi.PAGE_SIZE
    with iterator.IteratorProgram(low, high) as program, program.watch(unlike.pid) as watch:
        records, consistent = watch.read_consistent()
        rows = bpf_records.parse(unlike.pid, records, consistent).rows
    assert [(row.start - base) >> 12 for row in rows] == [4, 5, 6, 7, 8]


@pytest.mark.live
def test_a_program_that_passes_over_other_processes(unlike: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until 6.0 the iterator walks them all. Here it is told which, and the program looks too."""
    need_bpf()
    mine, theirs = os.getpid(), unlike.pid
    wanted = len(snapshots.take(theirs).rows)
    monkeypatch.setattr(bpf_program, "takes_one_task", lambda btf: False)
    require(os.readlink("/proc/self/ns/pid") == "pid:[4026531836]", "not in the machine's own pid namespace")

    def rows(program_for: int, walked: int) -> int:
        with iterator.IteratorProgram(pid=program_for) as program, iterator.Watch(program, walked) as watch:
            return len(bpf_records.parse(walked, watch.read(), True).rows)

    assert rows(theirs, theirs) == wanted
    assert rows(mine, theirs) == 0
    assert rows(bpf_program.READER, mine) > 10
    assert rows(bpf_program.READER, theirs) == 0
    with iterator.IteratorProgram() as program, program.watch(theirs) as watch:
        assert len(bpf_records.parse(theirs, watch.read(), True).rows) == wanted


def test_a_refused_program_says_what_the_verifier_said(monkeypatch: pytest.MonkeyPatch) -> None:
    need_bpf()
    monkeypatch.setattr(bpf_program, "assemble", lambda *_arguments: bytes([0x95, 0, 0, 0, 0, 0, 0, 0]))
    with pytest.raises(Exception, match="R0 !read_ok"):
        iterator.IteratorProgram()


class _Named(Btf):
    """A kernel with CONFIG_ANON_VMA_NAME, as far as offsets go: some other pointer stands in for the name's."""

    def offset(self, struct_name: str, path: str) -> int | None:
        if (struct_name, path) == ("vm_area_struct", "anon_name"):
            return super().offset("vm_area_struct", "vm_mm")
        if (struct_name, path) == ("anon_vma_name", "name"):
            return 4
        return super().offset(struct_name, path)


@pytest.mark.live
def test_the_verifier_takes_the_program_of_a_kernel_with_anonymous_names() -> None:
    need_bpf()
    with iterator.IteratorProgram(btf=_Named(VMLINUX.read_bytes())) as program, program.watch(os.getpid()) as watch:
        rows = bpf_records.parse(os.getpid(), watch.read()).rows
    assert {row.name for row in rows} >= {"[heap]", "[stack]", "[vdso]"}


def test_names_in_records_belong_to_the_row_before() -> None:
    def record(*words: int) -> bytes:
        return bpf_program.RECORD.pack(*words, *(0,) * (bpf_program.WORDS - len(words)))

    def named(name: bytes) -> bytes:
        return bpf_program.NAME_TAG.to_bytes(8, "little") + name.ljust(bpf_program.NAME_BYTES, b"\0")

    kind = bpf_program.KIND_NAMED << 8
    records = (
        record(0x1000, 0x2000, 3, 1, 0, kind)
        + named(b"buffer pool")
        + record(0x2000, 0x3000, 3, 2)
        + record(0x3000, 0x4000, 0x8B, 0, 0, kind, 99, 7, 1)
        + named(b"ring")
        + record(0x5000, 0x6000, 0x44, 0, 0, bpf_program.KIND_SPECIAL << 8)
        + named(b"[vdso]")
    )
    rows = bpf_records.parse(1, records, file_name=lambda *_row: "/memfd:x").rows
    assert [row.name for row in rows] == ["[anon:buffer pool]", "", "[anon_shmem:ring]", "[vdso]"]


def test_btf_that_is_no_btf() -> None:
    with pytest.raises(BtfError):
        Btf(b"")
    with pytest.raises(BtfError):
        Btf(b"\0" * 64)


def test_policy_as_numa_maps_writes_it() -> None:
    assert mempolicy.policy_text(2, mempolicy.node_list(0b1)) == "bind:0"
    assert mempolicy.policy_text(3 | 1 << 15, mempolicy.node_list(0b1011)) == "interleave=static:0-1,3"
    assert mempolicy.policy_text(4) == "local"


def test_status_and_limits_of_this_process() -> None:
    me = procfs.status(os.getpid())
    assert (me.pid, me.ppid, me.uid, me.kernel_thread) == (os.getpid(), os.getppid(), os.getuid(), False)
    limits = procfs.limits(os.getpid())
    assert set(limits) >= {"Max locked memory", "Max open files"}
    assert limits["Max open files"][0]
    ctypes.pythonapi.Py_IsInitialized()  # the interpreter is one of the rows below
    assert any("python" in row.file for row in procfs.read_maps(os.getpid()).rows)


def test_refusal_is_not_silence() -> None:
    with pytest.raises((NotPermitted, ProcessGone)):
        procfs.read_file(2**22 + 1, "maps")


def test_the_descriptors_of_a_process_that_has_ended() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(ProcessGone):
        procfs.descriptors(child.pid)
    assert "0" in procfs.descriptors(os.getpid())
