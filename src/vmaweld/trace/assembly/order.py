# SPDX-License-Identifier: GPL-2.0-or-later
"""The order of the events of one address space: that in which they took effect.

A call takes effect somewhere between its entry and its exit, under the mmap lock. With one thread the exit
is as good as any moment; with several it is not: a munmap may still be tearing down pages while another thread's mmap
already got the address and left. Three rules, each a fact of the kernel, put events in the order of their effects:

1. Where the kernel announced the mapping itself (perf's MMAP2 record, written under the mmap lock), that is the moment.
2. A mapping that the kernel placed (no MAP_FIXED) lies where nothing was: a munmap or mremap of that range that has
   been entered but not left has already taken effect. Where the moment was known before the address (rule 1, or an
   mremap that this rule has put in its place), what freed the range may have been left meanwhile: it goes before.
3. Else the exit.

So each address space has a queue; an entry that still waits for its exit holds back those behind it. With a single
thread nothing ever waits.
"""

from collections import deque
from typing import Final

from vmaweld import events
from vmaweld.abi import MAP_FIXED, MAP_FIXED_NOREPLACE, PAGE_SIZE
from vmaweld.events import Event
from vmaweld.trace.assembly.faults import Faults
from vmaweld.trace.assembly.open_files import OpenFile
from vmaweld.trace.assembly.outlet import Outlet
from vmaweld.trace.calls import Arguments

_EFFECT_BEFORE_EXIT: Final = ("munmap", "mremap")
_MAKES_TASKS: Final = ("clone", "fork", "vfork", "clone3")


class Call:
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
        self.entry: Entry | None = None


class Entry:
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
        self.child: Order | None = None

    def frees(self) -> tuple[int, int]:
        """(address, length) of what it unmaps, (0, 0) for nothing."""
        event = self.event
        if event is None:
            return self.freed if not self.known else (0, 0)
        return (event.addr, event.length) if event.op in _EFFECT_BEFORE_EXIT else (0, 0)


class Order:
    """What happens in one address space, from the entry of each call to the event that is given out.

    Attributes:
        calls: the calls under way, by thread.
        queue: what waits to be given out, in order.
        blocked: nothing is given out until the fork that makes this address space has been.
        faults: those that are being gathered.

    """

    __slots__ = ("_outlet", "blocked", "calls", "faults", "queue")

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self.faults = Faults(outlet)
        self.queue: deque[Entry] = deque()
        self.calls: dict[int, Call] = {}
        self.blocked = False

    def hold(self, call: Call, moment: int) -> None:
        """Rule 1: `call` takes effect now, at `moment`, and what it does is not known yet."""
        call.entry = Entry(None, False, entered=call.entered, moment=moment)
        self.queue.append(call.entry)

    def leave(self, call: Call, event: Event | None, time: int) -> None:
        """`call`, no longer among `calls`, has been left at `time` and has done `event`."""
        entry = call.entry
        if entry is not None:
            entry.event = event
            entry.known = True
            if not entry.moment:
                entry.moment = time
            self._move_frees_before(entry)
            self.drain()
        elif event is not None:
            if self.calls:
                self._settle_before(event, time)
            self._add(event, call.entered)

    def lose(self, call: Call) -> None:
        """The end of `call`, no longer among `calls`, got lost."""
        if call.entry is not None:
            call.entry.known = True
            self.drain()

    def abandon(self, pid: int, tid: int) -> None:
        """The call of `tid` will not be left. A munmap that is known to have taken effect did so all the same."""
        call = self.calls.pop(tid, None)
        if call is None or call.entry is None:
            return
        if call.name == "munmap":
            call.entry.event = Event(events.MUNMAP, pid, addr=call.arguments[0], length=call.arguments[1])
        self.lose(call)

    def append(self, entry: Entry) -> None:
        """`entry` comes behind all that waits. Give out what can be."""
        self.queue.append(entry)
        self.drain()

    def drain(self) -> None:
        """Give out what is known and waits for nothing."""
        queue = self.queue
        while queue and queue[0].known and not self.blocked:
            entry = queue.popleft()
            entry.given = True
            event = entry.event
            if event is None:
                continue
            if event.op == events.WRITE or event.op == events.READ:
                self.faults.touch(event.op, event.pid, event.addr, event.length, event.time)
                continue
            self.faults.settle()
            self._outlet.send(event)
            if entry.child is not None:
                entry.child.blocked = False
                entry.child.drain()

    def inherit(self, pid: int, heir: int) -> None:
        """What waits and was done by `pid` counts as done by `heir`, but for the end of `pid` itself."""
        for entry in self.queue:
            if entry.event is not None and entry.event.pid == pid and entry.event.op != events.EXIT:
                entry.event.pid = heir

    def at_rest(self) -> bool:
        """Nothing waits, and no call is under way but those that make tasks."""
        if self.queue or self.blocked:
            return False
        return all(call.name in _MAKES_TASKS for call in self.calls.values())

    def _add(self, event: Event, entered: int) -> None:
        """`event` happens now: behind what waits, or at once."""
        if self.queue or self.blocked:
            self.append(Entry(event, True, entered=entered, moment=event.time))
            return
        self.faults.settle()
        self._outlet.send(event)

    def _settle_before(self, event: Event, moment: int) -> None:
        """Rule 2: calls under way that freed the range in which the kernel placed `event` come before it."""
        start, end = _placed(event)
        for call in self.calls.values():
            if call.name in _EFFECT_BEFORE_EXIT and call.entry is None and call.entered < moment:
                freed, size = call.arguments[0], call.arguments[1]
                if freed < end and start < freed + size:
                    call.entry = Entry(None, False, entered=call.entered, freed=(freed, size))
                    self.queue.append(call.entry)

    def _move_frees_before(self, entry: Entry) -> None:
        """Rule 2 for a call whose moment was known before its target: what freed the target goes before it."""
        if entry.event is None:
            return
        start, end = _placed(entry.event)
        if start >= end:
            return
        self._settle_before(entry.event, entry.moment)
        later = list(self.queue)
        for other in later[later.index(entry) + 1 :]:
            freed, size = other.frees()
            if freed < end and start < freed + size and other.entered < entry.moment:
                self.queue.remove(other)
                self.queue.insert(self.queue.index(entry), other)
                self._move_frees_before(other)


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
