# SPDX-License-Identifier: GPL-2.0-or-later
"""Exact snapshots: every VMA with its page offset, its anon_vma and all its flags, through BPF's ``iter/task_vma``.

Needs root, or CAP_BPF and CAP_PERFMON, and a kernel since 5.17 with BTF. The program is loaded with bpf(2) itself
(`program` tells why), once a process; one iterator link a watched process makes further snapshots cheap. Until 6.0
an iterator walks the VMAs of all processes: there each watched process has a program that passes over the others.

Consistency. The iterator holds the mmap lock for reading, but lets go of it whenever its 32 KiB buffer is full or a
writer waits. So the walk is done twice and the bytes compared. Every record carries the mm's ``mm_lock_seq`` (since
6.4), which each write-locked section changes: equal throughout means that no VMA came, went or changed between the
first record and the last. The only change that needs no write lock is a fault that gives a VMA its anon_vma; it happens
once and is never undone under the same ``mm_lock_seq``, so two equal walks prove the state at the end of the first.
Before, there is no ``mm_lock_seq``: there two equal walks, ``map_count`` included, leave out only a change that was
exactly undone in between. A stopped process is consistent at the first try; one that keeps changing is read `ATTEMPTS`
times and then given with `consistent` False.
"""

import contextlib
import ctypes
import mmap
import os
import struct
from collections.abc import Generator
from typing import Final

from vmaweld import abi
from vmaweld.kernel import x86_64
from vmaweld.kernel.bpf import program
from vmaweld.kernel.bpf import records as bpf_records
from vmaweld.kernel.bpf.btf import Btf, BtfError
from vmaweld.kernel.errors import KernelError, NotPermitted, NotSupported
from vmaweld.snapshot import Snapshot

ATTEMPTS: Final = 4

_PROG_LOAD: Final = 5
_LINK_CREATE: Final = 28
_ITER_CREATE: Final = 33
_PROG_TYPE_TRACING: Final = 26
_TRACE_ITER: Final = 28
_INITIAL_PIDS: Final = f"pid:[{0xEFFF_FFFC}]"  # PROC_PID_INIT_INO
_READ_SIZE: Final = 1 << 16  # the kernel hands over at most half of that at a time
_LOG_SIZE: Final = 1 << 20
_EPERM, _EACCES, _ENOSYS = 1, 13, 38
_NAME_TAG: Final = program.NAME_TAG.to_bytes(8, "little")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _bpf(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    result: int = _libc.syscall(x86_64.NR_BPF, command, attributes, len(attributes))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


class IteratorProgram:
    """The iterator program, loaded for one range of addresses.

    low, high: only VMAs that overlap ``[low, high)`` are shown.
    pid: only those of that process (`program.READER`: the one that reads), where the iterator cannot be told.
    Raises NotPermitted or NotSupported, the message naming what is missing.
    """

    def __init__(self, low: int = 0, high: int = 1 << 63, pid: int = 0, *, btf: Btf | None = None) -> None:
        self.fd = -1
        self._range = (low, high)
        try:
            btf = btf or Btf.running_kernel()
            self.selects = program.takes_one_task(btf)
            self._btf = None if self.selects else btf
            if not self.selects and pid != program.READER and os.readlink("/proc/self/ns/pid") != _INITIAL_PIDS:
                raise NotSupported("no BPF iterator over one process from a container: that came with Linux 6.1")
            target = btf.function_id(program.ITERATOR)
            if target is None:
                raise NotSupported("this kernel has no BPF iterator over VMAs (it came with Linux 5.12)")
            code = program.assemble(btf, low, high, 0 if self.selects else pid)
        except BtfError as error:
            raise NotSupported(f"{error}: exact snapshots need a kernel built with CONFIG_DEBUG_INFO_BTF") from None
        try:
            self.fd = self._load(code, target, b"")
        except OSError as error:
            if error.errno in (_EPERM, _ENOSYS):
                raise NotPermitted("BPF is not permitted: run as root, or with CAP_BPF and CAP_PERFMON") from None
            log = ctypes.create_string_buffer(_LOG_SIZE)
            try:
                self.fd = self._load(code, target, log)
            except OSError:
                reason = log.value.decode(errors="replace").strip().splitlines()[-3:]
                raise NotSupported(
                    f"the kernel refused the BPF program: {error.strerror}; {' '.join(reason)}"
                ) from None

    def _load(self, code: bytes, target: int, log: "ctypes.Array[ctypes.c_char] | bytes") -> int:
        instructions = ctypes.create_string_buffer(code, len(code))
        licence = ctypes.create_string_buffer(b"GPL")
        attributes = bytearray(128)
        struct.pack_into(
            "<IIQQ", attributes, 0, _PROG_TYPE_TRACING, len(code) // 8, _address(instructions), _address(licence)
        )
        if not isinstance(log, bytes):
            struct.pack_into("<IIQ", attributes, 24, 1, len(log), _address(log))
        attributes[48:56] = b"vmaweld\0"
        struct.pack_into("<I", attributes, 68, _TRACE_ITER)
        struct.pack_into("<I", attributes, 108, target)
        return _bpf(_PROG_LOAD, ctypes.create_string_buffer(bytes(attributes), 128))

    def watch(self, pid: int) -> "Watch":
        """An iterator over the VMAs of `pid` alone. Raises NotSupported."""
        if self.selects:
            return Watch(self, pid)
        with IteratorProgram(*self._range, pid, btf=self._btf) as own:
            return Watch(own, pid)

    def close(self) -> None:
        """Unload the program; safe to call twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> "IteratorProgram":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class Watch:
    """Snapshots of one process through a loaded `IteratorProgram`."""

    def __init__(self, loaded: IteratorProgram, pid: int) -> None:
        self.pid = pid
        info = ctypes.create_string_buffer(struct.pack("<III", pid, 0, 0), 16)  # bpf_iter_link_info.task.tid
        attributes = struct.pack("<IIIIQII", loaded.fd, 0, _TRACE_ITER, 0, _address(info), len(info), 0)
        try:
            self._link = _bpf(_LINK_CREATE, ctypes.create_string_buffer(attributes, len(attributes)))
        except OSError as error:
            raise NotSupported(f"no BPF iterator over process {pid}: {error.strerror}") from None
        self._iterate = ctypes.create_string_buffer(struct.pack("<II", self._link, 0), 8)
        # One buffer for all walks, so that a process that reads its own VMAs does not change them while it does.
        self._buffer = mmap.mmap(-1, 16 * _READ_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # In that process the buffer is itself a VMA, and soon gone: by this flag, which no anonymous memory has, it is
        # never taken for something to weld to.
        self._buffer.madvise(mmap.MADV_RANDOM)

    def read(self) -> bytes:
        """The records of one walk, as `program.RECORD`; empty where the process is gone or has no address space."""
        return self._buffer[: max((end for _start, end in self._walk(keep=True)), default=0)]

    def read_consistent(self) -> tuple[bytes, bool]:
        """(records, whether nothing changed while they were read)."""
        records = self.read()
        for _attempt in range(ATTEMPTS):
            if _one_sequence(records) and self._shows(records):
                return records, True
            records = self.read()
        return records, False

    def _shows(self, records: bytes) -> bool:
        """Whether another walk gives the same."""
        at = 0
        for start, end in self._walk(keep=False):
            piece = self._buffer[start:end]
            if piece != records[at : at + len(piece)]:
                return False
            at += len(piece)
        return at == len(records)

    def _walk(self, *, keep: bool) -> Generator[tuple[int, int], None, None]:
        """The pieces of one walk: where each begins and ends in the buffer. keep: one after the other, not in place."""
        iterator = _bpf(_ITER_CREATE, self._iterate)
        at = 0
        last = b""
        try:
            while True:
                if len(self._buffer) - at < _READ_SIZE:
                    self._buffer.resize(2 * len(self._buffer))
                with memoryview(self._buffer) as view, view[at : at + _READ_SIZE] as piece:
                    count = os.readv(iterator, [piece])
                if not count:
                    break
                if count % program.RECORD.size:  # the end mark
                    yield at, at + count - 8
                    break
                if keep and not at and self._make_room():
                    yield from self._walk(keep=True)
                    break
                # The mark may not have fitted into the kernel's buffer. Then the walk begins again somewhere behind us.
                first = self._buffer[at : at + 8][::-1]
                if first <= last:
                    break
                last = first
                yield at, at + count
                if keep:
                    at += count
        finally:
            os.close(iterator)

    def _make_room(self) -> bool:
        """For all VMAs that the first record tells of, each with a name: of this process, growth is itself a change."""
        (vmas,) = struct.unpack_from("<I", self._buffer, 8 * program.SEQUENCE)
        need = 2 * vmas * program.RECORD.size + _READ_SIZE
        if need <= len(self._buffer):
            return False
        self._buffer.resize(abi.page_align_up(need))
        return True

    def read_quickly(self) -> tuple[bytes, bool]:
        """As `read_consistent`, but a single walk will do where ``mm_lock_seq`` tells that it met no change.

        Then a VMA may have got its anon_vma behind the walk's back, and nothing else can have happened.
        """
        for _attempt in range(2):  # the first may have made the buffer larger: of this process that is a change
            records = self.read()
            if records and _one_sequence(records) and _tells_sequence(records):
                return records, True
        return self.read_consistent()

    def still_shows(self, records: bytes) -> bool:
        """Whether no VMA has come, gone or changed since `records`, but that some may have got their anon_vma. O(1).

        One piece of a walk will do: its first record carries the mm, its ``map_count`` and its ``mm_lock_seq``.
        """
        if not _tells_sequence(records):
            return False
        with contextlib.closing(self._walk(keep=False)) as walk:
            start, end = next(walk, (0, 0))
            return start < end <= len(records) and self._buffer[start:end] == records[: end - start]

    def close(self) -> None:
        """Let go of the iterator; safe to call twice."""
        if self._link >= 0:
            os.close(self._link)
            self._link = -1
            self._buffer.close()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _one_sequence(records: bytes) -> bool:
    """The first and the last record carry the same mm, map_count and mm_lock_seq."""
    tail = 8 * (program.WORDS - program.MM)
    size = program.RECORD.size
    last = len(records) - size
    while last > 0 and records[last : last + 8] == _NAME_TAG:
        last -= size
    return last <= 0 or records[size - tail : size] == records[last + size - tail : last + size]


def _tells_sequence(records: bytes) -> bool:
    """The kernel has an ``mm_lock_seq`` (6.4); without one its half of the word is 0, as it is before any change."""
    return any(records[8 * program.SEQUENCE + 4 : 8 * program.SEQUENCE + 8])


_loaded: IteratorProgram | None = None
_refused: dict[int, str] = {}  # by user: finding out anew costs reading all of the kernel's BTF


def loaded() -> IteratorProgram:
    """The program for all addresses, loaded at the first call. Raises NotPermitted or NotSupported."""
    global _loaded
    if _loaded is None:
        _loaded = IteratorProgram()
    return _loaded


def take(pid: int) -> Snapshot:
    """A snapshot of `pid`; no rows where it is gone or has no address space (the caller tells which).

    Raises NotPermitted or NotSupported where BPF does not serve.
    """
    with loaded().watch(pid) as watch:
        records, consistent = watch.read_consistent()
    return bpf_records.parse(pid, records, consistent)


def available() -> tuple[bool, str]:
    """(whether exact snapshots work here, the reason where they do not)."""
    user = os.geteuid()
    if user not in _refused:
        try:
            loaded()
        except KernelError as error:
            _refused[user] = str(error)
        else:
            return True, ""
    return False, _refused[user]
