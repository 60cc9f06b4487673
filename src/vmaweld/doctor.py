# SPDX-License-Identifier: GPL-2.0-or-later
"""What this machine lets vmaweld do, each found out by trying it; for `vmaweld doctor`."""

import contextlib
import ctypes
import mmap
import os
import platform
import subprocess
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.text import Text

from vmaweld import __version__, build
from vmaweld.guests import guest
from vmaweld.kernel import ptrace, snapshots, syscalls
from vmaweld.kernel.userfaultfd import FEATURE_MOVE, Userfaultfd
from vmaweld.trace.machine import transparent_hugepage
from vmaweld.trace.recorders.table import RECORDERS

_MARKS: Final[dict[bool | None, tuple[str, str]]] = {None: ("- ", "dim"), True: ("ok", "green"), False: ("no", "red")}
_LEAST: Final = 40
"""Columns that a description needs beside the names. On a terminal without them it goes below."""


@dataclass(slots=True, frozen=True)
class Capability:
    """One line of the doctor.

    ok: it works; None where there is nothing to work, only a setting to know. value: what was found.
    means: what vmaweld does with it. how: how to get it, "" where it is there.
    """

    name: str
    ok: bool | None
    value: str
    means: str
    how: str


def examine() -> Iterator[Capability]:
    """Everything, in the order in which a reader wants it. Nothing is left behind but a mounted tracefs."""
    yield _build()
    yield _kernel()
    for recorder in RECORDERS.values():
        yield _tried(recorder.name, recorder.available(), recorder.means)
    yield _tried("bpf", snapshots.bpf_available(), "inspect, verify, record: page offsets, anon_vmas and all flags")
    yield _ptrace()
    yield from _userfaultfd()
    yield _names()
    yield _guests()
    yield from _settings()


def _tried(name: str, answer: tuple[bool, str], means: str) -> Capability:
    ok, reason = answer
    return Capability(name, ok, "works" if ok else "no", means, reason)


def _build() -> Capability:
    return Capability(
        "vmaweld",
        None,
        f"{__version__}, {build.describe()}",
        "the compiled model is faster, not different",
        "" if build.compiled() else "install a wheel, or build with VMAWELD_COMPILE=1",
    )


def _kernel() -> Capability:
    machine = platform.machine()
    ok = platform.system() == "Linux" and machine == "x86_64"
    return Capability(
        "kernel",
        ok,
        f"{platform.release()} {machine}",
        "the model speaks of x86-64 Linux; traces can be studied anywhere",
        "" if ok else "record, inspect, weld and verify on an x86-64 Linux",
    )


def _ptrace() -> Capability:
    means = "weld another process; true snapshots at a recorded command's end"
    try:
        child = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    except OSError as error:
        return Capability("ptrace", False, "no", means, f"nothing to try it on: sleep: {error.strerror}")
    try:
        ptrace.seize(child.pid)
    except OSError as error:
        how = (
            "sysctl kernel.yama.ptrace_scope=1"
            if _sysctl("kernel.yama.ptrace_scope") == "3"
            else "run as root, or allow ptrace in the container"
        )
        return Capability("ptrace", False, os.strerror(error.errno or 0), means, how)
    finally:
        child.kill()
        child.wait()
    return Capability("ptrace", True, "works", means, "")


def _userfaultfd() -> Iterator[Capability]:
    means = "weld: pages keep their bytes while their mapping moves"
    try:
        uffd = Userfaultfd()
    except OSError as error:
        how = "run as root, or sysctl vm.unprivileged_userfaultfd=1; in a container allow userfaultfd"
        yield Capability("userfaultfd", False, os.strerror(error.errno or 0), means, how)
        yield Capability("uffdio_move", False, "no", "weld needs it", "get userfaultfd first")
        return
    with contextlib.closing(uffd):
        features = uffd.features
    yield Capability("userfaultfd", True, f"works, features {features:#x}", means, "")
    move = bool(features & FEATURE_MOVE)
    yield Capability(
        "uffdio_move",
        move,
        "works" if move else "no",
        "weld: moves pages to the offset and anon_vma of their new neighbour",
        "" if move else "Linux 6.8 or later",
    )


def _names() -> Capability:
    means = "VMAs named with prctl(PR_SET_VMA_ANON_NAME); differently named ones never merge"
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        try:
            syscalls.set_anon_name(ctypes.addressof(ctypes.c_char.from_buffer(page)), mmap.PAGESIZE, None)
        except OSError:
            return Capability("anon_names", False, "no", means, "a kernel since 5.17 with CONFIG_ANON_VMA_NAME")
    return Capability("anon_names", True, "works", means, "")


def _guests() -> Capability:
    found = guest.installed()
    means = "verify --guest: the same programs on other kernels"
    return Capability(
        "guests", found, "installed" if found else "no", means, "" if found else "apt install qemu-system-x86"
    )


def _settings() -> Iterator[Capability]:
    def setting(name: str, means: str, how: str = "", enough: str = "") -> Capability:
        value = _sysctl(name)
        return Capability(name, None, value or "not there", means, how if value not in ("", enough) else "")

    yield setting("vm.max_map_count", "the most VMAs that one process may have", "sysctl vm.max_map_count=NUMBER")
    yield setting("vm.overcommit_memory", "at 2 MAP_NORESERVE is ignored: all that is writable is accounted")
    yield setting(
        "kernel.perf_event_paranoid",
        "-1 lets everyone record with perf, where tracefs is readable too",
        "sysctl kernel.perf_event_paranoid=-1",
        "-1",
    )
    yield setting(
        "vm.unprivileged_userfaultfd",
        "1 lets everyone weld memory that system calls touch meanwhile",
        "sysctl vm.unprivileged_userfaultfd=1",
        "1",
    )
    yield setting(
        "kernel.yama.ptrace_scope",
        "0 lets users trace their own processes, 1 their children, 2 only root, 3 nobody",
        "sysctl kernel.yama.ptrace_scope=0",
        "0",
    )
    thp = transparent_hugepage() or "not there"
    yield Capability("transparent_hugepage", None, thp, "a fault may fill 2 MiB at once, in a VMA large enough", "")


def _sysctl(name: str) -> str:
    try:
        return Path("/proc/sys", name.replace(".", "/")).read_text().strip()
    except OSError:
        return ""


def as_json(found: Sequence[Capability]) -> dict[str, Any]:
    """What was found, as JSON: all fields by name."""
    return {"capabilities": [asdict(each) for each in found]}


def as_text(found: Sequence[Capability], width: int) -> Iterator[Text]:
    """What was found, and a last line that tells what is missing.

    Lines are at most `width` wide but for the commands to copy: each of those is one line, however long.
    """
    names = max(len(each.name) for each in found)
    beside = width - names - 6 >= _LEAST
    indent = " " * (names + 6 if beside else 4)
    for each in found:
        mark, style = _MARKS[each.ok]
        text = textwrap.wrap(_description(each), width - len(indent), break_long_words=False, break_on_hyphens=False)
        if beside:
            yield Text.assemble(each.name.ljust(names), "  ", (mark, style), "  ", text.pop(0))
        else:
            yield Text.assemble((mark, style), "  ", each.name)
        for line in text:
            yield Text(indent + line)
        if each.how:
            yield Text(f"{indent}{'get it' if each.ok is False else 'change it'}: {each.how}")
    missing = [each.name for each in found if each.ok is False]
    yield Text()
    yield Text(f"Missing here: {', '.join(missing)}." if missing else "Everything works here.")


def _description(each: Capability) -> str:
    return each.means if each.value in ("works", "no") else f"{each.value}: {each.means}"
