# SPDX-License-Identifier: GPL-2.0-or-later
"""Replaying as commands do it: errors as one-line failures, progress on a terminal."""

from vmaweld.cli.common import NO, USAGE, fail
from vmaweld.cli.progress import ProgressBar
from vmaweld.policy import Policy, PolicyError
from vmaweld.study.answer import Answer
from vmaweld.study.policies import study_policies
from vmaweld.study.tally import replay
from vmaweld.trace.store import Trace, TraceError


def policies_for_terminal(base: str, policies: tuple[str, ...]) -> list[Policy]:
    """`study_policies` with its error as a one-line failure."""
    try:
        return study_policies(base, policies)
    except PolicyError as error:
        fail(str(error), USAGE)


def replay_for_terminal(trace: Trace, base: str, policies: tuple[str, ...]) -> Answer:
    """`replay` with its errors as one-line failures and its progress on a terminal."""
    chosen = policies_for_terminal(base, policies)
    try:
        with ProgressBar() as progress:
            return replay(trace, chosen, progress=lambda done, total: progress("replaying", done, total))
    except TraceError as error:
        fail(str(error), NO)
