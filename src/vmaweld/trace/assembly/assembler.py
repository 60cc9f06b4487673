# SPDX-License-Identifier: GPL-2.0-or-later
"""From what a recorder sees (calls entered and left, faults, tasks) to events in the order in which they took effect.

- `order` puts the events of one address space in order.
- `exec_image` tells what an exec has made.
- `files` and `open_files` tell which open file a mapping is of.
- `faults` makes events of page faults.

The assembler itself knows the processes, and gives what it is told to those whose matter it is.
"""

from typing import Final

from vmaweld import abi, events
from vmaweld.abi import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from vmaweld.events import Event
from vmaweld.mempolicy import policy_text
from vmaweld.trace.assembly import open_files
from vmaweld.trace.assembly.exec_image import SPECIAL_FLAGS, STACK, ExecImage, is_anonymous, place_flags
from vmaweld.trace.assembly.files import FileIdentity, FileNames
from vmaweld.trace.assembly.open_files import OpenFiles
from vmaweld.trace.assembly.order import Call, Entry, Order
from vmaweld.trace.assembly.outlet import Emit, Outlet
from vmaweld.trace.calls import Arguments, event_of

CLONE_FILES: Final = 0x400


class _Space:
    """An address space: the processes in it share one order.

    users: their pids. names: of the files mapped so far. foreign: of a 32-bit program, which is left out.
    last_time: of the last observation. aio: length by address of the rings that io_setup has mapped.
    """

    __slots__ = ("aio", "foreign", "last_time", "names", "order", "users")

    def __init__(self, user: int, order: Order) -> None:
        self.users = {user}
        self.order = order
        self.names = FileNames()
        self.foreign = False
        self.last_time = 0
        self.aio: dict[int, int] = {}


class _Process:
    """A process. origin: the fork that made it. file_calls: calls on descriptors under way, by thread."""

    __slots__ = ("exec", "file_calls", "files", "origin", "pid", "space", "threads")

    def __init__(self, pid: int, space: _Space, files: OpenFiles, origin: Entry | None) -> None:
        self.pid = pid
        self.space = space
        self.files = files
        self.origin = origin
        self.threads = {pid}
        self.exec: ExecImage | None = None
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
        self._outlet = Outlet(emit, begin)
        self._root = root
        self._special = SPECIAL_FLAGS if special_flags is None else special_flags
        self._nodes = nodes
        self._processes: dict[int, _Process] = {}
        self._forking: dict[int, tuple[int, int]] = {}  # parent's tid -> (child's pid, time)
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
        call = space.order.calls[tid] = Call(name, arguments, time)
        if name == "mmap" and not arguments[3] & abi.MAP_ANONYMOUS:
            # Now, not when it returns: until then another thread may have given the number to another file.
            call.opened = process.files.of(arguments[4] & 0xFFFF_FFFF)

    def leave(self, time: int, pid: int, tid: int, name: str, result: int, file: str = "") -> None:
        """Thread `tid` leaves call `name` with `result` (``-errno`` on failure). file: as for `event_of`, if known."""
        process = self._processes.get(pid)
        if process is None:
            return
        space = process.space
        call = space.order.calls.pop(tid, None)
        if call is None or call.name != name:
            self._leave_other(time, process, tid, call, name, result)
            return
        space.last_time = time
        event = self._event(process, call, result, file)
        if event is not None:
            event.time = time
        elif name == "userfaultfd" and result >= 0:
            self.count("userfaultfd")
        space.order.leave(call, event, time)

    def _leave_other(self, time: int, process: _Process, tid: int, call: Call | None, name: str, result: int) -> None:
        """Leaving a call that has not been entered as one on memory: an exec's, one on descriptors, after a loss."""
        space = process.space
        if call is not None:  # this one's end got lost
            space.order.lose(call)
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
            process.exec.touch(op, page, time)
            return
        space = process.space
        space.last_time = time
        if space.foreign:
            return
        order = space.order
        if order.queue or order.blocked:
            order.queue.append(Entry(Event(op, pid, addr=page, length=PAGE_SIZE, time=time), True))
        else:
            order.faults.touch(op, pid, page, PAGE_SIZE, time)

    def mapped(
        self, time: int, pid: int, tid: int, addr: int, length: int, pgoff: int, prot: int, flags: int,
        identity: FileIdentity, name: str,
    ) -> None:  # fmt: skip
        """The kernel announces the VMA ``[addr, addr + length)``; pgoff in bytes, flags as for mmap."""
        process = self._processes.get(pid)
        if process is None:
            return
        space = process.space
        if process.exec is not None:
            place = Event(
                events.PLACE,
                pid,
                addr=addr,
                length=length,
                flags=place_flags(prot, flags, name, self._special),
                pgoff=pgoff >> PAGE_SHIFT,
                time=time,
            )
            process.exec.map(place, name, identity, space.names)
            return
        space.last_time = time
        call = space.order.calls.get(tid)
        if call is None or call.name in ("clone", "fork", "vfork", "clone3", "prctl", "userfaultfd"):
            return  # the stack growing in a fault
        if name == STACK and call.name != "mprotect":
            return  # the same, in a fault that the call itself took
        if call.mapped is None:
            call.mapped = addr, length
            if call.opened is not None and not is_anonymous(name):
                call.file = space.names.of(name, identity, call.opened)
            if call.name in ("mmap", "brk", "mprotect", "pkey_mprotect", "shmat", "remap_file_pages"):
                if len(process.threads) > 1 or len(space.users) > 1:  # else nobody is there to come between
                    space.order.hold(call, time)
            elif call.name == "io_setup":
                flags_of = place_flags(prot, flags, name, self._special) | abi.VM_DONTEXPAND
                place = Event(events.PLACE, pid, addr=addr, length=length, flags=flags_of, file=name, time=time)
                space.order.queue.append(Entry(place, True))
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
        entry = Entry(event, True)
        files = process.files if clone_flags & CLONE_FILES else process.files.copy()
        if shared:
            space.users.add(child)
            self._processes[child] = _Process(child, space, files, entry)
        else:
            made = self._new_space(child)
            made.foreign = space.foreign
            made.aio = dict(space.aio)
            made.names = space.names.copy()
            made.order.blocked = True
            entry.child = made.order
            self._processes[child] = _Process(child, made, files, entry)
        space.order.append(entry)

    def execing(self, time: int, pid: int, tid: int) -> None:
        """`pid` has a new, empty address space; what is mapped and touched until `execed` is the kernel's doing."""
        process = self._processes.get(pid)
        if process is None:
            if pid != self._root:
                return
            process = self._processes[pid] = _Process(pid, self._new_space(pid), OpenFiles(), None)
        else:
            before = process.space
            self._leave_space(process)
            space = process.space = self._new_space(pid)
            if process.origin is not None and not process.origin.given:
                # The parent has something under way from before the fork: the fork waits, and all that follows.
                space.order.blocked = True
                process.origin.child = space.order
                space.order.queue.extend(before.order.queue if not before.users else ())
            process.files = process.files.after_exec()
        process.threads = {pid}
        process.file_calls.clear()
        process.exec = ExecImage(pid)

    def execed(self, time: int, pid: int, program: str) -> None:
        """The new image of `pid` is complete. program: path, "" where it is not known."""
        process = self._processes.get(pid)
        if process is None or process.exec is None:
            return
        image = process.exec
        process.exec = None
        space = process.space
        space.last_time = time
        happened = image.finish(program)
        space.foreign = happened is None
        if happened is None:
            self.count("processes_32_bit")
            happened = [image.begin(program)]
        for event in happened:
            event.time = time
            space.order.queue.append(Entry(event, True))
        space.order.drain()

    def amend(self, pid: int, tid: int, arguments: Arguments) -> None:
        """What thread `tid`'s call was really called with, from a recorder that knew it only in part when it began."""
        process = self._processes.get(pid)
        call = process.space.order.calls.get(tid) if process is not None else None
        if call is not None:
            call.arguments = arguments

    def happened(self, time: int, pid: int, event: Event) -> None:
        """`event`, from a recorder that knows it as a whole."""
        process = self._processes.get(pid)
        if process is not None:
            event.time = time
            process.space.order.append(Entry(event, True))

    def ended(self, time: int, pid: int, tid: int) -> None:
        """Task `tid` of `pid` has ended; with the last one the process has."""
        process = self._processes.get(pid)
        if process is None:
            return
        process.space.order.abandon(pid, tid)
        process.threads.discard(tid)
        if not process.threads:
            del self._processes[pid]
            process.exec = None
            process.space.last_time = time
            process.space.order.queue.append(Entry(Event(events.EXIT, pid, time=time), True))
            self._leave_space(process)

    def finish(self) -> None:
        """No more observations: give out what waits. Calls that were never left count as unfinished."""
        for process in list(self._processes.values()):
            order = process.space.order
            for tid in list(order.calls):
                order.abandon(process.pid, tid)
            order.drain()
            order.faults.settle()

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
        if not space.order.at_rest():
            return None
        space.order.faults.settle()
        return space.last_time

    def _new_space(self, user: int) -> _Space:
        return _Space(user, Order(self._outlet))

    def _leave_space(self, process: _Process) -> None:
        """`process` ends or execs: nothing of it is under way any more; the last one out gives out what waits."""
        space = process.space
        order = space.order
        space.users.discard(process.pid)
        for tid in list(process.threads) if space.users else list(order.calls):
            order.abandon(process.pid, tid)
        order.drain()
        # What waits or is being gathered happened in this space: who has left it must not carry it into another.
        order.faults.settle()
        order.inherit(process.pid, next(iter(space.users), process.pid))

    def _event(self, process: _Process, call: Call, result: int, file: str) -> Event | None:
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
