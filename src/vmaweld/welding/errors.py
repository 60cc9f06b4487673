# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a weld did not come about."""


class WeldError(Exception):
    """A weld that was asked for was not done, and nothing has changed; the message is one line with the reason."""


class Refused(WeldError):
    """Machine, settings or process do not allow a weld; the message says what would."""


class Busy(Refused):
    """Somebody else traces or welds the process at this moment; a weld under way tries again a little later."""


class HalfDone(WeldError):
    """The calls that put things back failed too: the memory is complete, but part of it lies elsewhere.

    Touching that part waits. Run the weld again: it finds the journal and finishes.
    """
