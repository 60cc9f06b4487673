# SPDX-License-Identifier: GPL-2.0-or-later
"""The batch machine's code: its bytes are what its listing says, and they do what they should."""

import ast
import ctypes
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import require
from weld_support import TIMEOUT, require_own

from vmaweld.kernel import x86_64
from vmaweld.welding import local, seccomp, trampoline, way_back
from vmaweld.welding import machine_code as mc
from vmaweld.welding.program import A_GROUP, Group, Program


def _assemble(listing: str, offsets: dict[str, int], symbols: str, folder: Path) -> bytes:
    """The bytes of the instructions of `listing`; names in capitals inside brackets are `offsets`."""
    require(shutil.which("as") is not None and shutil.which("objcopy") is not None, "binutils are needed")

    def with_offsets(operand: re.Match[str]) -> str:
        return re.sub(r"\b[A-Z]\w*", lambda name: str(offsets.get(name[0], name[0])), operand[0])

    lines = [".intel_syntax noprefix", symbols]
    for line in listing.splitlines():
        text = line.partition("#")[0].strip()
        if text and not text.endswith(":"):
            text = text.split(None, 1)[1]
        lines.append(re.sub(r"\[.*\]", with_offsets, text))
    source, assembled, raw = folder / "a.s", folder / "a.o", folder / "a.bin"
    source.write_text("\n".join(lines) + "\n")
    subprocess.run(["as", "-o", str(assembled), str(source)], check=True, timeout=30)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", str(assembled), str(raw)], check=True, timeout=30)
    return raw.read_bytes()


def test_the_bytes_are_those_of_the_listings(tmp_path: Path) -> None:
    back = _assemble(way_back.LISTING, way_back.SAVED, "", tmp_path)
    assert back == way_back.CODE
    where = f".set way_back, call_entry + {mc.CODE_SIZE - len(back)}"
    machine = _assemble(mc.LISTING, mc.HEADER, where, tmp_path)
    assert machine.ljust(mc.SAVED_AT - len(back), b"\x90") + back == mc.CODE
    assert mc.SAVED_AT % 8 == len(trampoline.CODE) % 8 == 0
    assert max(way_back.SAVED.values()) + 4 == way_back.SAVED_SIZE


def test_code_and_entries_fit() -> None:
    assert len(mc.CODE) == mc.CODE_SIZE
    assert len(mc.MACHINE) + len(way_back.CODE) < mc.CODE_SIZE // 2  # the proof is written there
    assert mc.ENTRY_SIZE == mc.WORDS * 8
    assert max(mc.HEADER.values()) + 8 <= mc.HEADER_SIZE
    assert len(mc.header(0)) == mc.HEADER["OWNER"]


def _run(build) -> tuple[Program, list[int]]:  # type: ignore[no-untyped-def]
    """Run what `build` adds to an empty program; the answers of all entries."""
    require_own()
    seen: list[int] = []
    work = Program()
    build(work)
    work.finish()
    outcomes = work.outcomes
    work.outcomes = lambda entries: (seen.append(entries), outcomes(entries))[1]  # type: ignore[method-assign,func-returns-value,arg-type]
    assert local.run(work)[0] == ("", 0)
    words = memoryview(seen[0]).cast("q")  # type: ignore[arg-type]
    return work, [words[at * mc.WORDS + mc.RESULT] for at in range(len(work.steps))]


def test_a_call_answers_and_arguments_add_up() -> None:
    cell = (ctypes.c_int64 * 4)(0, 1000, 0, 0)
    at = ctypes.addressof(cell)

    def build(work: Program) -> None:
        work.add("", mc.SET, 0, (70, 30))
        work.add("", mc.STORE, at, (5,), modes=(mc.PLUS_V | mc.MINUS_W,))
        work.add("", mc.STORE, at + 16, (at + 8,), modes=(mc.LOAD | mc.PLUS_W,))
        work.add("", mc.STORE, at + 24, (5,), modes=(mc.MINUS_V | mc.PLUS_W,))
        work.call("getpid", 39, ())

    work, answers = _run(build)
    assert list(cell) == [45, 1000, 1030, -35]
    assert answers[work.steps.index("getpid")] == os.getpid()


def test_failures_and_equality_jump() -> None:
    cell = (ctypes.c_int64 * 3)()
    at = ctypes.addressof(cell)

    def build(work: Program) -> None:
        past = work._at(len(work.steps) + 2)
        work.call("bad", 1 << 20, (), past)
        work.add("", mc.STORE, at, (1,))  # jumped over
        work.call("bad", 1 << 20, ())  # with no place to go to: the next
        work.add("", mc.STORE, at + 8, (2,))
        work.add("", mc.SET, 0, (7, 7))
        past = work._at(len(work.steps) + 2)
        work.add("", mc.EQUAL, 0, (0, 0), past, modes=(mc.PLUS_V, mc.PLUS_W))
        work.add("", mc.STORE, at, (3,))  # jumped over
        past = work._at(len(work.steps) + 2)
        work.add("", mc.EQUAL, 0, (0, 1), past, modes=(mc.PLUS_V, mc.PLUS_W))
        work.add("", mc.STORE, at + 16, (4,))

    work, answers = _run(build)
    assert list(cell) == [0, 2, 4]
    assert answers[work.steps.index("bad")] == -38


def _filter(*instructions: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
    return list(instructions)


@pytest.mark.parametrize("prot", [1, 3, 5])
@pytest.mark.parametrize("locked", [-1, 0, 1])
@pytest.mark.parametrize("hole", [(0, 0), (0, 4096)])
def test_a_group_takes_no_more_entries_than_are_reckoned_with(prot: int, locked: int, hole: tuple[int, int]) -> None:
    work = Program()
    before = len(work.steps)
    hole = hole[0] + 4096 * bool(hole[1]), hole[1]
    work.weld(Group(4096, [(8192, 12288)], 1 << 30, prot, locked, [(8192, 12288)], hole))
    work.finish()
    assert len(work.steps) <= A_GROUP + 1 + 1 + before


def _forbidden(*filters: list[tuple[int, int, int, int]]) -> str:
    return seccomp.Filters([b"".join(struct.pack("<HBBI", *one) for one in code) for code in filters]).forbids_weld()


def test_seccomp_filters_are_worked_through() -> None:
    allow, kill, errno = 0x7FFF_0000, 0, 0x0005_0001
    forbids = _filter((0x20, 0, 0, 0), (0x15, 0, 1, x86_64.NR_USERFAULTFD), (0x06, 0, 0, errno), (0x06, 0, 0, allow))
    allows = _filter((0x06, 0, 0, allow))
    assert _forbidden(allows) == ""
    assert _forbidden(allows, forbids) == "userfaultfd"
    # Only mappings that are executable: looks at the third argument's lower half.
    no_exec = _filter(
        *((0x20, 0, 0, 0), (0x15, 0, 3, x86_64.NR_MMAP), (0x20, 0, 0, 32), (0x45, 0, 1, 4)),
        *((0x06, 0, 0, kill), (0x06, 0, 0, allow)),
    )
    assert _forbidden(no_exec) == "mmap"
    assert seccomp.evaluate(_filter((0x00, 0, 0, 40), (0x14, 0, 0, 50), (0x16, 0, 0, 0)), bytes(64)) == (1 << 32) - 10
    assert seccomp.evaluate(_filter((0x00, 0, 0, 6), (0x02, 0, 0, 3), (0x61, 0, 0, 3), (0x2C, 0, 0, 0)), bytes(64)) == 0


@pytest.mark.parametrize("action", [0x8000, 0, 0x0003, 0x0005, 0x7FC0, 0x7FF0, 0x7FFC, 0x7FFF, 0x1234])
def test_only_what_a_filter_allows_passes(action: int) -> None:
    """Kill, trap, errno, a notified supervisor, a tracer, what no kernel knows yet: none of it passes."""
    passes = action in (0x7FFC, 0x7FFF)  # SECCOMP_RET_LOG, SECCOMP_RET_ALLOW
    assert _forbidden(_filter((0x06, 0, 0, action << 16))) == ("" if passes else "memfd_create")


EVERY_WAY = """
from tests.weld_random import Failing
from tests.weld_target import fragments
from vmaweld import abi
from vmaweld.kernel import syscalls
from vmaweld.welding import local
from vmaweld.welding.program import Group

class Fails(Failing):
    which = 0
    twice = False

    def finish(self):
        super().finish()
        if self.twice:  # the second try of a call fails too
            for at, step in enumerate(self.steps):
                if step == self.failed_step:
                    self.fail(at)

spare, size = 1 << 36, 4 * abi.PAGE_SIZE
for Fails.twice in (False, True):
    for Fails.which in range(40):
        at = fragments(4, 4)
        syscalls.mprotect(at, 4 * size, abi.PROT_READ)
        work, spare = Fails(), spare + (1 << 24)  # what a way back that fails leaves half done stays there
        work.weld(Group(at, [(at + size, at + 2 * size), (at + 2 * size, at + 4 * size)], spare, abi.PROT_READ, 0,
            [(at + size, at + 2 * size)], (0, 0)))
        work.finish()
        told = {(number, *(value & (1 << 64) - 1 for value in given)) for number, given in work.calls()}
        syscalls.raw(121, 1 << 40)
        local.run(work)
        syscalls.raw(121, 2 << 40)
        print(told)
"""


def test_the_calls_told_are_those_made(tmp_path: Path) -> None:
    """strace sees what programs do whose calls fail one after the other: they make no call that was not told."""
    require_own()
    require(shutil.which("strace") is not None, "strace is needed")
    trace = tmp_path / "trace"
    command = ["strace", "-qq", "-o", str(trace), "-e", "raw=all", sys.executable, "-c", EVERY_WAY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr
    told = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    runs = re.findall(
        r"^getpgid\(0x10000000000\).*?(^userfaultfd.*?)^getpgid\(0x20000000000\)", trace.read_text(), re.M | re.S
    )
    numbers = {name: number for number, name in seccomp.NAMES.items()}
    names = set()
    for given, run in zip(told, runs, strict=True):
        for name, words in re.findall(r"^(\w+)\((.*?)\) += ", run[: run.rindex("\nclose(")], re.M):
            call = [int(word, 16) for word in words.split(", ") if word]
            if name == "close" or name.startswith("syscall_"):
                continue  # any descriptor; a call made to fail
            if name == "ioctl":
                call = [3, call[1]]
            assert any(one[: len(call) + 1] == (numbers[name], *call) for one in given), (name, words)
            names.add(name)
    assert len(runs) == 80
    assert names == {"userfaultfd", "ioctl", "mmap", "munmap", "mprotect", "madvise", "mremap", "munlock", "mlock2"}


def test_the_machines_own_calls_are_told() -> None:
    """A number loaded right before `syscall`, wherever it stands in the listing."""
    numbers = re.findall(r"mov eax, (\d+)(?:(?!mov eax)[^~])*?\bsyscall", mc.LISTING)
    assert {int(number) for number in numbers} - {16} <= {number for number, _ in seccomp.OUTSIDE}
    assert len(numbers) >= 5
