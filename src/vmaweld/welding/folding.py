# SPDX-License-Identifier: GPL-2.0-or-later
"""Working a plan off: groups in one batch, and what failed once more, seam by seam."""

import errno
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from vmaweld.kernel import pagemap
from vmaweld.welding.errors import HalfDone, Refused
from vmaweld.welding.plan import Candidate, Left, Room, clip, groups
from vmaweld.welding.program import A_GROUP, Group, Outcome, Program

Runner = Callable[[Program], tuple[tuple[str, int], list[Outcome]]]
"""Runs a finished program where the memory is; returns `Program.outcomes`."""

_MAY_NOT_WRITE: Final = "it may not be made writable for the moment (PR_SET_MDWE, or a security module forbids it)"
_REASONS: Final[dict[tuple[str, int], str]] = {
    (
        "move",
        errno.EBUSY,
    ): "pages pinned (DMA, io_uring), or marked as shared since a fork: --unshare clears that mark",
    ("move", errno.EFAULT): "guard pages (MADV_GUARD_INSTALL) or poisoned memory in it",
    ("register", errno.EBUSY): "the program watches it with a userfaultfd of its own",
    ("register", errno.EBADF): "the batch was stopped before its turn: try again",
    ("reserve", errno.EEXIST): "the room for the move was taken meanwhile: try again",
    ("mprotect", errno.EACCES): _MAY_NOT_WRITE,
    ("mprotect", errno.EPERM): _MAY_NOT_WRITE,
    ("munlock", errno.EPERM): "it may not be unlocked",
}


@dataclass
class Folded:
    """What came of it.

    closed: seams gone. pages: populated pages that moved. failed: seams that were tried and stay open, by
    address, with the reason. ends: where groups that went through end.
    warnings: what is no longer as it was. work: seconds in batches. again: something failed that is worth
    a closer look.
    """

    closed: int = 0
    pages: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    ends: set[int] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    work: float = 0.0
    again: bool = False

    def left(self) -> list[Left]:
        """The seams that were tried and stay open."""
        return [Left(at, at, 1, reason) for at, reason in sorted(self.failed.items())]


def fold(
    candidates: Iterable[Candidate],
    room: Room,
    run: Runner,
    *,
    low: int = 0,
    retry: bool = True,
    program: Callable[[], Program] = Program,
    most_entries: int = 1 << 20,
) -> Folded:
    """Weld `candidates` with as few batches as it takes (one, unless something fails).

    retry: try what failed once more, seam by seam; else say so in `Folded.again`.
    low: nothing below that address is touched. program: makes an empty program. most_entries: what it may hold.
    Raises Refused where the batch cannot begin, HalfDone where it cannot end.
    """
    result = Folded()
    chosen = list(candidates)
    cuts = {candidate.rows[-1].end for candidate in chosen if candidate.cut}
    again = _batches(list(groups(chosen, room, low=low)), run, program, result, most_entries)
    if again and not retry:
        result.again = True
    elif again:
        single = list(groups(again, room, low=low, pieces=1))
        _batches(single, run, program, result, most_entries)
    result.closed -= len(cuts & result.ends)
    return result


def _batches(
    todo: Sequence[tuple[Group, Candidate]],
    run: Runner,
    program: Callable[[], Program],
    result: Folded,
    most_entries: int,
) -> list[Candidate]:
    again: list[Candidate] = []
    first = entries = 0
    for at, (group, _) in enumerate(todo):
        need = len(group.pieces) + len(group.populate) + A_GROUP
        if entries + need + A_GROUP > most_entries and at > first:
            again += _batch(todo[first:at], run, program, result)
            first, entries = at, 0
        entries += need
    return again + _batch(todo[first:], run, program, result)


def _batch(
    batch: Sequence[tuple[Group, Candidate]],
    run: Runner,
    program: Callable[[], Program],
    result: Folded,
) -> list[Candidate]:
    """Run one batch; returns what is worth another try, seam by seam."""
    if not batch:
        return []
    work = program()
    for group, _ in batch:
        work.weld(group)
    work.finish()
    began = time.perf_counter()
    (step, error), outcomes = run(work)
    result.work += time.perf_counter() - began
    if step:
        raise Refused(why_not_begun(step, error))
    again: list[Candidate] = []
    for (group, part), outcome in zip(batch, outcomes, strict=True):
        if not outcome.complete:
            raise HalfDone(
                f"{outcome.step} failed ({os.strerror(outcome.error)}), and so did putting back "
                f"{group.keep:#x}-{group.end:#x}: run the weld again to finish it"
            )
        if not outcome.locked:
            result.warnings.append(f"{group.keep:#x}-{group.end:#x} was mlocked and could not be locked again")
        whole = outcome.reached == group.end
        done = len(group.pieces) if whole else sum(1 for _, end in group.pieces if end <= outcome.reached)
        result.closed += done
        if done == len(group.pieces):
            result.ends.add(group.end)
        if done:
            result.pages += pagemap.totals(clip(part.runs, group.pieces[0][0], outcome.reached)).populated
        if done == len(group.pieces):
            continue
        if len(part.rows) > 2:
            again.append(part._replace(rows=part.rows[done:]))
        else:
            result.failed[part.rows[1].start] = explain(outcome.step, outcome.error)
    return again


def explain(step: str, error: int) -> str:
    """Why a seam stays open, from the call that failed."""
    known = _REASONS.get((step, error))
    if known:
        return known
    if step == "not run":
        return "the batch was stopped before its turn"
    if error == errno.ENOMEM:
        return f"no memory for it, or a limit is reached (vm.max_map_count, RLIMIT_AS, commit limit; at: {step})"
    return f"the kernel refused it: {os.strerror(error)} (at: {step})"


def why_not_begun(step: str, error: int) -> str:
    """Why a batch could not begin, from the call that failed."""
    if step == "userfaultfd":
        if error == errno.EPERM:
            return "userfaultfd is forbidden to that process (seccomp or a security module)"
        if error == errno.ENOSYS:
            return "userfaultfd is not to be had: a kernel without CONFIG_USERFAULTFD, or a seccomp filter"
        if error == errno.EMFILE:
            return "the process has no file descriptor left (RLIMIT_NOFILE)"
    elif error == errno.EINVAL:
        return "this kernel has no UFFDIO_MOVE: Linux 6.8 or later is needed"
    return f"{step} failed: {os.strerror(error)}"
