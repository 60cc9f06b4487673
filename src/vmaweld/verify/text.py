# SPDX-License-Identifier: GPL-2.0-or-later
"""What a verification found, for people."""

from collections.abc import Iterator

from vmaweld.verify.run import Verification
from vmaweld.verify.scenario import story
from vmaweld.words import count_text


def outcome_lines(outcome: Verification, low: int) -> Iterator[str]:
    """How much was compared, and what differs. low: the arena's first address."""
    what = "hidden fields included" if outcome.exact else "visible fields only (root sees the hidden ones too)"
    extent = f"{count_text(outcome.events, 'event')} in {count_text(outcome.programs, 'program')}"
    interrupted = "Interrupted. " if outcome.interrupted else ""
    yield f"{interrupted}{outcome.policy} against {outcome.kernel}: {extent}."
    found = outcome.difference
    if found is None:
        here = " by then" if outcome.interrupted else ""
        yield f"No difference{here}, {what}. Go on with --seed {outcome.next_seed}."
        return
    shrunk = "Interrupted while shrinking it" if outcome.interrupted else "Shrunk"
    yield f"Model and kernel differ (program {outcome.failed_program}). {shrunk}:"
    yield ""
    yield from story(found, low)
