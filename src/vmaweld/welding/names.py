# SPDX-License-Identifier: GPL-2.0-or-later
"""The names of the memfds that hold code, journal and entries.

/proc/PID/maps shows them as ``/memfd:NAME (deleted)``.
"""

from typing import Final

NAMES: Final = "vmaweld-"
"""How all of them begin."""
WORKSHOP: Final = "vmaweld-weld"
"""That of a weld from outside."""
OWN: Final = "vmaweld-own"
"""That of a process which welds its own memory."""
