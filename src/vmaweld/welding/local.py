# SPDX-License-Identifier: GPL-2.0-or-later
"""Welding the memory of this process."""

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from typing import Final

from vmaweld import abi
from vmaweld.kernel import syscalls, x86_64
from vmaweld.kernel.pagemap import Pagemap
from vmaweld.kernel.robust_futex import RobustFutex
from vmaweld.snapshot import Row, Snapshot
from vmaweld.welding import machine_code as mc
from vmaweld.welding import plan, source, support
from vmaweld.welding.errors import WeldError
from vmaweld.welding.folding import fold
from vmaweld.welding.names import OWN
from vmaweld.welding.program import Outcome, Program
from vmaweld.welding.report import Report

_ARCH_GET_FS: Final = 0x1003

_Run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def run(program: Program) -> tuple[tuple[str, int], list[Outcome]]:
    """Run `program`, which must be finished, on this process's own memory; returns `Program.outcomes`.

    Raises OSError where there is no memory, descriptor or VMA for the code itself.
    """
    length = abi.page_align_up(mc.HEADER_AT + program.size)
    fd = os.memfd_create(OWN, os.MFD_CLOEXEC)
    address = 0
    lock: RobustFutex | None = None
    try:
        os.ftruncate(fd, length)
        os.pwrite(fd, mc.CODE, 0)
        address = syscalls.mmap(0, length, abi.PROT_READ | abi.PROT_WRITE, abi.MAP_SHARED, fd)
        header = address + mc.HEADER_AT
        entries_at = header + mc.HEADER_SIZE
        head, entries = mc.header(entries_at), program.place(header)
        ctypes.memmove(header, head, len(head))
        ctypes.memmove(entries_at, entries, len(entries))
        # From here on a welder from outside sees that this process is at work on itself.
        lock = RobustFutex(header + mc.HEADER["OWNER"])
        lock.hold()
        syscalls.mmap(address, mc.CODE_SIZE, abi.PROT_READ | abi.PROT_EXEC, abi.MAP_SHARED | abi.MAP_FIXED, fd)
        syscalls.madvise(address, length, abi.MADV_DONTFORK)
        _Run(address + mc.CALL_ENTRY)(header)
        return program.outcomes(ctypes.string_at(entries_at, len(entries)))
    finally:
        os.close(fd)
        if lock is not None:
            lock.drop()
            lock.close()
        if address:
            syscalls.munmap(address, length)


def weld(start: int, length: int, *, unshare: bool = False, program: Callable[[], Program] = Program) -> Report:
    """Close the open seams inside ``[start, start + length)`` of this process's memory.

    Nobody may touch, map, unmap or change that range meanwhile: not another thread, not a signal handler, not a system
    call in flight. (A thread that does touch it waits for the page; one that remaps it undoes itself or the weld.)
    Seams that cannot be closed stay as they are, and the report tells why.

    start, length: bytes; widened to whole pages. Seams at the very ends are not inside.
    unshare: make pages that are shared since a fork this process's own first, by a write fault that keeps their
        bytes: free where nobody else maps them any more, a copy where someone does.
    program: makes the empty program of a batch.
    Raises Refused where this machine or process cannot weld at all, HalfDone as told there.

    >>> report = weld(address, 1 << 20)   # doctest: +SKIP
    >>> report.closed, report.left        # doctest: +SKIP
    (15, [])
    """
    support.check_own()
    low, high = abi.page_align_down(start), abi.page_align_up(start + length)
    with source.no_collections(), source.Source(os.getpid()) as here:
        return _weld(here.take(), low, high, unshare, program)


def _weld(before: Snapshot, low: int, high: int, unshare: bool, program: Callable[[], Program] = Program) -> Report:
    support.check_headroom(len(before.rows))
    pid = os.getpid()
    own = "the calling thread's own stack or thread area"
    avoid = dict.fromkeys(_own_addresses(), own)
    relock, zero_stays = support.relock_reason(pid), support.zero_stays()
    limits = plan.Limits(low, high, unshare=unshare, relock=relock, avoid=avoid, zero_stays=zero_stays)
    report = Report(pid, len(before.rows))
    with Pagemap(pid) as pages:
        made = plan.make(before, pages, limits, quick=True)
        support.check_memory(pid, made, unshare=unshare)
        report.seams = made.all_seams
        folded = fold(made.candidates, plan.Room(before.rows), run, low=low, retry=False, program=program)
        report.add(folded)
        if folded.again:
            before = source.take(pid)
            made = plan.make(before, pages, limits)
            report.closed = report.seams - made.all_seams  # the kernel may have merged one more in passing
            folded = fold(made.candidates, plan.Room(before.rows), run, low=low, program=program)
            report.add(folded)
    report.copied = made.shared if unshare else 0
    report.vmas_after = report.vmas_before - report.closed
    report.left = [*made.left, *folded.left()]
    return report


def _own_addresses() -> list[int]:
    """Addresses that are in use while the calling thread works: its stack, its thread area, its ``struct rseq``."""
    libc = ctypes.CDLL(None)
    libc.pthread_self.restype = ctypes.c_void_p
    attributes = ctypes.create_string_buffer(128)
    bottom, size = ctypes.c_void_p(), ctypes.c_size_t()
    found = []
    # The main thread's stack has a name, and to ask for it takes the C library a reading of /proc/self/maps.
    main = threading.get_native_id() == os.getpid()
    if not main and libc.pthread_getattr_np(ctypes.c_void_p(libc.pthread_self()), attributes) == 0:
        libc.pthread_attr_getstack(attributes, ctypes.byref(bottom), ctypes.byref(size))
        libc.pthread_attr_destroy(attributes)
        found.append((bottom.value or 0) + size.value - 1)
    base = ctypes.c_uint64()
    syscalls.check(syscalls.raw(x86_64.NR_ARCH_PRCTL, _ARCH_GET_FS, ctypes.addressof(base)), "arch_prctl(ARCH_GET_FS)")
    found.append(base.value)
    with contextlib.suppress(ValueError):  # a C library without rseq
        found.append(base.value + ctypes.c_ssize_t.in_dll(libc, "__rseq_offset").value)
    return found


def mremap(
    address: int,
    old_size: int,
    new_size: int,
    *,
    new_address: int | None = None,
    must_merge: bool = False,
) -> int:
    """mremap(2) with MREMAP_MAYMOVE, but the result becomes one VMA with the neighbours it fits to.

    Where it cannot (pages shared or pinned, an old kernel) the result is that of the plain call; with `must_merge` the
    call raises WeldError with the reason instead and leaves everything where it was. Either way the bytes are the same.
    While it runs, nobody may touch, map or unmap the memory, nor its neighbours at the new place (see `weld`).

    address, old_size, new_size: bytes; address page aligned, sizes widened to whole pages, neither 0.
    new_address: move it there, replacing what is mapped there (MREMAP_FIXED); None: the kernel chooses, or it stays.
    Returns the address. Raises OSError as mremap(2) does; then nothing has changed.

    >>> buffer = vmaweld.mremap(buffer, 1 << 20, 2 << 20)   # doctest: +SKIP
    """
    old_size, new_size = abi.page_align_up(old_size), abi.page_align_up(new_size)
    if must_merge:
        support.check_own()
        return _move_and_merge(address, old_size, new_size, new_address)
    result = _plain(address, old_size, new_size, new_address)
    try:
        support.check_own()
        _merge(result, new_size)
    except (WeldError, OSError):
        pass  # it stays what the plain call made it
    return result


def _plain(address: int, old_size: int, new_size: int, new_address: int | None) -> int:
    if new_address is None:
        return syscalls.mremap(address, old_size, new_size, abi.MREMAP_MAYMOVE)
    return syscalls.mremap(address, old_size, new_size, abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED, new_address)


def _merge(start: int, size: int) -> str:
    """Close the open seams of ``[start, start + size)``, its ends included; why one stays, "" if none does."""
    end = start + size
    reason = ""
    # Twice, for a neighbour may be the C library's or Python's own memory, which their allocators may have grown or
    # given back between the look at it and the weld.
    for _attempt in range(2):
        snapshot = source.take(os.getpid())
        near = [row for row in snapshot.rows if row.start <= end and row.end >= start]
        if len(near) < 2:
            return ""
        report = _weld(snapshot, near[0].start, near[-1].end, unshare=False)
        reason = next((left.reason for left in report.left if left.end >= start and left.start <= end), "")
        if not reason:
            break
    return reason


def _move_and_merge(address: int, old_size: int, new_size: int, new_address: int | None) -> int:
    # What a plain call would discard is kept until the merge has come about: the end that a smaller size cuts off
    # stays where it is, and what is mapped at the new place waits elsewhere.
    size = min(old_size, new_size)
    if new_address is not None and address < new_address + new_size and new_address < address + old_size:
        return _plain(address, old_size, new_size, new_address)  # they overlap: the kernel refuses, and says so
    aside = _set_aside(new_address, new_size) if new_address is not None else []
    try:
        result = _plain(address, size, new_size, new_address)
    except OSError:
        _bring_back(aside)
        raise
    try:
        reason = _merge(result, new_size)
    except WeldError as error:
        reason = str(error)
    if not reason:
        for _place, away, length in aside:
            syscalls.munmap(away, length)
        if size < old_size:
            syscalls.munmap(address + size, old_size - size)
        return result
    if result == address:
        if new_size > size:
            syscalls.munmap(result + size, new_size - size)
    else:
        flags = abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED
        syscalls.mremap(result, new_size, size, flags, address)
    _bring_back(aside)
    raise WeldError(f"not merged, and nothing has changed: {reason}")


def _set_aside(start: int, size: int) -> list[tuple[int, int, int]]:
    """Move what is mapped in ``[start, start + size)`` away; (place, where it is now, length) each."""
    moved: list[tuple[int, int, int]] = []
    rows: Sequence[Row] = source.take(os.getpid()).rows
    try:
        for row in rows:
            low, high = max(row.start, start), min(row.end, start + size)
            if low < high:
                away = syscalls.mmap(
                    0, high - low, abi.PROT_NONE, abi.MAP_PRIVATE | abi.MAP_ANONYMOUS | abi.MAP_NORESERVE
                )
                flags = abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED
                syscalls.mremap(low, high - low, high - low, flags, away)
                moved.append((low, away, high - low))
    except OSError:
        _bring_back(moved)
        raise
    return moved


def _bring_back(moved: Sequence[tuple[int, int, int]]) -> None:
    for place, away, length in moved:
        syscalls.mremap(away, length, length, abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED, place)
