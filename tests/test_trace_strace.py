# SPDX-License-Identifier: GPL-2.0-or-later
"""strace's log, line by line, and what becomes of it."""

from pathlib import Path
from time import process_time

import pytest

from vmaweld import abi
from vmaweld.events import Event
from vmaweld.snapshot import Row, Snapshot
from vmaweld.trace.recorders.assumed_writes import AssumeWrites
from vmaweld.trace.recorders.strace import StraceRecorder, mapped_by_exec
from vmaweld.trace.recorders.strace_log import file_name, number, parse, split, string
from vmaweld.trace.sampler import Sample
from vmaweld.trace.store import Metadata, TraceWriter, open_trace

A = 0x7F00_0000_0000


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", []),
        ("NULL, 8192, 0x3, 0x22, -1, 0", ["NULL", "8192", "0x3", "0x22", "-1", "0"]),
        (r"NULL, 1, 0x1, 0x2, 3</a, b/we \"ird\76>, 0", ["NULL", "1", "0x1", "0x2", r"3</a, b/we \"ird\76>", "0"]),
        (r'"/bin/a\"), b", ["x, y", "z"], 0x7f /* 3 v */', [r'"/bin/a\"), b"', '["x, y", "z"]', "0x7f /* 3 v */"]),
        ("{flags=0x3d, stack=0x1} => {parent_tid=[7]}, 88", ["{flags=0x3d, stack=0x1} => {parent_tid=[7]}", "88"]),
        ('"unfinished str', ['"unfinished str']),
        ("3</no end", ["3</no end"]),
    ],
)  # fmt: skip
def test_arguments_are_cut_where_they_end(text: str, arguments: list[str]) -> None:
    assert split(text) == arguments


def test_numbers_names_and_strings() -> None:
    texts = ("NULL", "0x22", "-1", "0x1200000|17", "3</a|b>", "0x7f /* 3 vars */", "0755", "[...]")
    assert [number(text) for text in texts] == [0, 0x22, (1 << 64) - 1, 0x1200011, 3, 0x7F, 0o755, 0]
    assert file_name(r"3</tmp/we \"ird\76na\\me>") == '/tmp/we "ird>na\\me'
    assert file_name("3") == ""
    assert file_name(r"3</tmp/\303\244>") == "/tmp/ä"
    assert string(r'"na\"me\n\0011"...') == 'na"me\n\x011'


def test_calls_whole_unfinished_and_resumed() -> None:
    lines = [
        "10 1700.000000001 brk(NULL)    = 0x5c2c000\n",
        "10 1700.000000002 madvise(0x1000, 8192, 0x4 <unfinished ...>\n",
        "11 1700.000000003 mmap(NULL, 4096, 0x3, 0x22, -1, 0) = -1 ENOMEM (Cannot allocate memory)\n",
        "11 1700.000000004 --- SIGCHLD {si_signo=17, si_code=0x1} ---\n",
        "10 1700.000000005 <... madvise resumed>) = 0\n",
        "11 1700.000000006 vfork( <unfinished ...>\n",
        "12 1700.000000007 +++ exited with 0 +++\n",
        "11 1700.000000008 <... vfork resumed>)  = 12\n",
        "11 1700.000000009 munmap(0x1000, 4096 <unfinished ...>) = ?\n",
        "11 1700.000000010 exit_group(0)       = ?\n",
        "13 1700.000000011 +++ superseded by execve in pid 14 +++\n",
        '10 1700.000000012 openat(-100</x>, "a", 0) = 5</x/a (deleted)>\n',
        "strace: something else entirely\n",
    ]
    found = [(kind, tid, name, arguments, result) for kind, _, tid, name, arguments, result in parse(lines)]
    assert found == [
        ("enter", 10, "brk", ["NULL"], None),
        ("leave", 10, "brk", ["NULL"], 0x5C2C000),
        ("enter", 10, "madvise", ["0x1000", "8192", "0x4"], None),
        ("enter", 11, "mmap", ["NULL", "4096", "0x3", "0x22", "-1", "0"], None),
        ("leave", 11, "mmap", ["NULL", "4096", "0x3", "0x22", "-1", "0"], -12),
        ("leave", 10, "madvise", ["0x1000", "8192", "0x4"], 0),
        ("enter", 11, "vfork", [], None),
        ("ended", 12, "", [], None),
        ("leave", 11, "vfork", [], 12),
        ("enter", 11, "munmap", ["0x1000", "4096 <unfinished ...>"], None),
        ("leave", 11, "munmap", ["0x1000", "4096 <unfinished ...>"], None),
        ("enter", 11, "exit_group", ["0"], None),
        ("leave", 11, "exit_group", ["0"], None),
        ("replaced", 13, "", [], 14),
        ("enter", 10, "openat", ["-100</x>", '"a"', "0"], None),
        ("leave", 10, "openat", ["-100</x>", '"a"', "0"], 5),
    ]
    assert next(iter(parse(lines)))[1] == 1700_000_000_001


def convert(
    log: str, tmp_path: Path, samples: list[Sample] | None = None, looks: dict[int, list[Snapshot | None]] | None = None
) -> tuple[list[str], Metadata]:
    (tmp_path / "strace.log").write_text(log, errors="surrogateescape")
    path = tmp_path / "a.trace"
    recorder = StraceRecorder(tmp_path)
    recorder.looks = looks or {}
    with TraceWriter(path, Metadata()) as writer:
        recorder.convert(writer, 1, samples or [], lambda *_: None)
    trace = open_trace(path)
    times = [event.time for event in trace.events()]
    assert times == sorted(times)
    return [repr(event) for event in trace.events()], trace.metadata


def test_a_log_becomes_events_children_after_their_fork(tmp_path: Path) -> None:
    log = f"""\
10 1700.000000000 execve("/bin/sh", ["sh"], 0x7f /* 3 vars */) = 0
10 1700.000001000 mmap(NULL, 8192, 0x3, 0x22, -1, 0) = {A:#x}
10 1700.000002000 clone(child_stack=NULL, flags=0x1200000|17, child_tidptr=0x7f <unfinished ...>
11 1700.000003000 munmap({A:#x}, 4096) = 0
10 1700.000004000 <... clone resumed>) = 11
10 1700.000005000 clone3({{flags=0x3d0f00, exit_signal=0}} => {{parent_tid=[12]}}, 88) = 12
12 1700.000006000 mprotect({A:#x}, 4096, 0x1 <unfinished ...>
10 1700.000007000 mmap(NULL, 4096, 0x1, 0x1, 3</tmp/d\\76b>, 0x2000) = {A + 0x4000:#x}
12 1700.000008000 <... mprotect resumed>) = 0
12 1700.000009000 +++ exited with 0 +++
11 1700.000010000 +++ killed by SIGKILL +++
10 1700.000011000 prctl(0x53564d41, 0, {A:#x}, 4096, "stack") = 0
10 1700.000012000 mbind({A:#x}, 4096, 0x2, [0x3], 64, 0) = 0
10 1700.000013000 +++ exited with 0 +++
"""
    events, metadata = convert(log, tmp_path)
    assert events == [
        "exec(pid=10, file='/bin/sh')",
        f"mmap(pid=10, length=0x2000, prot=3, flags=0x22, result={A:#x})",
        f"write(pid=10, addr={A:#x}, length=0x2000)",
        "fork(pid=10, child=11)",
        f"munmap(pid=11, addr={A:#x}, length=0x1000, result=0)",
        f"mmap(pid=10, length=0x1000, prot=1, flags=0x100000001, file='/tmp/d>b', pgoff=0x2, result={A + 0x4000:#x})",
        f"mprotect(pid=10, addr={A:#x}, length=0x1000, prot=1, result=0)",
        "exit(pid=11)",
        f"set_name(pid=10, addr={A:#x}, length=0x1000, file='stack', result=0)",
        f"mbind(pid=10, addr={A:#x}, length=0x1000, file='bind:0,1', result=0)",
        "exit(pid=10)",
    ]
    assert metadata.losses == {"execs_without_mappings": 1}
    assert metadata.duration == 13_000


def test_what_exec_maps_is_taken_from_a_look_at_the_process(tmp_path: Path) -> None:
    base = 0x5555_5555_0000
    rows = [
        Row(base, base + 0x1000, abi.VM_READ, pgoff=0, file="/bin/prog"),
        Row(base + 0x1000, base + 0x2000, abi.VM_READ | abi.VM_WRITE, pgoff=1, file="/bin/prog"),
        Row(base + 0x2000, base + 0x3000, abi.VM_READ | abi.VM_WRITE),
        Row(base + 0x9000, base + 0xA000, abi.VM_READ | abi.VM_WRITE, name="[heap]"),
        Row(A, A + 0x1000, abi.VM_READ | abi.VM_EXEC, pgoff=0, file="/lib/libc.so.6"),
        Row(A + 0x8000, A + 0x9000, abi.VM_READ | abi.VM_EXEC, pgoff=0, file="/lib64/ld-linux-x86-64.so.2"),
        Row(A + 0xA000, A + 0xC000, abi.VM_READ, name="[vvar]"),
        Row(0x7FFF_0000_0000, 0x7FFF_0002_1000, abi.VM_READ | abi.VM_WRITE, name="[stack]"),
    ]
    files = [place.file for place in mapped_by_exec(rows, 10)]
    assert files == ["/bin/prog", "/bin/prog", "", "/lib64/ld-linux-x86-64.so.2", "[vvar]", "[stack]"]
    log = (
        '10 1700.000000000 execve("/bin/prog", ["prog"], 0x7f /* 3 vars */) = 0\n10 1701.000000000 brk(NULL) = 0x1000\n'
    )
    seen = Snapshot(10, rows, source="procfs", flags_exact=False, hidden=False)
    later = Sample(1700_500_000_000, 1700_500_100_000, seen)
    events, metadata = convert(log, tmp_path, [later], {10: [seen]})
    assert [text.split("(")[0] for text in events] == [
        "exec", *["place"] * 2, "write", "place", "write", *["place"] * 3, "write", "brk",
    ]  # fmt: skip
    assert metadata.losses == {}
    assert metadata.snapshots == 1  # nothing happened around it


def test_each_exec_of_a_process_has_its_own_look(tmp_path: Path) -> None:
    def seen(program: str) -> Snapshot:
        rows = [Row(0x1000, 0x2000, abi.VM_READ, pgoff=0, file=program)]
        return Snapshot(10, rows, source="procfs", flags_exact=False, hidden=False)

    log = """\
10 1700.000000000 execve("/bin/a", ["a"], 0x7f /* 3 vars */) = 0
10 1700.000001000 execve("/bin/none", ["none"], 0x7f /* 3 vars */) = -1 ENOENT (No such file or directory)
10 1700.000002000 execve("/bin/b", ["b"], 0x7f /* 3 vars */ <unfinished ...>
10 1700.000004000 <... execve resumed>) = 0
10 1700.000005000 execve("/bin/c", ["c"], 0x7f /* 3 vars */) = 0
"""
    events, metadata = convert(log, tmp_path, looks={10: [seen("/bin/a"), None, seen("/bin/c")]})
    assert [text for text in events if "place" in text or "exec" in text] == [
        "exec(pid=10, file='/bin/a')",
        "place(pid=10, addr=0x1000, length=0x1000, flags=0x71, file='/bin/a')",
        "exec(pid=10, file='/bin/b')",
        "exec(pid=10, file='/bin/c')",
        "place(pid=10, addr=0x1000, length=0x1000, flags=0x71, file='/bin/c')",
    ]
    assert metadata.losses == {"execs_without_mappings": 1}


def test_memory_counts_as_written_as_soon_as_it_is_writable() -> None:
    out: list[Event] = []
    take = AssumeWrites(out.append)
    private, shared = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS, abi.MAP_SHARED | abi.MAP_ANONYMOUS
    for event in (
        Event("mmap", 1, length=5000, prot=3, flags=private, result=A),
        Event("mmap", 1, length=4096, prot=1, flags=private, result=A + 0x10000),
        Event("mmap", 1, length=4096, prot=3, flags=shared, result=A + 0x20000),
        Event("mmap", 1, length=4096, prot=3, flags=private, result=-12),
        Event("mprotect", 1, addr=A + 0x10000, length=4096, prot=3, result=0),
        Event("mprotect", 1, addr=A + 0x10000, length=4096, prot=1, result=0),
        Event("mremap", 1, addr=A, length=8192, new_length=16384, flags=1, result=A + 0x30000),
        Event("mremap", 1, addr=A + 0x30000, length=16384, new_length=4096, result=A + 0x30000),
        Event("brk", 1, result=0x10000),
        Event("brk", 1, addr=0x12345, result=0x12345),
        Event("brk", 1, addr=0x12400, result=0x12400),
        Event("brk", 1, addr=0x11000, result=0x11000),
        Event("fork", 1, child=2),
        Event("brk", 2, addr=0x14000, result=0x14000),
        Event("exec", 2),
        Event("brk", 2, result=0x900000),
        Event("place", 2, addr=0x400000, length=0x1000, flags=abi.VM_READ | abi.VM_WRITE),
        Event("place", 2, addr=0x500000, length=0x1000, flags=abi.VM_READ),
    ):
        take(event)
    assert [(e.pid, e.addr, e.length) for e in out if e.op == "write"] == [
        (1, A, 0x2000),
        (1, A + 0x10000, 0x1000),
        (1, A + 0x32000, 0x2000),
        (1, 0x10000, 0x3000),
        (2, 0x11000, 0x3000),
        (2, 0x400000, 0x1000),
    ]


def test_a_cut_off_log_gives_what_it_has(tmp_path: Path) -> None:
    log = f'10 1700.000000000 execve("/bin/sh", ["sh"], 0x7f) = 0\n10 1700.000001000 munmap({A:#x}, 40'
    events, _ = convert(log, tmp_path)
    assert [text.split("(")[0] for text in events] == ["exec"]
    events, metadata = convert("", tmp_path)
    assert events == []
    assert metadata.events == 0


@pytest.mark.parametrize(
    "line",
    [
        "not a line",
        "99999999999999999999 1700.000000001 brk(NULL) = 0",
        "10 " + "9" * 5000 + ".000000001 brk(NULL) = 0",
        "\u0663 1700.000000001 brk(NULL) = 0",
        "4294967295 1700.000000001 brk(NULL) = 0",
        "10 1700.000000001 mbind(0x1000, 4096, 0x2, [0xzz 0x1], 64, 0) = 0",
        "10 1700.000000001 brk(NULL) = " + "9" * 5000,
        "10 1700.000000001 ioctl(-1, 0xc020aa00, {range={start=0x1000, len=0x1000}, mode=0x1}) = -1 EBADF (Bad file)",
        '10 1700.000000001 prctl(0x53564d41, 0, 0x1000, 4096, "\\\udcff\\\udcfe") = 0',
        "10 1700.000000001 +++ superseded by execve in pid 99999999999999999999 +++",
        "10 1700.000000001 munmap() = 0",
        "10 1700.000000001 mmap(1, 2, 3) = 0",
    ],
)
def test_a_line_that_strace_does_not_write_harms_no_other(line: str, tmp_path: Path) -> None:
    whole = """\
10 1700.000000000 execve("/bin/sh", ["sh"], 0x7f /* 3 vars */) = 0
10 1700.000002000 munmap(0x1000, 4096) = 0
10 1700.000003000 +++ exited with 0 +++
"""
    first, *rest = whole.splitlines(keepends=True)
    data = "".join((first, line + "\n", *rest)).encode(errors="surrogateescape")
    events, _ = convert(data.decode(errors="surrogateescape"), tmp_path)
    assert (events[0], events[-1]) == ("exec(pid=10, file='/bin/sh')", "exit(pid=10)")
    assert "munmap(pid=10, addr=0x1000, length=0x1000, result=0)" in events
    assert convert(line + "\n", tmp_path)[0] in ([], events[1:-2])


@pytest.mark.parametrize("part", [") = 1 E1 (a) (b", ") = 1<> E1 () ()", ") = 1<", "(", "<", "field:", '"\\'])
def test_a_file_name_that_looks_like_results_takes_no_longer_than_another(part: str) -> None:
    line = f'10 1700.000000000 execve("{part * (40_000 // len(part))} x'
    begin = process_time()
    found = list(parse([line]))
    took = process_time() - begin
    assert [entry[5] for entry in found] == [None, None]
    assert took < 5  # some hundredths; with repetitions in repetitions, minutes
