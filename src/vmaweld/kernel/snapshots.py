# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots of live processes, from the best source the caller may use: BPF where permitted, else /proc."""

from collections.abc import Callable, Iterator

from vmaweld.kernel import procfs
from vmaweld.kernel.bpf import iterator
from vmaweld.kernel.errors import KernelError, NotPermitted
from vmaweld.snapshot import Snapshot


def bpf_available() -> tuple[bool, str]:
    """(whether exact snapshots with all hidden fields work here, else the reason as a line for the user)."""
    return iterator.available()


def take(pid: int, *, flags: bool = True) -> Snapshot:
    """A snapshot of `pid`.

    flags: without BPF, read smaps too for all ``VM_*`` flags that it shows.
    Raises ProcessGone (zombies too), NoAddressSpace for a kernel thread, NotPermitted.

    >>> import os
    >>> take(os.getpid()).rows[-1].name   # doctest: +SKIP
    '[stack]'
    """
    if not iterator.available()[0]:
        return procfs.read_maps(pid, flags=flags)
    snapshot = iterator.take(pid)
    if not snapshot.rows:
        raise procfs.why_empty(pid)
    return snapshot


def take_all(*, flags: bool = True, refused: Callable[[int, KernelError], None] | None = None) -> Iterator[Snapshot]:
    """A snapshot of every process that has an address space, by ascending pid, each consistent in itself.

    Processes that end meanwhile and kernel threads are left out; `refused` is told those the caller may not read.
    """
    for pid in procfs.pids():
        try:
            yield take(pid, flags=flags)
        except NotPermitted as error:
            if refused is not None:
                refused(pid, error)
        except KernelError:
            continue
