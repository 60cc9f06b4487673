# SPDX-License-Identifier: GPL-2.0-or-later
"""Live processes to inspect, the command line run as a user would, and an independent reading of a BPF snapshot."""

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TARGET = Path(__file__).with_name("inspect_target.py")
NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
TIMEOUT = 60


class Started:
    """A process of ours: killed, by its own pid (its group's, with `group`), at the end."""

    def __init__(self, command: list[str], *, group: bool = False, **options: Any) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=group, **options
        )
        self.pid = self.process.pid
        self._group = group

    def line(self) -> str:
        """The next line it prints."""
        assert self.process.stdout is not None
        line: bytes = self.process.stdout.readline()
        return line.decode(errors="replace").strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in (signal.SIGCONT, signal.SIGKILL):
            try:
                if self._group:
                    os.killpg(self.pid, number)
                else:
                    os.kill(self.pid, number)
            except ProcessLookupError:
                pass
        self.process.communicate(timeout=TIMEOUT)


class Target(Started):
    """tests/inspect_target.py showing `scene`; `seams` are the addresses of the open seams it made."""

    def __init__(self, scene: str, *arguments: str, nobody: bool = False) -> None:
        before = AS_NOBODY if nobody else ()
        super().__init__([*before, sys.executable, str(TARGET), scene, *arguments], group=True)
        self.seams = [int(word, 16) for word in self.line().split()]


def vmaweld(*arguments: str | int | Path, nobody: bool = False) -> subprocess.CompletedProcess[str]:
    """`vmaweld ...` in a process of its own, as nobody where asked."""
    before = AS_NOBODY if nobody else ()
    command = [*before, str(Path(sys.executable).with_name("vmaweld")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def inspect_json(pid: int, *, nobody: bool = False) -> dict[str, Any]:
    """What `vmaweld inspect PID --json` says."""
    done = vmaweld("inspect", pid, "--json", nobody=nobody)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert isinstance(data, dict)
    return data


def wait_until(true: Callable[[], bool], seconds: float = 30) -> bool:
    """Ask until it is so, or the time is up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return true()


def family(pid: int) -> list[int]:
    """`pid` and all that descend from it."""
    found = [pid]
    for parent in found:
        ended = contextlib.suppress(FileNotFoundError, ProcessLookupError)
        with ended:
            for thread in os.listdir(f"/proc/{parent}/task"):
                with ended:
                    children = Path(f"/proc/{parent}/task/{thread}/children").read_text()
                    found += [int(word) for word in children.split() if int(word) not in found]
    return found


def brute_force(records: bytes) -> dict[int, set[str]]:
    """The reasons of every seam by address, read from the raw records of the BPF iterator.

    Written apart from the package, from include/linux/mm.h and mm/vma.c: literal bits, one question at a time.
    """
    words = [struct.unpack_from("<17Q", records, at) for at in range(0, len(records), 136)]
    vmas: list[dict[str, int]] = []
    names: list[bytes] = []
    for at, word in enumerate(words):
        if word[0] == 2**64 - 1:
            names[-1] = records[at * 136 + 8 : at * 136 + 136].split(b"\0")[0]
            continue
        keys = ("start", "end", "flags", "pgoff", "anon_vma", "bits", "file", "inode", "device", "uffd", "nodes")
        vmas.append(dict(zip(keys, word, strict=False)))
        names.append(b"")
    found: dict[int, set[str]] = {}
    for at in range(1, len(vmas)):
        a, b = vmas[at - 1], vmas[at]
        if a["end"] != b["start"]:
            continue
        names_here = (names[at - 1], names[at])
        found[b["start"]] = {reason for reason, holds in _QUESTIONS.items() if holds(a, b, names_here)} or {
            "not-attempted"
        }
    return found


_Vma = dict[str, int]
_SOFT_DIRTY, _MAYBE_GUARD = 0x08000000, 0x800
_UFFD = 0x200 | 0x1000 | 1 << 41


def _given_name(name: bytes) -> bytes:
    return b"" if name.startswith(b"[") else name


def _special(a: _Vma, b: _Vma, names: tuple[bytes, bytes]) -> bool:
    for vma in (a, b):
        if vma["flags"] & 0x10044400 or vma["bits"] >> 16 & 1:
            return True
    return any(name.startswith((b"[vvar", b"[vdso")) for name in names)


def _page_offset_wrong(a: _Vma, b: _Vma) -> bool:
    return a["file"] == b["file"] and b["pgoff"] - a["pgoff"] != (a["end"] - a["start"]) // 4096


def _file_like(b: _Vma) -> bool:
    return b["file"] != 0 or bool(b["flags"] & 0x80)


def _anon_vmas_clash(a: _Vma, b: _Vma) -> bool:
    if a["anon_vma"] == b["anon_vma"]:
        return False
    if a["anon_vma"] != 0 and b["anon_vma"] != 0:
        return True
    faulted = a if a["anon_vma"] else b
    return faulted["bits"] % 256 != 1


_QUESTIONS: dict[str, Callable[[_Vma, _Vma, tuple[bytes, bytes]], bool]] = {
    "protection": lambda a, b, names: a["flags"] % 8 != b["flags"] % 8,
    "flags": lambda a, b, names: (
        (a["flags"] | _SOFT_DIRTY | _MAYBE_GUARD | _UFFD | 7) != (b["flags"] | _SOFT_DIRTY | _MAYBE_GUARD | _UFFD | 7)
    ),
    "file": lambda a, b, names: a["file"] != b["file"],
    "file-offset": lambda a, b, names: _file_like(b) and _page_offset_wrong(a, b),
    "anon-name": lambda a, b, names: _given_name(names[0]) != _given_name(names[1]),
    "mempolicy": lambda a, b, names: (a["bits"] >> 24, a["nodes"]) != (b["bits"] >> 24, b["nodes"]),
    "userfaultfd": lambda a, b, names: (a["uffd"], a["flags"] & _UFFD) != (b["uffd"], b["flags"] & _UFFD),
    "special": _special,
    "page-offset": lambda a, b, names: not _file_like(b) and _page_offset_wrong(a, b),
    "anon-vma": lambda a, b, names: _anon_vmas_clash(a, b),
}
