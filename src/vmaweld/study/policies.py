"""Which policies a study compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vmaweld.policy import KERNELS, Policy, PolicyError, parse_policy

DEFAULT_BASE: Final = "linux-5.17"
"""The kernel on which the series was written."""

VARIANTS: Final = ("", "+pgoff", "+anon-vma", "+series")
"""The stock kernel, patch 2 alone, patch 3 alone, both."""


def study_policies(base: str = DEFAULT_BASE, names: Sequence[str] = ()) -> list[Policy]:
    """The policies to compare, what the others are held against first: `names` where given, else `base`'s four.

    Raises PolicyError.

    >>> [policy.name for policy in study_policies("linux-6.18")]
    ['linux-6.18', 'linux-6.18+pgoff', 'linux-6.18+anon-vma', 'linux-6.18+series']
    """
    if not names:
        return [parse_policy(base + variant) for variant in VARIANTS]
    policies: dict[str, Policy] = {}
    for name in names:
        if name in policies:
            raise PolicyError(f"the policy {name} is given twice")
        policies[name] = parse_policy(name)
    return list(policies.values())


def known_policies() -> str:
    """The kernels, for help texts."""
    return ", ".join(KERNELS)
