# SPDX-License-Identifier: GPL-2.0-or-later
"""What /proc tells about a process: its VMAs (maps), their flags (smaps), its state and limits.

Formats: the kernel's ``Documentation/filesystems/proc.rst``; the two-letter flags: ``show_smap_vma_flags()`` in
fs/proc/task_mmu.c. Page offsets of anonymous VMAs and anon_vmas are not to be had here, so such rows say None.

Consistency: the kernel writes maps a buffer at a time and lets go of the mmap lock in between, so maps is read
twice and the bytes compared (smaps too expensive for that: maps is read before and after it).
"""

import errno
import gc
import os
from typing import Final, NamedTuple, NoReturn

from vmaweld import abi
from vmaweld.kernel.errors import KernelError, NoAddressSpace, NotAProcess, NotPermitted, ProcessGone
from vmaweld.snapshot import Row, Snapshot

ATTEMPTS: Final = 3

_READ_SIZE: Final = 1 << 20
_PERMISSIONS: Final[dict[bytes, int]] = {
    bytes(text, "ascii"): flags
    for text, flags in (
        (
            f"{'r' if r else '-'}{'w' if w else '-'}{'x' if x else '-'}{'s' if s else 'p'}",
            (abi.VM_READ if r else 0)
            | (abi.VM_WRITE if w else 0)
            | (abi.VM_EXEC if x else 0)
            | (abi.VM_MAYSHARE if s else 0),
        )
        for r in (0, 1)
        for w in (0, 1)
        for x in (0, 1)
        for s in (0, 1)
    )
}

# show_smap_vma_flags(). "sd" (soft-dirty) is left in: it is shown only where the kernel tracks it.
FLAG_CODES: Final[dict[bytes, int]] = {
    b"rd": abi.VM_READ,
    b"wr": abi.VM_WRITE,
    b"ex": abi.VM_EXEC,
    b"sh": abi.VM_SHARED,
    b"mr": abi.VM_MAYREAD,
    b"mw": abi.VM_MAYWRITE,
    b"me": abi.VM_MAYEXEC,
    b"ms": abi.VM_MAYSHARE,
    b"gd": abi.VM_GROWSDOWN,
    b"pf": abi.VM_PFNMAP,
    b"lo": abi.VM_LOCKED,
    b"lf": abi.VM_LOCKONFAULT,
    b"io": abi.VM_IO,
    b"sr": abi.VM_SEQ_READ,
    b"rr": abi.VM_RAND_READ,
    b"dc": abi.VM_DONTCOPY,
    b"de": abi.VM_DONTEXPAND,
    b"ac": abi.VM_ACCOUNT,
    b"nr": abi.VM_NORESERVE,
    b"ht": abi.VM_HUGETLB,
    b"sf": abi.VM_SYNC,
    b"wf": abi.VM_WIPEONFORK,
    b"dd": abi.VM_DONTDUMP,
    b"sd": abi.VM_SOFTDIRTY,
    b"mm": abi.VM_MIXEDMAP,
    b"hg": abi.VM_HUGEPAGE,
    b"nh": abi.VM_NOHUGEPAGE,
    b"mg": abi.VM_MERGEABLE,
    b"um": abi.VM_UFFD_MISSING,
    b"uw": abi.VM_UFFD_WP,
    b"ui": abi.VM_UFFD_MINOR,
    b"ss": abi.VM_SHADOW_STACK,
    b"sl": abi.VM_SEALED,
    b"dp": abi.VM_DROPPABLE,
    b"gu": abi.VM_MAYBE_GUARD,
}


_PF_KTHREAD: Final = 0x0020_0000
"""Of a task's flags, which /proc/PID/stat tells: a kernel thread (include/linux/sched.h)."""


def _refuse(pid: int, error: OSError, what: str) -> NoReturn:
    # ESRCH: the process ended between opening and reading (m_start() in fs/proc/task_mmu.c).
    if error.errno == errno.ESRCH and what != "status":
        raise why_empty(pid) from None
    if error.errno in (errno.ENOENT, errno.ESRCH):
        raise _why_absent(pid) from None
    if error.errno in (errno.EACCES, errno.EPERM):
        raise NotPermitted(
            f"not permitted to read {what} of process {pid}: run as its owner, or as root (CAP_SYS_PTRACE)"
        ) from None
    raise error


def _why_absent(pid: int) -> KernelError:
    """Why /proc does not show `pid`: it has ended, or /proc hides what belongs to others (hidepid)."""
    try:
        os.kill(pid, 0)
        exists = True
    except PermissionError:
        exists = True
    except (OSError, OverflowError):
        exists = False
    if exists and not os.path.exists(f"/proc/{pid}"):
        return NotPermitted(
            f"not permitted to look at process {pid}, which /proc hides (hidepid): run as its owner, or as root"
        )
    return ProcessGone(f"process {pid} does not exist (any more)")


def read_file(pid: int, name: str) -> bytes:
    """All of /proc/PID/`name`. Raises ProcessGone or NotPermitted."""
    try:
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            chunks = []
            while chunk := os.read(fd, _READ_SIZE):
                chunks.append(chunk)
        finally:
            os.close(fd)
    except OSError as error:
        _refuse(pid, error, name)
    return b"".join(chunks)


class Status(NamedTuple):
    """What /proc/PID/status tells of a process, as far as it is used here.

    name: the command's name (at most 15 bytes). state: the letter, such as "R", "S", "Z", "T" (stopped), "t" (traced).
    uid: the real user. threads: how many. memory: it has an address space. kernel_thread: it is the kernel's own.
    """

    pid: int
    name: str
    state: str
    ppid: int
    uid: int
    threads: int
    memory: bool
    kernel_thread: bool


def status(pid: int) -> Status:
    """The state of process `pid`.

    Raises:
        ProcessGone: there is none.
        NotAProcess: `pid` is a thread's id.
        NotPermitted: /proc is mounted with hidepid.

    """
    lines = (line.partition(b":") for line in read_file(pid, "status").splitlines())
    fields = {key: value.strip() for key, _, value in lines}
    state = fields.get(b"State", b"?")[:1].decode()
    name = fields.get(b"Name", b"").decode(errors="replace").replace("\\n", "\n").replace("\\\\", "\\")
    group = int(fields.get(b"Tgid", b"%d" % pid))
    if group != pid:
        raise NotAProcess(f"{pid} is a thread of process {group} ({name}), not a process: use {group}")
    memory = b"VmSize" in fields
    return Status(
        pid=pid,
        name=name,
        state=state,
        ppid=int(fields.get(b"PPid", b"0")),
        uid=int(fields.get(b"Uid", b"0").split()[0]),
        threads=int(fields.get(b"Threads", b"1")),
        memory=memory,
        kernel_thread=not memory and _is_kernel_thread(pid),
    )


def _is_kernel_thread(pid: int) -> bool:
    """Whether the kernel made `pid` for itself. A process that is just exiting has no address space either."""
    return bool(int(read_file(pid, "stat").rpartition(b") ")[2].split()[6]) & _PF_KTHREAD)


def max_map_count() -> int:
    """The most VMAs a process may have (``vm.max_map_count``)."""
    try:
        with open("/proc/sys/vm/max_map_count", "rb") as file:
            return int(file.read())
    except (OSError, ValueError):
        return abi.DEFAULT_MAX_MAP_COUNT


def limits(pid: int) -> dict[str, tuple[int | None, int | None]]:
    """(soft, hard) by name, as /proc/PID/limits lists them ("Max locked memory"); None is unlimited."""
    found: dict[str, tuple[int | None, int | None]] = {}
    for line in read_file(pid, "limits").decode().splitlines()[1:]:
        words = line[26:].split()
        soft, hard = (None if word == "unlimited" else int(word) for word in words[:2])
        found[line[:26].strip()] = (soft, hard)
    return found


def descriptors(pid: int) -> list[str]:
    """The names in /proc/PID/fd. Raises ProcessGone."""
    try:
        return os.listdir(f"/proc/{pid}/fd")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(f"process {pid} has ended") from None


def pids() -> list[int]:
    """Every process that /proc shows, by number."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def decode_name(name: bytes) -> str:
    r"""A name as maps writes it, its one escape (``\012``, a newline) undone; bytes that are no UTF-8 survive."""
    return name.replace(b"\\012", b"\n").decode(errors="surrogateescape")


def _file_identity(device: bytes, inode: bytes) -> int:
    major, _, minor = device.partition(b":")
    return int(inode) << 32 | int(major, 16) << 20 | int(minor, 16)


def parse_maps(data: bytes) -> list[Row]:
    """The rows of the text of /proc/PID/maps. [vsyscall] is left out: it is printed there, but is no VMA."""
    rows: list[Row] = []
    append = rows.append
    permissions = _PERMISSIONS
    files: dict[tuple[bytes, bytes, bytes], tuple[str, str, int]] = {}
    for line in data.split(b"\n"):
        fields = line.split(b" ", 5)
        if len(fields) < 6:
            continue  # the end of the text
        addresses, perms, offset, device, inode, raw = fields
        start, _, end = addresses.partition(b"-")
        if inode == b"0":
            if not raw:
                append(Row(int(start, 16), int(end, 16), permissions[perms], mempolicy=None, file_id=0))
                continue
            name = decode_name(raw.lstrip(b" "))
            if name == "[vsyscall]":
                continue
            if name.startswith("["):
                append(Row(int(start, 16), int(end, 16), permissions[perms], name=name, file_id=0))
                continue
        known = files.get((device, inode, raw))
        if known is None:
            file, name = decode_name(raw.lstrip(b" ")), ""
            if file.startswith("[anon_shmem:"):  # shared memory with a name of its own: the file is not told
                file, name = f"inode:{device.decode()}:{inode.decode()}", file
            known = files[device, inode, raw] = file, name, _file_identity(device, inode)
        file, name, file_id = known
        append(
            Row(
                int(start, 16),
                int(end, 16),
                permissions[perms],
                pgoff=int(offset, 16) >> abi.PAGE_SHIFT,
                file=file,
                name=name,
                file_id=file_id,
            )
        )
    return rows


def parse_smaps_flags(data: bytes) -> dict[int, int]:
    """``VM_*`` bits by start address, from the text of /proc/PID/smaps. Codes of no known flag are left out."""
    flags: dict[int, int] = {}
    sets: dict[bytes, int] = {}
    # "VmFlags" is the last line of a VMA's block: the next one's header follows it.
    header = data
    for part in data.split(b"\nVmFlags:")[1:]:
        start = header[: header.find(b"-", 0, 20)]
        codes, _, header = part.partition(b"\n")
        bits = sets.get(codes)
        if bits is None:
            bits = 0
            for code in codes.split():
                bits |= FLAG_CODES.get(code, 0)
            sets[codes] = bits
        flags[int(start, 16)] = bits
    return flags


def read_maps(pid: int, *, flags: bool = False) -> Snapshot:
    """A snapshot of `pid` from /proc/PID/maps, and with `flags` from smaps too.

    flags: read smaps for all flags it shows. It costs a multiple of maps: the kernel walks the page tables for it.
        Without it only read, write, exec and shared are known. `Snapshot.flags_exact` stays False either way.
    Raises ProcessGone (zombies too), NoAddressSpace for a kernel thread, NotPermitted.
    """
    collecting = gc.isenabled()
    gc.disable()  # 60,000 rows are no garbage, but would set off several full collections
    try:
        return _read_maps(pid, flags)
    finally:
        if collecting:
            gc.enable()


def _read_maps(pid: int, flags: bool) -> Snapshot:
    consistent = False
    # Nothing is read from what was opened before an exec: that address space is gone (mmget_not_zero()).
    before = read_file(pid, "maps") or read_file(pid, "maps")
    bits: dict[int, int] = {}
    for _attempt in range(ATTEMPTS):
        if flags:
            bits = parse_smaps_flags(read_file(pid, "smaps"))
        after = read_file(pid, "maps")
        consistent = before == after
        before = after
        if consistent:
            break
    rows = parse_maps(before)
    if not rows:
        raise why_empty(pid)
    if flags:
        for row in rows:
            row.flags |= bits.get(row.start, 0)
    return Snapshot(pid, rows, source="procfs", flags_exact=False, hidden=False, consistent=consistent)


def why_empty(pid: int) -> KernelError:
    """Why `pid` shows no VMA at all: it is a kernel thread, or has ended, or is about to."""
    try:
        found = status(pid)
    except KernelError as error:
        return error
    named = f"process {pid} ({found.name})"
    if found.kernel_thread:
        return NoAddressSpace(f"{named} is a kernel thread: it has no VMAs")
    if found.memory:
        return NotPermitted(
            f"not permitted to read the memory of {named}: run as its owner, or as root (CAP_SYS_PTRACE)"
        )
    if found.threads > 1:
        return ProcessGone(
            f"the main thread of {named} has ended, and /proc shows nothing of what the others still use"
        )
    return ProcessGone(f"{named} has ended (a zombie)" if found.state == "Z" else f"{named} is ending")
