# SPDX-License-Identifier: GPL-2.0-or-later
"""Real commands recorded on the running kernel, held against true snapshots and against what they must have done."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
from conftest import require

from vmaweld import abi
from vmaweld.events import READ_ONLY_FILE, Event
from vmaweld.trace.launch import Launch
from vmaweld.trace.recorders import perf, strace
from vmaweld.trace.recorders.perf_data import PerfData, PerfDataError
from vmaweld.trace.recording import CommandError, Recording, record
from vmaweld.trace.store import Metadata, TakenSnapshot, Trace, TraceWriter, open_trace

pytestmark = pytest.mark.live
PYTHON = os.path.realpath(sys.executable)
NEEDS_PERF = perf.PerfRecorder.available()
NEEDS_STRACE = strace.StraceRecorder.available()


def with_perf(tmp_path: Path, *command: str) -> tuple[Recording, Trace]:
    require(*NEEDS_PERF)
    recording = record(command, tmp_path / "a.trace", recorder="perf")
    assert recording.metadata.recorder == "perf"
    return recording, open_trace(recording.path)


def built(tmp_path: Path, source: str, *options: str) -> str:
    compiler = shutil.which("gcc")
    require(compiler is not None, "gcc is not installed: apt install gcc")
    assert compiler is not None
    path = tmp_path / "prog.c"
    path.write_text(textwrap.dedent(source))
    subprocess.run([compiler, "-O1", *options, "-o", tmp_path / "prog", path], check=True, timeout=60)
    return str(tmp_path / "prog")


def test_exec_is_placed_as_the_kernel_has_it(tmp_path: Path) -> None:
    recording, trace = with_perf(tmp_path, "/bin/true")
    assert recording.exit_status == 0
    assert recording.metadata.losses == {}
    placed: dict[int, Event] = {}
    for item in trace.items():
        if isinstance(item, TakenSnapshot):
            break
        if item.op == "place":
            placed[item.addr] = item
    else:
        pytest.fail("no true snapshot was taken")
    snapshot = item.snapshot
    require(snapshot.hidden, "exact snapshots need BPF")
    assert [(p.addr, p.addr + p.length, p.flags, p.pgoff) for p in placed.values()] == [
        (row.start, row.end, row.flags & ~abi.VM_SOFTDIRTY, row.pgoff) for row in snapshot.rows
    ]
    assert [event.op for event in trace.events()][-1] == "exit"


def test_a_program_that_does_everything_once(tmp_path: Path) -> None:
    program = built(
        tmp_path,
        """
        #define _GNU_SOURCE
        #include <fcntl.h>
        #include <pthread.h>
        #include <sys/mman.h>
        #include <sys/syscall.h>
        #include <sys/wait.h>
        #include <unistd.h>
        static void *run(void *m) { ((volatile char *)m)[4096] = 1; return 0; }
        int main(void)
        {
            char *m = mmap(0, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            volatile char *v = m;
            pthread_t thread;
            (void)v[0];
            v[0] = 1;
            pthread_create(&thread, 0, run, m);
            pthread_join(thread, 0);
            read(open("/dev/zero", O_RDONLY), m + 2 * 4096, 10);   /* a fault in kernel mode */
            mprotect(m + 4096, 4096, PROT_READ);
            madvise(m, 4096, MADV_DONTFORK);
            mlock(m, 4096);
            m = mremap(m + 3 * 4096, 4096, 8 * 4096, MREMAP_MAYMOVE);
            mmap(0, 4096, PROT_READ, MAP_SHARED, open("/proc/self/exe", O_RDONLY), 0);
            munmap((void *)1, 4096);                               /* EINVAL */
            if (fork() == 0) { v[0]; _exit(v[4 * 4096 - 1 - 4096] + 3); }
            int status;
            wait(&status);
            if (vfork() == 0) { execl("/bin/true", "true", (char *)0); _exit(1); }
            wait(&status);
            munmap(m, 8 * 4096);
            return 0;
        }
        """,
        "-pthread",
    )
    recording, trace = with_perf(tmp_path, program)
    assert recording.metadata.losses == {}
    events = list(trace.events())
    start = next(i for i, e in enumerate(events) if e.op == "mmap" and e.length == 4 * 4096 and e.flags == 0x22)
    base = events[start].result
    assert base is not None
    mine = events[start + 1 :]
    touched = {
        (e.op, page - base)
        for e in mine
        if e.op in ("read", "write")
        for page in range(e.addr, e.addr + e.length, 4096)
    }
    assert ("read", 0) in touched  # the zero page, then
    assert ("write", 0) in touched
    assert ("write", 4096) in touched  # by the thread
    assert ("write", 2 * 4096) in touched  # by the kernel for read(2)
    root = events[start].pid
    by_op = {op: [e for e in mine if e.op == op and e.pid == root] for op in {e.op for e in mine}}
    assert [e.addr for e in by_op["mprotect"] if e.prot == 1 and e.addr == base + 4096] == [base + 4096]
    assert any(e.flags == abi.MADV_DONTFORK and e.addr == base for e in by_op["madvise"])
    assert any(e.addr == base for e in by_op["mlock"])
    (moved,) = (e for e in by_op["mremap"] if e.addr == base + 3 * 4096)
    assert moved.new_length == 8 * 4096
    shared = [e for e in by_op["mmap"] if e.flags & abi.MAP_TYPE == abi.MAP_SHARED]
    # Opened a second time, after exec had: another open file.
    assert [(e.file, bool(e.flags & READ_ONLY_FILE)) for e in shared] == [(os.path.realpath(program) + "#2", True)]
    assert any(e.addr == 1 and e.result == -22 for e in by_op["munmap"])
    forks = by_op["fork"]
    assert [bool(e.flags & abi.CLONE_VM) for e in forks] == [False, True]
    child = forks[1].child
    assert [e.file for e in mine if e.op == "exec"] == ["/bin/true"]
    assert [e.pid for e in mine if e.op == "exec"] == [child]
    ends = [e.pid for e in mine if e.op == "exit"]
    assert ends == [forks[0].child, child, root]
    order = [e.time for e in events]
    assert order == sorted(order)


def test_many_threads_mapping_at_once_leave_an_order_that_can_be(tmp_path: Path) -> None:
    program = built(
        tmp_path,
        """
        #define _GNU_SOURCE
        #include <pthread.h>
        #include <stdlib.h>
        #include <sys/mman.h>
        static void *run(void *number)
        {
            unsigned seed = (unsigned)(long)number;
            for (int i = 0; i < 1500; i++) {
                size_t size = 4096 * (1 + rand_r(&seed) % 64);
                char *m = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                for (size_t at = 0; at < size; at += 8192) m[at] = 1;
                if (i % 3 == 0) {
                    char *n = mremap(m, size, size + 65536, MREMAP_MAYMOVE);
                    m = n; size += 65536;
                }
                munmap(m, size);
            }
            return 0;
        }
        int main(void)
        {
            pthread_t threads[6];
            for (long i = 0; i < 6; i++) pthread_create(&threads[i], 0, run, (void *)i);
            for (int i = 0; i < 6; i++) pthread_join(threads[i], 0);
            return 0;
        }
        """,
        "-pthread",
    )
    recording, trace = with_perf(tmp_path, program)
    assert recording.metadata.losses == {}
    pages: set[int] = set()
    counts: Counter[str] = Counter()

    def span(start: int, length: int) -> range:
        return range(start >> 12, (start + length + 4095) >> 12)

    for event in trace.events():
        counts[event.op] += 1
        result = event.result
        if event.op == "place":
            pages.update(span(event.addr, event.length))
        if result is None or result < 0:
            continue
        if event.op == "mmap":
            new = span(result, event.length)
            if not event.flags & abi.MAP_FIXED:
                assert pages.isdisjoint(new), f"{event} lies on what is mapped"
            pages.update(new)
        elif event.op == "munmap":
            old = span(event.addr, event.length)
            assert pages.issuperset(old), f"{event} unmaps what is not mapped"
            pages.difference_update(old)
        elif event.op == "mremap":
            pages.difference_update(span(event.addr, event.length))
            new = span(result, event.new_length)
            assert pages.isdisjoint(new), f"{event} moves onto what is mapped"
            pages.update(new)
    assert counts["mmap"] >= 9000
    assert counts["mremap"] == 3000


def test_many_processes_each_with_its_fork_and_exit(tmp_path: Path) -> None:
    script = "for i in $(seq 60); do /bin/true; (exit 3); done; seq 5 | cat >/dev/null; exit 9"
    recording, trace = with_perf(tmp_path, "/bin/sh", "-c", script)
    assert recording.exit_status == 9
    assert recording.metadata.losses == {}
    known: set[int] = set()
    ended: set[int] = set()
    for event in trace.events():
        if not known:
            assert event.op == "exec"
            known.add(event.pid)
        assert event.pid in known - ended
        if event.op == "fork":
            known.add(event.child)
        elif event.op == "exit":
            ended.add(event.pid)
    assert known == ended
    assert len(known) >= 120


def test_snapshots_lie_where_nothing_happens(tmp_path: Path) -> None:
    code = "import time, os\nfor i in range(4): b = bytearray(1 << 20); time.sleep(0.1)\nos._exit(0)"
    recording, trace = with_perf(tmp_path, PYTHON, "-I", "-c", code)
    assert recording.metadata.snapshots >= 3
    positions = [taken.position for taken in trace.snapshots()]
    assert positions == sorted(positions)
    assert positions[-1] == len(trace) - 1  # all but the exit has happened
    before_the_first = {event.op for event, _ in zip(trace.events(), range(positions[0]), strict=False)}
    assert before_the_first <= {"exec", "place", "write"}  # what exec itself does, the arguments on the stack included
    rows = [len(taken.snapshot.rows) for taken in trace.snapshots()]
    assert rows[-1] > rows[0]


def test_without_snapshots_there_are_none(tmp_path: Path) -> None:
    require(*NEEDS_PERF)
    recording = record(["/bin/true"], tmp_path / "a.trace", recorder="perf", snapshots=False)
    assert recording.metadata.snapshots == 0
    assert recording.metadata.events > 20


def test_strace_sees_the_same_calls_as_perf(tmp_path: Path) -> None:
    require(*NEEDS_PERF)
    require(*NEEDS_STRACE)
    script = "import os, mmap\nm = mmap.mmap(-1, 1 << 16)\nos.system('true')\nos._exit(0 if os.fork() else 4)"
    calls: list[Counter[tuple[str, int, int, int]]] = []
    for recorder in ("perf", "strace"):
        recording = record([PYTHON, "-I", "-c", script], tmp_path / f"{recorder}.trace", recorder=recorder)
        assert recording.metadata.recorder == recorder
        assert recording.metadata.faults == ("seen" if recorder == "perf" else "assumed")
        events = open_trace(recording.path).events()
        calls.append(
            Counter((e.op, e.length, e.prot, e.flags) for e in events if e.op not in ("read", "write", "place", "brk"))
        )
    only_perf, only_strace = calls[0] - calls[1], calls[1] - calls[0]
    # Address randomization lets the allocator and the loader do a little more or less from run to run.
    assert sum(only_perf.values()) + sum(only_strace.values()) <= 6, (only_perf, only_strace)


def test_strace_misses_no_program_however_short_its_life_and_loaded_the_machine(tmp_path: Path) -> None:
    require(*NEEDS_STRACE)
    load = [
        subprocess.Popen(["nice", "-n", "5", "sh", "-c", "while :; do :; done"], stdin=subprocess.DEVNULL)
        for _ in range(2 * (os.cpu_count() or 1))
    ]
    try:
        loop = "i=0; while [ $i -lt 50 ]; do /bin/true; i=$((i+1)); done"
        recording = record(["sh", "-c", loop], tmp_path / "a.trace", recorder="strace", snapshots=False)
    finally:
        for each in load:
            each.kill()
            each.wait(20)
    assert recording.metadata.losses == {}
    events = list(open_trace(recording.path).events())
    true = {event.pid for event in events if event.op == "exec" and event.file == "/bin/true"}
    assert len(true) == 50
    placed = {(event.pid, event.file) for event in events if event.op == "place"}
    for pid in true:
        assert (pid, os.path.realpath("/bin/true")) in placed
        assert (pid, "[stack]") in placed


def test_who_is_recorded_with_strace_goes_on_in_peace_when_the_recorder_is_killed(tmp_path: Path) -> None:
    require(*NEEDS_STRACE)
    (tmp_path / "go").touch()
    script = (
        "echo begun; while [ -e go ]; do /bin/true || echo failed; done; for i in 1 2 3; do /bin/true; done; echo done"
    )
    command = [
        sys.executable,
        "-m",
        "vmaweld",
        "record",
        "--recorder",
        "strace",
        "-o",
        "a.trace",
        "--",
        "sh",
        "-c",
        script,
    ]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == "begun\n"
        running.kill()
        running.wait(20)
        (tmp_path / "go").unlink()
        assert running.stdout.read() == "done\n"  # to its end: strace and the heir of its log are gone by then
        assert running.stderr.read() == ""


def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    for name in ("no-such-command-here", str(tmp_path / "nothing")):
        with pytest.raises(CommandError, match="command not found"):
            record([name], tmp_path / "a.trace")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(CommandError, match="not executable"):
        record([str(tmp_path / "text")], tmp_path / "a.trace")
    require(*NEEDS_PERF)
    (tmp_path / "text").chmod(0o755)
    (tmp_path / "text").write_text("#!/nowhere/interpreter\n")
    with pytest.raises(CommandError, match="No such file"):
        record([str(tmp_path / "text")], tmp_path / "a.trace", recorder="perf")
    assert not (tmp_path / "a.trace").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["text"]


def test_what_perf_loses_is_counted(tmp_path: Path) -> None:
    require(*NEEDS_PERF)
    recorder = perf.PerfRecorder(tmp_path, buffer=16 << 10)
    code = "import mmap\nfor _ in range(3000): mmap.mmap(-1, 8192).close()"
    with Launch([PYTHON, "-I", "-S", "-c", code]) as launch:
        recorder.attach(launch.pid)
        assert recorder.process is not None
        recorder.process.send_signal(signal.SIGSTOP)  # nobody empties the buffer
        launch.release()
        launch.wait(lambda _: None)
        recorder.process.send_signal(signal.SIGCONT)
    recorder.stop()
    metadata = Metadata()
    with TraceWriter(tmp_path / "a.trace", metadata) as writer:
        recorder.convert(writer, launch.pid, [], lambda *_: None)
    read = open_trace(tmp_path / "a.trace").metadata
    assert read.losses["perf_records"] > 1000
    assert read.lost >= read.losses["perf_records"]


def test_perf_data_that_is_cut_short_or_foreign(tmp_path: Path) -> None:
    require(*NEEDS_PERF)
    path = tmp_path / "perf.data"
    recorder = perf.PerfRecorder(tmp_path)
    with Launch(["/bin/true"]) as launch:
        recorder.attach(launch.pid)
        launch.release()
        assert launch.wait(lambda _: None) == 0
    recorder.stop()
    whole = PerfData(path)
    times = [record[0] for record in whole.records()]
    assert times == sorted(times)
    assert len(times) > 20
    assert not whole.truncated
    data = path.read_bytes()
    start = int.from_bytes(data[40:48], "little")
    path.write_bytes(data[:48] + bytes(8) + data[56 : start + whole.size - 5003])  # as perf leaves it when it is killed
    cut = PerfData(path)
    assert 0 < len(list(cut.records())) < len(times)
    assert cut.truncated
    for content in (b"", b"PERFILE2", bytes(200)):
        path.write_bytes(content)
        with pytest.raises(PerfDataError) as caught:
            PerfData(path)
        assert "\n" not in str(caught.value)
