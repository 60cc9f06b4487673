# SPDX-License-Identifier: GPL-2.0-or-later
"""Which policies a study compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from vmaweld.policy import KERNELS, Policy, PolicyError, differences, held_around, parse_policy, rules_of, was_held
from vmaweld.words import count_text

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


def kernel_text(kernel: str, against: str = "") -> list[str]:
    """What is known of a kernel's rules, and where they differ from another's, as lines. Raises PolicyError."""
    lines = [_standing(name) for name in dict.fromkeys((kernel, against)) if name]
    if not against:
        return lines
    found = differences(kernel, against)
    lines.append("")
    if not found:
        return [*lines, f"{kernel} and {against} differ in no rule."]
    lines.append(f"{kernel} and {against} differ in {count_text(len(found), 'rule')}:")
    for rule, first in found:
        lines += ["", f"{rule.name} ({rule.span()}): only in {kernel if first else against}", f"  {rule.text}"]
    return lines


def _standing(kernel: str) -> str:
    rules = count_text(len(rules_of(kernel)), "rule")
    if was_held(kernel):
        return f"{kernel}: {rules} of the table hold. A kernel of that series was held against the model."
    between = " and ".join(name for name in held_around(kernel) if name)
    return f"{kernel}: {rules} of the table hold. No such kernel was held against the model, but {between} were."


def kernel_data(kernel: str, against: str = "") -> dict[str, Any]:
    """The same under the keys that docs/policies.md tells. Raises PolicyError."""
    names = [name for name in (kernel, against) if name]
    found = differences(kernel, against) if against else []
    return {
        "schema": 1,
        "kernels": [{"name": name, "rules": sorted(rules_of(name)), "held": was_held(name)} for name in names],
        "differences": [
            {
                "rule": rule.name,
                "text": rule.text,
                "when": rule.span(),
                "commits": [commit for commit in (rule.commit, rule.ended) if commit],
                "holds_in": kernel if first else against,
            }
            for rule, first in found
        ],
    }
