# SPDX-License-Identifier: GPL-2.0-or-later
"""The names of policies: every release from 5.10 on, with changes to it."""

import re
from typing import Final, NamedTuple

from vmaweld.policy.policy import Policy
from vmaweld.policy.release import NEWEST_PATCH, SERIES, Release, release_numbers
from vmaweld.policy.rules import RULES, Rule

HELD: Final[tuple[tuple[int, int], ...]] = ((5, 10), (6, 1), (6, 12), (6, 16), (6, 17), (6, 18), (7, 2), (7, 3))
"""The series that were held against a real kernel of that series with `vmaweld verify`."""

KERNELS: Final[tuple[str, ...]] = (
    "linux-5.10",
    "linux-5.17",
    "linux-6.1",
    "linux-6.12",
    "linux-6.18",
    "linux-7.2",
)
"""The kernels that help texts and documents show: those of Debian's releases, the one that the series was written for,
and the newest."""

CHANGES: Final[dict[str, frozenset[str]]] = {
    "pgoff": frozenset({"update-pgoff"}),
    "anon-vma": frozenset({"merge-anon-vmas"}),
    "series": frozenset({"update-pgoff", "merge-anon-vmas"}),
    "grow": frozenset({"merge-after-grow"}),
}
"""The series as switches. Patch 1 (the refactor) is the shape of `model/merge.py`; patch 4 its tracepoints."""

_NAME: Final = re.compile(r"linux-([1-9]\d*)\.(0|[1-9]\d*)(?:\.(0|[1-9]\d{0,4}))?", re.ASCII)
_NO_PATCH_LEVEL: Final = re.compile(r"\d+\.\d+\.0-\d")


class PolicyError(ValueError):
    """A policy name that means nothing; str() is one line that says what would."""


class RuleDifference(NamedTuple):
    """A rule that holds in one of two kernels. first: it is the first of them."""

    rule: Rule
    first: bool


def rules_of(kernel: str) -> frozenset[str]:
    """The names of the rules that hold in a kernel: ``linux-6.6`` (its newest stable release), ``linux-6.1.30``.

    Raises PolicyError.
    """
    release = _release(kernel)
    return frozenset(rule.name for rule in RULES if rule.holds(release))


def _release(kernel: str) -> Release:
    found = _NAME.fullmatch(kernel)
    if found is None or (int(found[1]), int(found[2])) not in SERIES:
        first, last = (".".join(map(str, SERIES[at])) for at in (0, -1))
        raise PolicyError(
            f"no kernel called {kernel!r}; there are linux-{first} to linux-{last}, and their stable releases "
            "(linux-6.1.30)"
        )
    return Release(int(found[1]), int(found[2]), NEWEST_PATCH if found[3] is None else int(found[3]))


def parse_policy(name: str) -> Policy:
    """The policy called `name`: a kernel, then any number of ``+change``.

    Raises PolicyError.

    >>> parse_policy("linux-5.17+series").update_pgoff
    True
    """
    kernel, *changes = name.split("+")
    rules = rules_of(kernel)
    for change in changes:
        if change not in CHANGES:
            raise PolicyError(f"no change called {'+' + change!r}; there are {', '.join('+' + c for c in CHANGES)}")
        rules |= CHANGES[change]
    return Policy(name, rules)


def policy_for_release(release: str) -> Policy:
    """The policy of a kernel release as uname(2) tells it; of the nearest one that the table covers.

    A distribution that writes 0 in place of the patch level (``6.1.0-48-amd64``) keeps to the newest stable release.

    >>> policy_for_release("6.6.30").name, policy_for_release("6.1.0-48-amd64").name
    ('linux-6.6.30', 'linux-6.1')
    """
    numbers = release_numbers(release)
    known = max((series for series in SERIES if series <= numbers.series), default=SERIES[0])
    name = _named(known)
    if known == numbers.series and re.match(r"\d+\.\d+\.\d", release) and not _NO_PATCH_LEVEL.match(release):
        name += f".{numbers.patch}"
    return parse_policy(name)


def was_held(kernel: str) -> bool:
    """Whether a kernel of that series was held against the model. Raises PolicyError."""
    return _release(kernel).series in HELD


def held_around(kernel: str) -> tuple[str, str]:
    """The nearest kernels below and above that were held against the model; "" where there is none.

    Raises PolicyError.
    """
    series = _release(kernel).series
    below = max((other for other in HELD if other < series), default=None)
    above = min((other for other in HELD if other > series), default=None)
    return _named(below), _named(above)


def _named(series: tuple[int, int] | None) -> str:
    return "linux-{}.{}".format(*series) if series else ""


def differences(first: str, second: str) -> list[RuleDifference]:
    """The rules in which two kernels, or policies, differ, in the order of the table. Raises PolicyError."""
    rules = parse_policy(first).rules, parse_policy(second).rules
    return [
        RuleDifference(rule, rule.name in rules[0])
        for rule in RULES
        if (rule.name in rules[0]) != (rule.name in rules[1])
    ]
