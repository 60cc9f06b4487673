# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios as drawings: a timeline of address spaces and events, one line each.

    play("linux-5.17", '''
        aaaa....cccc   mmap            # two VMAs, nothing touched
        ....bbbb       mmap
        aaaaaaaaaaaa   case 1          # one VMA now
        AA..........   write
        AAaaaaaaaaaa                   # two pages of it are populated
    ''')

A column is a page. A letter is a page of a VMA, upper case where an anonymous page is populated; a dot is a hole. In
a line that says what is (a drawing without a verb, or with one of the questions below) a border between two VMAs is a
change of letter; which letters are used does not matter. In an event's line the letters draw the range, and for
`mmap` and `place` each change of letter begins another mapping; upper-case pages are written as well.

A line may begin with ``2:``, the process it is about (1 otherwise). An event may end in ``=> ENOMEM``: that is how it
must fail. Everything after ``#`` is a comment. After every event `System.check` runs.

Events (a range is drawn before the verb unless told otherwise):
    mmap [PROT] [shared] [file=F] [pgoff=N] [growsdown] [noreserve] [locked] [populate] [noreplace] [hint] [stack]
         [droppable]           fixed and private, rw, unless told otherwise
    munmap, read, write, munlock, mlock [onfault], mseal
    mprotect PROT [pkey=N] [growsdown]      PROT: none r w x rw rx rwx
    mremap TARGET [dontunmap] [anywhere] [from=0]   TARGET is a drawing: beginning at the same column it resizes in
                               place; anywhere: MREMAP_MAYMOVE; from=0: old size 0
    brk                        the drawing's end is the new break
    madvise ADVICE             DONTFORK, POPULATE_WRITE ...
    name N, mbind POLICY       "-" takes it away
    uffd MODE ID, unuffd ID, uffd_move TARGET; uffd_close ID (no drawing)
    shmat file=F [PROT], shmdt, remap_file_pages pgoff=N
    place [PROT] [file=F] [pgoff=N] [name=[heap]]
    fork PID [vm], exec, exit, mlockall WHICH..., munlockall      (no drawing)
Questions:
    av        each VMA's anon_vma as a digit, "-" for none; a digit means the same anon_vma in the whole timeline
    pgoff     each page's offset, as a digit of base 62 counted from the first column's home (files: from 0)
    pages     x exclusive, s mapped by several, k kept by one but not yet exclusive
    has FLAG..., lacks FLAG...     VMAs of the drawn range, LOCKED, ACCOUNT ...
    case N, count N, reason TEXT   (with or without a drawing) the last merge attempt's case, the VMAs, why not shared
"""

from __future__ import annotations

import errno
import re
import string
from collections.abc import Iterator

from vmaweld import abi
from vmaweld import events as ev
from vmaweld.abi import PAGE_SHIFT, PAGE_SIZE
from vmaweld.events import Event
from vmaweld.model.address_space import AddressSpace
from vmaweld.model.errors import LinuxError
from vmaweld.model.system import System
from vmaweld.model.tracepoints import MergeRecord, Tracepoints
from vmaweld.model.vma import VMA
from vmaweld.policy import parse_policy

BASE = 0x1000_0000
WIDTH = 62
"""Columns of a drawing; mappings that the model places itself go to the right end."""
_DIGITS = string.digits + string.ascii_lowercase + string.ascii_uppercase
_PROTS = {"none": 0, "r": 1, "w": 2, "rw": 3, "x": 4, "rx": 5, "rwx": 7}
_MAP_FLAGS = {
    "growsdown": abi.MAP_GROWSDOWN,
    "noreserve": abi.MAP_NORESERVE,
    "locked": abi.MAP_LOCKED,
    "populate": abi.MAP_POPULATE,
    "stack": abi.MAP_STACK,
}
_UFFD_MODES = {"missing": 1, "wp": 2, "minor": 4, "none": 0}
_WITHOUT_DRAWING = ("fork", "exec", "exit", "mlockall", "munlockall", "uffd_close", "case", "count", "reason")
_QUESTIONS = ("", "av", "pgoff", "pages", "has", "lacks", "case", "count", "reason")
_DRAWING = re.compile(r"^[.\w-]+$")


worlds: list[World] = []
"""Every world that `play` made, oldest first; whoever reads it may clear it."""


def page(column: int) -> int:
    """The address of a column."""
    return BASE + column * PAGE_SIZE


class World:
    """A system whose address spaces can be drawn."""

    def __init__(self, policy: str, *, max_map_count: int = abi.DEFAULT_MAX_MAP_COUNT, anon_names: bool = True) -> None:
        self.trace = Tracepoints()
        self.system = System(
            parse_policy(policy),
            trace=self.trace,
            max_map_count=max_map_count,
            mmap_base=page(WIDTH),
            anon_names=anon_names,
        )
        self.system.add_process(1)
        self._anon_vmas: dict[str, int] = {}
        self.log: list[Event] = []

    def apply(self, event: Event) -> int:
        """Let `event` happen, with a check afterwards whatever came of it. Raises LinuxError."""
        self.log.append(event)
        try:
            return self.system.apply(event)
        finally:
            self.system.check()

    def space(self, pid: int) -> AddressSpace:
        return self.system.processes[pid]

    @property
    def last(self) -> MergeRecord:
        return self.trace.records[-1]

    # what is ------------------------------------------------------------------------------------------

    def columns(self, pid: int) -> Iterator[tuple[int, VMA]]:
        for vma in self.space(pid).vmas:
            for column in range((vma.start - BASE) >> PAGE_SHIFT, (vma.end - BASE) >> PAGE_SHIFT):
                assert 0 <= column < WIDTH, f"{vma!r} lies outside the drawing"
                yield column, vma

    def draw(self, pid: int = 1) -> str:
        """The address space: letters in order of the VMAs."""
        drawn = ["."] * WIDTH
        letters: dict[VMA, str] = {}
        for column, vma in self.columns(pid):
            letter = letters.setdefault(vma, string.ascii_lowercase[len(letters) % 26])
            populated = self.space(pid).pages.populated(page(column), page(column + 1))
            drawn[column] = letter.upper() if populated else letter
        return _trim("".join(drawn))

    def draw_pgoff(self, pid: int) -> str:
        drawn = ["."] * WIDTH
        for column, vma in self.columns(pid):
            offset = vma.pgoff_at(page(column)) - (0 if vma.file else BASE >> PAGE_SHIFT)
            drawn[column] = _DIGITS[offset] if 0 <= offset < len(_DIGITS) else "?"
        return _trim("".join(drawn))

    def draw_pages(self, pid: int) -> str:
        drawn = ["."] * WIDTH
        for column, vma in self.columns(pid):
            address = page(column)
            for run in self.space(pid).pages.runs(address, page(column + 1)):
                index = vma.pgoff_at(address)
                if run.shared is None:
                    drawn[column] = "x"
                else:
                    drawn[column] = "s" if run.shared.highest(index, index + 1) > 1 else "k"
        return _trim("".join(drawn))

    def draw_anon_vmas(self, pid: int, expected: str) -> str:
        """As digits; a new anon_vma takes the digit that `expected` has for it, if that is free."""
        drawn = ["."] * WIDTH
        for column, vma in self.columns(pid):
            if vma.anon_vma is None:
                drawn[column] = "-"
                continue
            number = vma.anon_vma.number
            digit = next((name for name, known in self._anon_vmas.items() if known == number), "")
            if not digit:
                wanted = expected[column] if column < len(expected) else "?"
                digit = wanted if wanted.isdigit() and wanted not in self._anon_vmas else "?"
                self._anon_vmas[digit] = number
            drawn[column] = digit
        return _trim("".join(drawn))

    def ask(self, pid: int, drawing: str, question: str, words: list[str]) -> str | None:
        """None if the answer is as drawn, else what it is instead."""
        if question == "av":
            drawn = self.draw_anon_vmas(pid, drawing)
            return None if drawn == _trim(drawing) else drawn
        if question in ("pgoff", "pages"):
            drawn = self.draw_pgoff(pid) if question == "pgoff" else self.draw_pages(pid)
            return None if drawn == _trim(drawing) else drawn
        if question in ("has", "lacks"):
            start, end = _range(drawing)
            wanted = question == "has"
            for word in words:
                flag = getattr(abi, f"VM_{word}")
                for vma in self.space(pid).vmas:
                    if vma.start < end and vma.end > start and bool(vma.flags & flag) != wanted:
                        return f"{vma!r} {'lacks' if wanted else 'has'} {word}"
            return None
        if drawing and _borders(self.draw(pid)) != _borders(drawing):
            return self.draw(pid)
        if question == "case" and self.last.case != int(words[0]):
            return f"case {self.last.case}"
        if question == "count" and self.space(pid).vmas.count != int(words[0]):
            return f"count {self.space(pid).vmas.count}"
        if question == "reason" and self.last.shared != " ".join(words):
            return f"reason {self.last.shared!r}"
        return None

    # what happens -------------------------------------------------------------------------------------

    def events(self, pid: int, drawing: str, verb: str, words: list[str]) -> list[Event]:
        """The events of one line."""
        options = dict(word.split("=", 1) for word in words if "=" in word)
        plain = [word for word in words if "=" not in word]
        file = options.get("file", "")
        pgoff = int(options.get("pgoff", 0))
        prot = next((_PROTS[word] for word in plain if word in _PROTS), 3)
        if verb in ("mmap", "place"):
            return list(_mappings(pid, drawing, verb, plain, prot, file, pgoff, options.get("name", "")))
        addr, end = _range(drawing) if drawing else (0, 0)
        length = end - addr
        event = Event(verb, pid, addr=addr, length=length)
        if verb == "mprotect":
            event.prot = prot | (abi.PROT_GROWSDOWN if "growsdown" in plain else 0)
            event.flags = int(options["pkey"]) + 1 if "pkey" in options else 0
        elif verb == "mremap":
            _set_target(event, words)
        elif verb == "brk":
            event.addr, event.length = end, 0
        elif verb == "madvise":
            event.flags = getattr(abi, f"MADV_{plain[0]}")
        elif verb == "mlock":
            event.flags = abi.MLOCK_ONFAULT if "onfault" in plain else 0
        elif verb == "mlockall":
            event.flags = sum(getattr(abi, f"MCL_{word.upper()}") for word in plain)
        elif verb in ("name", "mbind"):
            event.op = ev.SET_NAME if verb == "name" else ev.MBIND
            event.file = "" if plain[0] == "-" else plain[0]
        elif verb == "uffd":
            event.op, event.flags, event.new_addr = ev.UFFD_REGISTER, _UFFD_MODES[plain[0]], int(plain[1])
        elif verb == "unuffd":
            event.op, event.new_addr = ev.UFFD_UNREGISTER, int(plain[0])
        elif verb == "uffd_close":
            event.new_addr = int(plain[0])
        elif verb == "uffd_move":
            event.new_addr = _range(plain[0])[0]
        elif verb == "shmat":
            event.prot, event.file = prot, file
        elif verb == "remap_file_pages":
            event.pgoff = pgoff
        elif verb == "fork":
            event.child = int(plain[0])
            event.flags = abi.CLONE_VM if "vm" in plain else 0
        return [event]


def play(
    policies: str, timeline: str, *, max_map_count: int = abi.DEFAULT_MAX_MAP_COUNT, anon_names: bool = True
) -> World:
    """Play `timeline` under each of `policies` (separated by blanks). Returns the last world.

    Raises AssertionError that shows the timeline, the line that does not hold, and what was the case instead.
    """
    for policy in policies.split():
        worlds.append(world := World(policy, max_map_count=max_map_count, anon_names=anon_names))
        lines = timeline.strip("\n").split("\n")
        for number, line in enumerate(lines):
            wrong = _play_line(world, line)
            if wrong is not None:
                before = "\n".join(f"    {shown.strip()}" for shown in lines[:number])
                raise AssertionError(f"under {policy}:\n{before}\n--> {line.strip()}\n    {wrong}   <- in truth")
    return world


def _play_line(world: World, line: str) -> str | None:
    text = line.split("#")[0].strip()
    if not text:
        return None
    pid = 1
    prefix = re.match(r"(\d+): *", text)
    if prefix is not None:
        pid = int(prefix[1])
        text = text[prefix.end() :]
    text, _, failure = (part.strip() for part in text.partition("=>"))
    words = text.split()
    drawing = "" if words[0] in _WITHOUT_DRAWING else words.pop(0)
    assert _DRAWING.match(drawing) or not drawing, f"not a drawing: {drawing}"
    verb = words.pop(0) if words else ""
    if verb in _QUESTIONS:
        return world.ask(pid, drawing, verb, words)
    happened = ""
    for event in world.events(pid, drawing, verb, words):
        try:
            world.apply(event)
        except LinuxError as error:
            happened = errno.errorcode[error.errno]
            break
    return None if happened == failure else f"=> {happened or 'no failure'}"


def _mappings(
    pid: int, drawing: str, verb: str, plain: list[str], prot: int, file: str, pgoff: int, name: str
) -> Iterator[Event]:
    for start, end, letters in _pieces(drawing):
        addr, length = page(start), (end - start) * PAGE_SIZE
        if verb == "place":
            flags = prot | abi.VM_MAYREAD | abi.VM_MAYWRITE | abi.VM_MAYEXEC
            for word in plain:
                flags |= 0 if word in _PROTS else getattr(abi, f"VM_{word}")
            offset = pgoff if file else addr >> PAGE_SHIFT
            yield Event(ev.PLACE, pid, addr=addr, length=length, flags=flags, file=name or file, pgoff=offset)
        else:
            flags = abi.MAP_DROPPABLE if "droppable" in plain else abi.MAP_PRIVATE
            flags = abi.MAP_SHARED if "shared" in plain else flags
            flags |= 0 if file else abi.MAP_ANONYMOUS
            flags |= 0 if "hint" in plain else abi.MAP_FIXED_NOREPLACE if "noreplace" in plain else abi.MAP_FIXED
            for word in plain:
                flags |= _MAP_FLAGS.get(word, 0)
            yield Event(ev.MMAP, pid, addr=addr, length=length, prot=prot, flags=flags, file=file, pgoff=pgoff)
        for column, letter in enumerate(letters, start):
            if letter.isupper():
                yield Event(ev.WRITE, pid, addr=page(column), length=PAGE_SIZE)


def _set_target(event: Event, words: list[str]) -> None:
    start, end = _range(words[0])
    event.new_length = end - start
    if "anywhere" in words:
        event.flags = abi.MREMAP_MAYMOVE
    elif start != event.addr:
        event.flags = abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED
        event.new_addr = start
    if "dontunmap" in words:
        event.flags |= abi.MREMAP_MAYMOVE | abi.MREMAP_DONTUNMAP
    if "from=0" in words:
        event.length = 0


def _trim(drawing: str) -> str:
    return drawing.rstrip(".")


def _pieces(drawing: str) -> list[tuple[int, int, str]]:
    """``(first column, column past the end, letters)`` of each stretch of one letter, whatever its case."""
    return [
        (match.start(), match.end(), match[0])
        for match in re.finditer(r"([a-zA-Z0-9])(?:\1)*", drawing, re.IGNORECASE)
        if "." not in match[0]
    ]


def _borders(drawing: str) -> list[tuple[int, int, str]]:
    """What a drawing says: where VMAs begin and end, and which pages are populated."""
    return [
        (start, end, "".join("1" if letter.isupper() else "0" for letter in letters))
        for start, end, letters in _pieces(drawing)
    ]


def _range(drawing: str) -> tuple[int, int]:
    """The one range that a drawing shows, in bytes."""
    body = drawing.strip(".")
    assert body, f"draws no range: {drawing}"
    start = len(drawing) - len(drawing.lstrip("."))
    return page(start), page(start + len(body))
