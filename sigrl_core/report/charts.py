"""Lines and histograms as inline SVG, shares and heat maps as HTML.

Text and colours come from the page, so they read in light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from sigrl_core.report.markup import escape, legend, scrollable, shortened

WIDTH, HEIGHT = 400, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 384, 12, 200
"""Edges of the plot inside the picture."""
STYLES = 5
MAX_DOTS = 30
MAX_LETTERS = 60
"""Of a name where it is told again and again, as in the title of each cell of a heat map."""


class Line(NamedTuple):
    """One line; its style is its place among its neighbours, unless it is one of many in the background, or points
    there that belong to no line."""

    name: str
    points: list[tuple[float, float]]
    kind: Literal["", "faint", "dots"] = ""


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
        if (len(places) <= MAX_DOTS and not percent) or line.kind == "dots":
            dots = "".join(f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="2.6"/>' for x, y in line.points)
        style = "faint" if line.kind else f"s s{i % STYLES}"
        path = "" if line.kind == "dots" else f'<path d="M{"L".join(places)}"/>'
        parts.append(f'<g class="{style}"><title>{escape(line.name)}</title>{path}{dots}</g>')
    ends = "; ".join(
        f"{line.name}: from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}" for line in lines if not line.kind
    )
    told = escape(f"{title}. {ends}.")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{told}">{"".join(parts)}</svg>'


class Axis(NamedTuple):
    """One of parallel coordinates: its name, and what is written at which height, 0 to 1."""

    name: str
    marks: list[tuple[float, str]]


def parallel_coordinates(
    title: str, axes: Sequence[Axis], rows: Sequence[tuple[str, Sequence[float | None], bool]]
) -> str:
    """A line for each row through one axis for each of its values; interrupted where it has none.

    Args:
        title: what is shown, for those who hear the page.
        rows: name, height on each axis, 0 to 1, and whether it stands out.
    """
    apart, top, bottom = 104, 34, 210

    def down(height: float) -> float:
        return bottom - height * (bottom - top)

    parts = []
    for name, heights, stands_out in sorted(rows, key=lambda row: row[2]):
        points = [(60 + apart * i, down(height)) for i, height in enumerate(heights) if height is not None]
        where = {60 + apart * i for i, height in enumerate(heights) if height is not None}
        steps = "".join(f"{'L' if x - apart in where else 'M'}{x} {y:.1f}" for x, y in points)
        dots = "".join(f'<circle cx="{x}" cy="{y:.1f}" r="2"/>' for x, y in points)
        style = "s s0" if stands_out else "faint"
        parts.append(f'<g class="{style}"><title>{escape(name)}</title><path d="{steps}"/>{dots}</g>')
    for i, axis in enumerate(axes):
        x = 60 + apart * i
        parts.append(f'<path class="grid" d="M{x} {top}V{bottom}"/>')
        parts.append(f'<text x="{x}" y="{14 if i % 2 else 26}" text-anchor="middle">{escape(axis.name)}</text>')
        parts += [f'<text x="{x + 5}" y="{down(height) + 4:.1f}">{escape(mark)}</text>' for height, mark in axis.marks]
    width = 120 + apart * (len(axes) - 1)
    svg = f'<svg viewBox="0 0 {width} 222" style="min-width:{width}px" role="img" aria-label="{escape(title)}">'
    return scrollable(title, f"{svg}{''.join(parts)}</svg>")


def histogram(
    title: str,
    counts: Sequence[int],
    edges: Sequence[float],
    *,
    x_title: str,
    x_ticks: Sequence[tuple[float, str]],
    written: Callable[[float], str] = "{:,g}".format,
) -> str:
    """How many there are from each edge to the next.

    Args:
        title: what is counted, for those who hear the page.
        counts: one fewer than edges.
        x_ticks: where along the edges to write what.
        written: an edge as the title of a column says it.
    """
    y_ticks = [tick for tick in ticks(0, max(counts), whole=True) if tick <= max(counts) or tick == 1]
    highest = max(*counts, y_ticks[-1])

    def across(x: float) -> float:
        return LEFT + (x - edges[0]) / (edges[-1] - edges[0]) * (RIGHT - LEFT)

    def down(y: float) -> float:
        return BOTTOM - y / highest * (BOTTOM - TOP)

    parts = [
        f'<path class="grid" d="M{LEFT} {down(tick):.1f}H{RIGHT}"/>'
        f'<text x="{LEFT - 8}" y="{down(tick) + 4:.1f}" text-anchor="end">{_in_few_signs(tick)}</text>'
        for tick in y_ticks
    ]
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        if count:
            x, width, top = across(left), across(right) - across(left), min(down(count), BOTTOM - 1)
            parts.append(
                f'<rect class="column" x="{x + 0.5:.1f}" y="{top:.1f}" width="{max(width - 1, 1):.1f}" '
                f'height="{BOTTOM - top:.1f}"><title>{written(left)} to {written(right)}: {count:,}</title></rect>'
            )
    parts += [
        f'<text x="{across(x):.1f}" y="{BOTTOM + 17}" text-anchor="middle">{escape(text)}</text>'
        for x, text in x_ticks
        if edges[0] <= x <= edges[-1]
    ]
    parts.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_title)}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def shares(parts: Sequence[tuple[str, int]]) -> str:
    """One bar of parts that make up a whole, and the same in words: (name, number)."""
    bar = "".join(
        f'<span class="p{i % STYLES}" style="flex-grow:{number}" title="{escape(name)}: {number:,}"></span>'
        for i, (name, number) in enumerate(parts)
        if number
    )
    signs = (
        (f'<span class="swatch p{i % STYLES}"></span>', f"{number:,} {name}") for i, (name, number) in enumerate(parts)
    )
    return f'<div class="shares" aria-hidden="true">{bar}</div>{legend(signs)}'


def heat_table(name: str, heads: Sequence[tuple[str, str]], values_KK: np.ndarray, told: Sequence[str]) -> str:
    """Shares of K things in K things as a table whose cells are the brighter the larger, with the percent in each.

    Args:
        name: what it shows, for those who hear the page.
        heads: of each row and column, its name as text and what more to say in the row's head, HTML.
        values_KK: 0 to 1; a cell of 0 is empty, one of nan is set apart.
        told: of each row, what the title of a cell starts with.
    """
    columns = "".join(
        f'<th scope="col"><span class="name" title="{escape(head)}">{escape(head)}</span></th>' for head, _ in heads
    )
    columns_told = [shortened(head, MAX_LETTERS) for head, _ in heads]
    rows = ""
    for (head, more), values_K, start in zip(heads, values_KK, told, strict=True):
        cells = "".join(
            ('<td class="self"></td>' if math.isnan(value) else "<td></td>")
            if not value > 0
            else f'<td style="--p:{100 * value:.0f}%" title="{escape(f"{start} {column}: {100 * value:.1f} %")}">'
            f"{100 * value:.0f}</td>"
            for value, column in zip(values_K, columns_told, strict=True)
        )
        label = f'<span class="name" title="{escape(head)}">{escape(head)}</span>'
        rows += f'<tr><th scope="row"><div>{label} {more}</div></th>{cells}</tr>'
    table = f'<table class="matrix"><thead><tr><td></td>{columns}</tr></thead><tbody>{rows}</tbody></table>'
    return scrollable(name, table)


def _in_few_signs(number: float) -> str:
    """A count in a few signs: 900, 25k, 1.5M."""
    for unit, sign in ((1e6, "M"), (1e3, "k")):
        if abs(number) >= 10 * unit or (abs(number) >= unit and not number % (unit / 10)):
            return f"{number / unit:.3g}{sign}"
    return f"{number:g}"


def ticks(low: float, high: float, whole: bool = False, steps: int = 4) -> list[float]:
    """About `steps` steps between round numbers that enclose the range."""
    spread = high - low if high > low else abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(spread / steps))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= spread / steps * 0.999)
    if whole:
        step = max(1.0, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]
