# SPDX-License-Identifier: GPL-2.0-or-later
"""Welds at random, contents checked by hash: ``python -m tests.weld_random --count 10000``.

Each builds an arena of fragments of all kinds (moved or not, holes, zero pages, huge pages, protections, advice, locks,
policies, names, children alive and gone, pinned pages), welds it here or as another process, perhaps with one system
call of the sequence made to fail, and then compares every byte, every hole and every page's presence with before.
"""

import argparse
import ctypes
import hashlib
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from vmaweld import abi
from vmaweld.guests.guest import Guest
from vmaweld.kernel import snapshots, syscalls
from vmaweld.kernel.pagemap import ZERO, Pagemap
from vmaweld.verify.run import configured_anon_names
from vmaweld.welding import local, remote
from vmaweld.welding import machine_code as mc
from vmaweld.welding.plan import Left
from vmaweld.welding.program import Program
from vmaweld.welding.report import Report

PAGE = abi.PAGE_SIZE
HUGE = abi.HUGE_PAGE_SIZE
ANON = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS
RW = abi.PROT_READ | abi.PROT_WRITE
NAMES = configured_anon_names()


class Failing(Program):
    """A program one of whose calls answers an error in place of being made.

    which: its number among all that can fail; taken modulo their count.
    """

    which = -1
    failed_step = ""

    def finish(self) -> None:
        super().finish()
        if self.which < 0:
            return
        # The program's own beginning and end are left alone: a weld that cannot begin is refused, nothing else.
        calls = [
            at
            for at, step in enumerate(self.steps)
            if step and step not in ("userfaultfd", "UFFDIO_API", "close", "descriptor")
        ]
        at = calls[self.which % len(calls)]
        type(self).failed_step = self.steps[at]
        self.fail(at)

    def fail(self, at: int) -> None:
        """Entry `at` will answer an error."""
        word = at * mc.WORDS
        if self.words[word + mc.OP] == mc.MOVE:
            self.words[word + mc.ARGUMENTS + 3] = 1 << 40  # an unknown mode
        elif self.words[word + mc.OP] == mc.CALL:
            self.words[word + mc.NUMBER] = 1 << 20  # no such system call
        else:
            self.words[word + mc.NUMBER] = 0  # no such request


@dataclass
class Arena:
    """A stretch of memory full of fragments, and how to get rid of what belongs to it."""

    start: int
    end: int
    undo: list[Callable[[], None]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def close(self) -> None:
        for step in reversed(self.undo):
            step()


def picture(pid: int, start: int, end: int) -> tuple[dict[int, bytes], int]:
    """(a hash by page of all that holds more than zeroes, how many pages are populated).

    A mapped zero page is as good as a hole; and when the kernel splits a huge page (6.12), it gives those of its pages
    that hold only zeroes back.
    """
    found: dict[int, bytes] = {}
    with Pagemap(pid) as pages:
        runs = [run for run in pages.runs(start, end) if not run.kind & ZERO]
    present = 0
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for first, last, _ in runs:
            data = os.pread(fd, last - first, first)
            assert len(data) == last - first
            present += (last - first) // PAGE
            for at in range(0, len(data), PAGE):
                page = data[at : at + PAGE]
                if any(page):
                    found[first + at] = hashlib.blake2b(page, digest_size=8).digest()
    finally:
        os.close(fd)
    return found, present


def build(rng: random.Random) -> Arena:
    """An arena at random."""
    huge = rng.random() < 0.15
    count = rng.randint(2, 6) if huge else rng.randint(2, 24)
    sizes = [rng.choice((1, 1, 2, 3, 8, 16, rng.randint(1, 64))) * PAGE for _ in range(count)]
    if huge:
        sizes = [rng.choice((HUGE, 2 * HUGE, HUGE + 3 * PAGE, 5 * PAGE)) for _ in range(count)]
    total = sum(sizes)
    reserved = syscalls.mmap(0, total + 4 * HUGE, abi.PROT_NONE, ANON | abi.MAP_NORESERVE)
    start = abi.page_align_up(reserved) + rng.randint(1, 512) * PAGE
    if huge and rng.random() < 0.7:
        start = (reserved + HUGE) & -HUGE
    arena = Arena(start, start + total)
    if huge:
        arena.kinds.append("huge")
    arena.undo.append(lambda: syscalls.munmap(reserved, total + 4 * HUGE))
    at = start
    for size in sizes:
        arena.kinds.append(_fragment(rng, at, size, huge))
        at += size
    _treat(rng, arena)
    return arena


def _fragment(rng: random.Random, at: int, size: int, huge: bool) -> str:
    kind = rng.choice(("moved", "moved", "moved", "moved", "native", "aligned"))
    if kind == "native":
        syscalls.mmap(at, size, RW, ANON | abi.MAP_FIXED)
        place = at
    else:
        # Elsewhere, with a guard page behind it so that it does not merge there.
        room = syscalls.mmap(0, size + 4 * HUGE, abi.PROT_NONE, ANON | abi.MAP_NORESERVE)
        place = abi.page_align_up(room) + PAGE
        if huge or kind == "aligned":
            place = ((room + HUGE) & -HUGE) | (at & (HUGE - 1))
        syscalls.mmap(place, size, RW, ANON | abi.MAP_FIXED)
    if huge:
        syscalls.madvise(place, size, abi.MADV_HUGEPAGE)
    fill = rng.choice(("all", "all", "all", "some", "few", "none", "zero"))
    for page in range(place, place + size, PAGE):
        if fill == "all" or (fill == "some" and rng.random() < 0.5) or (fill == "few" and rng.random() < 0.1):
            ctypes.memmove(page + rng.randrange(0, PAGE - 8, 8), rng.randbytes(8), 8)
        elif fill == "zero" and rng.random() < 0.5:
            ctypes.string_at(page, 1)
    if kind != "native":
        flags = abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED
        syscalls.mremap(place, size, size, flags, at)
        syscalls.munmap(room, size + 4 * HUGE)
    return f"{kind}/{fill}"


def _treat(rng: random.Random, arena: Arena) -> None:
    """Things that happen to the whole arena, or to part of it."""
    start, length = arena.start, arena.end - arena.start
    if rng.random() < 0.15:
        advice = rng.choice((abi.MADV_DONTDUMP, abi.MADV_DONTFORK, abi.MADV_NOHUGEPAGE, abi.MADV_RANDOM))
        syscalls.madvise(start, length, advice)
        arena.kinds.append(f"advice {advice}")
    if NAMES and rng.random() < 0.15:
        syscalls.set_anon_name(start, length, "vmaweld test")
        arena.kinds.append("named")
    if rng.random() < 0.1:
        syscalls.mbind(start, length, "bind:0")
        arena.kinds.append("mempolicy")
    if rng.random() < 0.1:
        onfault = rng.random() < 0.5
        syscalls.mlock(start, length, abi.MLOCK_ONFAULT if onfault else 0)
        arena.kinds.append("mlock onfault" if onfault else "mlock")
    if rng.random() < 0.15:
        pid = _child(alive=rng.random() < 0.5)
        arena.kinds.append("child alive" if pid else "child gone")
        if pid:
            arena.undo.append(lambda: _end(pid))
        if rng.random() < 0.5:  # some pages are written again, and so exclusive
            for page in range(start, arena.end, PAGE):
                if rng.random() < 0.5 and _populated(page):
                    ctypes.memmove(page, rng.randbytes(8), 8)
    if rng.random() < 0.15:
        page = start + rng.randrange(length // PAGE) * PAGE
        if _populated(page):
            pipe = os.pipe()
            vector = (ctypes.c_uint64 * 2)(page, 64)
            syscalls.check(syscalls.raw(278, pipe[1], ctypes.addressof(vector), 1, 0), "vmsplice")
            arena.undo += [lambda: os.close(pipe[0]), lambda: os.close(pipe[1])]
            arena.kinds.append("pinned")
    if rng.random() < 0.2:
        prot = rng.choice((abi.PROT_READ, abi.PROT_NONE, abi.PROT_READ | abi.PROT_EXEC))
        syscalls.mprotect(start, length, prot)
        arena.kinds.append(f"prot {prot}")


def _populated(page: int) -> bool:
    with Pagemap(os.getpid()) as pages:
        return any(not kind & ZERO for _, _, kind in pages.runs(page, page + PAGE))


def _child(*, alive: bool) -> int:
    pid = os.fork()
    if pid == 0:
        if alive:
            signal.pause()
        os._exit(0)
    if alive:
        return pid
    os.waitpid(pid, 0)
    return 0


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def flags_of(pid: int, start: int, end: int) -> list[tuple[int, int, int, str | None, str]]:
    """What of flags, policy and name holds where, neighbours that are equal taken together."""
    found: list[tuple[int, int, int, str | None, str]] = []
    for row in snapshots.take(pid).rows:
        if row.start < end and row.end > start:
            low, high = max(row.start, start), min(row.end, end)
            flags = row.flags & ~abi.VM_SOFTDIRTY
            if found and found[-1][1] == low and found[-1][2:] == (flags, row.mempolicy, row.name):
                low = found.pop()[0]
            found.append((low, high, flags, row.mempolicy, row.name))
    return found


def middle(pid: int) -> tuple[int, int]:
    """Where nothing lies but, for moments, what a weld puts there: well inside the largest gap of the address space."""
    gap, low = max((right.start - left.end, left.end) for left, right in pairwise(snapshots.take(pid).rows))
    return low + gap // 4, low + gap - gap // 4


class Helper:
    """A process that welds this one on request. It begins before there is an arena, and so shares none of its pages."""

    def __init__(self) -> None:
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        self._buffer = b""
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._orders)
            os.close(self._answers)
            try:
                self._serve(orders, answers)
            finally:
                os._exit(0)
        os.close(orders)
        os.close(answers)

    def _serve(self, orders: int, answers: int) -> None:
        pid = os.getppid()
        while order := os.read(orders, 200):
            start, end, unshare, Failing.which = map(int, order.split())
            Failing.failed_step = ""
            options = remote.Options(start, end, unshare=bool(unshare), verify=True)
            try:
                report = remote.weld(pid, options, program=Failing)
                left = sum(left.seams for left in report.left)
                answer = f"{report.seams} {report.closed} {left} {Failing.failed_step}"
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"
            os.write(answers, answer.encode())

    def weld(self, arena: Arena, unshare: bool) -> Report:
        os.write(self._orders, f"{arena.start} {arena.end} {int(unshare)} {Failing.which}".encode())
        answer = os.read(self._answers, 1000).decode()
        assert answer[:1].isdigit(), answer
        seams, closed, left, *step = answer.split(maxsplit=3)
        Failing.failed_step = " ".join(step)
        return Report(self.pid, seams=int(seams), closed=int(closed), left=[Left(0, 0, int(left), "(by another)")])

    def close(self) -> None:
        os.close(self._orders)
        os.close(self._answers)
        os.waitpid(self.pid, 0)


def one(seed: int, helper: Helper | None = None) -> tuple[Report, Arena, str]:
    """One weld, checked. helper: by that other process. Raises AssertionError with the seed."""
    other = helper is not None
    rng = random.Random(seed)
    arena = build(rng)
    try:
        pid = os.getpid()
        unshare = rng.random() < 0.3
        Failing.which = rng.randrange(200) if rng.random() < 0.4 else -1
        Failing.failed_step = ""
        before, present = picture(pid, arena.start, arena.end)
        flags = flags_of(pid, arena.start, arena.end)
        low, high = middle(pid)
        if helper is not None:
            report = helper.weld(arena, unshare)
        else:
            report = local.weld(arena.start, arena.end - arena.start, unshare=unshare, program=Failing)
        after, now_present = picture(pid, arena.start, arena.end)
        what = f"seed {seed} other={other} unshare={unshare} {Failing.failed_step!r} {arena.kinds}"
        assert before == after, f"contents or holes differ: {what}"
        least = present if "huge" not in arena.kinds else len(before)
        assert least <= now_present <= present, f"{present} pages before, {now_present} after: {what}"
        assert flags == flags_of(pid, arena.start, arena.end), f"flags differ: {what}"
        assert report.closed + sum(left.seams for left in report.left) == report.seams, f"{report}: {what}"
        rows = snapshots.take(pid).rows
        assert not any("memfd:vmaweld" in row.file for row in rows), what
        stays = [row for row in rows if row.start < high and row.end > low]
        assert not stays, f"something stays in the room: {stays}: {what}"
        return report, arena, Failing.failed_step
    finally:
        arena.close()


def in_guest(version: str, count: int, first: int, other: int) -> int:
    """All of that under another kernel; its exit status."""
    # 6.12 lets nobody but a tracer read memory without access: but that is how `picture` sees what became of it.
    guest = Guest(version, options="proc_mem.force_override=always")
    print(f"Linux {guest.release}: ", end="", flush=True)
    # And khugepaged fills the holes of huge pages when it likes: with this it takes none that has a hole.
    quiet = "echo 0 >/sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none"
    weld = f"{sys.executable} -m tests.weld_random --count={count} --first={first} --other={other}"
    done = guest.run(
        ["/bin/sh", "-c", f"{quiet} && exec {weld}"],
        timeout=60 + count,
        environment={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    print(done.stdout.lstrip("\r") + done.stderr, end="")
    return done.status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--other", type=int, default=0, help="every so manyth by another process (0: none)")
    parser.add_argument("--guest", metavar="VERSION", help="under that kernel, in a virtual machine")
    arguments = parser.parse_args()
    if arguments.guest:
        raise SystemExit(in_guest(arguments.guest, arguments.count, arguments.first, arguments.other))
    seams = closed = failures = 0
    steps: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    began = time.monotonic()
    helper = Helper() if arguments.other else None
    for seed in range(arguments.first, arguments.first + arguments.count):
        other = arguments.other and seed % arguments.other == 0
        report, _, step = one(seed, helper if other else None)
        seams += report.seams
        closed += report.closed
        failures += bool(step)
        steps[step] += bool(step)
        for left in report.left:
            reasons[left.reason.partition(":")[0]] += left.seams
        if sys.stdout.isatty() and seed % 20 == 0:
            print(f"\r{seed - arguments.first} welds", end="")
    if helper is not None:
        helper.close()
    print(f"\r{arguments.count} welds, {seams} open seams, {closed} closed, {failures} with a call made to fail:")
    print("nothing lost", f"({time.monotonic() - began:.0f} s)")
    for step, count in steps.most_common():
        if step:
            print(f"  {count:6} x {step}")
    for reason, count in reasons.most_common():
        print(f"  {count:6} seams left: {reason}")


if __name__ == "__main__":
    main()
