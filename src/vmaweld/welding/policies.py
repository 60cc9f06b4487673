"""Snapshots that a weld can rely on: the memory policies filled in where the source does not show them.

To fold a VMA into another gives it the other's policy, so they must be known to be equal. /proc/PID/numa_maps tells.
"""

from vmaweld.kernel import procfs, snapshots
from vmaweld.kernel.errors import KernelError
from vmaweld.snapshot import Snapshot


def take(pid: int) -> Snapshot:
    """A snapshot of `pid` with memory policies, if they can be read at all. Raises as `snapshots.take` does."""
    snapshot = snapshots.take(pid)
    if any(row.mempolicy is None for row in snapshot.rows):
        complete(snapshot)
    return snapshot


def complete(snapshot: Snapshot) -> None:
    """Fill in `Row.mempolicy` from numa_maps; rows that it does not list keep None."""
    try:
        text = procfs.read_file(snapshot.pid, "numa_maps")
    except KernelError:
        # No such file while the process lives: a kernel without NUMA, where no policy can be set.
        if procfs.status(snapshot.pid).state not in "ZX":
            for row in snapshot.rows:
                row.mempolicy = ""
        return
    policies: dict[int, str] = {}
    for line in text.splitlines():
        start, policy = line.split(b" ", 2)[:2]
        policies[int(start, 16)] = "" if policy == b"default" else policy.decode()
    for row in snapshot.rows:
        row.mempolicy = policies.get(row.start)
