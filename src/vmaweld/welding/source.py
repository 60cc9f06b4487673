# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots that a weld can rely on, and that cost little where nothing has changed since the last."""

import contextlib
import gc
from collections.abc import Iterator
from types import TracebackType

from vmaweld.kernel import procfs, snapshots
from vmaweld.kernel.bpf import iterator
from vmaweld.kernel.bpf import records as bpf_records
from vmaweld.kernel.errors import KernelError, NotSupported
from vmaweld.snapshot import Snapshot


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Tens of thousands of rows, seams and pieces are no garbage, but would set off several full collections."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class Source:
    """Snapshots of process `pid`, memory policies included. Use it in a `with`, or `close` it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._watch: iterator.Watch | None = None
        self._records = b""
        self._last: Snapshot | None = None
        if iterator.available()[0]:
            with contextlib.suppress(NotSupported):  # the process is gone
                self._watch = iterator.loaded().watch(pid)

    def take(self) -> Snapshot:
        """A snapshot; the very same object as before where nothing has changed. Raises as `snapshots.take` does."""
        if self._watch is None:
            return take(self.pid)
        records, consistent = self._watch.read_quickly()
        if not records:
            raise procfs.why_empty(self.pid)
        if self._last is None:
            self._last = bpf_records.parse(self.pid, records, consistent)
        else:
            self._last = bpf_records.parse_again(self._last, self._records, records, consistent)
        self._records = records
        return self._last

    def again(self) -> Snapshot:
        """The last snapshot, in an instant, if it shows all VMAs as they are; else as `take`.

        One thing may have happened behind its back: a page fault may have given a VMA its first anon_vma.
        """
        last, watch = self._last, self._watch
        if last is not None and last.consistent and watch is not None and watch.still_shows(self._records):
            return last
        return self.take()

    def close(self) -> None:
        """Let go of the iterator; safe to call twice."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def __enter__(self) -> "Source":
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


def take(pid: int) -> Snapshot:
    """A snapshot of `pid` with memory policies, if they can be read at all. Raises as `snapshots.take` does.

    To fold a VMA into another gives it the other's policy, so they must be known to be equal; numa_maps tells them
    where BPF does not.
    """
    snapshot = snapshots.take(pid)
    if any(row.mempolicy is None for row in snapshot.rows):
        _complete(snapshot)
    return snapshot


def _complete(snapshot: Snapshot) -> None:
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
