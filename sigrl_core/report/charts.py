"""Line charts as inline SVG; text and colours come from the page, so they read in light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from sigrl_core.report.markup import escape, legend

WIDTH, HEIGHT = 400, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 384, 12, 200
"""Edges of the plot inside the picture."""
STYLES = 5
MAX_DOTS = 30


class Line(NamedTuple):
    """One line; its style is its place among its neighbours."""

    name: str
    points: list[tuple[float, float]]


def line_legend(lines: Sequence[Line]) -> str:
    sample = '<svg viewBox="0 0 30 10" aria-hidden="true"><path class="s s{}" d="M1 5H29"/></svg>'
    return legend((sample.format(i % STYLES), line.name) for i, line in enumerate(lines))


def line_chart(title: str, lines: Sequence[Line], *, x_title: str, y_title: str = "", percent: bool = False) -> str:
    """Lines over one pair of axes.

    Args:
        title: what is shown, for those who hear the page.
        lines: each with a point at least.
        percent: both axes go from 0 to 100.
    """
    xs, ys = ([point[axis] for line in lines for point in line.points] for axis in (0, 1))
    x_low, x_high = (0.0, 100.0) if percent else (min(xs), max(max(xs), min(xs) + 1))
    y_ticks = ticks(0, 100) if percent else ticks(min(ys), max(ys))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def across(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (RIGHT - LEFT)

    def down(y: float) -> float:
        return BOTTOM - (y - y_low) / (y_high - y_low) * (BOTTOM - TOP)

    parts = [
        f'<path class="grid" d="M{LEFT} {down(tick):.1f}H{RIGHT}"/>'
        f'<text x="{LEFT - 8}" y="{down(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in y_ticks
    ]
    parts += [
        f'<text x="{across(tick):.1f}" y="{BOTTOM + 17}" text-anchor="middle">{tick:g}</text>'
        for tick in ticks(x_low, x_high, whole=True)
        if x_low <= tick <= x_high
    ]
    parts.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">{x_title}</text>')
    if y_title:
        turn = f"translate(12 {(TOP + BOTTOM) / 2}) rotate(-90)"
        parts.append(f'<text text-anchor="middle" transform="{turn}">{y_title}</text>')
    for i, line in enumerate(lines):
        places = [f"{across(x):.1f} {down(y):.1f}" for x, y in line.points]
        dots = ""
        if len(places) <= MAX_DOTS and not percent:
            dots = "".join(f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="2.6"/>' for x, y in line.points)
        parts.append(
            f'<g class="s s{i % STYLES}"><title>{escape(line.name)}</title><path d="M{"L".join(places)}"/>{dots}</g>'
        )
    ends = "; ".join(f"{line.name}: from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}" for line in lines)
    told = escape(f"{title}. {ends}.")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{told}">{"".join(parts)}</svg>'


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """About five round numbers that enclose the range."""
    spread = high - low if high > low else abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(spread / 4))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= spread / 4 * 0.999)
    if whole:
        step = max(1.0, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]
