# SPDX-License-Identifier: GPL-2.0-or-later
"""Policy: what a kernel allows. Every difference between kernels is one rule of a table, never a test of versions.

A policy is a kernel, optionally followed by changes: ``linux-5.17+series``, ``linux-6.18.44+pgoff``. The changes are
the patches of the series under the names of `CHANGES`.
"""

from vmaweld.policy.kernels import (
    CHANGES,
    HELD,
    KERNELS,
    PolicyError,
    RuleDifference,
    differences,
    held_around,
    parse_policy,
    policy_for_release,
    rules_of,
    was_held,
)
from vmaweld.policy.policy import Policy
from vmaweld.policy.release import SERIES, Release, release_numbers
from vmaweld.policy.rules import RULES, Rule

__all__ = [
    "CHANGES",
    "RuleDifference",
    "HELD",
    "KERNELS",
    "Policy",
    "PolicyError",
    "RULES",
    "Release",
    "Rule",
    "SERIES",
    "differences",
    "held_around",
    "parse_policy",
    "policy_for_release",
    "release_numbers",
    "rules_of",
    "was_held",
]
