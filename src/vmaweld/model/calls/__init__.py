# SPDX-License-Identifier: GPL-2.0-or-later
"""The calls: one family of system calls a file, and the one table that finds what performs an event.

Each file has its part of the table, `CALLS`: the names of its events, as `vmaweld.events` has them, and the `Call` that
performs each. A new file in this folder is found by itself.
"""

from importlib import import_module
from pkgutil import iter_modules

from vmaweld.model.address_space import Call

CALLS: dict[str, Call] = {}
"""What performs each kind of event."""

for _module in iter_modules(__path__):
    _part: dict[str, Call] = import_module(f"{__name__}.{_module.name}").CALLS
    assert not CALLS.keys() & _part.keys(), f"{_module.name} performs what another file performs too"
    CALLS.update(_part)
