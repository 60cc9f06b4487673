# SPDX-License-Identifier: GPL-2.0-or-later
"""A difference, told: as a drawing of both sides, and as a test ready to be added."""

from vmaweld.abi import PAGE_SHIFT
from vmaweld.events import EVENT_FIELDS, Event
from vmaweld.snapshot import Row, Snapshot
from vmaweld.verify.check import Difference
from vmaweld.words import count_text


def drawing(snapshot: Snapshot, low: int) -> list[str]:
    """The rows of `snapshot`, one a line: page numbers from `low` on, protection, page offset, anon_vma by letter."""
    letters: dict[int, str] = {}
    return [_line(row, low, letters) for row in snapshot.rows]


def _line(row: Row, low: int, letters: dict[int, str]) -> str:
    anon_vma = "-"
    if row.anon_vma:
        anon_vma = letters.setdefault(row.anon_vma, chr(ord("A") + len(letters) % 26))
    pgoff = (
        "?" if row.pgoff is None else f"{row.pgoff - (low >> PAGE_SHIFT):#x}" if row.anonymous else f"{row.pgoff:#x}"
    )
    first = (row.start - low) >> PAGE_SHIFT
    last = (row.end - low) >> PAGE_SHIFT
    chain = f" chain {row.chain}" if row.chain and row.chain > 1 else ""
    what = f" {row.file or row.name}" if row.file or row.name else ""
    return f"pages {first:#x}-{last:#x} {row.perms()} pgoff {pgoff} anon_vma {anon_vma}{chain}{what}"


def story(difference: Difference, low: int) -> list[str]:
    """The difference for a reader: the events, what differs, and both address spaces after the last event."""
    lines = [f"{count_text(len(difference.program), 'event')}:"]
    lines += [f"  {event!r}" for event in difference.program]
    lines += ["", f"then: {difference.what}"]
    for who, snapshot in (("model", difference.model), ("kernel", difference.real)):
        if snapshot is not None:
            lines += ["", f"the {who} has (pages counted from {low:#x}):"]
            lines += [f"  {line}" for line in drawing(snapshot, low)]
    return lines


def as_test(difference: Difference, policy: str, name: str) -> list[str]:
    """A pytest function that runs the events on a kernel and the model; it fails as long as they differ."""
    return [
        "@pytest.mark.live",
        f"def test_{name}(bench: Bench) -> None:",
        f'    """Found by verify under {policy}: {difference.what}."""',
        "    program = [",
        *(f"        {source(event)}," for event in difference.program),
        "    ]",
        "    assert bench.check(program) is None",
    ]


def source(event: Event) -> str:
    """`event` as Python that makes it.

    >>> source(Event("munmap", 1, addr=0x1000, length=4096))
    'Event("munmap", 1, addr=0x1000, length=0x1000)'
    """
    fields = []
    for name in EVENT_FIELDS:
        value = getattr(event, name)
        if name in ("op", "pid", "result", "time") or not value:
            continue
        fields.append(
            f'{name}="{value}"' if isinstance(value, str) else f"{name}={value:#x}" if value > 9 else f"{name}={value}"
        )
    return f'Event("{event.op}", {event.pid}, {", ".join(fields)})' if fields else f'Event("{event.op}", {event.pid})'
