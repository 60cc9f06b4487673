# SPDX-License-Identifier: GPL-2.0-or-later
"""Policies: names, the rules of each release, and what the series adds."""

import pytest

from vmaweld.abi import VM_MAYBE_GUARD, VM_SOFTDIRTY
from vmaweld.policy import (
    CHANGES,
    HELD,
    KERNELS,
    RULES,
    SERIES,
    Policy,
    PolicyError,
    Release,
    Rule,
    differences,
    parse_policy,
    policy_for_release,
    rules_of,
    was_held,
)
from vmaweld.policy.rules import NEVER

RELEASES = {
    "5.9.0": "linux-5.10",
    "5.10.226-1": "linux-5.10.226",
    "5.15.0": "linux-5.15.0",
    "5.17.0-rc4": "linux-5.17.0",
    "6.0.9": "linux-6.0.9",
    "6.1.0-13-amd64": "linux-6.1",
    "6.8.0-45-generic": "linux-6.8",
    "6.6": "linux-6.6",
    "6.11.2": "linux-6.11.2",
    "6.12.41+deb13-amd64": "linux-6.12.41",
    "6.17.1": "linux-6.17.1",
    "6.18.44": "linux-6.18.44",
    "7.2.1": "linux-7.2.1",
    "7.3-rc1": "linux-7.3",
    "8.0.0": "linux-7.3",
}
BY_NAME = {rule.name: rule for rule in RULES}


def test_a_policy_is_a_kernel_and_its_changes() -> None:
    stock = parse_policy("linux-5.17")
    assert stock.rules == rules_of("linux-5.17")
    assert not stock.update_pgoff
    assert not stock.merge_anon_vmas
    assert not stock.merge_after_grow
    pgoff = parse_policy("linux-5.17+pgoff")
    assert pgoff.update_pgoff
    assert not pgoff.merge_anon_vmas
    anon_vma = parse_policy("linux-5.17+anon-vma")
    assert anon_vma.merge_anon_vmas
    assert not anon_vma.update_pgoff
    series = parse_policy("linux-5.17+series")
    assert series.rules == pgoff.rules | anon_vma.rules
    grow = parse_policy("linux-5.17+series+grow")
    assert grow.rules == series.rules | {"merge-after-grow"}
    assert parse_policy("linux-6.1").merge_after_grow, "upstream since 6.1"
    assert grow.name == "linux-5.17+series+grow"
    assert repr(grow) == "<policy linux-5.17+series+grow>"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_goes_with_every_kernel(kernel: str, change: str) -> None:
    changed = parse_policy(f"{kernel}+{change}")
    assert changed.rules == rules_of(kernel) | CHANGES[change]


def test_every_rule_is_an_attribute_that_tells_it() -> None:
    """No rule is forgotten in `Policy`, and none is told by another's attribute."""
    bare = Policy("bare", frozenset())
    names = [name for name in dir(bare) if isinstance(getattr(bare, name), bool)]
    assert sorted(names) == sorted(rule.attribute for rule in RULES)
    for rule in RULES:
        one = Policy("one", frozenset({rule.name}))
        assert [name for name in names if getattr(one, name)] == [rule.name.replace("-", "_")]


def test_every_rule_is_told_once_and_holds_somewhere_but_not_everywhere() -> None:
    assert len(BY_NAME) == len(RULES)
    everywhere = [rules_of(f"linux-{major}.{minor}") for major, minor in SERIES]
    used = set().union(*everywhere, *CHANGES.values(), rules_of("linux-6.1"))
    assert used == BY_NAME.keys()
    assert not frozenset.intersection(*everywhere)
    for rule in RULES:
        assert rule.text.endswith((".", ")."))
        assert rule.since is not None or rule.until is not None
        assert all(len(commit) in (0, 12) for commit in (rule.commit, rule.ended))


@pytest.mark.parametrize("rule", RULES, ids=BY_NAME)
def test_a_rule_holds_from_its_release_to_its_end(rule: Rule) -> None:
    """The first and the last release of each side, stable ones included."""
    for series in SERIES:
        first = Release(*series)
        begun = rule.since is None or rule.since <= first
        ended = rule.until is not None and rule.until <= first
        stable = any(other.series == series for other in (*rule.taken, *rule.dropped))
        assert rule.holds(first) == (begun and not ended)
        assert stable or rule.holds(Release(*series, 999)) == rule.holds(first)
    for release in rule.taken:
        assert not rule.holds(release._replace(patch=release.patch - 1))
        assert rule.holds(release)
    for release in rule.dropped:
        assert rule.holds(release._replace(patch=release.patch - 1))
        assert not rule.holds(release)


def test_what_stable_releases_took() -> None:
    assert not parse_policy("linux-6.1.190").dontunmap_keeps_two
    assert parse_policy("linux-6.1.191").dontunmap_keeps_two
    assert parse_policy("linux-6.1").dontunmap_keeps_two, "without a patch level: the newest stable release"
    assert parse_policy("linux-6.12.112").dontunmap_resets_pgoff
    assert not parse_policy("linux-6.12.112").dontunmap_splits_locked
    assert not parse_policy("linux-6.1.0").dontunmap_resets_pgoff
    assert parse_policy("linux-5.10.140").fork_reuses_by_degree
    assert not parse_policy("linux-5.10.141").fork_reuses_by_degree
    assert parse_policy("linux-5.17").fork_reuses_by_degree


def test_releases_between_those_that_were_held() -> None:
    """6.6 is neither 6.1 nor 6.12, and 7.0 is not 6.18."""
    assert not parse_policy("linux-6.6").unaccount_unfaulted
    assert not parse_policy("linux-6.6").brk_merges_next
    assert not parse_policy("linux-6.6").close_never_merges
    assert not parse_policy("linux-6.6").uffd_move
    assert parse_policy("linux-6.6").mmap_asks_next_first
    assert not parse_policy("linux-7.0").dontunmap_resets_pgoff
    assert parse_policy("linux-7.3").dontunmap_resets_pgoff
    assert not parse_policy("linux-7.0").mremap_headroom_exact
    assert parse_policy("linux-6.17").mremap_moves_many
    assert not parse_policy("linux-6.16").mremap_moves_many
    assert was_held("linux-6.12.30")
    assert not was_held("linux-6.6")
    assert {SERIES[0]} < set(HELD) <= set(SERIES)


def test_what_two_kernels_differ_in() -> None:
    found = {difference.rule.name: difference.first for difference in differences("linux-6.6", "linux-6.1")}
    assert found["names-shared-anon"]
    assert not found["close-never-merges"]
    assert "mmap-asks-next-first" not in found
    assert not differences("linux-6.6", "linux-6.6")
    (one,) = differences("linux-6.6+pgoff", "linux-6.6")
    assert one.rule.name == "update-pgoff"
    assert one.rule.since == NEVER


def test_when_a_rule_holds_as_a_phrase() -> None:
    assert BY_NAME["mmap-asks-next-first"].span() == "since 6.1, until 6.12"
    assert BY_NAME["update-pgoff"].span() == "only in the series of patches"
    assert BY_NAME["dontunmap-skips-merge"].span() == "only in 6.1.191"
    assert BY_NAME["uffd-move"].span() == "since 6.8"


def test_flags_that_may_differ() -> None:
    assert parse_policy("linux-5.17").ignored_flags == VM_SOFTDIRTY
    assert parse_policy("linux-7.2").ignored_flags == VM_SOFTDIRTY | VM_MAYBE_GUARD


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("linux-4.19", "no kernel called 'linux-4.19'; there are linux-5.10 to linux-7.3, and their stable releases"),
        ("linux-6.20", "no kernel called 'linux-6.20'"),
        ("linux-6.01", "no kernel called 'linux-6.01'"),
        ("linux-6.1.", "no kernel called 'linux-6.1.'"),
        ("linux-6.1.030", "no kernel called 'linux-6.1.030'"),
        ("linux-6.1.999999999", "no kernel called 'linux-6.1.999999999'"),
        ("linux-\uff16.1", "no kernel called"),
        ("5.17", "no kernel called '5.17'"),
        ("", "no kernel called ''"),
        ("linux-5.17+fast", "no change called '+fast'; there are +pgoff, +anon-vma, +series, +grow"),
        ("linux-5.17+", "no change called '+'"),
    ],
)
def test_a_name_that_means_nothing(name: str, told: str) -> None:
    with pytest.raises(PolicyError) as error:
        parse_policy(name)
    assert str(error.value).startswith(told)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("release", "name"), RELEASES.items())
def test_the_policy_of_a_release(release: str, name: str) -> None:
    assert policy_for_release(release).name == name
