"""Charts as inline SVG: matplotlib computes ticks and geometry, the style sheet of the page gives colours and fonts.

The SVG of matplotlib is reduced to its shapes and texts, with CSS classes in place of fixed styles. Hence a chart
follows the reader's light or dark setting, has no ids that could occur twice on a page, and its texts stay texts.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any, Literal, NamedTuple
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

import numpy as np
from markupsafe import Markup

WIDTH, HEIGHT = 400, 240
EDGES = (46, 384, 12, 200)
"""Left, right, top and bottom of the plot area inside a chart."""
MAX_DOTS = 30
"""Lines with more points have no dots."""
NUM_STYLES = 5
"""Number of line styles in page.css; a sixth line has the first style again."""

_LOCK = threading.Lock()
"""Held while a chart is drawn, because the settings of matplotlib are global."""
_SETTINGS: dict[Any, Any] = {
    "font.size": 11.5,
    "svg.fonttype": "none",
    **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
    **{f"{axis}tick.major.{key}": value for axis in "xy" for key, value in (("size", 0), ("pad", 8))},
}


class Line(NamedTuple):
    """One line of a chart. `faint` lines are background and `dots` are points alone; the others have styles in turn."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: Literal["", "faint", "dots"] = ""


class Panel(NamedTuple):
    """A chart (or nothing) with its heading, the names of its lines and a caption."""

    heading: str
    chart: Markup = Markup("")
    names: Sequence[str] = ()
    caption: str = ""


def line_chart(title: str, lines: Sequence[Line], *, x_title: str, y_title: str = "", percent: bool = False) -> Markup:
    """Draws lines over one pair of axes.

    Args:
        title: text alternative of the chart; the first and the last value of each line are added to it.
        lines: each has at least one point.
        x_title, y_title: titles of the axes.
        percent: both axes go from 0 to 100.
    """
    xs, ys = zip(*(point for line in lines for point in line.points), strict=True)
    x_low, x_high = (0.0, 100.0) if percent else (min(xs), max(max(xs), min(xs) + 1))
    x_ticks = [tick for tick in ticks(x_low, x_high, whole=True) if x_low <= tick <= x_high]
    y_ticks = ticks(0, 100) if percent else ticks(min(ys), max(ys))
    with _chart() as chart:
        chart.set_axes((x_low, x_high), [(x, f"{x:g}") for x in x_ticks], [(y, f"{y:g}") for y in y_ticks])
        chart.axes.set(xlabel=x_title, ylabel=y_title)
        for number, line in enumerate(lines):
            gid = chart.mark("faint" if line.kind else f"s s{number % NUM_STYLES}", line.name)
            dots = line.kind == "dots" or (len(line.points) <= MAX_DOTS and not percent)
            joined = "" if line.kind == "dots" else "-"
            chart.axes.plot(*zip(*line.points, strict=True), ls=joined, marker="o" if dots else "", gid=gid)
    ends = (f"{name}: from {points[0][1]:.3g} to {points[-1][1]:.3g}" for name, points, kind in lines if not kind)
    return chart.to_svg(f"{title}. {'; '.join(ends)}.")


def parallel_coordinates(
    title: str,
    axes: Sequence[tuple[str, Sequence[tuple[float, str]]]],
    rows: Sequence[tuple[str, Sequence[float | None], bool]],
) -> Markup:
    """Draws a line for each row through one axis for each of its values; it is interrupted where the row has none.

    Args:
        title: text alternative of the chart.
        axes: name of each, and texts with their heights, 0 to 1.
        rows: name, height on each axis, and whether the row is emphasised.
    """
    margin, apart, last = 60, 104, len(axes) - 1
    width = 2 * margin + apart * max(last, 1)
    with _chart(width, 222, (margin, width - margin, 34, 210)) as chart:
        chart.axes.set(xlim=(0, max(last, 1)), ylim=(0, 1), xticks=(), yticks=())
        chart.axes.vlines(range(len(axes)), 0, 1, gid=chart.mark("grid"))
        for name, heights, emphasised in sorted(rows, key=lambda row: row[2]):
            gid = chart.mark("s s0" if emphasised else "faint", name)
            chart.axes.plot([np.nan if height is None else height for height in heights], marker="o", gid=gid)
        for i, (name, marks) in enumerate(axes):
            chart.text(name, (i, 1), (0, 20 if i % 2 else 8), "center")
            for height, text in marks:
                chart.text(text, (i, height), (5, -4), "left")
    return chart.to_svg(title, style=f"min-width:{width}px")


def histogram(
    title: str,
    counts: Sequence[int],
    edges: Sequence[float],
    *,
    x_title: str,
    x_ticks: Sequence[tuple[float, str]],
    format_edge: Callable[[float], str] = "{:,g}".format,
) -> Markup:
    """Draws a column for each count above 0, from its edge to the next.

    Args:
        title: text alternative of the chart.
        counts: one fewer than edges.
        x_ticks: positions on the x axis and their texts.
        format_edge: formats an edge for the title of a column.
    """
    from matplotlib.ticker import EngFormatter

    y_ticks = [tick for tick in ticks(0, max(counts), whole=True) if tick <= max(counts) or tick == 1]
    highest = max(*counts, y_ticks[-1])
    x_ticks = [(x, text) for x, text in x_ticks if edges[0] <= x <= edges[-1]]
    with _chart() as chart:
        chart.set_axes((edges[0], edges[-1]), x_ticks, [(y, EngFormatter(sep="")(y)) for y in y_ticks])
        chart.axes.set(xlabel=x_title, ylim=(0, highest))
        for count, left, right in zip(counts, edges, edges[1:], strict=False):
            if count:
                gid = chart.mark("column", f"{format_edge(left)} to {format_edge(right)}: {count:,}")
                visible = max(count, highest / 188)  # at least a pixel
                chart.axes.bar(left, visible, right - left, align="edge")[0].set_gid(gid)
    return chart.to_svg(title)


def ticks(low: float, high: float, whole: bool = False, steps: int = 5) -> list[float]:
    """Returns round numbers that enclose the range, with at most this number of steps between them."""
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(steps, steps=[1, 2, 2.5, 5, 10], integer=whole, min_n_ticks=1)
    return [round(float(tick), 12) for tick in locator.tick_values(low, high if high > low else low + (abs(low) or 1))]


@contextmanager
def _chart(width: int = WIDTH, height: int = HEIGHT, edges: tuple[int, ...] = EDGES) -> Iterator[_Chart]:
    """Yields an empty chart to draw on, and completes its SVG at the end."""
    import matplotlib  # takes about half a second, and only pages that are drawn need it

    with _LOCK, matplotlib.rc_context(_SETTINGS):
        chart = _Chart(width, height, edges)
        yield chart
        chart.figure.savefig(chart.stream, format="svg")


class _Chart:
    """A matplotlib figure with one pair of axes. Artists that `mark` gave an id become groups with a class and a title.

    Matplotlib receives no text from outside: it may hold signs that the font of matplotlib lacks, or formulas.
    """

    def __init__(self, width: int, height: int, edges: tuple[int, ...]) -> None:
        from matplotlib.figure import Figure

        left, right, top, bottom = edges
        self.figure = Figure(figsize=(width / 72, height / 72))  # 72 points per inch: a unit of the SVG is a pixel
        plot = (left / width, 1 - bottom / height, (right - left) / width, (bottom - top) / height)
        self.axes = self.figure.add_axes(plot)
        self.axes.yaxis.set_label_coords(-34 / (right - left), 0.5)
        self.stream, self.marks = StringIO(), dict[str, tuple[str, str]]()

    def mark(self, style: str, title: str = "") -> str:
        """Returns an id for an artist, whose group in the SVG gets this CSS class and this title."""
        self.marks[gid := f"mark{len(self.marks)}"] = (style, title)
        return gid

    def set_axes(
        self, x_range: tuple[float, float], x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]]
    ) -> None:
        """Sets range and ticks (value, text) of both axes, and draws a grid line at each y tick."""
        (xs, x_texts), (ys, y_texts) = (([v for v, _ in axis], [t for _, t in axis]) for axis in (x_ticks, y_ticks))
        self.axes.set(xlim=x_range, ylim=(ys[0], ys[-1]))
        self.axes.set_xticks(xs, x_texts)
        self.axes.set_yticks(ys, y_texts)
        self.axes.hlines(ys, *x_range, zorder=0, gid=self.mark("grid"))

    def text(self, text: str, place: tuple[float, float], offset: tuple[int, int], align: str) -> None:
        """Writes a text; its place is in data coordinates, its offset in pixels to the right and up."""
        gid = self.mark("", text)
        self.axes.annotate("-", place, offset, textcoords="offset pixels", ha=align, annotation_clip=False, gid=gid)

    def to_svg(self, label: str, **attributes: str) -> Markup:
        """Returns the chart with its text alternative."""
        drawn = fromstring(self.stream.getvalue().replace(' xmlns="http://www.w3.org/2000/svg"', "", 1))
        svg = Element("svg", {"viewBox": drawn.get("viewBox", ""), "role": "img", "aria-label": label, **attributes})
        for group in drawn.iter("g"):
            style, title = self.marks.get(group.get("id", ""), ("", ""))
            for text in group.findall("text"):
                kept = SubElement(svg, "text", _rounded(text, "x", "y", "transform"))
                kept.set("text-anchor", re.findall(r"text-anchor: (\w+)", text.get("style", ""))[0])
                kept.text = title or text.text
            if style:
                kept = SubElement(svg, "g", {"class": style})
                if title:
                    SubElement(kept, "title").text = title
                for path in group.findall("path"):
                    SubElement(kept, "path", _rounded(path, "d"))
                for dot in group.iter("use"):
                    x, y = _rounded(dot, "x", "y").values()
                    SubElement(kept, "circle", cx=x, cy=y, r="2.6")
        return Markup(tostring(svg, encoding="unicode"))


def _rounded(element: Element, *names: str) -> dict[str, str]:
    """Returns these attributes of an element with one digit after the point; rotations by 0 are left out."""
    values = ((name, " ".join(element.get(name, "").split())) for name in names)
    return {
        name: re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}", value)
        for name, value in values
        if not value.startswith("rotate(-0 ")
    }
