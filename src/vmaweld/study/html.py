# SPDX-License-Identifier: GPL-2.0-or-later
"""An answer as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from html import escape
from typing import Any, Final

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from vmaweld.study.answer import Answer, Losses
from vmaweld.study.missed import SHARED
from vmaweld.study.text import (
    ProgramLosses,
    by_program,
    caveats,
    fate_rows,
    legend_text,
    percent_text,
    recording_text,
    status_text,
    summary_text,
)
from vmaweld.study.timeline import Clock, Timeline
from vmaweld.words import printable

_LINES: Final = (("#8a8f98", 5.0), ("#3b82f6", 3.5), ("#f59e0b", 2.5), ("#10b981", 2.0), ("#a855f7", 2.0))
"""Colour and width of each policy's line; the first are the widest, so that equal counts still show every line."""

_RECOVERED: Final = "#10b981"
_SHARED: Final = "#ef4444"
_OTHER: Final = "#8a8f98"
_MOST_PROCESSES: Final = 12
_MOST_ROWS: Final = 25

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1f2430; }
h1 { font-size: 1.35rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
.by { color: #5b6270; } .answer { font-size: 1.1rem; } .note { color: #8a5300; }
table { border-collapse: collapse; margin: .6rem 0; } th, td { padding: .2rem .8rem; text-align: right; }
th:first-child, td:first-child { text-align: left; white-space: pre; padding-left: 0; }
th { border-bottom: 1px solid #c5cad3; } tr:nth-child(even) td { background: #f4f5f7; }
"""


def page(answer: Answer) -> str:
    """The whole report as HTML."""
    metadata = answer.metadata
    title = f"{printable(shlex.join(metadata.command))}: {status_text(metadata.exit_status)}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="by">{escape(recording_text(answer))}</p>',
        f'<p class="answer">{escape(summary_text(answer))}</p>',
        *(f'<p class="note">Note: {escape(printable(note))}</p>' for note in caveats(answer)),
        "<h2>Policies</h2>",
        _policies(answer),
        f'<p class="by">{escape(legend_text(answer))}</p>',
        "<h2>VMAs over time</h2>",
        _plot("time", _timelines(answer)),
    ]
    if answer.losses.missed:
        programs = by_program(answer)[:_MOST_ROWS]
        last = _last(answer)
        calls = sorted(answer.by_call.items(), key=lambda item: -item[1].missed)
        parts += [
            "<h2>What became of the missed merges</h2>",
            _html_table(
                ("", "merges", "share"),
                [(text, f"{n:,}", percent_text(n, answer.losses.missed)) for text, n in fate_rows(answer)],
            ),
            _plot("fate", _fates([(p.policy.name, answer.losses, n) for n, p in enumerate(answer.policies)][1:])),
            "<h2>Programs that lose most</h2>",
            _plot("programs", _fates([(p.name, p.losses, last) for p in programs])),
            _programs(answer, programs, last),
            "<h2>Calls that lose most</h2>",
            _plot("calls", _fates([(call, losses, last) for call, losses in calls])),
            _html_table(
                ("call", "missed", "recovered", "shared"), [(call, *_cells(losses, last)) for call, losses in calls]
            ),
        ]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n<script>{get_plotlyjs()}</script>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _last(answer: Answer) -> int:
    """The policy whose recoveries are told: the one with both patches, else the last."""
    return len(answer.policies) - 1 if answer.series is None else answer.series


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>\n" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _policies(answer: Answer) -> str:
    rows = []
    for number, policy in enumerate(answer.policies):
        recovered = answer.losses.recovered[number]
        rows.append(
            (
                policy.policy.name,
                f"{policy.attempts:,}",
                f"{policy.merges:,}",
                f"{policy.saved:,}",
                "-" if number == 0 else f"{recovered:,} ({percent_text(recovered, answer.losses.missed)})",
                f"{policy.peak:,}",
                f"{printable(policy.peak_program.rpartition('/')[2])}, pid {policy.peak_pid}",
            )
        )
    heads = ("policy", "merges asked for", "done", "VMAs saved", "missed merges recovered", "most VMAs", "of")
    return _html_table(heads, rows)


def _cells(losses: Losses, policy: int) -> tuple[str, str, str]:
    return f"{losses.missed:,}", f"{losses.recovered[policy]:,}", f"{losses.shared(policy):,}"


def _programs(answer: Answer, programs: Sequence[ProgramLosses], last: int) -> str:
    base = answer.policies[0].policy.name
    then = answer.policies[last].policy.name
    return _html_table(
        ("program", "processes", "missed", "recovered", "shared", f"most VMAs, {base}", then),
        [
            (
                printable(entry.name),
                f"{entry.processes:,}",
                *_cells(entry.losses, last),
                f"{entry.top[0]:,}",
                f"{entry.top[last]:,}",
            )
            for entry in programs
        ],
    )


def _plot(name: str, figure: go.Figure) -> str:
    figure.update_layout(template="plotly_white", margin={"l": 60, "r": 20, "t": 40, "b": 45})
    html: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"plot-{name}",
        config={"displaylogo": False, "responsive": True},
    )
    return html


def _timelines(answer: Answer) -> go.Figure:
    """VMA counts of all processes together, and of those that gain or have most, to choose from."""
    policies = [policy.policy.name for policy in answer.policies]
    last = _last(answer)
    chosen = sorted(answer.processes, key=lambda p: (p.peak[last] - p.peak[0], -p.peak[0]))[:_MOST_PROCESSES]
    choices: list[tuple[str, Timeline]] = [
        (f"{printable(process.name)} (pid {process.pid})", process.timeline) for process in chosen
    ]
    choices.append(("all processes together", answer.totals))
    figure = go.Figure()
    buttons: list[dict[str, Any]] = []
    for at, (name, timeline) in enumerate(choices):
        for number, policy in enumerate(policies):
            colour, width = _LINES[number % len(_LINES)]
            figure.add_trace(
                go.Scatter(
                    x=_seconds(answer.clock, timeline),
                    y=timeline.series(number),
                    name=policy,
                    mode="lines",
                    line={"shape": "hv", "color": colour, "width": width},
                    visible=at == 0,
                )
            )
        shown = [other == at for other in range(len(choices)) for _ in policies]
        buttons.append({"label": name, "method": "update", "args": [{"visible": shown}]})
    figure.update_layout(
        updatemenus=[{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.18, "yanchor": "top"}],
        xaxis_title="seconds",
        yaxis_title="VMAs",
        yaxis_rangemode="tozero",
        height=440,
    )
    return figure


def _seconds(clock: Clock, timeline: Timeline) -> list[float]:
    return [round(clock.seconds(bucket), 6) for bucket in range(timeline.first, timeline.last + 1)]


def _fates(bars: Sequence[tuple[str, Losses, int]]) -> go.Figure:
    """For each (name, losses, policy number) a bar: recovered, shared, left for other reasons."""
    names = [printable(name) for name, _, _ in bars]
    figure = go.Figure()
    for label, colour, counts in (
        ("recovered", _RECOVERED, [losses.recovered[policy] for _, losses, policy in bars]),
        ("left: shared", _SHARED, [losses.left[policy][SHARED] for _, losses, policy in bars]),
        (
            "left for other reasons",
            _OTHER,
            [losses.left[policy].total() - losses.left[policy][SHARED] for _, losses, policy in bars],
        ),
    ):
        figure.add_trace(go.Bar(y=names, x=counts, name=label, orientation="h", marker_color=colour))
    figure.update_layout(
        barmode="stack",
        xaxis_title="missed merges",
        yaxis={"autorange": "reversed", "type": "category"},
        height=160 + 26 * len(names),
    )
    return figure
