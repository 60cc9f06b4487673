# SPDX-License-Identifier: GPL-2.0-or-later
"""The scenarios of the model, performed by the running kernel: whatever a drawing does, the two agree.

The drawings say what must be so under kernels that are not here; the events in them can be performed by any. So every
timeline is played once more, on the running kernel and on the model with that kernel's rules, and compared after
every event, hidden fields included.
"""

from __future__ import annotations

import drawing
import pytest
import test_model_calls
import test_model_cases
import test_model_mremap
import test_model_series

from vmaweld import events as ev
from vmaweld.abi import MAP_SHARED, MCL_CURRENT, UFFDIO_REGISTER_MODE_MISSING
from vmaweld.events import EVENT_FIELDS, Event
from vmaweld.executor.arena import ARENA_LOW
from vmaweld.verify.check import Bench
from vmaweld.verify.scenario import story

pytestmark = pytest.mark.live

_SHIFT = ARENA_LOW + (1 << 24) - drawing.BASE
_FILES = ("/memfd:a", "/memfd:b", "/memfd:c")


def logs(module: object) -> list[list[Event]]:
    """What the plain tests of `module` do to memory, each timeline once."""
    drawing.worlds.clear()
    for name, test in vars(module).items():
        if name.startswith("test_") and not test.__code__.co_argcount:
            test()
    distinct: dict[str, list[Event]] = {}
    for world in drawing.worlds:
        distinct.setdefault(repr(world.log), world.log)
    drawing.worlds.clear()
    return list(distinct.values())


def performable(log: list[Event]) -> bool:
    """Nothing that a live process cannot do for us, and no page that would wait for its userfaultfd for ever."""
    missing = any(event.op == ev.UFFD_REGISTER and event.flags & UFFDIO_REGISTER_MODE_MISSING for event in log)
    for event in log:
        if event.op in (ev.EXEC, ev.PLACE, ev.BRK):
            return False
        if missing and event.op in (ev.WRITE, ev.READ, ev.MLOCK):
            return False
        if event.op == ev.MLOCKALL and event.flags & MCL_CURRENT:
            return False
        if event.op in (ev.MMAP, ev.SHMAT) and event.flags >> 32:
            return False  # a read-only file
        if event.op == ev.MPROTECT and event.flags:
            return False  # a protection key, which nobody has allocated
        if any(number >= 1 << 46 for number in (event.addr, event.length)):
            return False
    return bool(log)


def in_the_arena(log: list[Event]) -> list[Event]:
    """The same events where the executor may perform them, on files that it has."""
    files: dict[str, str] = {}
    moved = []
    for event in log:
        fields = {name: getattr(event, name) for name in EVENT_FIELDS}
        if event.addr:
            fields["addr"] = event.addr + _SHIFT
        if event.new_addr and event.op in (ev.MREMAP, ev.UFFD_MOVE):
            fields["new_addr"] = event.new_addr + _SHIFT
        if event.file and event.op == ev.MMAP:
            fields["file"] = files.setdefault(event.file, _FILES[len(files) % len(_FILES)])
        if event.op == ev.SHMAT:
            fields["file"] = f"segment{event.length}"
            fields["flags"] |= MAP_SHARED
        op, pid = fields.pop("op"), fields.pop("pid")
        moved.append(Event(op, pid, **fields))
    return moved


@pytest.mark.parametrize("module", [test_model_cases, test_model_series, test_model_calls, test_model_mremap])
def test_the_running_kernel_does_the_same(bench: Bench, module: object) -> None:
    programs = [in_the_arena(log) for log in logs(module) if performable(log)]
    assert len(programs) > 20
    for program in programs:
        found = bench.check(program)
        assert found is None, "\n".join(story(found, ARENA_LOW + (1 << 24)))
