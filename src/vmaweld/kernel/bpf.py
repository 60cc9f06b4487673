"""Exact snapshots: every VMA with its page offset, its anon_vma and all its flags, through BPF's ``iter/task_vma``.

Needs root, or CAP_BPF and CAP_PERFMON, and a kernel since 6.1 with BTF. The program is loaded with bpf(2) itself
(`bpf_program` tells why), once a process; one iterator link a watched process makes further snapshots cheap.

Consistency. The iterator holds the mmap lock for reading, but lets go of it whenever its 32 KiB buffer is full or a
writer waits. So the walk is done twice and the bytes compared. Every record carries the mm's ``mm_lock_seq`` (since
6.4), which each write-locked section changes: equal throughout means that no VMA came, went or changed between the
first record and the last. The only change that needs no write lock is a fault that gives a VMA its anon_vma; it happens
once and is never undone under the same ``mm_lock_seq``, so two equal walks prove the state at the end of the first. On
6.1 there is no ``mm_lock_seq``: there two equal walks, ``map_count`` included, leave out only a change that was exactly
undone in between. A stopped process is consistent at the first try; one that keeps changing is read `ATTEMPTS` times
and then given with `consistent` False.
"""

import ctypes
import gc
import os
import struct
from collections.abc import Callable
from typing import Final

from vmaweld.kernel import bpf_program as program
from vmaweld.kernel.btf import Btf, BtfError
from vmaweld.kernel.errors import KernelError, NotPermitted, NotSupported
from vmaweld.snapshot import AnonVma, Row, Snapshot

ATTEMPTS: Final = 4

_NR_BPF: Final = 321
_PROG_LOAD: Final = 5
_LINK_CREATE: Final = 28
_ITER_CREATE: Final = 33
_PROG_TYPE_TRACING: Final = 26
_TRACE_ITER: Final = 28
_READ_SIZE: Final = 1 << 16  # the kernel hands over at most half of that at a time
_LOG_SIZE: Final = 1 << 20
_EPERM, _EACCES, _ENOSYS = 1, 13, 38

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_NAME_TAG: Final = program.NAME_TAG.to_bytes(8, "little")
_KIND_NAMES: Final = ("", "[heap]", "[stack]", "", "")
_HAS_CLOSE: Final = 1 << 16
_HAS_POLICY: Final = 1 << 24

FileName = Callable[[int, int, int, int], str]

_MPOL_MODES: Final = ("default", "prefer", "bind", "interleave", "local", "prefer-many", "weighted-interleave")
_MPOL_FLAGS: Final = ((1 << 15, "static"), (1 << 14, "relative"), (1 << 13, "balancing"))


def _bpf(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    result: int = _libc.syscall(_NR_BPF, command, attributes, len(attributes))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def policy_text(mode: int, flags: int, nodes: int) -> str:
    """A memory policy as /proc/PID/numa_maps writes it: ``bind:0``, ``prefer=static:0-1``. `nodes` is a bit mask."""
    text = _MPOL_MODES[mode] if mode < len(_MPOL_MODES) else f"mode-{mode}"
    names = [name for bit, name in _MPOL_FLAGS if flags & bit]
    if names:
        text += "=" + "|".join(names)
    parts = []
    node = 0
    while nodes >> node:
        if nodes >> node & 1:
            first = node
            while nodes >> (node + 1) & 1:
                node += 1
            parts.append(str(first) if first == node else f"{first}-{node}")
        node += 1
    return text + (":" + ",".join(parts) if parts else "")


class Program:
    """The iterator program, loaded for one range of addresses.

    low, high: only VMAs that overlap ``[low, high)`` are shown.
    Raises NotPermitted or NotSupported, the message naming what is missing.
    """

    def __init__(self, low: int = 0, high: int = 1 << 63, *, btf: Btf | None = None) -> None:
        self.fd = -1
        try:
            btf = btf or Btf.running_kernel()
            target = btf.function_id(program.ITERATOR)
            if target is None:
                raise NotSupported("this kernel has no BPF iterator over VMAs (it came with Linux 5.12)")
            code = program.assemble(btf, low, high)
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
        """An iterator over the VMAs of `pid` alone. Raises NotSupported before Linux 6.1."""
        return Watch(self, pid)

    def close(self) -> None:
        """Unload the program; safe to call twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class Watch:
    """Snapshots of one process through a loaded `Program`."""

    def __init__(self, loaded: Program, pid: int) -> None:
        self.pid = pid
        info = ctypes.create_string_buffer(struct.pack("<III", pid, 0, 0), 16)  # bpf_iter_link_info.task.tid
        attributes = struct.pack("<IIIIQII", loaded.fd, 0, _TRACE_ITER, 0, _address(info), 16, 0)
        try:
            self._link = _bpf(_LINK_CREATE, ctypes.create_string_buffer(attributes, len(attributes)))
        except OSError as error:
            raise NotSupported(f"no BPF iterator over one process (Linux 6.1 or later): {error.strerror}") from None
        self._iterate = ctypes.create_string_buffer(struct.pack("<II", self._link, 0), 8)
        self._buffer = bytearray(2 * _READ_SIZE)

    def read(self) -> bytes:
        """The records of one walk, as `bpf_program.RECORD`; empty where the process is gone or has no address space."""
        iterator = _bpf(_ITER_CREATE, self._iterate)
        # One buffer for all walks, so that a process that reads its own VMAs does not change them while it does.
        buffer = self._buffer
        filled = 0
        last = b""
        try:
            while True:
                if len(buffer) - filled < _READ_SIZE:
                    buffer += bytes(len(buffer))
                with memoryview(buffer) as view:
                    count = os.readv(iterator, [view[filled:]])
                if not count:
                    break
                if count % program.RECORD.size:  # the end mark
                    filled += count - 8
                    break
                # The mark may not have fitted into the kernel's buffer. Then the walk begins again somewhere behind us.
                first = bytes(buffer[filled : filled + 8])[::-1]
                if first <= last:
                    break
                last = first
                filled += count
        finally:
            os.close(iterator)
        return bytes(buffer[:filled])

    def read_consistent(self) -> tuple[bytes, bool]:
        """(records, whether nothing changed while they were read)."""
        before = self.read()
        for _attempt in range(ATTEMPTS):
            after = self.read()
            if before == after and _one_sequence(after):
                return after, True
            before = after
        return before, False

    def read_quickly(self) -> tuple[bytes, bool]:
        """As `read_consistent`, but a single walk will do where ``mm_lock_seq`` tells that it met no change.

        Then a VMA may have got its anon_vma behind the walk's back, and nothing else can have happened.
        """
        for _attempt in range(2):  # the first may have made the buffer larger: of this process that is a change
            records = self.read()
            if records and _one_sequence(records) and _tells_sequence(records):
                return records, True
        return self.read_consistent()

    def close(self) -> None:
        """Let go of the iterator; safe to call twice."""
        if self._link >= 0:
            os.close(self._link)
            self._link = -1

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


def parse(pid: int, records: bytes, consistent: bool = True, *, file_name: FileName | None = None) -> Snapshot:
    """The records of a `Watch` as a Snapshot.

    file_name: names the file of the first row that maps it, from (start, end, device, inode); where there is none,
        /proc/PID/map_files is asked. The device is the kernel's number: major << 20 | minor.
    """
    collecting = gc.isenabled()
    gc.disable()  # 60,000 rows are no garbage, but would set off several full collections
    try:
        return _parse(pid, records, consistent, file_name or (lambda *row: _path(pid, *row)))
    finally:
        if collecting:
            gc.enable()


def _parse(pid: int, records: bytes, consistent: bool, file_name: FileName) -> Snapshot:
    rows: list[Row] = []
    anon_vmas: dict[int, AnonVma] = {}
    paths: dict[int, str] = {0: ""}
    names = _KIND_NAMES
    # fmt: off
    for (start, end, flags, pgoff, anon_vma, bits, file_id, inode, device, uffd, nodes,
         root, parent, children, active, _mm, _sequence) in program.RECORD.iter_unpack(records):
        # fmt: on
        if start == program.NAME_TAG:
            continue  # read below: names are rare, and this loop is what a snapshot costs
        if anon_vma and anon_vma not in anon_vmas:
            anon_vmas[anon_vma] = AnonVma(root, parent, children, active)
        path = paths.get(file_id)
        if path is None:
            path = paths[file_id] = file_name(start, end, device, inode)
        rows.append(
            Row(
                start,
                end,
                flags,
                pgoff=pgoff,
                anon_vma=anon_vma,
                file=path,
                name=names[bits >> 8 & 0xFF],
                mempolicy=policy_text(bits >> 32 & 0xFFFF, bits >> 48, nodes) if bits & _HAS_POLICY else "",
                uffd=uffd,
                chain=bits & 0xFF,
                file_id=file_id,
                close=bits & _HAS_CLOSE != 0,
            )
        )
    if len(rows) * program.RECORD.size != len(records):
        _set_names(rows, records)
    return Snapshot(pid, rows, source="bpf", flags_exact=True, hidden=True, consistent=consistent, anon_vmas=anon_vmas)


def _set_names(rows: list[Row], records: bytes) -> None:
    """Give each row the name that a name record after its own tells."""
    row = -1
    for at in range(0, len(records), program.RECORD.size):
        if records[at : at + 8] != _NAME_TAG:
            row += 1
            continue
        name = records[at + 8 : at + program.RECORD.size].partition(b"\0")[0].decode(errors="surrogateescape")
        if name.startswith("["):
            rows[row].name = name
        elif name:
            rows[row].name = f"[anon_shmem:{name}]" if rows[row].file else f"[anon:{name}]"


def _path(pid: int, start: int, end: int, device: int, inode: int) -> str:
    """The path of a mapped file; ``inode:MAJOR:MINOR:NUMBER`` where the mapping is gone before it could be asked."""
    try:
        return os.readlink(f"/proc/{pid}/map_files/{start:x}-{end:x}")
    except OSError:
        return f"inode:{device >> 20:x}:{device & 0xFFFFF:x}:{inode}"


_loaded: Program | None = None
_refused: dict[int, str] = {}  # by user: finding out anew costs reading all of the kernel's BTF


def loaded() -> Program:
    """The program for all addresses, loaded at the first call. Raises NotPermitted or NotSupported."""
    global _loaded
    if _loaded is None:
        _loaded = Program()
    return _loaded


def take(pid: int) -> Snapshot:
    """A snapshot of `pid`; no rows where it is gone or has no address space (the caller tells which).

    Raises NotPermitted or NotSupported where BPF does not serve.
    """
    with loaded().watch(pid) as watch:
        records, consistent = watch.read_consistent()
    return parse(pid, records, consistent)


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
