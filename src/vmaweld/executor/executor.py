# SPDX-License-Identifier: GPL-2.0-or-later
"""Events performed for real: a sacrificial process, and its own children, that do to memory what they are told.

The processes live in an interpreter of their own (`child`), apart from the caller: they may crash, be killed or hang,
and the caller gets an `ExecutorError`. All they do lies in the arena, a range of addresses that is free in every
process; the rest of their address space is filled up, so that a mapping whose address the kernel may choose lands
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

import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from vmaweld import events as ev
from vmaweld.abi import CLONE_VM
from vmaweld.events import Event
from vmaweld.executor import child, views
from vmaweld.executor.arena import ARENA_LOW, ARENA_SIZE, Arena
from vmaweld.executor.commands import Commands
from vmaweld.executor.process import Command, ExecutorError, Process
from vmaweld.kernel.bpf import iterator
from vmaweld.kernel.bpf import program as bpf_program
from vmaweld.kernel.errors import KernelError
from vmaweld.policy import release_numbers
from vmaweld.snapshot import Snapshot

_BATCH: Final = 1024
_START_TIMEOUT: Final = 30.0


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
        self._arena = Arena(low, high)
        if brk is not None and not low <= brk < high:
            raise ValueError(f"the program break {brk:#x} lies outside the arena")
        self.low = low
        self.high = high
        self._timeout = timeout
        self._processes: dict[int, Process] = {}
        self._program: iterator.IteratorProgram | None = None
        if exact is not False:
            try:
                self._program = iterator.IteratorProgram(low, high, bpf_program.READER)
            except KernelError:
                if exact:
                    raise
        self._errors = os.memfd_create("vmaweld-errors")
        self._arena.open_files()
        control, theirs = socket.socketpair()
        control.settimeout(max(timeout, _START_TIMEOUT))
        with theirs:
            self._zygote = self._spawn(theirs.fileno(), brk or 0)
        self._control = Process(self._zygote.pid, control, self._errors, name="the executor")
        try:
            hello = self._control.receive(child.HELLO.size, "starting")
        except ExecutorError:
            self.close()
            raise
        scratch, moved = child.HELLO.unpack(hello)
        self.can_brk: bool = bool(moved)
        """BRK events can be run."""
        self.can_lock_current: bool = release_numbers(os.uname().release) >= (5, 18, 0)
        """MLOCKALL events with MCL_CURRENT can be run."""
        self._commands = Commands(
            self._arena, scratch, self._perform, can_brk=self.can_brk, can_lock_current=self.can_lock_current
        )

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

    def _spawn(self, control: int, brk: int) -> "subprocess.Popen[bytes]":
        program = self._program.fd if self._program else -1
        descriptors = [control, *self._arena.files.values()] + ([program] if program >= 0 else [])
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
            self._control.send_descriptors(b"+", [theirs.fileno()], "starting a process")
        (real,) = child.ANSWER.unpack(self._control.receive(child.ANSWER.size, "starting a process"))
        self._processes[pid] = Process(real, ours, self._errors, lost=self._forget)

    def reset(self) -> None:
        """End all processes. What they mapped is gone when this returns."""
        for process in set(self._processes.values()):
            process.end()
        self._processes.clear()

    def close(self) -> None:
        """End everything and give back all that was taken; safe to call twice."""
        for process in set(self._processes.values()):
            process.close()
        self._processes.clear()
        self._control.close()
        if self._zygote.poll() is None:
            try:
                self._zygote.wait(5)
            except subprocess.TimeoutExpired:
                self._zygote.kill()
                self._zygote.wait()
        self._arena.close()
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
        return self._parse(pid, self._process(pid).show(mode))

    def _parse(self, pid: int, shown: bytes) -> Snapshot:
        if self._program is None:
            return views.from_text(self._arena, pid, shown)
        process = self._processes.get(pid)
        return views.from_records(self._arena, pid, process.pid if process else 0, shown)

    def _process(self, pid: int) -> Process:
        if pid not in self._processes:
            self.start(pid)
        return self._processes[pid]

    def _forget(self, process: Process) -> None:
        """`process` has been given up: no event pid names it any more."""
        for pid in [pid for pid, known in self._processes.items() if known is process]:
            del self._processes[pid]
        process.close()

    def _perform(self, event: Event, command: Command) -> int:
        """Run `command` at once in the process of `event`; its result."""
        ((result, _shown),) = self._process(event.pid).exchange([command], 0, [], f"{event!r}")
        return result

    def _run(self, events: list[Event], flags: int) -> list[tuple[int, bytes]]:
        answers: list[tuple[int, bytes]] = []
        at = 0
        while at < len(events):
            process = self._process(events[at].pid)
            commands: list[Command] = []
            forks: list[Event] = []
            first = at
            while at < len(events) and len(commands) < _BATCH and len(forks) < child.MOST_CHILDREN:
                event = events[at]
                if self._processes.get(event.pid) is not process:
                    break
                if self._renames(event):  # only the names change: what went before must be done first
                    if commands:
                        break
                    answers.append((self._rename(event), b"" if not flags else process.show(flags)))
                    at += 1
                    first = at
                    continue
                commands.append(self._commands.of(event))
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

    def _send(
        self, process: Process, commands: list[Command], flags: int, forks: list[Event], events: Sequence[Event]
    ) -> list[tuple[int, bytes]]:
        pairs = [socket.socketpair() for _fork in forks]
        what = f"{events[0]!r}" if len(events) == 1 else f"one of {len(events)} events, the first {events[0]!r}"
        try:
            answers = process.exchange(commands, flags, [theirs.fileno() for _ours, theirs in pairs], what)
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
                self._processes[event.child] = Process(real, ours, self._errors, lost=self._forget)
                answers[index] = event.child, shown
            elif event.op == ev.EXIT:
                del self._processes[event.pid]
                process.wait_for_end()
        return answers
