# SPDX-License-Identifier: GPL-2.0-or-later
"""Line charts on two logarithmic axes, as standalone SVG: nothing to install, readable on light and dark pages."""

import math
from collections.abc import Callable
from html import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 110, 44, 56
COLOURS = ("#3b76c4", "#c4622d", "#3f8f5f", "#8a5bb0")


class Series:
    """One line: its name and its points ``(x, y)``, all above 0."""

    def __init__(self, name: str, points: list[tuple[float, float]]) -> None:
        self.name = name
        self.points = points


class Chart:
    """A chart; `label` writes a value of the x axis."""

    def __init__(self, title: str, x: str, y: str, series: list[Series], label: Callable[[float], str]) -> None:
        self.title = title
        self.x = x
        self.y = y
        self.series = series
        self.label = label

    def svg(self, *, scale: float = 1.0) -> str:
        """The drawing. scale: what the y values are multiplied with."""
        xs = [x for series in self.series for x, _ in series.points]
        ys = [y * scale for series in self.series for _, y in series.points]
        low = math.floor(math.log10(min(ys)))
        high = max(math.ceil(math.log10(max(ys))), low + 1)
        first, last = math.log10(min(xs)), math.log10(max(xs))

        def across(x: float) -> float:
            return LEFT + (math.log10(x) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

        def up(y: float) -> float:
            return HEIGHT - BOTTOM - (math.log10(y) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
            f"<title>{escape(self.title)}</title>",
            "<style>text{font:13px sans-serif;fill:#333}.grid{stroke:#8886;stroke-width:1}"
            "@media(prefers-color-scheme:dark){text{fill:#ddd}}</style>",
            f'<text x="{LEFT}" y="22" style="font-size:15px;font-weight:600">{escape(self.title)}</text>',
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(self.x)}</text>',
            f'<text transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y)}</text>",
        ]
        for power in range(low, high + 1):
            for factor in (1, 2, 5):
                value = factor * 10.0**power
                if value > 10.0**high:
                    break
                height = up(value)
                parts.append(f'<path class="grid" d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}"/>')
                parts.append(f'<text x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{value:g}</text>')
        for x in sorted(set(xs)):
            parts.append(f'<path class="grid" d="M{across(x):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
            parts.append(
                f'<text x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">'
                f"{escape(self.label(x))}</text>"
            )
        for number, series in enumerate(self.series):
            colour = COLOURS[number % len(COLOURS)]
            points = [(across(x), up(y * scale)) for x, y in series.points]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
            for (x, y), (size, value) in zip(points, series.points, strict=True):
                parts.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">'
                    f"<title>{escape(self.label(size))}: {value * scale:.3g}</title></circle>"
                )
            x, y = points[-1]
            parts.append(f'<text x="{x + 10:.1f}" y="{y + 4:.1f}" style="fill:{colour}">{escape(series.name)}</text>')
        parts.append("</svg>\n")
        return "\n".join(parts)
