# SPDX-License-Identifier: GPL-2.0-or-later
"""The sequence of system calls that welds: groups of pieces made into entries for the batch machine.

One group folds the pieces B, C, ... that follow a VMA A into A, in calls that are safe one by one (K is where the last
stretch of A begins, at most one huge page long; T is free room of the same alignment):

1. reserve T, so that nothing else is mapped there;
2. UFFDIO_REGISTER ``[K, end)``, missing mode: from here on a thread that touches a page that is away waits for it;
3. mremap ``[K, A's end)`` to T with MREMAP_DONTUNMAP: T is A's continuation, with A's page offset, anon_vma, flags,
   policy and name, and the old place stays mapped, empty and watched;
4. mremap grows T in place to the length of the whole;
5. UFFDIO_MOVE the pages of B, C, ... to T, each to its offset: the kernel gives them A's anon_vma and page offset;
6. mremap T back over ``[K, end)``: one call, under one lock, replaces A's end, B, C, ... by one VMA, which merges with
   what is left of A; then the waiters are woken.

So at no moment is a byte in no place, and no thread can see a hole or a zero that was none: either the old pages are
there, or touching them waits. A call that fails ends the group early at the border it has reached (V): what was
moved of the piece that failed goes back, and T goes home as long as it is.
"""

import errno
import os
from array import array
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Final, NamedTuple

from vmaweld import abi
from vmaweld.kernel import userfaultfd, x86_64
from vmaweld.kernel.ptrace import Rseq
from vmaweld.welding import machine_code as mc

_RSEQ_UNREGISTER: Final = 1

A_GROUP: Final = 80
"""More entries than a group has besides its pieces and populated ranges; as many do for beginning and end."""

_FIXED_MOVE: Final = abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED
_RESERVE: Final = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS | abi.MAP_NORESERVE | abi.MAP_FIXED_NOREPLACE
_DESCRIPTOR: Final = 3
_STRUCTURE: Final = 0x7F00_0000_0000
_MAY_FAIL: Final = ("populate", "touch", "drop")
"""Steps whose failure stops nothing: the move that follows tells."""


class Group(NamedTuple):
    """What one pass of the sequence folds together. Addresses and lengths in bytes, page aligned.

    keep: where the kept stretch of the VMA A begins; it ends where the first piece begins.
    pieces: (start, end) of what is folded into A, each lying within one VMA, one after the other without a gap.
    spare: free room for all of it, aligned as `keep` is modulo 2 MiB.
    prot: PROT_* bits of all of them.
    locked: flags for mlock2 to put back (0: mlock, 1: on fault), or -1 where nothing is locked.
    populate: ranges that get a write fault each first, so that their pages are this process's own.
    untouched: a hole in the kept stretch, where A has no pages of its own there and may have no anon_vma: it gets one
        by a write to the hole. (0, 0): not needed.
    """

    keep: int
    pieces: Sequence[tuple[int, int]]
    spare: int
    prot: int
    locked: int = -1
    populate: Sequence[tuple[int, int]] = ()
    untouched: tuple[int, int] = (0, 0)

    @property
    def end(self) -> int:
        """Where the last piece ends."""
        return self.pieces[-1][1]


class Outcome(NamedTuple):
    """What became of a group.

    reached: the address up to which A reaches now; `Group.end` where all went well, the first piece's start where
        nothing could be folded.
    step, error: the first call that failed and its errno; "" and 0 where none did.
    complete: False where the calls that put things back failed too, so that the group is half done.
    locked: what was mlocked is so again.
    """

    reached: int
    step: str
    error: int
    complete: bool
    locked: bool = True


def _failed(result: int) -> bool:
    return -4096 < result < 0


class _Label:
    """The index of an entry that is not known yet."""

    __slots__ = ("index",)

    def __init__(self) -> None:
        self.index = -1


class Program:
    """Entries for one run of the batch machine: opens a userfaultfd, welds the groups, closes it.

    The descriptor reports the kernel's own faults too where the process may have such a one, else those of user code
    only (UFFD_USER_MODE_ONLY, 5.11: a system call into memory on its way then fails with EFAULT instead of waiting,
    which matters only if the threads run).
    """

    def __init__(self) -> None:
        self.words = array("q")
        self.steps: list[str] = []
        self._fixes: list[tuple[int, int, _Label, int]] = []  # word, count (an entry apart), label, bytes to add
        self._groups: list[tuple[Group, int, int, int, list[int]]] = []  # first entry, first move, end entry, locks
        self._base = _Label()
        self._here(self._base)
        self._close, self._close_only, self._stop = _Label(), _Label(), _Label()
        self._rseq: Rseq | None = None
        user_mode, api = _Label(), _Label()
        for flags, failed in ((0, user_mode), (userfaultfd.UFFD_USER_MODE_ONLY, self._stop)):
            opened = self.call("userfaultfd", x86_64.NR_USERFAULTFD, (os.O_CLOEXEC | flags,), failed)
            store = self.add("", mc.STORE, 0, (0,), modes=(mc.LOAD,))
            self._fix_header(store, "FD")
            self._fix(store, mc.ARGUMENTS, self._at(opened), mc.RESULT * 8)
            self.add("", mc.JUMP, on_error=api)
            if not flags:
                self._here(user_mode)
        self._here(api)
        features = (userfaultfd.UFFD_API, userfaultfd.FEATURE_MOVE)
        self._first_calls = [
            opened,
            self.add("UFFDIO_API", mc.CONTROL, userfaultfd.UFFDIO_API, features, self._close_only),
        ]

    def leave_rseq(self, registration: Rseq) -> None:
        """The thread gives up that registration for the time of the batch. To be called before any group is appended.

        The kernel writes to a thread's ``struct rseq`` whenever the thread has changed its CPU. Were that on its way,
        the thread that moves it would wait for itself.
        """
        self._rseq = registration
        arguments = (registration.area, registration.size, _RSEQ_UNREGISTER, registration.signature)
        self._first_calls.append(self.call("leave rseq", x86_64.NR_RSEQ, arguments, self._close_only))

    def finish(self) -> None:
        """Append the end. Nothing may be appended after it."""
        self._here(self._close)
        if self._rseq is not None:
            arguments = (self._rseq.area, self._rseq.size, 0, self._rseq.signature)
            self._twice("join rseq", x86_64.NR_RSEQ, arguments)
        self._here(self._close_only)
        close = self.call("close", x86_64.NR_CLOSE, (0,), modes=(mc.LOAD,))
        self._fix_header(close, "FD", mc.ARGUMENTS)
        self._here(self._stop)
        self.add("", mc.END)

    @property
    def size(self) -> int:
        """Bytes of header and entries."""
        return mc.HEADER_SIZE + len(self.words) * 8

    def place(self, header: int) -> bytes:
        """The entries for a header at that address, all addresses filled in. To be called once."""
        base = header + mc.HEADER_SIZE
        words = self.words
        for word, count, label, added in self._fixes:
            value = base + label.index * mc.ENTRY_SIZE + added
            if count == 1:
                words[word] += value
            else:
                words[word : word + count * mc.WORDS : mc.WORDS] = array("q", [value]) * count
        return words.tobytes()

    def calls(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Every system call that a run can make, whatever fails: its number and its arguments, some of them twice.

        Where an argument depends on the run, there is one call for each border that V and W can be at. A descriptor
        and the address of an ioctl's structure are any numbers of the right size.
        """
        words = self.words
        stores: dict[tuple[int, int], list[int]] = {}
        loads: dict[int, tuple[int, int]] = {}
        for word, count, label, added in self._fixes:
            if count == 1:
                loads[word] = label.index, added
                if words[word // mc.WORDS * mc.WORDS + mc.OP] == mc.STORE and word % mc.WORDS == mc.NUMBER:
                    stores.setdefault((label.index, added), []).append(word // mc.WORDS)

        def values(entry: int, argument: int, v: int, w: int) -> set[int]:
            word = entry * mc.WORDS + mc.ARGUMENTS + argument
            mode = words[entry * mc.WORDS + mc.MODES] >> 8 * argument & 0xFF
            found = {words[word]}
            if mode & mc.LOAD:
                written = stores.get(loads[word], ())
                found = {value for store in written for value in values(store, 0, v, w)} or {_DESCRIPTOR}
            signs = ((mc.PLUS_V, v), (mc.MINUS_V, -v), (mc.PLUS_W, w), (mc.MINUS_W, -w))
            moved = sum(by for bit, by in signs if mode & bit)
            return {value + moved for value in found}

        for entry in range(len(self.steps)):
            op, number = words[entry * mc.WORDS + mc.OP], words[entry * mc.WORDS + mc.NUMBER]
            if op in (mc.CONTROL, mc.MOVE):
                yield x86_64.NR_IOCTL, (_DESCRIPTOR, number, _STRUCTURE)
            elif op == mc.CALL:
                for v, w in self._borders(entry):
                    yield from ((number, given) for given in product(*(values(entry, at, v, w) for at in range(6))))

    def _borders(self, entry: int) -> Iterator[tuple[int, int]]:
        """What V and W can be at that entry."""
        group = next((group for group, first, _, last, _ in self._groups if first <= entry <= last), None)
        if group is None:
            yield 0, 0
            return
        ends = [group.pieces[0][0] - group.keep, *(end - group.keep for _, end in group.pieces)]
        yield from ((v, w) for v, w in product(ends, ends) if w <= v)

    def outcomes(self, entries: bytes) -> tuple[tuple[str, int], list[Outcome]]:
        """What a run did, from the bytes of its entries afterwards.

        Returns the call that kept it from beginning and its errno ("" and 0 where it began), and the groups' outcomes.
        """
        words = array("q")
        words.frombytes(entries)
        for at in self._first_calls:
            error = words[at * mc.WORDS + mc.RESULT]
            if error < 0:
                return (self.steps[at], -error), []
        return ("", 0), [self._outcome(words, *group) for group in self._groups]

    def _outcome(
        self, words: "array[int]", group: Group, first: int, moves: int, end: int, locks: Sequence[int]
    ) -> Outcome:
        if not words[first * mc.WORDS + mc.RESULT]:
            return Outcome(group.pieces[0][0], "not run", 0, True)
        reached = words[end * mc.WORDS + mc.EXTRA]
        step, error = "", 0
        for at in range(first, moves):
            result = words[at * mc.WORDS + mc.RESULT]
            if _failed(result) and self.steps[at] not in _MAY_FAIL:
                step, error = self.steps[at], -result
                break
        else:
            past = moves + len(group.pieces)
            results = words[moves * mc.WORDS + mc.RESULT : past * mc.WORDS : mc.WORDS]
            worst = min(results)
            if worst < 0:
                step, error = "move", -worst
        locked = not group.prot or not any(_failed(words[at * mc.WORDS + mc.RESULT]) for at in locks)
        if reached:
            return Outcome(group.keep + reached, step, error, True, locked)
        return Outcome(group.pieces[0][0], step, error, step == "reserve", locked)

    # Entries

    def add(
        self,
        step: str,
        op: int,
        number: int = 0,
        arguments: Sequence[int] = (),
        on_error: _Label | None = None,
        *,
        modes: Sequence[int] = (),
    ) -> int:
        """Append an entry; returns its index."""
        index = len(self.steps)
        self.steps.append(step)
        packed = sum(mode << 8 * at for at, mode in enumerate(modes))
        self.words.extend((op, number, *arguments, *(0,) * (6 - len(arguments)), packed, 0, 0, 0))
        if on_error is not None:
            self._fix(index, mc.ON_ERROR, on_error)
        return index

    def call(
        self,
        step: str,
        number: int,
        arguments: Sequence[int],
        on_error: _Label | None = None,
        *,
        modes: Sequence[int] = (),
    ) -> int:
        """Append a system call."""
        return self.add(step, mc.CALL, number, arguments, on_error, modes=modes)

    def _must(
        self,
        step: str,
        number: int,
        arguments: Sequence[int],
        stuck: _Label,
        *,
        modes: Sequence[int] = (),
    ) -> None:
        """A call that only lack of memory can fail and that has no other way: twice, before giving up."""
        again, done = _Label(), _Label()
        self.call(step, number, arguments, again, modes=modes)
        self.add("", mc.JUMP, on_error=done)
        self._here(again)
        self.call(step, number, arguments, stuck, modes=modes)
        self._here(done)

    def _here(self, label: _Label) -> None:
        label.index = len(self.steps)

    def _at(self, index: int) -> _Label:
        label = _Label()
        label.index = index
        return label

    def _fix(self, index: int, word: int, label: _Label, added: int = 0, count: int = 1) -> None:
        """The address of `label` plus `added` goes into that word of entry `index` (and of `count` - 1 after it)."""
        self._fixes.append((index * mc.WORDS + word, count, label, added))

    def _fix_header(self, index: int, field: str, word: int = mc.NUMBER) -> None:
        self._fix(index, word, self._base, mc.HEADER[field] - mc.HEADER_SIZE)

    # The sequence

    def weld(self, group: Group) -> None:
        """Append the calls for `group`."""
        keep, spare, prot = group.keep, group.spare, group.prot
        kept = group.pieces[0][0] - keep
        total = group.end - keep
        relax = not prot & abi.PROT_WRITE
        wide = prot | abi.PROT_READ | abi.PROT_WRITE
        unmap, relock, tighten, denied, unregister = _Label(), _Label(), _Label(), _Label(), _Label()
        finish, settle, home, stuck, end = _Label(), _Label(), _Label(), _Label(), _Label()
        first = len(self.steps)
        locks: list[int] = []

        self.call("reserve", x86_64.NR_MMAP, (spare, total, abi.PROT_NONE, _RESERVE, -1, 0), end)
        if group.locked >= 0:
            self.call("munlock", x86_64.NR_MUNLOCK, (keep, total), relock)
        widened = 0
        if relax:
            widened = self.call("mprotect", x86_64.NR_MPROTECT, (keep, total, wide), denied)
        for start, stop in group.populate:
            self.call("populate", x86_64.NR_MADVISE, (start, stop - start, abi.MADV_POPULATE_WRITE))
        hole, hole_end = group.untouched
        if hole:
            # A write fault prepares the anon_vma, and the VMA keeps it when the page goes again.
            self.call("touch", x86_64.NR_MADVISE, (hole, abi.PAGE_SIZE, abi.MADV_POPULATE_WRITE))
            self._twice("drop", x86_64.NR_MADVISE, (hole, hole_end - hole, abi.MADV_DONTNEED))
        missing = abi.UFFDIO_REGISTER_MODE_MISSING
        self.add("register", mc.CONTROL, userfaultfd.UFFDIO_REGISTER, (keep, total, missing), unregister)
        self.call(
            "take",
            x86_64.NR_MREMAP,
            (keep, kept, kept, _FIXED_MOVE | abi.MREMAP_DONTUNMAP, spare),
            unregister,
        )
        self.add("", mc.SET, 0, (kept, kept))
        self.call("make room", x86_64.NR_MUNMAP, (spare + kept, total - kept), finish)
        self.call("grow", x86_64.NR_MREMAP, (spare, kept, total, 0), finish)
        self.add("register spare", mc.CONTROL, userfaultfd.UFFDIO_REGISTER, (spare, total, missing), finish)
        moves = self._moves(group, finish)
        self.add("", mc.SET, 0, (total, total))
        self.add("", mc.JUMP, on_error=settle)

        self._here(finish)  # V: how far pages have moved; W: where the piece that failed begins
        self._back(group, stuck)
        self._twice("cut", x86_64.NR_MUNMAP, (spare, total), modes=(mc.PLUS_V, mc.MINUS_V))

        self._here(settle)  # T is [spare, spare + V), all of it A's
        self.add("unregister spare", mc.CONTROL, userfaultfd.UFFDIO_UNREGISTER, (spare, 0), modes=(0, mc.PLUS_V))
        if relax:
            self._must("protect", x86_64.NR_MPROTECT, (spare, 0, prot), stuck, modes=(0, mc.PLUS_V))
        home_call = (spare, 0, 0, _FIXED_MOVE, keep)
        self._must("put back", x86_64.NR_MREMAP, home_call, stuck, modes=(0, mc.PLUS_V, mc.PLUS_V))
        self.add("", mc.EQUAL, 0, (0, total), home, modes=(mc.PLUS_V,))
        # What lies behind V stays as it was.
        self._unwatch("unregister rest", keep, total, modes=(mc.PLUS_V, mc.MINUS_V))
        if relax:
            rest = (keep, total, prot)
            self._must("protect rest", x86_64.NR_MPROTECT, rest, stuck, modes=(mc.PLUS_V, mc.MINUS_V))
        self._here(home)
        self.add("wake", mc.CONTROL, userfaultfd.UFFDIO_WAKE, (keep, total))
        if group.locked >= 0:
            locks.append(self._lock(keep, total, group.locked))
        at = self.add("", mc.STORE, 0, (0,), modes=(mc.PLUS_V,))
        self._fix(at, mc.NUMBER, end, mc.EXTRA * 8)
        self.add("", mc.JUMP, on_error=end)

        # Failures before anything has moved.
        self._here(unregister)
        self._unwatch("unregister", keep, total)
        self._here(tighten)
        if relax:
            self._must("protect again", x86_64.NR_MPROTECT, (keep, total, prot), stuck)
            self.add("", mc.JUMP, on_error=relock)
            # do_mprotect_pkey() asks whether it may (PR_SET_MDWE, security modules) before it changes a VMA, and these
            # are all alike: a refusal has changed nothing. Whoever refuses that may refuse to go back as well. Only
            # lack of memory may come in the middle.
            self._here(denied)
            at = self.add("", mc.EQUAL, 0, (0, -errno.ENOMEM), tighten, modes=(mc.LOAD,))
            self._fix(at, mc.ARGUMENTS, self._at(widened), mc.RESULT * 8)
            self.call("protect again", x86_64.NR_MPROTECT, (keep, total, prot))
        self._here(relock)
        if group.locked >= 0:
            locks.append(self._lock(keep, total, group.locked))
        self._here(unmap)
        self._twice("release", x86_64.NR_MUNMAP, (spare, total))
        at = self.add("", mc.STORE, 0, (kept,))
        self._fix(at, mc.NUMBER, end, mc.EXTRA * 8)
        self.add("", mc.JUMP, on_error=end)
        # Nothing is lost even here: what has moved is in T, and its old place is still watched. To begin again at the
        # entry that failed is to finish.
        self._here(stuck)
        at = self.add("", mc.STORE, 0, (0,), modes=(mc.LOAD,))
        self._fix_header(at, "STUCK")
        self._fix_header(at, "FAILED", mc.ARGUMENTS)
        self.add("", mc.JUMP, on_error=self._stop)

        self._here(end)
        last = self.add("", mc.SET, 0, (0, 0))
        self._groups.append((group, first, moves, last, locks))

    def _lock(self, start: int, length: int, flags: int) -> int:
        """Lock again; returns the index of the last try. Locked it is even if nothing can be read in (PROT_NONE)."""
        return self._twice("mlock", x86_64.NR_MLOCK2, (start, length, flags))

    def _twice(self, step: str, number: int, arguments: Sequence[int], *, modes: Sequence[int] = ()) -> int:
        """A call that goes on even if it fails a second time; returns the index of that one."""
        again, done = _Label(), _Label()
        self.call(step, number, arguments, again, modes=modes)
        self.add("", mc.JUMP, on_error=done)
        self._here(again)
        last = self.call(step, number, arguments, modes=modes)
        self._here(done)
        return last

    def _unwatch(self, step: str, start: int, length: int, *, modes: Sequence[int] = ()) -> None:
        """Unregister; where the kernel will not, close the descriptor, which ends every watch.

        A hole that stayed watched would keep the call that fills it (a later group's touch) waiting for ever. Without
        the descriptor the groups that follow fail at "register" and change nothing.
        """
        failed, done = _Label(), _Label()
        self.add(step, mc.CONTROL, userfaultfd.UFFDIO_UNREGISTER, (start, length), failed, modes=modes)
        self.add("", mc.JUMP, on_error=done)
        self._here(failed)
        close = self.call("close", x86_64.NR_CLOSE, (0,), modes=(mc.LOAD,))
        self._fix_header(close, "FD", mc.ARGUMENTS)
        at = self.add("", mc.STORE, 0, (mc.NO_FD,))
        self._fix_header(at, "FD")
        self._here(done)

    def _moves(self, group: Group, finish: _Label) -> int:
        """One MOVE a piece; returns the index of the first."""
        index = len(self.steps)
        count = len(group.pieces)
        shift = group.spare - group.keep
        starts = array("q", [start for start, _ in group.pieces])
        offsets = array("q", [start - group.keep for start, _ in group.pieces])
        template = array(
            "q", (mc.MOVE, userfaultfd.UFFDIO_MOVE, 0, 0, 0, userfaultfd.MOVE_ALLOW_SRC_HOLES, 0, 0, 0, 0, 0, 0)
        )
        block = template * count
        block[mc.ARGUMENTS :: mc.WORDS] = array("q", [start + shift for start in starts])
        block[mc.ARGUMENTS + 1 :: mc.WORDS] = starts
        block[mc.ARGUMENTS + 2 :: mc.WORDS] = array("q", [end - start for start, end in group.pieces])
        block[mc.MODES :: mc.WORDS] = offsets
        block[mc.EXTRA :: mc.WORDS] = offsets
        self.words += block
        self.steps += ["move"] * count
        self._fix(index, mc.ON_ERROR, finish, count=count)
        return index

    def _back(self, group: Group, stuck: _Label) -> None:
        """Put the moved part of the piece that failed, ``[W, V)``, back: by moving it, else by remapping it."""
        keep, spare = group.keep, group.spare
        done, remap, settled, move = _Label(), _Label(), _Label(), _Label()
        self.add("", mc.EQUAL, 0, (0, 0), done, modes=(mc.PLUS_V, mc.PLUS_W))
        for word, value, mode in (
            (mc.ARGUMENTS, keep, mc.PLUS_W),
            (mc.ARGUMENTS + 1, spare, mc.PLUS_W),
            (mc.ARGUMENTS + 2, 0, mc.PLUS_V | mc.MINUS_W),
            (mc.MODES, 0, mc.PLUS_W),
        ):
            at = self.add("", mc.STORE, 0, (value,), modes=(mode,))
            self._fix(at, mc.NUMBER, move, word * 8)
        self._here(move)
        self.add("move back", mc.MOVE, userfaultfd.UFFDIO_MOVE, (0, 0, 0, userfaultfd.MOVE_ALLOW_SRC_HOLES), remap)
        self.add("", mc.JUMP, on_error=settled)
        self._here(remap)
        again = _Label()
        for failed in (again, stuck):
            at = self.call(
                "remap back",
                x86_64.NR_MREMAP,
                (0, 0, 0, _FIXED_MOVE, 0),
                failed,
                modes=(mc.LOAD, mc.LOAD, mc.LOAD, 0, mc.LOAD),
            )
            for argument, word in ((0, 1), (1, 2), (2, 2), (4, 0)):
                self._fix(at, mc.ARGUMENTS + argument, move, (mc.ARGUMENTS + word) * 8)
            self.add("", mc.JUMP, on_error=settled)
            if failed is again:
                self._here(again)
        self._here(settled)
        self.add("", mc.SET, 0, (0, 0), modes=(mc.PLUS_W, mc.PLUS_W))
        self._here(done)
