"""What a welder left behind in a process when it was killed, and putting that in order.

There is little to find: a batch that has begun ends by itself. What stays is the mapping of code and journal, or its
descriptor; and, where lack of memory stopped even the calls that put things back, a group that is half done.
"""

import os
import time
from collections.abc import Sequence
from typing import Final

from vmaweld.kernel import ptrace, syscalls
from vmaweld.snapshot import Row
from vmaweld.welding import machine_code as mc
from vmaweld.welding.errors import HalfDone
from vmaweld.welding.local import NAME
from vmaweld.welding.puppet import Puppet
from vmaweld.welding.standstill import Standstill

FILE: Final = f"/memfd:{NAME}"
_PATIENCE: Final = 60.0
_NR_CLOSE: Final = 3


def mapped(rows: Sequence[Row]) -> list[Row]:
    """The rows that map code or journal, in order; [] where nothing was left."""
    return [row for row in rows if row.file.startswith(FILE)]


def descriptors(pid: int) -> list[int]:
    """Descriptors of `pid` that refer to it."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if target.startswith(FILE):
            found.append(int(name))
    return found


def let_finish(still: Standstill, found: Sequence[Row]) -> None:
    """Let a thread that is still at work on a batch go on until it has gone back, the others standing still."""
    areas = [(row.start, row.end) for row in found]
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


def clear(puppet: Puppet, found: Sequence[Row]) -> str:
    """Finish what is half done and unmap the rest; what was done, as a line, "" for nothing."""
    done = []
    for row in found:
        if row.pgoff == 0 and syscalls.read_memory(puppet.pid, row.start, len(mc.CODE)) == mc.CODE:
            header = row.start + mc.CODE_SIZE
            stuck = _word(puppet.pid, header, "STUCK")
            if stuck:
                _finish(puppet, row.start, header, stuck)
                done.append("finished a half-done weld")
    for row in found:
        puppet.call(syscalls.NR_MUNMAP, row.start, row.end - row.start)
    left = descriptors(puppet.pid)
    for fd in left:
        puppet.call(_NR_CLOSE, fd)
    if found or left:
        done.append("removed what an interrupted weld had left")
    return " and ".join(done)


def _word(pid: int, header: int, field: str) -> int:
    return int.from_bytes(syscalls.read_memory(pid, header + mc.HEADER[field], 8), "little")


def _finish(puppet: Puppet, code: int, header: int, stuck: int) -> None:
    """Go on with the batch at the entry that failed; what it has already done is in the journal."""
    fresh = bytearray(puppet.header(stuck))
    for field in ("V", "W", "FD"):
        at = mc.HEADER[field]
        fresh[at : at + 8] = _word(puppet.pid, header, field).to_bytes(8, "little")
    syscalls.write_memory(puppet.pid, header, bytes(fresh))
    puppet.run(code, header, _Peek(puppet.pid, header))
    if _word(puppet.pid, header, "STUCK"):
        raise HalfDone("the half-done weld cannot be finished: the kernel still refuses (no memory?)")


class _Peek:
    """The STATE word of a journal that only the other process maps."""

    def __init__(self, pid: int, header: int) -> None:
        self._pid, self._at = pid, header + mc.HEADER["STATE"]

    def read(self) -> int:
        return int.from_bytes(syscalls.read_memory(self._pid, self._at, 4), "little")

    def sleep(self) -> None:
        time.sleep(1e-3)
