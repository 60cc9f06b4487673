"""Working a plan off: groups in one batch, and what failed once more, seam by seam."""

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from vmaweld.kernel import pagemap
from vmaweld.snapshot import Row
from vmaweld.welding.errors import HalfDone, Refused
from vmaweld.welding.plan import Candidate, PageSource, Room, groups
from vmaweld.welding.program import Group, Outcome, Program

Run = Callable[[Program], tuple[tuple[str, int], list[Outcome]]]
"""Runs a finished program where the memory is; returns `Program.outcomes`."""

_REASONS: Final[dict[tuple[str, int], str]] = {
    (
        "move",
        errno.EBUSY,
    ): "pages pinned (DMA, io_uring), or marked as shared since a fork: --unshare clears the latter",
    ("move", errno.EFAULT): "guard pages (MADV_GUARD_INSTALL) or poisoned memory in it",
    ("register", errno.EBUSY): "the program watches it with a userfaultfd of its own",
    ("reserve", errno.EEXIST): "the room for the move was taken meanwhile: try again",
    ("munlock", errno.EPERM): "it may not be unlocked",
}


@dataclass
class Folded:
    """What came of it.

    closed: seams gone. pages: populated pages that moved. failed: seams that were tried and stay open, by
    address, with the reason.
    """

    closed: int = 0
    pages: int = 0
    failed: dict[int, str] = field(default_factory=dict)


def fold(
    candidates: Iterable[Candidate],
    room: Room,
    pages: PageSource,
    run: Run,
    *,
    low: int = 0,
    program: Callable[[], Program] = Program,
) -> Folded:
    """Weld `candidates` with as few batches as it takes (one, unless something fails).

    low: nothing below that address is touched. program: makes an empty program.
    Raises Refused where the batch cannot begin, HalfDone where it cannot end.
    """
    result = Folded()
    again = _batch(list(groups(candidates, room, pages, low=low)), pages, run, program, result)
    if again:
        _batch(list(groups(again, room, pages, low=low, pieces=1)), pages, run, program, result)
    return result


def _batch(
    batch: Sequence[tuple[Group, Sequence[Row]]],
    pages: PageSource,
    run: Run,
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
    populated = [pages.runs(group.pieces[0][0], group.end) for group, _ in batch]
    (step, error), outcomes = run(work)
    if step:
        raise Refused(why_not_begun(step, error))
    again: list[Candidate] = []
    for (group, rows), outcome, runs in zip(batch, outcomes, populated, strict=True):
        if not outcome.complete:
            raise HalfDone(
                f"{outcome.step} failed ({os.strerror(outcome.error)}), and so did putting back "
                f"{group.keep:#x}-{group.end:#x}: run the weld again to finish it"
            )
        done = sum(1 for _, end in group.pieces if end <= outcome.reached)
        result.closed += done
        result.pages += _pages(runs, outcome.reached)
        if done == len(group.pieces):
            continue
        if len(rows) > 2:
            again.append(Candidate(rows[done:], group.populate))
        else:
            result.failed[rows[1].start] = explain(outcome.step, outcome.error)
    return again


def _pages(runs: Iterable[pagemap.Run], reached: int) -> int:
    return pagemap.totals([run._replace(end=min(run.end, reached)) for run in runs if run.start < reached]).populated


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
