# SPDX-License-Identifier: GPL-2.0-or-later
"""A pause that was asked for is kept where it can be, and said where it cannot."""

import platform
import threading
from collections.abc import Callable

import pytest
from conftest import require
from weld_races import A_PIECE, SLICES
from weld_support import Target, no_allowance, open_seams, require_other

from vmaweld.kernel import pagemap
from vmaweld.kernel.bpf import iterator
from vmaweld.policy import release_numbers
from vmaweld.snapshot import Row, Snapshot
from vmaweld.welding import plan, remote
from vmaweld.welding.pace import Pace
from vmaweld.welding.plan import Candidate
from vmaweld.welding.report import Report
from vmaweld.welding.source import Source
from vmaweld.welding.standstill import Standstill
from vmaweld.welding.text import report_lines

MIB = 1 << 20


@pytest.mark.live
@pytest.mark.parametrize("unshare", [False, True])
def test_no_slice_plans_more_than_it_welds(monkeypatch: pytest.MonkeyPatch, unshare: bool) -> None:
    """While the threads stand still, only the slice is planned anew, whatever the size of the process."""
    require_other()
    monkeypatch.setattr(Pace, "budget", no_allowance)
    monkeypatch.setattr("vmaweld.welding.pace._A_PIECE", A_PIECE)
    still = False
    seen: list[int] = []
    stop_all, release, make = Standstill._stop_all, Standstill.release, plan.make

    def stopped(self: Standstill) -> None:
        nonlocal still
        stop_all(self)
        still = True

    def released(self: Standstill) -> None:
        nonlocal still
        still = False
        release(self)

    def planned(snapshot: Snapshot, *arguments: object, **more: object) -> plan.Plan:
        if still:
            seen.append(len(snapshot.rows))
        return make(snapshot, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Standstill, "_stop_all", stopped)
    monkeypatch.setattr(Standstill, "release", released)
    monkeypatch.setattr("vmaweld.welding.plan.make", planned)
    with Target() as target:
        start, end = target.build(240, 1)
        if unshare:
            target.tell("fork")
            target.expect("child")
        options = remote.Options(max_pause=SLICES, low=start, high=end, unshare=unshare)
        report = remote.weld(target.pid, options)
        assert open_seams(target.pid, start, end) == 0
        assert len(report.pauses) > 2
        assert max(seen, default=0) < 400
        if unshare:
            assert seen
        target.check()


def _candidate(pages: int) -> Candidate:
    rows = [Row(MIB, 2 * MIB, 0), Row(2 * MIB, 2 * MIB + pages * 4096, 0)]
    return Candidate(rows, [pagemap.Run(2 * MIB, 2 * MIB + pages * 4096, pagemap.PRESENT)])


def test_what_is_compared_is_paid_from_the_same_pause() -> None:
    candidates = [_candidate(10_000)]
    plain, compared = (Pace(verify=verify).share(candidates, 5e-3)[0] for verify in (False, True))
    assert 0 < compared[0].rows[-1].pages * 5 < plain[0].rows[-1].pages


def test_a_slice_moves_about_as_much_as_it_compares_in_any_case() -> None:
    """`--max-pause 0.1 --verify` compares the kept stretch, up to 512 pages, in each slice: it must get on."""
    rows = [Row(0, 2 * MIB, 0), Row(2 * MIB, 2 * MIB + 10_000 * 4096, 0)]
    candidate = Candidate(rows, [pagemap.Run(0, 2 * MIB + 10_000 * 4096, pagemap.PRESENT)])
    (chosen,), more = Pace(verify=True).share([candidate], 1e-4)
    assert more
    assert 256 < chosen.rows[-1].pages < 1024


def test_longer_pauses_are_told() -> None:
    report = Report(1, pauses=[0.004, 0.0101, 0.012], max_pause=0.005)
    assert report.pauses_over == 2
    assert report.as_json()["max_pause_ms"] == 5
    assert report.as_json()["pauses_over"] == 2
    assert "2 pauses longer than the 5 ms asked for" in "\n".join(report_lines(report))
    report.max_pause = None
    assert report.pauses_over == 0
    assert "asked for" not in "\n".join(report_lines(report))


@pytest.mark.live
@pytest.mark.parametrize(("count", "pages"), [(40, 1), (2, 800)], ids=["seams", "pages"])
def test_what_the_process_opens_anew_is_not_chased_for_ever(
    monkeypatch: pytest.MonkeyPatch, count: int, pages: int
) -> None:
    require_other()
    monkeypatch.setattr(Pace, "budget", no_allowance)
    # Several slices, but not page by page: each may open twice what there was.
    monkeypatch.setattr("vmaweld.welding.pace._A_PIECE", A_PIECE if pages == 1 else 1e-5)
    monkeypatch.setattr("vmaweld.welding.pace._A_PAGE", 1e-5)
    with Target() as target:
        target.build(count, pages, "quiet")
        rests = 0

        def open_anew(_report: Report) -> None:
            nonlocal rests
            rests += 1
            assert rests < 400
            target.build(count, pages, "quiet")

        report = remote.weld(target.pid, remote.Options(max_pause=SLICES), progress=open_anew)
        assert rests > 1
        assert report.closed <= 3 * report.seams + 100


@pytest.mark.live
@pytest.mark.parametrize("verify", [False, True])
def test_a_large_process_is_not_looked_at_as_a_whole_in_a_short_pause(
    monkeypatch: pytest.MonkeyPatch, verify: bool
) -> None:
    """Where no VMA has come or gone since the plan, a slice reads one piece of a walk: `source.Source.again`."""
    require_other()
    require(*iterator.available())
    monkeypatch.setattr(Pace, "budget", no_allowance)
    walks: list[bool] = []
    take = Source.take

    def taken(self: Source) -> Snapshot:
        walks.append(threading.current_thread() is threading.main_thread())
        return take(self)

    monkeypatch.setattr(Source, "take", taken)
    with Target() as target:
        start, end = target.build(1000, 1, "quiet")
        report = remote.weld(target.pid, remote.Options(max_pause=1e-3, verify=verify))
        assert report.closed == 999
        assert open_seams(target.pid, start, end) == 0
        assert len(report.pauses) > 2
        assert walks.count(False) <= 1, "a standstill has a thread of its own"
        target.check()


@pytest.mark.live
def test_guard_pages_that_come_between_plan_and_slice_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take no write lock either. A weld may leave them, and may not lose one."""
    require_other()
    require(*iterator.available())
    require(release_numbers(platform.release()) >= (6, 13), "guard pages came with Linux 6.13")
    stand_still = remote._Weld._standstill
    with Target() as target:
        start, end = target.build(1000, 2, "quiet hollow")
        low = start + (end - start) // 2
        guarded = False

        def guard_first(self: remote._Weld, work: Callable[[Standstill], bool]) -> bool:
            nonlocal guarded
            if not guarded:
                guarded = True
                target.tell("guard")
                target.expect("guarded")
            return stand_still(self, work)

        monkeypatch.setattr(remote._Weld, "_standstill", guard_first)
        remote.weld(target.pid, remote.Options(max_pause=1.0, low=low, high=end))
        assert guarded
        target.tell("unguard")
        target.expect("touched")
        target.check()


@pytest.mark.live
def test_a_page_that_comes_between_plan_and_slice_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault takes no write lock: what had no anon_vma, and was to be written to and dropped, may hold data now."""
    require_other()
    require(*iterator.available())
    stand_still = remote._Weld._standstill
    with Target() as target:
        start, end = target.build(1000, 2, "quiet hollow")
        low = start + (end - start) // 2  # the first row, which keeps, is one without a page
        touched = 0

        def write_first(self: remote._Weld, work: Callable[[Standstill], bool]) -> bool:
            nonlocal touched
            touched += 1
            if touched == 1:
                target.tell("touch")
                target.expect("touched")
            return stand_still(self, work)

        monkeypatch.setattr(remote._Weld, "_standstill", write_first)
        report = remote.weld(target.pid, remote.Options(max_pause=1.0, low=low, high=end))
        assert touched
        assert report.closed == 499
        target.check()
