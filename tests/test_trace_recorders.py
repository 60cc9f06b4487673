# SPDX-License-Identifier: GPL-2.0-or-later
"""The protocol of recorders: a class that keeps it and is entered in the table records, and the doctor tries it."""

import time
from pathlib import Path

import pytest

from vmaweld import doctor
from vmaweld.events import Event
from vmaweld.trace.progress import Progress
from vmaweld.trace.recorders.protocol import Recorder, RecorderError
from vmaweld.trace.recorders.table import RECORDERS
from vmaweld.trace.recording import choose, record
from vmaweld.trace.sampler import Sample
from vmaweld.trace.store import TraceWriter, open_trace


class Blind(Recorder):
    """Sees nothing but that there was a process, and says so."""

    name = "blind"
    means = "record: nothing"
    faults = "assumed"
    seizes = False
    losses = {"all": "whatever happened: {:,}"}

    def __init__(self, directory: Path) -> None:
        self.stopped = False

    @classmethod
    def available(cls) -> tuple[bool, str]:
        return True, ""

    @staticmethod
    def clock() -> int:
        return time.monotonic_ns()

    def attach(self, pid: int) -> None:
        assert pid > 0

    def stop(self) -> None:
        self.stopped = True

    def convert(self, writer: TraceWriter, root: int, samples: list[Sample], progress: Progress) -> None:
        assert self.stopped
        writer.append(Event("exec", root, file="/bin/true"))
        writer.metadata.add_losses({"all": 1234, "none": 0})


class Broken(Blind):
    """Never works."""

    name = "broken"

    @classmethod
    def available(cls) -> tuple[bool, str]:
        return False, "it is broken: mend it"


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (Broken, Blind):
        monkeypatch.setitem(RECORDERS, each.name, each)


@pytest.mark.parametrize("recorder", list(RECORDERS.values()))
def test_each_says_what_it_is(recorder: type[Recorder]) -> None:
    assert RECORDERS[recorder.name] is recorder
    assert recorder.means
    assert recorder.faults in ("seen", "assumed")
    for text in recorder.losses.values():
        assert "{" not in text.format(1234)


def test_a_recorder_of_the_table_records(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    recording = record(
        ["true"], tmp_path / "a.trace", recorder="blind", started=lambda each, why: told.append((each.name, why))
    )
    assert told == [("blind", "")]
    assert recording.metadata.notes == ["whatever happened: 1,234"]
    with open_trace(tmp_path / "a.trace") as trace:
        assert (trace.metadata.recorder, trace.metadata.faults) == ("blind", "assumed")
        assert trace.metadata.losses == {"all": 1234}
        assert [event.op for event in trace.events()] == ["exec"]


def test_the_first_that_works_is_taken_and_the_reasons_before_it_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in RECORDERS if name not in ("broken", "blind")]:
        monkeypatch.delitem(RECORDERS, name)
    assert choose(None) == (Blind, "it is broken: mend it")
    assert choose("blind") == (Blind, "")
    with pytest.raises(RecorderError, match="it is broken"):
        choose("broken")
    with pytest.raises(RecorderError, match="choose broken or blind"):
        choose("other")
    monkeypatch.delitem(RECORDERS, "blind")
    with pytest.raises(RecorderError, match=r"^it is broken: mend it$"):
        choose(None)


def test_the_doctor_tries_each() -> None:
    found = {each.name: each for each in doctor.examine()}
    assert (found["blind"].ok, found["blind"].means) == (True, "record: nothing")
    assert (found["broken"].ok, found["broken"].how) == (False, "it is broken: mend it")
