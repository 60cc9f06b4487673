# SPDX-License-Identifier: GPL-2.0-or-later
"""What must be true of machine and process before a weld may begin."""

import os
import platform
import resource
import struct
from typing import Final

from vmaweld import abi
from vmaweld.kernel import memory_cgroup, pagemap, procfs, userfaultfd
from vmaweld.policy import release_numbers
from vmaweld.welding.errors import Refused
from vmaweld.welding.plan import OBSTACLES, Plan

HEADROOM: Final = 12
"""VMAs that a weld needs for the moment: code and journal, the room, two splits, and what mremap asks to be free."""
_CHARGED_AHEAD: Final = 512 << 10  # the kernel charges up to 64 pages at a time, for each processor


def check_machine() -> None:
    """Raises Refused unless this is a 64-bit x86 program."""
    if platform.machine() != "x86_64" or struct.calcsize("P") != 8:
        raise Refused(f"no weld on {platform.machine()} yet: only on x86-64, from a 64-bit Python")


def zero_stays() -> bool:
    """True where UFFDIO_MOVE must not meet the page of zeroes, which a read maps.

    6.8 answers EBUSY to it. From 6.16 on move_pages_huge_pmd() writes a PMD without a page for a huge one, at which the
    next walk of the page tables dies (CVE-2026-31397): mended in 7.0 and, at the latest, in 6.18.21 and 6.19.11.
    """
    kernel = release_numbers(platform.release())
    mended = (6, 18, 21) <= kernel < (6, 19, 0) or kernel >= (6, 19, 11)
    return kernel < (6, 9, 0) or (kernel >= (6, 16, 0) and not mended)


def check_own() -> None:
    """Raises Refused unless this process may weld its own memory."""
    check_machine()
    fine, reason = userfaultfd.available(userfaultfd.FEATURE_MOVE)
    if not fine:
        raise Refused(reason)


def check_headroom(vmas: int) -> None:
    """Raises Refused where a process with so many VMAs is too near the limit for a weld to work."""
    limit = procfs.max_map_count()
    if vmas + HEADROOM > limit:
        raise Refused(
            f"{vmas} VMAs are too near the limit of {limit}, for a weld needs {HEADROOM} more while it works: "
            f"sysctl -w vm.max_map_count={vmas + HEADROOM} and run it again"
        )


def check_memory(pid: int, made: Plan, *, unshare: bool, verify: bool = False) -> None:
    """Raises Refused where the memory cgroup of `pid`, or a strict commit limit, has too little room for the plan.

    Of the cgroup it takes meanwhile a page table (4 KiB) for each 2 MiB of the longest run, the copies of shared pages,
    what has to be read back from swap to compare it, and what the kernel charges in advance. At the limit it would not
    refuse the memory, but might kill.
    """
    if not made.candidates:
        return
    longest = max(candidate.rows[-1].end - candidate.rows[0].start for candidate in made.candidates)
    _check_commit_limit(pid, longest)
    need = longest // 512 + (made.shared * abi.PAGE_SIZE if unshare else 0) + _CHARGED_AHEAD
    if verify:
        runs = (run for candidate in made.candidates for run in candidate.runs)
        need += sum(run.end - run.start for run in runs if run.kind & pagemap.SWAPPED)
    found = memory_cgroup.room(pid)
    if found is not None and found.free < need:
        raise Refused(
            f"process {pid} has {max(found.free, 0) >> 10:,} KiB left of its memory cgroup's limit, the weld needs "
            f"{need >> 10:,} KiB while it works, and the kernel might kill the process for it: raise the limit of "
            f"{found.cgroup}, or weld part by part with --range"
        )


def _check_commit_limit(pid: int, longest: int) -> None:
    """Raises Refused where commit is strict (vm.overcommit_memory=2) and there is too little left for `longest` bytes.

    The longest run is charged a second time for the moment. At the limit __vm_enough_memory() refuses even a mremap
    that takes nothing, such as the one that puts pages back. So what it sets aside, and what its counter may be off,
    are added, and the run once more.
    """
    with open("/proc/sys/vm/overcommit_memory", encoding="ascii") as file:
        if file.read().strip() != "2":
            return
    with open("/proc/meminfo", encoding="ascii") as file:
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in file}
    aside = 0
    for name in ("admin_reserve_kbytes", "user_reserve_kbytes"):
        with open(f"/proc/sys/vm/{name}", encoding="ascii") as file:
            aside += int(file.read())
    free = kilobytes["CommitLimit"] - kilobytes["Committed_AS"]
    need = 2 * (longest >> 10) + aside + kilobytes["MemTotal"] // 64
    if free < need:
        raise Refused(
            f"{max(free, 0):,} KiB are left of the commit limit (vm.overcommit_memory is 2), and a weld of process "
            f"{pid} needs {need:,} KiB while it works: raise vm.overcommit_ratio, or weld part by part with --range"
        )


def relock_reason(pid: int) -> str:
    """Why mlocked memory of `pid` may not be unlocked for the moment, "" where it may."""
    with open("/proc/swaps", encoding="ascii") as file:
        if len(file.read().splitlines()) > 1:
            return OBSTACLES["locked-swap"]
    status = dict(line.split(b":\t", 1) for line in procfs.read_file(pid, "status").splitlines() if b":\t" in line)
    locked = int(status.get(b"VmLck", b"0").split()[0]) << 10
    limit = procfs.limits(pid).get("Max locked memory", (resource.RLIM_INFINITY, None))[0]
    ipc_lock = int(status.get(b"CapEff", b"0"), 16) >> 14 & 1
    if limit is not None and locked > limit and not ipc_lock:
        return OBSTACLES["locked-limit"]
    return ""


def check_other(pid: int) -> None:
    """Raises Refused where process `pid` cannot be welded, whoever asks. Nothing is stopped for it."""
    check_machine()
    if pid == os.getpid():
        raise Refused("a process cannot stop itself: use vmaweld.weld() for its own memory")
    if release_numbers(platform.release()) < (6, 8, 0):
        raise Refused(f"this kernel is {platform.release()}: UFFDIO_MOVE came with Linux 6.8")
    found = procfs.status(pid)
    if found.kernel_thread:
        raise Refused(f"process {pid} ({found.name}) is a kernel thread: it has no memory of its own")
    if not found.memory:
        raise procfs.why_empty(pid)
    for line in procfs.read_file(pid, "status").splitlines():
        if line.startswith(b"x86_Thread_features:") and b"shstk" in line:
            raise Refused(f"process {pid} runs with a shadow stack: a weld cannot borrow its threads")
    # The words of the auxiliary vector are as wide as the program's: AT_NULL ends it either way, but a 32-bit one
    # has its small types four bytes apart.
    vector = procfs.read_file(pid, "auxv")
    if len(vector) >= 16 and any(vector[4:8]):
        raise Refused(f"process {pid} is a 32-bit program: only 64-bit ones can be welded")


def check_io_uring(pid: int) -> None:
    """Raises Refused where the kernel may write to memory on its way for `pid`, and could not be made to wait.

    io_uring's workers copy into the process's buffers while its threads stand still. At a page that is away they wait
    for it, unless the userfaultfd is one for user code only, as unprivileged processes get it: then the I/O would fail.
    """
    try:
        with open("/proc/sys/vm/unprivileged_userfaultfd", encoding="ascii") as file:
            if file.read().strip() == "1":
                return
    except OSError:
        pass
    status = dict(line.split(b":\t", 1) for line in procfs.read_file(pid, "status").splitlines() if b":\t" in line)
    if int(status.get(b"CapEff", b"0"), 16) >> 19 & 1:  # CAP_SYS_PTRACE
        return
    for name in procfs.descriptors(pid):
        try:
            ring = os.readlink(f"/proc/{pid}/fd/{name}") == "anon_inode:[io_uring]"
        except OSError:
            continue
        if ring:
            raise Refused(
                f"process {pid} uses io_uring, whose workers could not be made to wait: "
                "sysctl -w vm.unprivileged_userfaultfd=1 and run it again"
            )
