# SPDX-License-Identifier: GPL-2.0-or-later
"""Every combination of neighbours, held against a truth table written apart from the model.

The table knows nothing of `MergeState` or `decide`: it works on plain dicts that say how a neighbour relates to the
request, and each rule is a row with its source. Sources: ``vma_merge``, ``is_mergeable_vma``, ``is_mergeable_anon_vma``
of Linux 5.10 and 6.1 (mm/mmap.c), ``vma_merge_new_range``, ``vma_merge_existing_range``, ``can_vma_merge_right`` of
6.12 and 7.2 (mm/vma.c), and the description of the series' patch 3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import product

import pytest

from vmaweld import abi
from vmaweld.model.anon_vma import AnonVma, link_chain
from vmaweld.model.merge import (
    ANON_VMA,
    ANSWER_NAMES,
    CLOSE,
    FILE,
    FLAGS,
    MEMPOLICY,
    NAME,
    NOT_ADJACENT,
    PGOFF,
    SPECIAL,
    UFFD,
    MergeState,
    anon_vmas_answer,
    decide,
)
from vmaweld.model.pages import PageTable
from vmaweld.model.vma import VMA
from vmaweld.policy import KERNELS, parse_policy

CHANGES = ("", "+pgoff", "+anon-vma", "+series", "+series+grow")

# the truth table ----------------------------------------------------------------------------------------
#
# A neighbour is a dict:
#   place    none | away | touching
#   differs  nothing | flags | soft-dirty | guard | file | mempolicy | uffd | name | close
#   linear   the page offsets go on
#   av       none | mine | other | another | parent's | child's
#            other, another: roots without children, two distinct ones; parent's: a root with a child;
#            child's: made by fork, so not its own root
#   chain    links of the neighbour (0 where av is none)
# A request is a dict:
#   range    mmap | new (brk, growing) | moved: about to exist; left | right | whole | middle: of the VMA that holds it
#   av       none | plain | parent's | child's                plain: a root without children
#   forked   the VMA whose anon_vma the request has is linked with more than one
#   special  its flags hold one of VM_SPECIAL
#   close    the VMA that holds it has vm_ops->close
# An era: the kernel's rules, by the release that brought them.

ANY = object()

ERAS: dict[str, dict[str, bool]] = {
    # close-apart: VMAs with close are kept apart; takes-faulted: an unfaulted neighbour may take a faulted range;
    # sticky-guard: VM_MAYBE_GUARD never counts; upper-first: mmap_region prefers the neighbour above
    "linux-5.10": {"close-apart": True, "takes-faulted": False, "sticky-guard": False, "upper-first": False},
    "linux-5.17": {"close-apart": True, "takes-faulted": False, "sticky-guard": False, "upper-first": False},
    "linux-6.1": {"close-apart": True, "takes-faulted": False, "sticky-guard": False, "upper-first": True},
    "linux-6.12": {"close-apart": False, "takes-faulted": False, "sticky-guard": False, "upper-first": False},
    "linux-6.18": {"close-apart": False, "takes-faulted": True, "sticky-guard": True, "upper-first": False},
    "linux-7.2": {"close-apart": False, "takes-faulted": True, "sticky-guard": True, "upper-first": False},
}

# What of a difference forbids a merge, whatever the rest.
HARD = {
    "nothing": 0,
    "soft-dirty": 0,
    "flags": FLAGS,
    "guard": FLAGS,  # 0 where it is sticky
    "file": FILE,
    "mempolicy": MEMPOLICY,
    "uffd": UFFD,
    "name": NAME,
    "close": CLOSE,  # 0 since 6.5
}

# Are the anon_vmas of the request and of a neighbour compatible? The first row that fits.
# request's av, neighbour's av, neighbour's chain is one long, request forked, era takes-faulted, patch 3 -> answer
COMPATIBLE: list[tuple[tuple[object, object, object, object, object, object], str]] = [
    (("none", "none", ANY, ANY, ANY, ANY), "NULL"),
    (("none", ANY, True, ANY, ANY, ANY), "NULL"),
    (("none", ANY, False, ANY, ANY, ANY), "FAILED"),  # a clone of a parent's
    ((ANY, "none", ANY, ANY, False, ANY), "FAILED"),  # an empty chain is not singular
    ((ANY, "none", ANY, False, True, ANY), "NULL"),
    ((ANY, "none", ANY, True, True, ANY), "FAILED"),
    ((ANY, "mine", ANY, ANY, ANY, ANY), "SAME"),
    (("plain", ANY, ANY, ANY, ANY, True), "DIFFERENT"),  # the request's pages change, so it must be unshared
    ((ANY, ANY, ANY, ANY, ANY, ANY), "FAILED"),
]

# Are the neighbours' anon_vmas compatible with each other? prev's, next's, patch 3 -> answer. "mine" is what the
# request has, so it is resolved to the request's kind first; `same` tells identity.
# next is unshared, same, one is none, patch 3 -> answer
BOTH: list[tuple[tuple[object, object, object, object], str]] = [
    ((ANY, ANY, True, ANY), "NULL"),
    ((ANY, True, ANY, ANY), "SAME"),
    ((True, False, False, True), "DIFFERENT"),  # the third version passes next's first
    ((ANY, ANY, ANY, ANY), "FAILED"),
]

# With whom it merges -> the case. A range in the middle of its VMA has no neighbours.
CASES = {
    ("new", "both"): 1,
    ("new", "prev"): 2,
    ("new", "next"): 3,
    ("right", "next"): 4,
    ("left", "prev"): 5,
    ("whole", "both"): 6,
    ("whole", "prev"): 7,
    ("whole", "next"): 8,
}


def first_row(table: list[tuple[tuple[object, ...], str]], *facts: object) -> str:
    for pattern, answer in table:
        if all(wanted is ANY or wanted == fact for wanted, fact in zip(pattern, facts, strict=True)):
            return answer
    raise AssertionError(facts)


def truth_of_neighbour(
    era: dict[str, bool], patch_3: bool, request: dict[str, object], neighbour: dict[str, object]
) -> tuple[int, str]:
    """What forbids the merge with one neighbour (bits), and the answer of the trace event."""
    if request["special"]:
        return SPECIAL, "MERGE_FAILED"
    if neighbour["place"] != "touching":
        return NOT_ADJACENT, "MERGE_FAILED"
    differs = str(neighbour["differs"])
    hard = HARD[differs]
    if (differs == "close" and not era["close-apart"]) or (differs == "guard" and era["sticky-guard"]):
        hard = 0
    if hard:
        return hard, "MERGE_FAILED"
    answer = first_row(
        COMPATIBLE,  # type: ignore[arg-type]
        request["av"],
        neighbour["av"],
        neighbour["chain"] == 1,
        request["forked"],
        era["takes-faulted"],
        patch_3,
    )
    bits = (0 if neighbour["linear"] else PGOFF) | (ANON_VMA if answer == "FAILED" else 0)
    # AV_MERGE_... only where nothing else forbids it.
    return bits, f"AV_MERGE_{answer}" if neighbour["linear"] else "MERGE_FAILED"


def truth(
    era: dict[str, bool],
    patch_3: bool,
    request: dict[str, object],
    prev: dict[str, object],
    next: dict[str, object],
    of_prev: tuple[int, str],
    of_next: tuple[int, str],
) -> tuple[object, ...]:
    """The case, what `truth_of_neighbour` says of each side, and the answer for both."""
    goes_with = {(True, True): "both", (True, False): "prev", (False, True): "next", (False, False): ""}[
        (not of_prev[0], not of_next[0])
    ]
    both_answer = "MERGE_FAILED"
    if goes_with == "both":
        kinds = [request["av"] if n["av"] == "mine" else n["av"] for n in (prev, next)]
        same = prev["av"] == next["av"]
        unshared = kinds[1] in ("plain", "other", "another")
        answer = first_row(BOTH, unshared, same, "none" in (prev["av"], next["av"]), patch_3)  # type: ignore[arg-type]
        if request["range"] == "mmap" and era["upper-first"]:
            # can_vma_merge_after(prev, next's anon_vma): neither alike nor is an empty chain singular
            if prev["av"] == "none" != next["av"]:
                answer = "FAILED"
            goes_with = "next" if answer == "FAILED" else "both"
        elif answer == "FAILED" or next["differs"] == "close":  # else next, which has close, would have to go
            goes_with = "prev"
        both_answer = f"AV_MERGE_{answer}"
    place = "new" if request["range"] in ("mmap", "new", "moved") else str(request["range"])
    case = CASES.get((place, goes_with), 0) if goes_with else 0
    if place == "whole" and request["close"]:  # its VMA would have to go
        case = 0
    return case, of_prev, of_next, both_answer


# every combination --------------------------------------------------------------------------------------

START, END = 0x10_0000, 0x10_2000
FLAGS_OF_REQUEST = abi.VM_READ | abi.VM_WRITE | abi.VM_MAYREAD | abi.VM_MAYWRITE | abi.VM_MAYEXEC
AVS = (("none", 0), *product(("mine", "other", "another", "parent's", "child's"), (1, 2)))
NOWHERE: list[dict[str, object]] = [
    {"place": place, "differs": "nothing", "linear": True, "av": "none", "chain": 0} for place in ("none", "away")
]


def neighbours() -> list[dict[str, object]]:
    """All that touch with equal attributes, and each other difference with a few of the rest."""
    found = list(NOWHERE)
    for linear, (av, chain) in product((True, False), AVS):
        found.append({"place": "touching", "differs": "nothing", "linear": linear, "av": av, "chain": chain})
    for differs, linear, (av, chain) in product(
        HARD, (True, False), (("none", 0), ("mine", 1), ("other", 1), ("parent's", 2))
    ):
        if differs != "nothing":
            found.append({"place": "touching", "differs": differs, "linear": linear, "av": av, "chain": chain})
    return found


def requests() -> Iterator[dict[str, object]]:
    avs = [("none", False), *product(("plain", "parent's", "child's"), (False, True))]
    for place, (av, forked) in product(("mmap", "new", "moved", "left", "right", "whole", "middle"), avs):
        if place == "mmap" and av != "none":
            continue  # what is about to be mapped was never faulted
        if place == "new" and forked:
            continue  # growing hands over the anon_vma and not the VMA that has it
        yield {"range": place, "av": av, "forked": forked, "special": False, "close": False}
        if not forked:
            yield {"range": place, "av": av, "forked": forked, "special": True, "close": False}


class Stage:
    """The anon_vmas that every combination is made of, and VMAs on demand."""

    def __init__(self) -> None:
        self.pages = PageTable()
        self.avs: dict[str, AnonVma] = {}
        for number, name in enumerate(("plain", "other", "another", "parent's", "request parent's")):
            self.avs[name] = self._root(number * 10 + 10)
        self.avs["child's"] = self._child(self.avs["parent's"], 100)
        self.avs["request child's"] = self._child(self.avs["request parent's"], 101)
        self.filler = self._root(200)
        self._neighbours: dict[tuple[str, tuple[object, ...], str], VMA | None] = {}

    def _vma(self, start: int, end: int) -> VMA:
        return VMA(self.pages, start, end, FLAGS_OF_REQUEST, start >> abi.PAGE_SHIFT)

    def _root(self, number: int) -> AnonVma:
        made = AnonVma(number)
        vma = self._vma(0x1000, 0x2000)
        vma.anon_vma = made
        link_chain(vma, (made,))
        made.num_active_vmas = 1
        return made

    def _child(self, parent: AnonVma, number: int) -> AnonVma:
        made = AnonVma(number, parent)
        vma = self._vma(0x1000, 0x2000)
        vma.anon_vma = made
        link_chain(vma, (parent, made))
        made.num_active_vmas = 1
        return made

    def _fault(self, vma: VMA, av: AnonVma, links: int) -> None:
        """As if `vma` were faulted; the anon_vma's side of the link is left out, so that stages stay equal."""
        vma.anon_vma = av
        vma.chain = (av,) if links == 1 else (self.filler, av)

    def request_av(self, request: dict[str, object]) -> AnonVma | None:
        kind = str(request["av"])
        if kind == "none":
            return None
        return self.avs[kind if kind == "plain" else f"request {kind}"]

    def neighbour(self, what: dict[str, object], side: str, request: dict[str, object]) -> VMA | None:
        key = (side, tuple(what.values()), str(request["av"]))
        if key not in self._neighbours:
            self._neighbours[key] = self._make(what, side, request)
        return self._neighbours[key]

    def _make(self, what: dict[str, object], side: str, request: dict[str, object]) -> VMA | None:
        if what["place"] == "none":
            return None
        gap = 0x1000 if what["place"] == "away" else 0
        vma = (
            self._vma(START - 0x4000 - gap, START - gap) if side == "prev" else self._vma(END + gap, END + gap + 0x3000)
        )
        if not what["linear"]:
            vma.pgoff += 7
        differs = what["differs"]
        if differs == "flags":
            vma.flags ^= abi.VM_WRITE
        elif differs == "soft-dirty":
            vma.flags ^= abi.VM_SOFTDIRTY
        elif differs == "guard":
            vma.flags ^= abi.VM_MAYBE_GUARD
        elif differs == "file":
            vma.file = "lib"
        elif differs == "mempolicy":
            vma.mempolicy = "bind:0"
        elif differs == "uffd":
            vma.uffd = 1
        elif differs == "name":
            vma.name = "cache"
        elif differs == "close":
            vma.close = True
        if what["av"] == "mine":
            mine = self.request_av(request)
            assert mine is not None
            self._fault(vma, mine, int(str(what["chain"])))
        elif what["av"] != "none":
            self._fault(vma, self.avs[str(what["av"])], int(str(what["chain"])))
        return vma

    def holder(self, request: dict[str, object]) -> VMA | None:
        """The VMA that holds the range, or that is being moved there."""
        place = request["range"]
        if place in ("mmap", "new"):
            return None
        if place == "moved":
            vma = self._vma(0x9000_0000, 0x9000_2000)
        else:
            before = START - (0x3000 if place in ("right", "middle") else 0)
            vma = self._vma(before, END + (0x5000 if place in ("left", "middle") else 0))
            vma.flags ^= abi.VM_EXEC  # what it still is; the request is what it will be
            vma.close = bool(request["close"])
        av = self.request_av(request)
        if av is not None:
            self._fault(vma, av, 2 if request["forked"] else 1)
        return vma

    def state(
        self,
        request: dict[str, object],
        holder: VMA | None,
        prev: VMA | None,
        next: VMA | None,
        *,
        upper_first: bool = False,
    ) -> MergeState:
        moved = request["range"] == "moved"
        flags = FLAGS_OF_REQUEST | (abi.VM_PFNMAP if request["special"] else 0)
        m = MergeState(START, END, flags, START >> abi.PAGE_SHIFT, prev, next, None)
        m.anon_vma = self.request_av(request)
        m.middle = None if moved else holder
        m.source = holder if moved else None
        m.next_first = upper_first and request["range"] == "mmap"
        return m


def reachable(request: dict[str, object], neighbour: dict[str, object], side: str) -> bool:
    """The rest cannot be: what is "mine" needs a mine; inside a VMA there is no neighbour."""
    if request["av"] == "none" and neighbour["av"] == "mine":
        return False
    inside = ("right", "middle") if side == "prev" else ("left", "middle")
    return request["range"] not in inside or neighbour["place"] == "none"


def answers(m: MergeState) -> tuple[object, ...]:
    return (
        m.case,
        (m.prev_obstacles, ANSWER_NAMES[m.prev_answer]),
        (m.next_obstacles, ANSWER_NAMES[m.next_answer]),
        ANSWER_NAMES[m.both_answer],
    )


def rules_of(policy: str) -> tuple[tuple[tuple[str, bool], ...], bool]:
    """What the table knows about a policy: its era's rules and patch 3."""
    kernel, *changes = policy.split("+")
    return tuple(ERAS[kernel].items()), "anon-vma" in changes or "series" in changes


def distinct_policies() -> list[str]:
    """One policy of each set of rules that the table tells apart; `test_policies_that_decide_alike` does the rest."""
    seen: dict[object, str] = {}
    for kernel in KERNELS:
        for change in CHANGES:
            seen.setdefault(rules_of(kernel + change), kernel + change)
    return list(seen.values())


Neighbour = tuple[dict[str, object], VMA | None, tuple[int, str]]


def compare(
    policy_name: str,
    asked: Iterable[dict[str, object]],
    below: list[dict[str, object]],
    above: list[dict[str, object]],
    *,
    only_prev: bool = False,
) -> Counter[int]:
    """Every request with every pair of neighbours; how often each case arose."""
    policy = parse_policy(policy_name)
    rules, patch_3 = rules_of(policy_name)
    era = dict(rules)
    stage = Stage()
    cases: Counter[int] = Counter()

    def known(request: dict[str, object], side: str, neighbour: dict[str, object]) -> Neighbour:
        seen = NOWHERE[0] if only_prev and side == "next" else neighbour
        return neighbour, stage.neighbour(neighbour, side, request), truth_of_neighbour(era, patch_3, request, seen)

    for request in asked:
        holder = stage.holder(request)
        prevs = [known(request, "prev", one) for one in below if reachable(request, one, "prev")]
        nexts = [known(request, "next", one) for one in above if reachable(request, one, "next")]
        for (prev, lower, of_prev), (next, upper, of_next) in product(prevs, nexts):
            m = stage.state(request, holder, lower, upper, upper_first=era["upper-first"])
            m.only_prev = only_prev
            case = decide(m, policy)
            expected = truth(era, patch_3, request, prev, next, of_prev, of_next)
            assert answers(m) == expected, f"{policy_name}: request {request}\n prev {prev}\n next {next}"
            assert case == m.case
            cases[case] += 1
    return cases


@pytest.mark.parametrize("policy", distinct_policies())
def test_every_combination(policy: str) -> None:
    cases = compare(policy, requests(), neighbours(), neighbours())
    assert set(cases) == set(range(9)), "some case never arose"


def test_policies_that_decide_alike() -> None:
    """The policies that the table does not tell apart: a cross of equal-but-for-one neighbours."""
    around = [n for n in neighbours() if n["linear"] and n["chain"] != 2]
    for kernel, change in product(KERNELS, CHANGES):
        asked = [request for request in requests() if not request["special"]]
        compare(kernel + change, asked, around[::3], around[::2])


def test_a_vma_with_close_is_not_removed() -> None:
    """The VMA that holds the range has close, and so, being of the same file, have the neighbours."""
    with_close: list[dict[str, object]] = [
        {"place": "touching", "differs": "close", "linear": linear, "av": av, "chain": chain}
        for linear, (av, chain) in product((True, False), AVS)
    ]
    around = [*NOWHERE, *with_close]
    for policy in distinct_policies():
        asked = [request for request in requests() if request["range"] not in ("mmap", "new", "moved")]
        compare(policy, [{**request, "close": True} for request in asked], around, around)


def test_only_prev_looks_at_no_successor() -> None:
    """brk since 6.1 asks the predecessor alone."""
    request: dict[str, object] = {"range": "new", "av": "none", "forked": False, "special": False, "close": False}
    compare("linux-6.12", [request], neighbours(), neighbours(), only_prev=True)


def test_one_absent_anon_vma_is_no_matter_of_patch_3() -> None:
    """Patch 3 is about two that are present; the absent one was answered before."""
    stage = Stage()
    for policy in ("linux-5.17", "linux-5.17+anon-vma"):
        assert ANSWER_NAMES[anon_vmas_answer(parse_policy(policy), None, stage.avs["plain"])] == "AV_MERGE_FAILED"


def test_decide_changes_nothing() -> None:
    stage = Stage()
    policy = parse_policy("linux-5.17+series")
    around = [n for n in neighbours() if n["linear"] and n["differs"] == "nothing"]
    for request in requests():
        holder = stage.holder(request)
        for prev, next in product(around, around):
            if not reachable(request, prev, "prev") or not reachable(request, next, "next"):
                continue
            lower, upper = stage.neighbour(prev, "prev", request), stage.neighbour(next, "next", request)
            vmas = [vma for vma in (lower, holder, upper) if vma is not None]
            before = [(vma.start, vma.end, vma.flags, vma.pgoff, vma.anon_vma, vma.chain) for vma in vmas]
            decide(stage.state(request, holder, lower, upper), policy)
            assert [(vma.start, vma.end, vma.flags, vma.pgoff, vma.anon_vma, vma.chain) for vma in vmas] == before
