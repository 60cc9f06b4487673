# SPDX-License-Identifier: GPL-2.0-or-later
"""Random programs: lists of events that are likely to make VMAs touch, part, move and fork.

A program is a pure function of its seed. Its events lie in two small windows of the arena, so that most of them hit
what earlier ones made: the lower one takes fixed addresses, the upper one is where the kernel puts what it may place.
"""

import random
from typing import Final

from vmaweld import events as ev
from vmaweld.abi import (
    CLONE_VM,
    HUGE_PAGE_SIZE,
    MADV_COLD,
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_REMOVE,
    MADV_SEQUENTIAL,
    MADV_UNMERGEABLE,
    MADV_WILLNEED,
    MADV_WIPEONFORK,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_STACK,
    MCL_CURRENT,
    MCL_FUTURE,
    MCL_ONFAULT,
    MLOCK_ONFAULT,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE_SIZE,
    PROT_EXEC,
    PROT_GROWSDOWN,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    UFFDIO_REGISTER_MODE_MISSING,
    UFFDIO_REGISTER_MODE_WP,
)
from vmaweld.events import Event

_WINDOW: Final = 40
"""Pages of a window: few enough that events meet, enough for eight or so VMAs with gaps."""
MOST_PROCESSES: Final = 4

_RW: Final = PROT_READ | PROT_WRITE
_PROTECTIONS: Final = (_RW, _RW, _RW, _RW, PROT_READ, PROT_READ, PROT_NONE, _RW | PROT_EXEC, PROT_WRITE, PROT_EXEC)
_LENGTHS: Final = (1, 1, 1, 1, 2, 2, 2, 3, 4, 5, 8, 13)
MEMFDS: Final = ("/memfd:a", "/memfd:b")
DISK_FILE: Final = "file-a"
_ADVICE: Final = (
    *(MADV_DONTFORK, MADV_DOFORK, MADV_DONTDUMP, MADV_DODUMP, MADV_WIPEONFORK, MADV_KEEPONFORK),
    *(MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_MERGEABLE, MADV_UNMERGEABLE),
    *(MADV_DONTNEED, MADV_DONTNEED, MADV_FREE, MADV_COLD, MADV_WILLNEED, MADV_REMOVE, MADV_DONTNEED_LOCKED),
    *(MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_POPULATE_WRITE, 77),
)
_MEMPOLICIES: Final = ("bind:0", "interleave:0", "", "")

_WEIGHTS: Final[dict[str, int]] = {
    ev.MMAP: 18,
    ev.MUNMAP: 7,
    ev.MPROTECT: 12,
    ev.MREMAP: 26,
    ev.WRITE: 18,
    ev.READ: 2,
    ev.MADVISE: 9,
    ev.MLOCK: 3,
    ev.MUNLOCK: 2,
    ev.MLOCKALL: 1,
    ev.MUNLOCKALL: 1,
    ev.SET_NAME: 2,
    ev.MBIND: 2,
    ev.SHMAT: 1,
    ev.SHMDT: 1,
    ev.UFFD_REGISTER: 2,
    ev.UFFD_UNREGISTER: 1,
    ev.UFFD_CLOSE: 1,
    ev.UFFD_MOVE: 2,
    ev.MSEAL: 0,
    ev.BRK: 2,
    ev.FORK: 4,
    ev.EXIT: 2,
}
"""How often each operation comes, relative to the others. Sealing ends a mapping's life, so programs ask for it."""
_KINDS: Final = tuple(_WEIGHTS)
_SHARES: Final = tuple(_WEIGHTS.values())


class ProgramMaker:
    """Makes programs for an arena.

    low, high: the arena.     brk: the program break may be moved; it begins at this address (None: no BRK events).
    operations: only these (all where None).     seal: include mseal, in a share of the programs.
    files: what file mappings map.
    """

    def __init__(
        self,
        low: int,
        high: int,
        *,
        brk: int | None = None,
        operations: frozenset[str] | None = None,
        seal: bool = False,
        files: tuple[str, ...] = MEMFDS,
    ) -> None:
        self.low = low
        self.high = high
        self.brk = brk
        self.seal = seal
        self.files = files
        self._shares = tuple(
            0 if (operations is not None and kind not in operations) or (kind == ev.BRK and brk is None) else share
            for kind, share in zip(_KINDS, _SHARES, strict=True)
        )

    def make(self, seed: int, length: int) -> list[Event]:
        """The program of `seed`: `length` events of processes 1, 2 ..., the first of which begins empty."""
        return self.make_from(random.Random(seed), length)

    def make_from(self, source: random.Random, length: int) -> list[Event]:
        """A program of `length` events drawn from `source`, which hypothesis may control, and so shrink."""
        return _Maker(self, source).run(length)

    def shares(self, seal: bool) -> tuple[int, ...]:
        """Relative frequency of each kind."""
        if not (seal and self.seal):
            return self._shares
        return tuple(2 if kind == ev.MSEAL else share for kind, share in zip(_KINDS, self._shares, strict=True))


class _Maker:
    """One program in the making."""

    def __init__(self, maker: ProgramMaker, source: random.Random) -> None:
        self.maker = maker
        self.random = source
        middle = maker.low + (maker.high - maker.low) // 2
        self.windows = (middle, maker.high - _WINDOW * PAGE_SIZE)
        self.pids = [1]
        self.next_pid = 2
        self.untouchable: set[int] = set()  # pids with a userfaultfd that waits for missing pages
        self.contexts: dict[int, set[int]] = {1: set()}  # userfaultfds; the same set for processes that share memory
        self.read: dict[int, list[range]] = {1: []}  # where reading may have mapped pages of zeroes
        self.borders: list[int] = [middle]
        self.shares = maker.shares(self.random.random() < 0.1)
        self.breaks = maker.brk

    def run(self, length: int) -> list[Event]:
        events: list[Event] = []
        pid = 1
        while len(events) < length:
            if self.random.random() < 0.15 or pid not in self.pids:
                pid = self.random.choice(self.pids)
            kind = self.random.choices(_KINDS, self.shares)[0]
            event = getattr(self, f"_{kind}")(pid)
            if event is not None:
                events.append(event)
        return events

    def _address(self) -> int:
        """A page in a window; every other one where an earlier event began or ended, so that ranges touch."""
        r = self.random
        if r.random() < 0.5:
            return r.choice(self.borders)
        base = self.windows[0] if r.random() < 0.85 else self.windows[1]
        return base + PAGE_SIZE * r.randrange(_WINDOW)

    def _length(self, address: int) -> int:
        length = PAGE_SIZE * self.random.choice(_LENGTHS)
        return max(min(length, self.maker.high - address), PAGE_SIZE)

    def _note(self, address: int, length: int) -> None:
        borders = self.borders
        end = min(address + length, self.maker.high - PAGE_SIZE)
        if len(borders) > 12:
            borders[self.random.randrange(12)] = address
            borders[self.random.randrange(12)] = end
        else:
            borders += (address, end)

    def _range(self, op: str, pid: int, **fields: object) -> Event:
        address = self._address()
        length = self._length(address)
        r = self.random.random()
        if r < 0.01:
            length = 0
        elif r < 0.02:
            length -= 1
        elif r < 0.03:
            address += 1
            length -= 1
        return Event(op, pid, addr=address, length=length, **fields)  # type: ignore[arg-type]

    def _mmap(self, pid: int) -> Event:
        r = self.random
        address = self._address()
        length = self._length(address)
        flags = MAP_PRIVATE | MAP_ANONYMOUS
        file = ""
        pgoff = 0
        chance = r.random()
        if chance < 0.12:
            file = r.choice(self.maker.files)
            flags = MAP_PRIVATE if r.random() < 0.7 else MAP_SHARED
            # Offsets that follow the address let neighbours be linear.
            pgoff = (address - self.windows[0]) // PAGE_SIZE % 64 if r.random() < 0.7 else r.randrange(8)
        elif chance < 0.17:
            flags = MAP_SHARED | MAP_ANONYMOUS
        how = r.random()
        if how < 0.62:
            flags |= MAP_FIXED
        elif how < 0.72:
            flags |= MAP_FIXED_NOREPLACE
        elif how < 0.86:
            address = 0
            if r.random() < 0.1 and not file:  # how a file's huge mappings are placed is its file system's affair
                length = HUGE_PAGE_SIZE * r.choice((1, 1, 2))
        for flag, chance in _RARE_FLAGS:
            if r.random() < chance:
                flags |= flag
        if pid in self.untouchable:
            flags &= ~(MAP_POPULATE | MAP_LOCKED)
        if address:
            self._note(address, length)
        if r.random() < 0.01:
            length = 0
        return Event(
            ev.MMAP, pid, addr=address, length=length, prot=r.choice(_PROTECTIONS), flags=flags, file=file, pgoff=pgoff
        )

    def _munmap(self, pid: int) -> Event:
        return self._range(ev.MUNMAP, pid)

    def _mprotect(self, pid: int) -> Event:
        prot = self.random.choice(_PROTECTIONS)
        if self.random.random() < 0.02:
            prot |= PROT_GROWSDOWN
        return self._range(ev.MPROTECT, pid, prot=prot)

    def _mremap(self, pid: int) -> Event:
        r = self.random
        address = self._address()
        old = self._length(address)
        target = self._address()
        old = min(old, self.maker.high - target)  # whatever keeps the size must fit in both places
        new = old if r.random() < 0.65 else self._length(target)
        flags = MREMAP_MAYMOVE | MREMAP_FIXED
        chance = r.random()
        if chance < 0.12:
            flags = MREMAP_MAYMOVE
        elif chance < 0.2:
            flags = 0
        elif chance < 0.32:
            flags |= MREMAP_DONTUNMAP
            new = old if r.random() < 0.9 else new
        elif chance < 0.35:
            flags = MREMAP_MAYMOVE | MREMAP_DONTUNMAP
        elif chance < 0.36:
            flags = MREMAP_FIXED
        if r.random() < 0.03:
            old = 0
        self._note(target, new)
        return Event(ev.MREMAP, pid, addr=address, length=old, new_length=new, flags=flags, new_addr=target)

    def _write(self, pid: int) -> Event | None:
        return None if pid in self.untouchable else self._range(ev.WRITE, pid)

    def _read(self, pid: int) -> Event | None:
        return None if pid in self.untouchable else self._note_read(self._range(ev.READ, pid))

    def _note_read(self, event: Event) -> Event:
        self.read[event.pid].append(range(event.addr & -PAGE_SIZE, event.addr + event.length))
        return event

    def _madvise(self, pid: int) -> Event | None:
        advice = self.random.choice(_ADVICE)
        if self.random.random() < 0.03:
            advice = self.random.choice((MADV_GUARD_INSTALL, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE))
            if pid not in self.untouchable and advice == MADV_GUARD_INSTALL:
                self._seal_off(pid)
        if pid in self.untouchable and advice in (MADV_POPULATE_READ, MADV_POPULATE_WRITE):
            return None
        event = self._range(ev.MADVISE, pid, flags=advice)
        return self._note_read(event) if advice == MADV_POPULATE_READ else event

    def _mlock(self, pid: int) -> Event | None:
        if pid in self.untouchable:
            return None
        return self._range(ev.MLOCK, pid, flags=MLOCK_ONFAULT if self.random.random() < 0.3 else 0)

    def _munlock(self, pid: int) -> Event:
        return self._range(ev.MUNLOCK, pid)

    def _mlockall(self, pid: int) -> Event | None:
        # MCL_CURRENT would lock the executor's own memory as well.
        flags = self.random.choice((MCL_FUTURE, MCL_FUTURE | MCL_ONFAULT, MCL_ONFAULT))
        return None if pid in self.untouchable or flags & MCL_CURRENT else Event(ev.MLOCKALL, pid, flags=flags)

    def _munlockall(self, pid: int) -> Event:
        return Event(ev.MUNLOCKALL, pid)

    def _set_name(self, pid: int) -> Event:
        return self._range(ev.SET_NAME, pid, file=self.random.choice(("a", "b", "")))

    def _mbind(self, pid: int) -> Event:
        return self._range(ev.MBIND, pid, file=self.random.choice(_MEMPOLICIES))

    def _shmat(self, pid: int) -> Event:
        address = self._address()
        pages = self.random.choice((2, 3))
        address = min(address, self.maker.high - pages * PAGE_SIZE)
        self._note(address, pages * PAGE_SIZE)
        prot = _RW if self.random.random() < 0.8 else PROT_READ
        flags = MAP_FIXED if self.random.random() < 0.7 else 0
        return Event(
            ev.SHMAT, pid, addr=address, length=pages * PAGE_SIZE, prot=prot, flags=flags, file=f"segment{pages}"
        )

    def _shmdt(self, pid: int) -> Event:
        return Event(ev.SHMDT, pid, addr=self._address())

    def _uffd_register(self, pid: int) -> Event:
        mode = UFFDIO_REGISTER_MODE_WP
        if self.random.random() < 0.4:
            mode = UFFDIO_REGISTER_MODE_MISSING
            self._seal_off(pid)
        context = self.random.choice((1, 1, 2))
        self.contexts[pid].add(context)
        return self._range(ev.UFFD_REGISTER, pid, flags=mode, new_addr=context)

    def _seal_off(self, pid: int) -> None:
        """From now on nothing touches the memory of `pid`: it holds pages whose faults the model does not follow."""
        self.untouchable |= {other for other, known in self.contexts.items() if known is self.contexts[pid]}

    def _uffd_unregister(self, pid: int) -> Event | None:
        if not self.contexts[pid]:
            return None
        context = self.random.choice(sorted(self.contexts[pid]))
        return self._range(ev.UFFD_UNREGISTER, pid, new_addr=context)

    def _uffd_close(self, pid: int) -> Event | None:
        if not self.contexts[pid]:
            return None
        context = self.random.choice(sorted(self.contexts[pid]))
        self.contexts[pid].discard(context)
        return Event(ev.UFFD_CLOSE, pid, new_addr=context)

    def _uffd_move(self, pid: int) -> Event | None:
        if not self.contexts[pid]:
            return None
        event = self._range(ev.UFFD_MOVE, pid)
        target = self._address()
        event.new_addr = min(target, self.maker.high - event.length)
        # The model does not follow pages of zeroes, and a target that holds one answers EEXIST.
        end = event.new_addr + event.length
        if any(known.start < end and event.new_addr < known.stop for known in self.read[pid]):
            return None
        return event

    def _mseal(self, pid: int) -> Event:
        return self._range(ev.MSEAL, pid)

    def _brk(self, pid: int) -> Event:
        assert self.breaks is not None
        return Event(ev.BRK, pid, addr=self.breaks + self.random.randrange(12) * (PAGE_SIZE // 2))

    def _fork(self, pid: int) -> Event | None:
        if len(self.pids) >= MOST_PROCESSES:
            return None
        child = self.next_pid
        self.next_pid += 1
        self.pids.append(child)
        shares = self.random.random() < 0.05
        self.contexts[child] = self.contexts[pid] if shares else set()
        self.read[child] = self.read[pid] if shares else list(self.read[pid])
        if pid in self.untouchable:  # guard pages are inherited
            self.untouchable.add(child)
        return Event(ev.FORK, pid, child=child, flags=CLONE_VM if shares else 0)

    def _exit(self, pid: int) -> Event | None:
        if len(self.pids) < 2:
            return None
        self.pids.remove(pid)
        return Event(ev.EXIT, pid)


_RARE_FLAGS: Final = (
    (MAP_NORESERVE, 0.05),
    (MAP_POPULATE, 0.05),
    (MAP_LOCKED, 0.02),
    (MAP_GROWSDOWN, 0.03),
    (MAP_STACK, 0.03),
)
