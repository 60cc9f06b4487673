# SPDX-License-Identifier: GPL-2.0-or-later
"""The arena: the range of addresses in which events happen, with the files and segments that they may map."""

import os
import tempfile
from typing import Final

from vmaweld.abi import page_align_down, page_align_up
from vmaweld.events import Event
from vmaweld.kernel import syscalls, x86_64
from vmaweld.snapshot import Row

ARENA_LOW: Final = 0x6000_0000_0000
"""Between where programs and where libraries are mapped, whatever the randomness: free in every process."""
ARENA_SIZE: Final = 1 << 30

FILES: Final = ("/memfd:a", "/memfd:b", "/memfd:c", "file-a", "file-b")
"""The files that MMAP events may name."""

_IPC_RMID: Final = 0


class Arena:
    """Where events happen. Close it.

    low, high: whole pages, within one 4 GiB of addresses, else ValueError.
    files: the open descriptor of each file that events may map, by its name.
    segments: the kernel's number of each segment that SHMAT events have made, by its name and length.
    """

    def __init__(self, low: int, high: int) -> None:
        if low != page_align_down(low) or high != page_align_down(high) or not low < high or low >> 32 != high >> 32:
            raise ValueError(f"not an arena: {low:#x}-{high:#x}")
        self.low = low
        self.high = high
        self.files: dict[str, int] = {}
        self.segments: dict[tuple[str, int], int] = {}
        self._names: dict[tuple[int, int], str] = {}

    def open_files(self) -> None:
        """Make the files, each as large as the arena."""
        for name in FILES:
            if name.startswith("/memfd:"):
                descriptor = os.memfd_create(name.removeprefix("/memfd:"))
            else:
                with tempfile.TemporaryFile() as file:
                    descriptor = os.dup(file.fileno())
            os.ftruncate(descriptor, self.high - self.low)
            self.files[name] = descriptor
            about = os.fstat(descriptor)
            self._names[os.major(about.st_dev) << 20 | os.minor(about.st_dev), about.st_ino] = name

    def close(self) -> None:
        """Remove the segments and close the files; safe to call twice."""
        for shmid in self.segments.values():
            # They went with their namespace, unless the child was not permitted to have one.
            syscalls.raw(x86_64.NR_SHMCTL, shmid, _IPC_RMID, 0)
        self.segments.clear()
        for descriptor in self.files.values():
            os.close(descriptor)
        self.files.clear()

    def check(self, event: Event, start: int, length: int) -> None:
        """Raise ValueError where `length` bytes at `start`, which `event` names, reach beyond the arena."""
        if length and not self.low <= start <= page_align_up(start + length) <= self.high:
            raise self.beyond(event)

    def beyond(self, event: Event) -> ValueError:
        """The error for an `event` that reaches beyond the arena."""
        return ValueError(f"{event!r} reaches beyond the arena {self.low:#x}-{self.high:#x}")

    def mapped_name(self, real_pid: int, start: int, end: int, device: int, inode: int) -> str:
        """The name of the file that process `real_pid` maps at ``[start, end)``, told by device and inode."""
        name = self._names.get((device, inode))
        if name is None:
            try:
                path = os.readlink(f"/proc/{real_pid}/map_files/{start:x}-{end:x}")
            except OSError:
                path = f"inode:{device >> 20:x}:{device & 0xFFFFF:x}"
            # Shared anonymous memory and segments all have the same path; the inode tells them apart.
            name = self._names[device, inode] = f"{path}#{inode}"
        return name

    def row_name(self, row: Row) -> str:
        """The name of the file that `row`, a line of maps or smaps, shows."""
        if not row.file or not row.file_id:
            return row.file
        inode, device = row.file_id >> 32, row.file_id & 0xFFFF_FFFF
        return self._names.get((device, inode)) or f"{row.file}#{inode}"
