"""Policies: names, rows, and what the series adds."""

import pytest

from vmaweld import policy
from vmaweld.abi import VM_MAYBE_GUARD, VM_SOFTDIRTY
from vmaweld.policy import CHANGES, KERNELS, Policy, PolicyError, parse_policy, policy_for_release

ROWS = {value for name, value in vars(policy).items() if name.isupper() and isinstance(value, str)}
RELEASES = {
    "5.9.0": "linux-5.10",
    "5.10.226-1": "linux-5.10",
    "5.15.0": "linux-5.10",
    "5.17.0-rc4": "linux-5.17",
    "6.0.9": "linux-5.17",
    "6.1.0-13-amd64": "linux-6.1",
    "6.11.2": "linux-6.1",
    "6.12.41+deb13-amd64": "linux-6.12",
    "6.17.1": "linux-6.12",
    "6.18.44": "linux-6.18",
    "7.2.1": "linux-7.2",
    "8.0.0": "linux-7.2",
}


def test_a_policy_is_a_kernel_and_its_changes() -> None:
    stock = parse_policy("linux-5.17")
    assert stock.rows == KERNELS["linux-5.17"]
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
    assert series.rows == pgoff.rows | anon_vma.rows
    grow = parse_policy("linux-5.17+series+grow")
    assert grow.rows == series.rows | {policy.MERGE_AFTER_GROW}
    assert parse_policy("linux-6.1").merge_after_grow, "upstream since 6.0"
    assert grow.name == "linux-5.17+series+grow"
    assert repr(grow) == "<policy linux-5.17+series+grow>"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_goes_with_every_kernel(kernel: str, change: str) -> None:
    changed = parse_policy(f"{kernel}+{change}")
    assert changed.rows == KERNELS[kernel] | CHANGES[change]


def test_every_row_is_an_attribute_that_tells_it() -> None:
    """No row is forgotten in `Policy`, and none is told by another's attribute."""
    assert set().union(*KERNELS.values(), *CHANGES.values()) <= ROWS
    bare = Policy("bare", frozenset())
    names = [name for name in dir(bare) if isinstance(getattr(bare, name), bool)]
    assert len(names) == len(ROWS)
    for row in ROWS:
        one = Policy("one", frozenset({row}))
        told = [name for name in names if getattr(one, name)]
        assert len(told) == 1, f"{row} is told by {told}"
        assert told[0] == row.replace("-", "_")


def test_every_row_has_its_release() -> None:
    """Beside each row stands when it came or went, and nobody has a row that no kernel and no change has."""
    assert set().union(*KERNELS.values(), *CHANGES.values()) == ROWS


def test_flags_that_may_differ() -> None:
    assert parse_policy("linux-5.17").ignored_flags == VM_SOFTDIRTY
    assert parse_policy("linux-7.2").ignored_flags == VM_SOFTDIRTY | VM_MAYBE_GUARD


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("linux-4.19", "no kernel called 'linux-4.19'; there are linux-5.10, linux-5.17"),
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
