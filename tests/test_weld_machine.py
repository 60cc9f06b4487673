"""The batch machine's code: its bytes are what its listing says, and they do what they should."""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

from conftest import require
from weld_support import require_own

from vmaweld.kernel import syscalls
from vmaweld.welding import local, seccomp, trampoline, way_back
from vmaweld.welding import machine_code as mc
from vmaweld.welding.program import Program


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


def test_seccomp_filters_are_worked_through() -> None:
    allow, kill, errno = 0x7FFF_0000, 0, 0x0005_0001
    forbids = _filter((0x20, 0, 0, 0), (0x15, 0, 1, syscalls.NR_USERFAULTFD), (0x06, 0, 0, errno), (0x06, 0, 0, allow))
    allows = _filter((0x06, 0, 0, allow))
    assert seccomp.forbidden([allows]) == ""
    assert seccomp.forbidden([allows, forbids]) == "userfaultfd"
    # Only mappings that are executable: looks at the third argument's lower half.
    no_exec = _filter(
        *((0x20, 0, 0, 0), (0x15, 0, 3, syscalls.NR_MMAP), (0x20, 0, 0, 32), (0x45, 0, 1, 4)),
        *((0x06, 0, 0, kill), (0x06, 0, 0, allow)),
    )
    assert seccomp.forbidden([no_exec]) == "mmap"
    assert seccomp.evaluate(_filter((0x00, 0, 0, 40), (0x14, 0, 0, 50), (0x16, 0, 0, 0)), bytes(64)) == (1 << 32) - 10
    assert seccomp.evaluate(_filter((0x00, 0, 0, 6), (0x02, 0, 0, 3), (0x61, 0, 0, 3), (0x2C, 0, 0, 0)), bytes(64)) == 0
