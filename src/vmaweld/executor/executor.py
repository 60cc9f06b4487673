"""Events performed for real: a sacrificial process, and its own children, that do to memory what they are told.

The processes live in an interpreter of their own (`child`), apart from the caller: they may crash, be killed
or hang, and the caller gets an `ExecutorError`. All they do lies in the arena, a range of addresses that is free in
every process; the rest of their address space is filled up, so that a mapping whose address the kernel may choose lands
in the arena as well, from its upper end downwards, just as below an ``mmap_base`` of that address.

What events mean here:

- Event pids are names: process 7 begins, with an empty arena, at the first event that names it, or is forked by
  another.
- FORK with CLONE_VM makes a second name for the same process, which lives until both have seen EXIT.
- READ and WRITE touch one byte of each page in order and answer 0, or ``-EFAULT`` at the first page that would kill a
  program; pages before it stay touched. Where a userfaultfd waits for missing pages, the answer is ``-EFAULT`` too:
  nothing blocks, but a write has given the VMA its anon_vma before. A write leaves a zero at the start of each page.
- UFFD_REGISTER makes the context of that number where the process has none. After a fork the child has no contexts.
  UFFD_MOVE uses the context that its target is registered with, goes on after a partial move, and answers 0 or
  ``-errno``.
- MLOCKALL with MCL_CURRENT is refused before Linux 5.18 (`can_lock_current`): to unlock the filled-up space, such a
  kernel would look at every page of it, for hours.
- BRK works where `brk` was given: the program break is then moved into the arena (CONFIG_CHECKPOINT_RESTORE).
- MMAP of a file: names that begin with "/memfd:" are memfds, others unlinked temporary files; each is opened once, for
  all processes, and as large as the arena. SHMAT: one segment for each name and length, gone with the executor.
- EXEC and PLACE are refused, as is what would reach beyond the arena: `ValueError`.
"""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from vmaweld import events as ev
from vmaweld.abi import (
    CLONE_VM,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MCL_CURRENT,
    MREMAP_FIXED,
    PAGE_SHIFT,
    PROT_EXEC,
    PROT_WRITE,
    page_align_down,
    page_align_up,
)
from vmaweld.events import Event
from vmaweld.executor import child
from vmaweld.kernel import procfs, syscalls
from vmaweld.kernel.bpf import iterator
from vmaweld.kernel.bpf import program as bpf_program
from vmaweld.kernel.bpf import records as bpf_records
from vmaweld.kernel.errors import KernelError
from vmaweld.policy import release_numbers
from vmaweld.snapshot import Row, Snapshot

ARENA_LOW: Final = 0x6000_0000_0000
"""Between where programs and where libraries are mapped, whatever the randomness: free in every process."""
ARENA_SIZE: Final = 1 << 30

_BATCH: Final = 1024
_START_TIMEOUT: Final = 30.0
_SHM_RDONLY, _SHM_REMAP, _SHM_EXEC = 0o10000, 0o40000, 0o100000
_IPC_RMID: Final = 0
_ALL: Final = 0xFFFF_FFFF_FFFF_FFFF

_Command = tuple[int, bytes, tuple[int, ...]]


class ExecutorError(KernelError):
    """The sacrificial process crashed, was killed, hung, or could not be started; the message tells which."""


class _Process:
    """One real process. users: how many event pids name it."""

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self.sock = sock
        self.users = 1


class Executor:
    """Performs events. Close it, or use it in a `with`; it may serve many programs, one after the other (`reset`).

    low, high: the arena; whole pages, within one 4 GiB of addresses.
    brk: where the program break begins, in the arena, or None.
    timeout: seconds within which a message of up to 1024 events must be answered.
    exact: take snapshots through BPF; None: where it is permitted. Without, they are as `procfs` shows them.
    Raises NotPermitted or NotSupported where `exact` is True and cannot be, ExecutorError where the child does not
    start.

    >>> with Executor() as executor:                                             # doctest: +SKIP
    ...     hex(executor.run(Event("mmap", 1, length=8192, prot=3, flags=0x22)))
    '0x60003fffe000'
    """

    def __init__(
        self,
        *,
        low: int = ARENA_LOW,
        high: int = ARENA_LOW + ARENA_SIZE,
        brk: int | None = None,
        timeout: float = 30.0,
        exact: bool | None = None,
    ) -> None:
        if low != page_align_down(low) or high != page_align_down(high) or not low < high or low >> 32 != high >> 32:
            raise ValueError(f"not an arena: {low:#x}-{high:#x}")
        if brk is not None and not low <= brk < high:
            raise ValueError(f"the program break {brk:#x} lies outside the arena")
        self.low = low
        self.high = high
        self._timeout = timeout
        self._processes: dict[int, _Process] = {}
        self._files: dict[str, int] = {}
        self._names: dict[tuple[int, int], str] = {}
        self._segments: dict[tuple[str, int], int] = {}
        self._program: iterator.Program | None = None
        if exact is not False:
            try:
                self._program = iterator.Program(low, high, bpf_program.READER)
            except KernelError:
                if exact:
                    raise
        self._errors = os.memfd_create("vmaweld-errors")
        self._make_files()
        self._control, theirs = socket.socketpair()
        self._control.settimeout(max(timeout, _START_TIMEOUT))
        with theirs:
            self._zygote = self._spawn(theirs.fileno(), brk or 0)
        try:
            hello = self._receive(self._control, child.HELLO.size, "starting")
        except ExecutorError:
            self.close()
            raise
        self._scratch, moved = child.HELLO.unpack(hello)
        self.can_brk: bool = bool(moved)
        """BRK events can be run."""
        self.can_lock_current: bool = release_numbers(os.uname().release) >= (5, 18, 0)
        """MLOCKALL events with MCL_CURRENT can be run."""

    @property
    def exact(self) -> bool:
        """Snapshots show everything (BPF)."""
        return self._program is not None

    @property
    def pids(self) -> list[int]:
        """The event pids that live, in the order of their beginning."""
        return list(self._processes)

    def real_pid(self, pid: int) -> int:
        """The kernel's number of the process that events call `pid`."""
        return self._process(pid).pid

    # Starting and ending ------------------------------------------------------------------------------

    def _make_files(self) -> None:
        for name in FILES:
            if name.startswith("/memfd:"):
                descriptor = os.memfd_create(name.removeprefix("/memfd:"))
            else:
                with tempfile.TemporaryFile() as file:
                    descriptor = os.dup(file.fileno())
            os.ftruncate(descriptor, self.high - self.low)
            self._files[name] = descriptor
            about = os.fstat(descriptor)
            self._names[os.major(about.st_dev) << 20 | os.minor(about.st_dev), about.st_ino] = name

    def _spawn(self, control: int, brk: int) -> "subprocess.Popen[bytes]":
        program = self._program.fd if self._program else -1
        descriptors = [control, *self._files.values()] + ([program] if program >= 0 else [])
        arguments = [str(number) for number in (control, program, self.low, self.high, brk)]
        script = str(Path(child.__file__).resolve())
        return subprocess.Popen(
            # No site packages, no bytecode, no path of the user's: the less the interpreter maps, the better.
            [sys.executable, "-P", "-S", "-s", "-B", script, *arguments],
            env={"PYTHONMALLOC": "malloc", "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")},
            pass_fds=descriptors,
            start_new_session=True,  # Ctrl-C is for the driver
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
        )

    def start(self, pid: int) -> None:
        """Begin process `pid` with an empty arena."""
        if pid in self._processes:
            raise ValueError(f"process {pid} lives already")
        ours, theirs = socket.socketpair()
        ours.settimeout(self._timeout)
        with theirs:
            self._attempt(lambda: socket.send_fds(self._control, [b"+"], [theirs.fileno()]), "starting a process")
        (real,) = child.ANSWER.unpack(self._receive(self._control, child.ANSWER.size, "starting a process"))
        self._processes[pid] = _Process(real, ours)

    def reset(self) -> None:
        """End all processes. What they mapped is gone when this returns."""
        for process in set(self._processes.values()):
            process.sock.shutdown(socket.SHUT_WR)
            self._wait_for_end(process)
        self._processes.clear()

    def close(self) -> None:
        """End everything and give back all that was taken; safe to call twice."""
        for process in set(self._processes.values()):
            process.sock.close()
        self._processes.clear()
        self._control.close()
        if self._zygote.poll() is None:
            try:
                self._zygote.wait(5)
            except subprocess.TimeoutExpired:
                self._zygote.kill()
                self._zygote.wait()
        for shmid in self._segments.values():
            # They went with their namespace, unless the child was not permitted to have one.
            syscalls.raw(syscalls.NR_SHMCTL, shmid, _IPC_RMID, 0)
        self._segments.clear()
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
        if self._program is not None:
            self._program.close()
        if self._errors >= 0:
            os.close(self._errors)
            self._errors = -1

    def __enter__(self) -> "Executor":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    # Running events -----------------------------------------------------------------------------------

    def run(self, event: Event) -> int:
        """Perform `event`: what the call returned (FORK: the child's event pid), or ``-errno``.

        Raises ValueError for what is not done here, ExecutorError where the process did not survive it.
        """
        return self.run_batch([event])[0]

    def run_batch(self, events: Iterable[Event]) -> list[int]:
        """Perform `events` in order; the result of each as `run` tells it.

        Where one of them is refused (ValueError), those before it may have been performed or not.
        """
        return [result for result, _shown in self._run(list(events), 0)]

    def run_watched(self, events: Iterable[Event], *, flags: bool = True) -> tuple[list[int], list[Snapshot]]:
        """Perform `events`; their results, and after each the arena of the process that performed it.

        The snapshot after EXIT has no rows; after FORK it is the parent's (`snapshot` shows the child's).
        flags: without BPF, read smaps for all ``VM_*`` flags, at several times the cost.
        """
        listed = list(events)
        mode = child.WITH_SNAPSHOTS | (child.WITH_FLAGS if flags else 0)
        results: list[int] = []
        snapshots: list[Snapshot] = []
        for event, (result, shown) in zip(listed, self._run(listed, mode), strict=True):
            results.append(result)
            snapshots.append(self._parse(event.pid, shown))
        return results, snapshots

    def snapshot(self, pid: int, *, flags: bool = True) -> Snapshot:
        """The arena of process `pid` as it is now. flags: as in `run_watched`."""
        mode = child.WITH_SNAPSHOTS | (child.WITH_FLAGS if flags else 0)
        command: _Command = (child.SNAPSHOT, b"", ())
        ((_result, shown),) = self._exchange(self._process(pid), [command], mode, [], "taking a snapshot")
        return self._parse(pid, shown)

    def _process(self, pid: int) -> _Process:
        if pid not in self._processes:
            self.start(pid)
        return self._processes[pid]

    def _run(self, events: list[Event], flags: int) -> list[tuple[int, bytes]]:
        answers: list[tuple[int, bytes]] = []
        at = 0
        while at < len(events):
            process = self._process(events[at].pid)
            commands: list[_Command] = []
            forks: list[Event] = []
            first = at
            while at < len(events) and len(commands) < _BATCH and len(forks) < child.MOST_CHILDREN:
                event = events[at]
                if self._processes.get(event.pid) is not process:
                    break
                if self._renames(event):  # only the names change: what went before must be done first
                    if commands:
                        break
                    answers.append((self._rename(event), b"" if not flags else self._show(process, flags)))
                    at += 1
                    first = at
                    continue
                commands.append(self._translate(event))
                at += 1
                if event.op == ev.FORK:
                    self._check_new(event.child, forks)
                    forks.append(event)
                elif event.op == ev.EXIT:
                    break
            if commands:
                answers += self._send(process, commands, flags, forks, events[first:at])
        return answers

    def _check_new(self, pid: int, forks: Sequence[Event]) -> None:
        if pid in self._processes or any(fork.child == pid for fork in forks):
            raise ValueError(f"process {pid} lives already")

    def _renames(self, event: Event) -> bool:
        if event.op == ev.FORK:
            return bool(event.flags & CLONE_VM)
        return event.op == ev.EXIT and self._processes[event.pid].users > 1

    def _rename(self, event: Event) -> int:
        process = self._processes[event.pid]
        if event.op == ev.EXIT:
            process.users -= 1
            del self._processes[event.pid]
            return 0
        self._check_new(event.child, ())
        process.users += 1
        self._processes[event.child] = process
        return event.child

    def _show(self, process: _Process, flags: int) -> bytes:
        return self._exchange(process, [(child.SNAPSHOT, b"", ())], flags, [], "taking a snapshot")[0][1]

    def _send(
        self, process: _Process, commands: list[_Command], flags: int, forks: list[Event], events: Sequence[Event]
    ) -> list[tuple[int, bytes]]:
        pairs = [socket.socketpair() for _fork in forks]
        what = f"{events[0]!r}" if len(events) == 1 else f"one of {len(events)} events, the first {events[0]!r}"
        try:
            answers = self._exchange(process, commands, flags, [theirs.fileno() for _ours, theirs in pairs], what)
        except ExecutorError:
            for ours, _theirs in pairs:
                ours.close()
            raise
        finally:
            for _ours, theirs in pairs:
                theirs.close()
        channels = iter(pairs)
        for index, event in enumerate(events):
            if event.op == ev.FORK:
                ours, _theirs = next(channels)
                real, shown = answers[index]
                if real < 0:
                    ours.close()
                    continue
                ours.settimeout(self._timeout)
                self._processes[event.child] = _Process(real, ours)
                answers[index] = event.child, shown
            elif event.op == ev.EXIT:
                del self._processes[event.pid]
                self._wait_for_end(process)
        return answers

    def _exchange(
        self, process: _Process, commands: list[_Command], flags: int, channels: list[int], what: str
    ) -> list[tuple[int, bytes]]:
        packed = bytearray()
        data = bytearray()
        for kind, own, numbers in commands:
            packed += child.COMMAND.pack(kind, len(own), len(data), *numbers, *(0,) * (7 - len(numbers)))
            data += own
        message = child.HEADER.pack(len(commands), flags, len(data))
        sock = process.sock
        if channels:
            self._attempt(lambda: socket.send_fds(sock, [message], channels), what, process)
            self._attempt(lambda: sock.sendall(packed + data), what, process)
        else:
            self._attempt(lambda: sock.sendall(message + packed + data), what, process)
        if not flags:
            results = self._receive(sock, len(commands) * child.ANSWER.size, what, process)
            return [(result, b"") for (result,) in child.ANSWER.iter_unpack(results)]
        answers: list[tuple[int, bytes]] = []
        for _command in commands:
            answer = self._receive(sock, child.ANSWER.size + child.LENGTH.size, what, process)
            (size,) = child.LENGTH.unpack_from(answer, child.ANSWER.size)
            shown = self._receive(sock, size, what, process) if size else b""
            answers.append((child.ANSWER.unpack_from(answer)[0], shown))
        return answers

    # Waiting --------------------------------------------------------------------------------------------

    def _attempt(self, action: Callable[[], object], what: str, process: _Process | None = None) -> None:
        try:
            action()
        except TimeoutError:
            self._hung(what, process)
        except OSError:
            self._died(what, process)

    def _receive(self, sock: socket.socket, size: int, what: str, process: _Process | None = None) -> bytes:
        parts = []
        while size:
            try:
                part = sock.recv(min(size, 1 << 20))
            except TimeoutError:
                self._hung(what, process)
            except OSError:
                part = b""
            if not part:
                self._died(what, process)
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _wait_for_end(self, process: _Process) -> None:
        """Until its socket is closed: the kernel tears the address space down before it closes files."""
        try:
            while process.sock.recv(1 << 16):
                pass
        except TimeoutError:
            self._hung("ending", process)
        except OSError:
            pass
        process.sock.close()

    def _forget(self, process: _Process | None) -> str:
        for pid in [pid for pid, known in self._processes.items() if known is process]:
            del self._processes[pid]
        if process is None:
            return "the executor"
        process.sock.close()
        return f"process {process.pid}"

    def _hung(self, what: str, process: _Process | None) -> NoReturn:
        pid = process.pid if process else self._zygote.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        limit = (process.sock if process else self._control).gettimeout()
        name = self._forget(process)
        raise ExecutorError(f"{name} did not answer within {limit:g} s and was ended: {what}")

    def _died(self, what: str, process: _Process | None) -> NoReturn:
        name = self._forget(process)
        said = os.pread(self._errors, 1 << 16, 0).decode(errors="replace").strip().splitlines()
        raise ExecutorError(f"{name} died: {what}{'; it said: ' + said[-1] if said else ''}")

    # Events to commands ---------------------------------------------------------------------------------

    def _translate(self, event: Event) -> _Command:
        """The command for `event`. Raises ValueError for what is not done here."""
        translate = _TRANSLATIONS.get(event.op)
        if translate is None:
            raise ValueError(f"{event.op} cannot be performed by a live process")
        return translate(self, event)

    def _inside(self, event: Event, start: int, length: int) -> None:
        if length and not self.low <= start <= page_align_up(start + length) <= self.high:
            raise ValueError(f"{event!r} reaches beyond the arena {self.low:#x}-{self.high:#x}")

    def _mmap(self, event: Event) -> _Command:
        descriptor = _ALL
        if event.file:
            if event.file not in self._files:
                raise ValueError(f"{event!r}: the files are {', '.join(self._files)}")
            descriptor = self._files[event.file]
        if event.flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
            self._inside(event, event.addr, event.length)
        numbers = event.addr, event.length, event.prot, event.flags, descriptor, event.pgoff << PAGE_SHIFT
        return child.CALL, b"", (syscalls.NR_MMAP, *numbers)

    def _range_call(self, event: Event) -> _Command:
        self._inside(event, event.addr, event.length)
        return child.CALL, b"", (_RANGE_CALLS[event.op], event.addr, event.length)

    def _mprotect(self, event: Event) -> _Command:
        self._inside(event, event.addr, event.length)
        if event.flags:
            numbers = event.addr, event.length, event.prot, (event.flags - 1) & _ALL
            return child.CALL, b"", (syscalls.NR_PKEY_MPROTECT, *numbers)
        return child.CALL, b"", (syscalls.NR_MPROTECT, event.addr, event.length, event.prot)

    def _mremap(self, event: Event) -> _Command:
        self._inside(event, event.addr, event.length or 1)
        if event.flags & MREMAP_FIXED:
            self._inside(event, event.new_addr, event.new_length)
        numbers = event.addr, event.length, event.new_length, event.flags, event.new_addr
        return child.CALL, b"", (syscalls.NR_MREMAP, *numbers)

    def _brk(self, event: Event) -> _Command:
        if not self.can_brk:
            raise ValueError("brk: the program break is not in the arena (give brk=; needs CONFIG_CHECKPOINT_RESTORE)")
        if event.addr and not self.low <= event.addr <= self.high:
            raise ValueError(f"{event!r} reaches beyond the arena {self.low:#x}-{self.high:#x}")
        return child.CALL, b"", (syscalls.NR_BRK, event.addr)

    def _mlock(self, event: Event) -> _Command:
        self._inside(event, event.addr, event.length)
        if event.flags:
            return child.CALL, b"", (syscalls.NR_MLOCK2, event.addr, event.length, event.flags)
        return child.CALL, b"", (syscalls.NR_MLOCK, event.addr, event.length)

    def _mlockall(self, event: Event) -> _Command:
        if event.flags & MCL_CURRENT and not self.can_lock_current:
            raise ValueError("mlockall(MCL_CURRENT) cannot be undone here in any reasonable time (Linux before 5.18)")
        return child.CALL, b"", (syscalls.NR_MLOCKALL, event.flags)

    def _munlockall(self, _event: Event) -> _Command:
        return child.CALL, b"", (syscalls.NR_MUNLOCKALL,)

    def _set_name(self, event: Event) -> _Command:
        self._inside(event, event.addr, event.length)
        name = event.file.encode()
        numbers = syscalls.PR_SET_VMA, syscalls.PR_SET_VMA_ANON_NAME, event.addr, event.length
        return child.CALL, name + b"\0" if name else b"", (syscalls.NR_PRCTL, *numbers, self._scratch if name else 0)

    def _mbind(self, event: Event) -> _Command:
        self._inside(event, event.addr, event.length)
        mode, nodes = syscalls.parse_policy(event.file)
        numbers = event.addr, event.length, mode, self._scratch if nodes else 0, 65 if nodes else 0, 0
        return child.CALL, struct.pack("<Q", nodes) if nodes else b"", (syscalls.NR_MBIND, *numbers)

    def _shmat(self, event: Event) -> _Command:
        replace = event.flags & MAP_FIXED
        if replace or event.addr:
            self._inside(event, event.addr, event.length)
        key = event.file, event.length
        if key not in self._segments:
            command: _Command = (child.CALL, b"", (syscalls.NR_SHMGET, 0, event.length, 0o600))
            ((result, _shown),) = self._exchange(self._process(event.pid), [command], 0, [], f"{event!r}")
            self._segments[key] = syscalls.check(result, f"shmget(IPC_PRIVATE, {event.length:#x})")
        flags = 0 if event.prot & PROT_WRITE else _SHM_RDONLY
        flags |= (_SHM_EXEC if event.prot & PROT_EXEC else 0) | (_SHM_REMAP if replace else 0)
        return child.CALL, b"", (syscalls.NR_SHMAT, self._segments[key], event.addr, flags)

    def _shmdt(self, event: Event) -> _Command:
        self._inside(event, event.addr, 1)
        return child.CALL, b"", (syscalls.NR_SHMDT, event.addr)

    def _remap_file_pages(self, event: Event) -> _Command:
        self._inside(event, event.addr, event.length)
        return child.CALL, b"", (syscalls.NR_REMAP_FILE_PAGES, event.addr, event.length, 0, event.pgoff)

    def _madvise(self, event: Event) -> _Command:
        self._inside(event, event.addr, event.length)
        return child.CALL, b"", (syscalls.NR_MADVISE, event.addr, event.length, event.flags)

    def _touch(self, event: Event) -> _Command:
        self._inside(event, event.addr, event.length)
        return child.WRITE if event.op == ev.WRITE else child.READ, b"", (event.addr, event.length)

    def _uffd_register(self, event: Event) -> _Command:
        self._inside(event, event.addr, event.length)
        return child.UFFD_REGISTER, b"", (event.new_addr, event.addr, event.length, event.flags)

    def _uffd_unregister(self, event: Event) -> _Command:
        self._inside(event, event.addr, event.length)
        return child.UFFD_UNREGISTER, b"", (event.new_addr, event.addr, event.length)

    def _uffd_close(self, event: Event) -> _Command:
        return child.UFFD_CLOSE, b"", (event.new_addr,)

    def _uffd_move(self, event: Event) -> _Command:
        self._inside(event, event.addr, event.length)
        self._inside(event, event.new_addr, event.length)
        return child.UFFD_MOVE, b"", (event.addr, event.new_addr, event.length)

    def _fork(self, _event: Event) -> _Command:
        return child.FORK, b"", ()

    def _exit(self, _event: Event) -> _Command:
        return child.EXIT, b"", ()

    # Snapshots ------------------------------------------------------------------------------------------

    def _parse(self, pid: int, shown: bytes) -> Snapshot:
        """What the process saw of itself: nothing else ran in it meanwhile, so it is consistent."""
        if self._program is not None:
            process = self._processes.get(pid)
            real = process.pid if process else 0
            return bpf_records.parse(pid, shown, file_name=lambda *row: self._file_name(real, *row))
        if b"\nVmFlags:" in shown:
            headers = b"\n".join(line for line in shown.split(b"\n") if b"-" in line.split(b" ", 1)[0])
            rows = procfs.parse_maps(headers)
            bits = procfs.parse_smaps_flags(shown)
            for row in rows:
                row.flags |= bits[row.start]
        else:
            rows = procfs.parse_maps(shown)
        for row in rows:
            row.file = self._visible_name(row)
        return Snapshot(pid, rows, source="procfs", flags_exact=False, hidden=False)

    def _file_name(self, real_pid: int, start: int, end: int, device: int, inode: int) -> str:
        name = self._names.get((device, inode))
        if name is None:
            try:
                path = os.readlink(f"/proc/{real_pid}/map_files/{start:x}-{end:x}")
            except OSError:
                path = f"inode:{device >> 20:x}:{device & 0xFFFFF:x}"
            # Shared anonymous memory and segments all have the same path; the inode tells them apart.
            name = self._names[device, inode] = f"{path}#{inode}"
        return name

    def _visible_name(self, row: Row) -> str:
        if not row.file or not row.file_id:
            return row.file
        inode, device = row.file_id >> 32, row.file_id & 0xFFFF_FFFF
        return self._names.get((device, inode)) or f"{row.file}#{inode}"


_RANGE_CALLS: Final = {ev.MUNMAP: syscalls.NR_MUNMAP, ev.MUNLOCK: syscalls.NR_MUNLOCK, ev.MSEAL: syscalls.NR_MSEAL}

FILES: Final = ("/memfd:a", "/memfd:b", "/memfd:c", "file-a", "file-b")
"""The files that MMAP events may name."""

_TRANSLATIONS: Final[dict[str, Callable[[Executor, Event], _Command]]] = {
    ev.MMAP: Executor._mmap,
    ev.MUNMAP: Executor._range_call,
    ev.MUNLOCK: Executor._range_call,
    ev.MSEAL: Executor._range_call,
    ev.MPROTECT: Executor._mprotect,
    ev.MREMAP: Executor._mremap,
    ev.BRK: Executor._brk,
    ev.MADVISE: Executor._madvise,
    ev.MLOCK: Executor._mlock,
    ev.MLOCKALL: Executor._mlockall,
    ev.MUNLOCKALL: Executor._munlockall,
    ev.SET_NAME: Executor._set_name,
    ev.MBIND: Executor._mbind,
    ev.SHMAT: Executor._shmat,
    ev.SHMDT: Executor._shmdt,
    ev.REMAP_FILE_PAGES: Executor._remap_file_pages,
    ev.UFFD_REGISTER: Executor._uffd_register,
    ev.UFFD_UNREGISTER: Executor._uffd_unregister,
    ev.UFFD_CLOSE: Executor._uffd_close,
    ev.UFFD_MOVE: Executor._uffd_move,
    ev.READ: Executor._touch,
    ev.WRITE: Executor._touch,
    ev.FORK: Executor._fork,
    ev.EXIT: Executor._exit,
}
