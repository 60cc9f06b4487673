"""From what a recorder sees (calls entered and left, faults, tasks) to events in the order in which they took effect.

The order. A call takes effect somewhere between its entry and its exit, under the mmap lock. With one thread the exit
is as good as any moment; with several it is not: a munmap may still be tearing down pages while another thread's mmap
already got the address and left. Three rules, each a fact of the kernel, put events in the order of their effects:

1. Where the kernel announced the mapping itself (perf's MMAP2 record, written under the mmap lock), that is the moment.
2. A mapping that the kernel placed (no MAP_FIXED) lies where nothing was: a munmap or mremap of that range that has
   been entered but not left has already taken effect. Where the moment was known before the address (rule 1, or an
   mremap that this rule has put in its place), what freed the range may have been left meanwhile: it goes before.
3. Else the exit.

So each address space has a queue; an entry that still waits for its exit holds back those behind it. With a single
thread nothing ever waits.

Faults. Consecutive faults of one kind (write, read) on neighbouring pages become one event, as long as nothing else
happens in that address space.

exec. The kernel announces each mapping that it makes; they become `PLACE` events. What it does not announce: the stack
holds the arguments (written without a fault, here a `WRITE`), and where the heap begins (the first brk's result tells).
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from vmaweld import abi, events
from vmaweld.abi import MAP_FIXED, MAP_FIXED_NOREPLACE, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from vmaweld.events import Event
from vmaweld.trace.assembly import elf, open_files
from vmaweld.trace.assembly.open_files import OpenFile, OpenFiles
from vmaweld.trace.calls import Arguments, event_of, policy_text

Emit = Callable[[Event], None]
FileIdentity = tuple[int, int, int]
"""(major, minor, inode)."""

STACK: Final = "[stack]"
ANONYMOUS: Final = "//anon"
"""How the kernel calls memory without a file when it announces it."""
CLONE_FILES: Final = 0x400
_EFFECT_BEFORE_EXIT: Final = ("munmap", "mremap")
_HIGHEST_32_BIT: Final = 1 << 32

_MAY_ALL: Final = abi.VM_MAYREAD | abi.VM_MAYWRITE | abi.VM_MAYEXEC
SPECIAL_FLAGS: Final[dict[str, int]] = {
    "[vdso]": abi.VM_READ | abi.VM_EXEC | _MAY_ALL,
    "[vvar]": abi.VM_READ | abi.VM_MAYREAD | abi.VM_IO | abi.VM_DONTDUMP | abi.VM_PFNMAP,
    "[vvar_vclock]": abi.VM_READ | abi.VM_MAYREAD | abi.VM_IO | abi.VM_DONTDUMP | abi.VM_PFNMAP,
}
"""Flags of the mappings that are no file and no memory; they differ between releases, so a recorder passes its own."""


class _Call:
    """A call that has been entered.

    opened: the open file that mmap maps. file: its identity, as soon as the kernel has announced the mapping.
    mapped: (addr, length) of that announcement. entry: the call's place in the order, where it is known before its end.
    """

    __slots__ = ("arguments", "entered", "entry", "file", "mapped", "name", "opened")

    def __init__(self, name: str, arguments: Arguments, entered: int) -> None:
        self.name = name
        self.entered = entered
        self.arguments = arguments
        self.opened: OpenFile | None = None
        self.file = ""
        self.mapped: tuple[int, int] | None = None
        self.entry: _Entry | None = None


class _Entry:
    """A place in the order: an event once it is known (None: nothing happened), and whether it is known.

    entered: when its call was. moment: the time by which it had taken effect, 0 where only its end tells.
    freed: what its call gives back, while the event is not known. given: it has been given out. child: the space that a
    fork makes; its own events wait until then.
    """

    __slots__ = ("child", "entered", "event", "freed", "given", "known", "moment")

    def __init__(
        self,
        event: Event | None,
        known: bool,
        *,
        entered: int = 0,
        moment: int = 0,
        freed: tuple[int, int] = (0, 0),
    ) -> None:
        self.event = event
        self.known = known
        self.entered = entered
        self.moment = moment
        self.freed = freed
        self.given = False
        self.child: _Space | None = None

    def frees(self) -> tuple[int, int]:
        """(address, length) of what it unmaps, (0, 0) for nothing."""
        event = self.event
        if event is None:
            return self.freed if not self.known else (0, 0)
        return (event.addr, event.length) if event.op in _EFFECT_BEFORE_EXIT else (0, 0)


class _Exec:
    """What the kernel mapped, and which pages it touched, since an exec replaced the address space."""

    __slots__ = ("faults", "files", "placed")

    def __init__(self) -> None:
        self.placed: list[Event] = []
        self.faults: list[Event] = []
        self.files: dict[FileIdentity, OpenFile] = {}


class _Space:
    """An address space: the processes in it (`users`) share one queue.

    names: by path, the files mapped so far. An open file is told from others of the same path by a number.
    """

    __slots__ = ("aio", "blocked", "calls", "foreign", "last_time", "names", "queue", "reads", "users", "writes")

    def __init__(self, user: int) -> None:
        self.users = {user}
        self.names: dict[str, dict[tuple[FileIdentity, OpenFile], str]] = {}
        self.queue: deque[_Entry] = deque()
        self.calls: dict[int, _Call] = {}
        self.writes: Event | None = None
        self.reads: Event | None = None
        self.blocked = False  # until the fork that makes this space has been given out
        self.foreign = False  # a 32-bit program
        self.last_time = 0
        self.aio: dict[int, int] = {}


class _Process:
    """A process. origin: the fork that made it. file_calls: calls on descriptors under way, by thread."""

    __slots__ = ("exec", "file_calls", "files", "origin", "pid", "space", "threads")

    def __init__(self, pid: int, space: _Space, files: OpenFiles, origin: _Entry | None) -> None:
        self.pid = pid
        self.space = space
        self.files = files
        self.origin = origin
        self.threads = {pid}
        self.exec: _Exec | None = None
        self.file_calls: dict[int, tuple[str, Arguments]] = {}


class Assembler:
    """Takes observations in order of time, gives events to `emit` in order of effect.

    root: pid of the recorded command; nothing of it counts before its first exec.
    special_flags: ``VM_*`` of ``[vdso]`` and the like on this kernel.
    nodes: memory nodes of the machine as a list ("0" or "0-3"), for mbind's policy text.
    begin: the time that becomes 0.
    losses: counts of what is known not to be seen, by cause.
    """

    def __init__(
        self,
        emit: Emit,
        root: int,
        *,
        special_flags: dict[str, int] | None = None,
        nodes: str = "0",
        begin: int = 0,
    ) -> None:
        self._emit = emit
        self._root = root
        self._begin = begin
        self._special = SPECIAL_FLAGS if special_flags is None else special_flags
        self._nodes = nodes
        self._processes: dict[int, _Process] = {}
        self._forking: dict[int, tuple[int, int]] = {}  # parent's tid -> (child's pid, time)
        self._emitted = 0
        self.losses: dict[str, int] = {}

    # What recorders tell, each with the time in nanoseconds.

    def enter(self, time: int, pid: int, tid: int, name: str, arguments: Arguments) -> None:
        """Thread `tid` of `pid` enters call `name`."""
        process = self._processes.get(pid)
        if process is None:
            return
        if name in open_files.NAMES:
            if name in ("close", "close_range"):
                process.files.entered(name, arguments)
            else:
                process.file_calls[tid] = name, arguments
            return
        space = process.space
        if space.foreign:
            return
        space.last_time = time
        call = space.calls[tid] = _Call(name, arguments, time)
        if name == "mmap" and not arguments[3] & abi.MAP_ANONYMOUS:
            # Now, not when it returns: until then another thread may have given the number to another file.
            call.opened = process.files.of(arguments[4] & 0xFFFF_FFFF)

    def leave(self, time: int, pid: int, tid: int, name: str, result: int, file: str = "") -> None:
        """Thread `tid` leaves call `name` with `result` (``-errno`` on failure). file: as for `event_of`, if known."""
        process = self._processes.get(pid)
        if process is None:
            return
        space = process.space
        call = space.calls.pop(tid, None)
        if call is None or call.name != name:
            self._leave_other(time, process, tid, call, name, result)
            return
        space.last_time = time
        event = self._event(process, call, result, file)
        if event is not None:
            event.time = time
        elif name == "userfaultfd" and result >= 0:
            self.count("userfaultfd")
        entry = call.entry
        if entry is not None:
            entry.event = event
            entry.known = True
            if not entry.moment:
                entry.moment = time
            self._move_frees_before(space, entry)
            self._drain(space)
        elif event is not None:
            if space.calls:
                self._settle_before(space, event, time)
            self._add(space, event, call.entered)

    def _leave_other(self, time: int, process: _Process, tid: int, call: _Call | None, name: str, result: int) -> None:
        """Leaving a call that has not been entered as one on memory: an exec's, one on descriptors, after a loss."""
        space = process.space
        if call is not None and call.entry is not None:  # this one's end got lost
            call.entry.known = True
            self._drain(space)
        if name in open_files.NAMES:
            begun, arguments = process.file_calls.pop(tid, ("", ()))
            if begun == name:
                process.files.left(name, arguments, result)
            return
        space.last_time = time
        if process.exec is not None:
            self.execed(time, process.pid, "")

    def fault(self, time: int, pid: int, address: int, write: bool) -> None:
        """A page fault at `address` by a thread of `pid`, in user or kernel mode."""
        process = self._processes.get(pid)
        if process is None or address >= abi.TASK_SIZE:
            return
        page = address & PAGE_MASK
        op = events.WRITE if write else events.READ
        if process.exec is not None:
            process.exec.faults.append(Event(op, pid, addr=page, length=PAGE_SIZE, time=time))
            return
        space = process.space
        space.last_time = time
        if space.foreign:
            return
        if space.queue or space.blocked:
            space.queue.append(_Entry(Event(op, pid, addr=page, length=PAGE_SIZE, time=time), True))
        else:
            self._touch(space, op, pid, page, PAGE_SIZE, time)

    def mapped(
        self, time: int, pid: int, tid: int, addr: int, length: int, pgoff: int, prot: int, flags: int,
        identity: FileIdentity, name: str,
    ) -> None:  # fmt: skip
        """The kernel announces the VMA ``[addr, addr + length)``; pgoff in bytes, flags as for mmap."""
        process = self._processes.get(pid)
        if process is None:
            return
        space = process.space
        anonymous = name == ANONYMOUS or name.startswith("[")
        if process.exec is not None:
            file = name if name.startswith("[") else ""
            if not anonymous:
                opened = process.exec.files.setdefault(identity, OpenFile(False))
                file = _identify(space, name, identity, opened)
            place = Event(
                events.PLACE,
                pid,
                addr=addr,
                length=length,
                flags=self._place_flags(prot, flags, name),
                file=file,
                pgoff=pgoff >> PAGE_SHIFT,
                time=time,
            )
            process.exec.placed.append(place)
            return
        space.last_time = time
        call = space.calls.get(tid)
        if call is None or call.name in ("clone", "fork", "vfork", "clone3", "prctl", "userfaultfd"):
            return  # the stack growing in a fault
        if name == STACK and call.name != "mprotect":
            return  # the same, in a fault that the call itself took
        if call.mapped is None:
            call.mapped = addr, length
            if call.opened is not None and not anonymous:
                call.file = _identify(space, name, identity, call.opened)
            if call.name in ("mmap", "brk", "mprotect", "pkey_mprotect", "shmat", "remap_file_pages"):
                if len(process.threads) > 1 or len(space.users) > 1:  # else nobody is there to come between
                    call.entry = _Entry(None, False, entered=call.entered, moment=time)
                    space.queue.append(call.entry)
            elif call.name == "io_setup":
                flags_of = self._place_flags(prot, flags, name) | abi.VM_DONTEXPAND
                place = Event(events.PLACE, pid, addr=addr, length=length, flags=flags_of, file=name, time=time)
                space.queue.append(_Entry(place, True))
                space.aio[addr] = length

    def forked(self, time: int, pid: int, tid: int, parent: int, parent_tid: int) -> None:
        """Thread `parent_tid` has made task `tid` of process `pid`; `new_task` tells how."""
        process = self._processes.get(parent)
        if process is None:
            return
        if pid == parent:
            process.threads.add(tid)
        else:
            self._forking[parent_tid] = pid, time

    def new_task(self, time: int, pid: int, tid: int, clone_flags: int) -> None:
        """The clone flags of the task that thread `tid` of `pid` has just made."""
        child, when = self._forking.pop(tid, (0, 0))
        process = self._processes.get(pid)
        if not child or process is None:
            return
        space = process.space
        space.last_time = time
        shared = bool(clone_flags & abi.CLONE_VM)
        event = Event(events.FORK, pid, flags=abi.CLONE_VM if shared else 0, child=child, time=when)
        entry = _Entry(event, True)
        files = process.files if clone_flags & CLONE_FILES else process.files.copy()
        if shared:
            space.users.add(child)
            self._processes[child] = _Process(child, space, files, entry)
        else:
            made = _Space(child)
            made.foreign = space.foreign
            made.aio = dict(space.aio)
            made.names = {name: dict(known) for name, known in space.names.items()}
            made.blocked = True
            entry.child = made
            self._processes[child] = _Process(child, made, files, entry)
        space.queue.append(entry)
        self._drain(space)

    def execing(self, time: int, pid: int, tid: int) -> None:
        """`pid` has a new, empty address space; what is mapped and touched until `execed` is the kernel's doing."""
        process = self._processes.get(pid)
        if process is None:
            if pid != self._root:
                return
            process = self._processes[pid] = _Process(pid, _Space(pid), OpenFiles(), None)
        else:
            before = process.space
            self._leave_space(process)
            space = process.space = _Space(pid)
            if process.origin is not None and not process.origin.given:
                # The parent has something under way from before the fork: the fork waits, and all that follows.
                space.blocked = True
                process.origin.child = space
                space.queue.extend(before.queue if not before.users else ())
            process.files = process.files.after_exec()
        process.threads = {pid}
        process.file_calls.clear()
        process.exec = _Exec()

    def execed(self, time: int, pid: int, program: str) -> None:
        """The new image of `pid` is complete. program: path, "" where it is not known."""
        process = self._processes.get(pid)
        if process is None or process.exec is None:
            return
        image = process.exec
        process.exec = None
        space = process.space
        space.last_time = time
        first = next((place.file for place in image.placed if place.file.startswith("/")), "")
        stack = next((place for place in reversed(image.placed) if place.file == STACK), None)
        space.foreign = stack is not None and stack.addr + stack.length <= _HIGHEST_32_BIT
        happened = [Event(events.EXEC, pid, file=program or first)]
        if space.foreign:
            self.count("processes_32_bit")
        else:
            happened += settle(image.placed)
            if stack is not None:
                # copy_strings() writes arguments and environment through get_user_pages: pages without a fault.
                end = stack.addr + stack.length
                touched = [fault.addr for fault in image.faults if stack.addr <= fault.addr < end]
                low = min([end - PAGE_SIZE, *touched])
                happened.append(Event(events.WRITE, pid, addr=low, length=end - low))
            happened += image.faults
        for event in happened:
            event.time = time
            space.queue.append(_Entry(event, True))
        self._drain(space)

    def amend(self, pid: int, tid: int, arguments: Arguments) -> None:
        """What thread `tid`'s call was really called with, from a recorder that knew it only in part when it began."""
        process = self._processes.get(pid)
        call = process.space.calls.get(tid) if process is not None else None
        if call is not None:
            call.arguments = arguments

    def happened(self, time: int, pid: int, event: Event) -> None:
        """`event`, from a recorder that knows it as a whole."""
        process = self._processes.get(pid)
        if process is not None:
            event.time = time
            process.space.queue.append(_Entry(event, True))
            self._drain(process.space)

    def ended(self, time: int, pid: int, tid: int) -> None:
        """Task `tid` of `pid` has ended; with the last one the process has."""
        process = self._processes.get(pid)
        if process is None:
            return
        self._abandon(process.space, pid, tid)
        process.threads.discard(tid)
        if not process.threads:
            del self._processes[pid]
            process.exec = None
            process.space.last_time = time
            process.space.queue.append(_Entry(Event(events.EXIT, pid, time=time), True))
            self._leave_space(process)

    def finish(self) -> None:
        """No more observations: give out what waits. Calls that were never left count as unfinished."""
        for process in list(self._processes.values()):
            space = process.space
            for tid in list(space.calls):
                self._abandon(space, process.pid, tid)
            self._drain(space)
            self._settle_faults(space)

    def count(self, cause: str, number: int = 1) -> None:
        """Add to `losses`."""
        self.losses[cause] = self.losses.get(cause, 0) + number

    # What snapshots need to know.

    def pids(self) -> list[int]:
        """The processes that exist now."""
        return list(self._processes)

    def quiet_since(self, pid: int) -> int | None:
        """The time since when `pid`'s address space has been at rest: nothing entered, waiting or in the making.

        None where something is under way, or there is no such process. All its events have been given out then.
        """
        process = self._processes.get(pid)
        if process is None or process.exec is not None or process.space.foreign:
            return None
        space = process.space
        if space.queue or space.blocked:
            return None
        if any(call.name not in ("clone", "fork", "vfork", "clone3") for call in space.calls.values()):
            return None
        self._settle_faults(space)
        return space.last_time

    # The order.

    def _leave_space(self, process: _Process) -> None:
        """`process` ends or execs: nothing of it is under way any more; the last one out gives out what waits."""
        space = process.space
        space.users.discard(process.pid)
        for tid in list(process.threads) if space.users else list(space.calls):
            self._abandon(space, process.pid, tid)
        self._drain(space)
        # What waits or is being gathered happened in this space: who has left it must not carry it into another.
        self._settle_faults(space)
        heir = next(iter(space.users), process.pid)
        for entry in space.queue:
            if entry.event is not None and entry.event.pid == process.pid and entry.event.op != events.EXIT:
                entry.event.pid = heir

    def _abandon(self, space: _Space, pid: int, tid: int) -> None:
        """The call of `tid` will not be left. A munmap that is known to have taken effect did so all the same."""
        call = space.calls.pop(tid, None)
        if call is None or call.entry is None:
            return
        if call.name == "munmap":
            call.entry.event = Event(events.MUNMAP, pid, addr=call.arguments[0], length=call.arguments[1])
        call.entry.known = True
        self._drain(space)

    def _event(self, process: _Process, call: _Call, result: int, file: str) -> Event | None:
        arguments = call.arguments
        name = call.name
        space = process.space
        if name == "io_destroy":
            length = space.aio.pop(arguments[0], 0)
            return (
                Event(events.MUNMAP, process.pid, addr=arguments[0], length=length) if length and not result else None
            )
        file = file or call.file
        if name == "mbind" and not file:
            # perf does not see the node mask; on a machine of one node there is only one.
            file = policy_text(arguments[2], self._nodes if arguments[3] else "")
        if call.opened is not None and not file:
            file = f"fd:{arguments[4] & 0xFFFF_FFFF}"  # the mapping failed, or its announcement got lost
        event = event_of(name, process.pid, arguments, result, file)
        if event is not None and call.opened is not None and arguments[3] & abi.MAP_TYPE != abi.MAP_PRIVATE:
            # A file whose opening was not seen is taken for read-only unless it is mapped for writing.
            writable = call.opened.writable
            if writable is False or (writable is None and not arguments[2] & abi.PROT_WRITE):
                event.flags |= events.READ_ONLY_FILE
        if event is not None and name == "shmat" and call.mapped is not None:
            event.length = call.mapped[1]
        return event

    def _settle_before(self, space: _Space, event: Event, moment: int) -> None:
        """Rule 2: calls under way that freed the range in which the kernel placed `event` come before it."""
        start, end = _placed(event)
        for call in space.calls.values():
            if call.name in _EFFECT_BEFORE_EXIT and call.entry is None and call.entered < moment:
                freed, size = call.arguments[0], call.arguments[1]
                if freed < end and start < freed + size:
                    call.entry = _Entry(None, False, entered=call.entered, freed=(freed, size))
                    space.queue.append(call.entry)

    def _move_frees_before(self, space: _Space, entry: _Entry) -> None:
        """Rule 2 for a call whose moment was known before its target: what freed the target goes before it."""
        if entry.event is None:
            return
        start, end = _placed(entry.event)
        if start >= end:
            return
        self._settle_before(space, entry.event, entry.moment)
        later = list(space.queue)
        for other in later[later.index(entry) + 1 :]:
            freed, size = other.frees()
            if freed < end and start < freed + size and other.entered < entry.moment:
                space.queue.remove(other)
                space.queue.insert(space.queue.index(entry), other)
                self._move_frees_before(space, other)

    def _add(self, space: _Space, event: Event, entered: int) -> None:
        """`event` happens now: behind what waits, or at once."""
        if space.queue or space.blocked:
            space.queue.append(_Entry(event, True, entered=entered, moment=event.time))
            self._drain(space)
            return
        if space.writes is not None or space.reads is not None:
            self._settle_faults(space)
        self._send(event)

    def _drain(self, space: _Space) -> None:
        queue = space.queue
        while queue and queue[0].known and not space.blocked:
            entry = queue.popleft()
            entry.given = True
            event = entry.event
            if event is None:
                continue
            if event.op == events.WRITE or event.op == events.READ:
                self._touch(space, event.op, event.pid, event.addr, event.length, event.time)
                continue
            self._settle_faults(space)
            self._send(event)
            if entry.child is not None:
                entry.child.blocked = False
                self._drain(entry.child)

    def _touch(self, space: _Space, op: str, pid: int, addr: int, length: int, time: int) -> None:
        run = space.writes if op == events.WRITE else space.reads
        if run is not None:
            end = run.addr + run.length
            if run.pid == pid and run.addr <= addr + length and addr <= end:
                if addr + length > end:
                    run.length = addr + length - run.addr
                if addr < run.addr:
                    run.length += run.addr - addr
                    run.addr = addr
                return
            self._send(run)
        run = Event(op, pid, addr=addr, length=length, time=time)
        if op == events.WRITE:
            space.writes = run
        else:
            space.reads = run

    def _settle_faults(self, space: _Space) -> None:
        runs = [run for run in (space.writes, space.reads) if run is not None]
        space.writes = space.reads = None
        if len(runs) == 2 and runs[1].time < runs[0].time:
            runs.reverse()
        for run in runs:
            self._send(run)

    def _send(self, event: Event) -> None:
        # The order is what is true; an event that had to wait takes the time at which it could be told.
        if event.time < self._emitted:
            event.time = self._emitted
        else:
            self._emitted = event.time
        event.time -= self._begin
        self._emit(event)

    def _place_flags(self, prot: int, flags: int, name: str) -> int:
        if name in self._special:
            return self._special[name]
        bits = prot & 7 | _MAY_ALL  # PROT_READ, WRITE and EXEC are VM_READ, WRITE and EXEC
        if name == STACK:
            return bits | abi.VM_GROWSDOWN | abi.VM_ACCOUNT
        if flags & abi.MAP_SHARED:
            return bits | abi.VM_SHARED | abi.VM_MAYSHARE
        return bits | (abi.VM_ACCOUNT if prot & abi.PROT_WRITE else 0)


def _placed(event: Event) -> tuple[int, int]:
    """Where the kernel, by its own choice, put what `event` maps: start and end; an empty range where it did not."""
    result = event.result
    if result is None or result < PAGE_SIZE:
        return 0, 0
    if event.op == events.MMAP and not event.flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
        return result, result + event.length
    if event.op == events.MREMAP:  # what grows in place grows into what is free
        return result + (event.length if result == event.addr else 0), result + event.new_length
    return 0, 0


def _identify(space: _Space, name: str, identity: FileIdentity, opened: OpenFile) -> str:
    """The identity of an open file as text: its path, with a number behind it for the second of that path and so on."""
    known = space.names.setdefault(name, {})
    label = known.get((identity, opened))
    if label is None:
        label = known[identity, opened] = f"{name}#{len(known) + 1}" if known else name
    return label


def settle(placed: list[Event]) -> list[Event]:
    """What is left of the mappings `placed` one over the other, in order of address.

    For a program or interpreter whose address is chosen at random the kernel first maps the whole span of the file,
    so that it fits, then unmaps what is behind the first segment and maps the others (elf_load in fs/binfmt_elf.c).
    That unmapping is not announced: the first segment's size is taken from the file.
    """
    rows: list[Event] = []
    first_of: set[str] = set()
    for new in placed:
        if new.file.startswith("/") and new.file not in first_of:
            first_of.add(new.file)
            size = elf.first_segment_size(new.file)
            if size and size < new.length:
                new.length = size
        end = new.addr + new.length
        kept: list[Event] = []
        for row in rows:
            row_end = row.addr + row.length
            if row_end <= new.addr or end <= row.addr:
                kept.append(row)
                continue
            if row.addr < new.addr:
                kept.append(_cut(row, row.addr, new.addr))
            if end < row_end:
                kept.append(_cut(row, end, row_end))
        kept.append(new)
        rows = kept
    return sorted(rows, key=lambda row: row.addr)


def _cut(row: Event, start: int, end: int) -> Event:
    return Event(
        row.op,
        row.pid,
        addr=start,
        length=end - start,
        flags=row.flags,
        file=row.file,
        pgoff=row.pgoff + ((start - row.addr) >> PAGE_SHIFT),
        time=row.time,
    )
