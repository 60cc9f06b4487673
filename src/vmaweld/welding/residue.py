# SPDX-License-Identifier: GPL-2.0-or-later
"""What a welder left behind in a process when it was killed, and putting that in order.

There is little to find: a batch that has begun ends by itself. What stays is the mapping of code and journal, its
descriptor or the trampoline; and, where lack of memory stopped even the calls that put things back, a group that is
half done.
"""

import os
import time
from collections.abc import Sequence
from typing import Final

from vmaweld.kernel import procfs, ptrace, syscalls, x86_64
from vmaweld.snapshot import Row
from vmaweld.welding import machine_code as mc
from vmaweld.welding import trampoline, workshop
from vmaweld.welding.errors import HalfDone
from vmaweld.welding.names import WORKSHOP
from vmaweld.welding.puppet import Puppet
from vmaweld.welding.standstill import Standstill
from vmaweld.welding.workshop import Found

_PATIENCE: Final = 60.0


def mapped(pid: int, rows: Sequence[Row]) -> list[Found]:
    """The workshops that are mapped in `pid`, in order; [] where nothing was left.

    rows: the VMAs of `pid`, or those that `workshop.named` picks.
    """
    return workshop.found(pid, rows, WORKSHOP)


def descriptors(pid: int) -> list[int]:
    """Descriptors of `pid` that refer to a workshop, or to one that was not filled yet."""
    found = []
    for name in procfs.descriptors(pid):
        link = f"/proc/{pid}/fd/{name}"
        try:
            if os.readlink(link).startswith(f"/memfd:{WORKSHOP}") and _is_workshop(link):
                found.append(int(name))
        except OSError:
            continue
    return found


def _is_workshop(path: str) -> bool:
    """A name proves nothing, so the journal must be there."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.fstat(fd).st_size == 0 or os.pread(fd, len(mc.MARK), mc.HEADER_AT) == mc.MARK
    finally:
        os.close(fd)


def let_finish(still: Standstill, rows: Sequence[Row], gap: trampoline.Gap) -> None:
    """Let a thread that is still at work for a dead welder go on until it has gone back, the others standing still.

    rows: as for `mapped`. gap: where it may have made single calls.
    """
    areas = [(area.start, area.end) for area in mapped(still.pid, rows)]
    if gap.left:
        areas.append((gap.address, gap.address + trampoline.SIZE))
    for tid in still.threads:
        end = time.monotonic() + _PATIENCE
        pause = 1e-3
        while any(start <= ptrace.registers(tid).rip < stop for start, stop in areas):
            if time.monotonic() > end:
                raise HalfDone(f"thread {tid} is at work on a weld and does not come to an end")
            ptrace.proceed(tid)
            time.sleep(pause)
            pause = min(pause * 2, 0.1)
            ptrace.interrupt(tid)
            while (event := ptrace.wait(tid)) is not None and event.kind == "signal":
                ptrace.proceed(tid, event.signal)


def clear(puppet: Puppet, found: Sequence[Found]) -> str:
    """Finish what is half done and unmap the rest; what was done, as a line, "" for nothing."""
    done = []
    for area in found:
        stuck = _word(puppet.pid, area.header, "STUCK")
        if stuck and syscalls.read_memory(puppet.pid, area.start, len(mc.MACHINE)) == mc.MACHINE:
            _finish(puppet, area, stuck)
            done.append("finished a half-done weld")
    for area in found:
        puppet.call(x86_64.NR_MUNMAP, area.start, area.end - area.start)
    left = descriptors(puppet.pid)
    for fd in left:
        puppet.call(x86_64.NR_CLOSE, fd)
    if found or left:
        done.append("removed what an interrupted weld had left")
    return " and ".join(done)


def _word(pid: int, header: int, field: str) -> int:
    return int.from_bytes(syscalls.read_memory(pid, header + mc.HEADER[field], 8), "little")


def _finish(puppet: Puppet, area: Found, stuck: int) -> None:
    """Go on with the batch at the entry that failed; what it has already done is in the journal."""
    fresh = bytearray(mc.header(stuck))
    for field in ("V", "W", "FD"):
        at = mc.HEADER[field]
        fresh[at : at + 8] = _word(puppet.pid, area.header, field).to_bytes(8, "little")
    syscalls.write_memory(puppet.pid, area.header, bytes(fresh))
    syscalls.write_memory(puppet.pid, area.start + mc.SAVED_AT, puppet.saved())
    puppet.run(area.start, area.header, _Peek(puppet.pid, area.header))
    if _word(puppet.pid, area.header, "STUCK"):
        raise HalfDone("the half-done weld cannot be finished: the kernel still refuses (no memory?)")


class _Peek:
    """The STATE word of a journal that only the other process maps."""

    def __init__(self, pid: int, header: int) -> None:
        self._pid, self._at = pid, header + mc.HEADER["STATE"]

    def read(self) -> int:
        """Its value now."""
        return int.from_bytes(syscalls.read_memory(self._pid, self._at, 4), "little")

    def sleep(self) -> None:
        """For a moment."""
        time.sleep(1e-3)
