# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process shows of its arena, as a Snapshot. Nothing else runs in it meanwhile, so it is consistent."""

from vmaweld.executor.arena import Arena
from vmaweld.kernel import procfs
from vmaweld.kernel.bpf import records as bpf_records
from vmaweld.snapshot import Snapshot


def from_records(arena: Arena, pid: int, real_pid: int, shown: bytes) -> Snapshot:
    """A Snapshot of the records of the BPF program.

    pid: how events call the process. real_pid: the kernel's number of it, 0 where it has ended.
    """
    return bpf_records.parse(pid, shown, file_name=lambda *row: arena.mapped_name(real_pid, *row))


def from_text(arena: Arena, pid: int, shown: bytes) -> Snapshot:
    """A Snapshot of lines of maps or smaps. pid: how events call the process."""
    if b"\nVmFlags:" in shown:
        headers = b"\n".join(line for line in shown.split(b"\n") if b"-" in line.split(b" ", 1)[0])
        rows = procfs.parse_maps(headers)
        bits = procfs.parse_smaps_flags(shown)
        for row in rows:
            row.flags |= bits[row.start]
    else:
        rows = procfs.parse_maps(shown)
    for row in rows:
        row.file = arena.row_name(row)
    return Snapshot(pid, rows, source="procfs", flags_exact=False, hidden=False)
