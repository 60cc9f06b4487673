# SPDX-License-Identifier: GPL-2.0-or-later
"""An answer for a reader who has never seen one, on a terminal or in a pipe."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vmaweld.study.answer import Answer, Losses, PolicyAnswer
from vmaweld.study.fidelity import Fidelity
from vmaweld.study.missed import SHARED
from vmaweld.words import count_text, printable


def percent_text(part: int, whole: int) -> str:
    """`part` of `whole` in percent, to one digit below ten."""
    share = 100 * part / whole if whole else 0.0
    return f"{share:.1f} %" if 0 < share < 10 else f"{share:.0f} %"


def status_text(status: int | None) -> str:
    """How the command ended."""
    if status is None:
        return "end not recorded"
    return f"exit status {status}" if status >= 0 else f"ended by signal {-status}"


_LEGEND: Final = {
    "+pgoff": "+pgoff: patch 2, a move gives memory the page offset of its new address",
    "+anon-vma": "+anon-vma: patch 3, VMAs of different anon_vmas may merge",
    "+series": "+series: both",
}


@dataclass(slots=True)
class ProgramLosses:
    """All processes of one program together. top: highest VMA count of any, for each policy."""

    name: str
    processes: int
    losses: Losses
    top: list[int]


def by_program(answer: Answer) -> list[ProgramLosses]:
    """Programs in which merges were missed, the worst first."""
    programs: dict[str, ProgramLosses] = {}
    count = len(answer.policies)
    for process in answer.processes:
        if not process.losses.missed:
            continue
        entry = programs.get(process.name)
        if entry is None:
            entry = programs[process.name] = ProgramLosses(process.name, 0, Losses(count), [0] * count)
        entry.processes += 1
        entry.losses.include(process.losses)
        entry.top = [max(pair) for pair in zip(entry.top, process.peak, strict=True)]
    return sorted(programs.values(), key=lambda entry: (-entry.losses.missed, entry.name))


def print_answer(answer: Answer, out: Console, *, rows: int = 8) -> None:
    """Everything of `answer` that fits on a page. rows: of each table at most."""
    metadata = answer.metadata
    _line(out, f"{printable(shlex.join(metadata.command))}: {status_text(metadata.exit_status)}", "bold")
    _line(out, recording_text(answer))
    _line(out)
    _line(out, summary_text(answer))
    _line(out)
    _policies(answer, out)
    if answer.losses.missed:
        _fate(answer, out)
        _losers(answer, out, rows)
    notes = caveats(answer)
    if notes:
        _line(out)
    for note in notes:
        _line(out, f"Note: {printable(note)}", "yellow")


def _line(out: Console, text: str = "", style: str = "", *, wrap: bool = True) -> None:
    out.print(Text(text, style=style), soft_wrap=not wrap)


def recording_text(answer: Answer) -> str:
    """What was recorded and how, in a line."""
    metadata = answer.metadata
    return (
        f"{count_text(answer.pids, 'process', 'processes')}, {count_text(answer.events, 'event')} in "
        f"{metadata.duration / 1e9:.1f} s, recorded with {metadata.recorder} on Linux {metadata.kernel}"
        + (" (faults assumed)" if metadata.faults == "assumed" else "")
    )


def summary_text(answer: Answer) -> str:
    """The answer in two sentences."""
    missed = answer.losses.missed
    base = answer.policies[0].policy.name
    if not missed:
        return f"No merge was missed under {base}: page offsets and anon_vmas never stood in the way."
    text = (
        f"{count_text(missed, 'merge was', 'merges were')} missed under {base}: two adjacent VMAs stayed two "
        "though nothing but the page offset or the anon_vma told them apart."
    )
    if answer.series is not None:
        recovered = answer.losses.recovered[answer.series]
        happen = "happens" if recovered == 1 else "happen"
        text += f" With the series {recovered:,} of them {happen} ({percent_text(recovered, missed)})."
    return text


def legend_text(answer: Answer) -> str:
    """What the changes behind the kernels' names are."""
    names = [policy.policy.name for policy in answer.policies]
    return "; ".join(text for suffix, text in _LEGEND.items() if any(name.endswith(suffix) for name in names))


def fate_rows(answer: Answer) -> list[tuple[str, int]]:
    """What became of the missed merges: (in words, how many)."""
    losses = answer.losses
    rows = [
        ("only the page offset was in the way", losses.by_obstacle["page_offset"]),
        ("only the anon_vmas were in the way", losses.by_obstacle["anon_vma"]),
        ("both were in the way", losses.by_obstacle["both"]),
    ]
    pgoff = answer.index_of(update_pgoff=True, merge_anon_vmas=False)
    anon_vma = answer.index_of(update_pgoff=False, merge_anon_vmas=True)
    series = answer.series
    if pgoff is not None:
        rows.append(("recovered by patch 2 alone", losses.recovered[pgoff]))
    if anon_vma is not None:
        rows.append(("recovered by patch 3 alone", losses.recovered[anon_vma]))
    if series is not None:
        rows.append(("recovered by both together", losses.recovered[series]))
        if answer.needs_both:
            rows.append(("  of them by neither alone", answer.needs_both))
        reasons = answer.reasons[series].most_common()
        rows.append(("left: shared with a parent or child", losses.shared(series)))
        rows += [(f"  {reason}", count) for (cause, reason), count in reasons if cause == SHARED]
        rows += [(f"left: {reason}", count) for (cause, reason), count in reasons if cause != SHARED]
    return rows


def caveats(answer: Answer) -> list[str]:
    """What a reader must know before trusting the numbers, a line each."""
    notes: list[str] = []
    metadata = answer.metadata
    if metadata.faults == "assumed":
        notes.append(
            "Page faults were not recorded but assumed: all private memory counts as written as soon as it is writable."
        )
    if metadata.losses:
        losses = ", ".join(f"{count:,} {cause.replace('_', ' ')}" for cause, count in metadata.losses.items())
        notes.append(f"Lost while recording: {losses}. What depends on them may be wrong.")
    notes += metadata.notes
    if metadata.interrupted:
        notes.append("The recording was cut short; what happened until then is whole.")
    alike: dict[str, list[str]] = {}
    for policy in answer.policies:
        if policy.diverged:
            alike.setdefault(divergences_text(policy.divergences), []).append(policy.policy.name)
    for how, names in alike.items():
        where = "every policy" if len(names) == len(answer.policies) else " and ".join(names)
        notes.append(f"Calls that ended otherwise than in the recording, under {where}: {how} (replay --verbose).")
    for policy in answer.policies:
        if policy.over_limit:
            notes.append(
                f"Under {policy.policy.name} a process passes vm.max_map_count ({metadata.max_map_count:,}), beyond "
                f"which calls fail with ENOMEM: {count_text(policy.over_limit, 'call')} came after that."
            )
    faults = answer.policies[0].bad_faults
    if faults and metadata.faults == "seen":
        notes.append(
            f"{count_text(faults, 'recorded fault')} hit memory without access: signals to the program, calls that "
            "answered EFAULT, or calls that were not recorded."
        )
    return notes


def divergences_text(divergences: Mapping[tuple[str, str], int]) -> str:
    """Disagreements of a machine and the recording: ``2 mremap refused, 1 mmap elsewhere``."""
    return ", ".join(f"{count:,} {call} {how}" for (call, how), count in divergences.items())


def _policies(answer: Answer, out: Console) -> None:
    table = _table("policy", "merges", "recovered", "most VMAs", "")
    first = answer.policies[0]
    for number, policy in enumerate(answer.policies):
        recovered = answer.losses.recovered[number]
        table.add_row(
            policy.policy.name,
            f"{policy.merges:,}",
            "-" if number == 0 else f"{recovered:,} ({percent_text(recovered, answer.losses.missed)})",
            f"{policy.peak:,}",
            _whose(policy) if number == 0 else _fewer(policy.peak, first.peak),
        )
    out.print(table)
    legend = legend_text(answer)
    if legend:
        _line(out, f"{legend}.", "dim")
    _line(out)


def _whose(policy: PolicyAnswer) -> str:
    name = policy.peak_program.rpartition("/")[2] or "?"
    return f"{printable(name)}, pid {policy.peak_pid}"


def _fewer(count: int, base: int) -> str:
    if count == base:
        return "the same"
    word = "fewer" if count < base else "more"
    return f"{abs(base - count):,} {word} ({percent_text(abs(base - count), base)})"


def _fate(answer: Answer, out: Console) -> None:
    table = _table("what became of the missed merges", "", "", first_only=True)
    for text, count in fate_rows(answer):
        table.add_row(text, f"{count:,}", percent_text(count, answer.losses.missed))
    out.print(table)
    _line(out)


def _losers(answer: Answer, out: Console, rows: int) -> None:
    series = answer.series
    table = _table("program", "processes", "missed", "recovered", "shared", "most VMAs")
    programs = by_program(answer)
    last = len(answer.policies) - 1 if series is None else series
    for entry in programs[:rows]:
        table.add_row(
            printable(entry.name),
            f"{entry.processes:,}",
            *_loss_cells(entry.losses, last),
            f"{entry.top[0]:,} -> {entry.top[last]:,}",
        )
    out.print(table)
    if len(programs) > rows:
        _line(out, f"... and {count_text(len(programs) - rows, 'more program')} (--json lists every process)", "dim")
    _line(out)
    table = _table("call", "missed", "recovered", "shared")
    for call, losses in sorted(answer.by_call.items(), key=lambda item: -item[1].missed)[:rows]:
        table.add_row(call, *_loss_cells(losses, last))
    out.print(table)


def _loss_cells(losses: Losses, policy: int) -> Iterable[str]:
    return f"{losses.missed:,}", f"{losses.recovered[policy]:,}", f"{losses.shared(policy):,}"


def no_snapshots_text(recorder: str) -> str:
    """Why a trace made by `recorder` may hold no true snapshots, and what to do about it."""
    if recorder == "strace":
        return (
            "The trace holds no true snapshots: nothing to compare. Beside strace few can be taken. Record with perf, "
            "which takes one at each exec and at the end (`vmaweld doctor` tells what perf needs here)."
        )
    return (
        "The trace holds no true snapshots: nothing to compare. It was recorded with --no-snapshots, or no process "
        "stood still long enough for one. Record it anew without --no-snapshots."
    )


def print_fidelity(fidelity: Fidelity, threshold: float, recorder: str, out: Console, *, rows: int = 20) -> None:
    """What `replay --check` found in a trace made by `recorder`. rows: of differing rows at most."""
    if not fidelity.rows:
        _line(out, no_snapshots_text(recorder))
        return
    verdict = "yes" if fidelity.share >= threshold else "NO"
    _line(
        out,
        f"{fidelity.exact:,} of {count_text(fidelity.rows, 'row')} exact ({100 * fidelity.share:.4g} %, at least "
        f"{100 * threshold:.4g} % wanted: {verdict}) in {count_text(fidelity.snapshots, 'true snapshot')} of "
        f"{count_text(len(fidelity.processes), 'process', 'processes')}, under {fidelity.policy.name}",
        "bold",
    )
    if fidelity.hidden < fidelity.snapshots:
        _line(
            out,
            f"Without page offsets and anon_vmas, which were not compared: "
            f"{count_text(fidelity.snapshots - fidelity.hidden, 'snapshot')}.",
        )
    if fidelity.inexact:
        causes = ", ".join(f"{count:,} {cause}" for cause, count in fidelity.causes.most_common())
        _line(out, f"Not exact: {causes}")
    for row in fidelity.inexact[:rows]:
        _line(
            out,
            printable(f"  {row.program or '?'} (pid {row.pid}) after event {row.position:,}: {row.cause}"),
            wrap=False,
        )
        _line(out, printable(f"    kernel: {row.row}"), wrap=False)
        _line(out, printable(f"    {row.text}"), wrap=False)
    if len(fidelity.inexact) > rows:
        _line(out, f"  ... and {len(fidelity.inexact) - rows:,} more (--json lists all)", "dim")
    print_divergences(fidelity.lane.divergences, fidelity.lane.examples, fidelity.policy.name, out)


def print_divergences(
    divergences: Mapping[tuple[str, str], int], examples: list[str], policy: str, out: Console
) -> None:
    """The calls in which a machine and the recording disagree, with the first few of them."""
    if not divergences:
        return
    how = divergences_text(divergences)
    _line(out, f"Under {policy} calls ended otherwise than in the recording: {how}. The first:")
    for example in examples:
        _line(out, f"  {printable(example)}", wrap=False)


def _table(*heads: str, first_only: bool = False) -> Table:
    """Columns flush right but for the first and a last one without a head, that one not where `first_only`."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, head in enumerate(heads):
        flush_left = number == 0 or (not first_only and number == len(heads) - 1 and not head)
        table.add_column(head, justify="left" if flush_left else "right", no_wrap=number == 0, overflow="fold")
    return table
