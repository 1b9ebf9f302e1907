"""How large the stored pictures are: width, height, shape, bytes."""

from __future__ import annotations

import numpy as np

from sigrl_core.report.charts import histogram, ticks
from sigrl_core.report.contents import Contents
from sigrl_core.report.markup import counted, note


def size_section(contents: Contents) -> str:
    widths, heights = contents.widths_N.astype(np.int64), contents.heights_N.astype(np.int64)
    pairs, counts = np.unique(widths << 32 | heights, return_counts=True)
    written = [f"{pairs[i] >> 32} × {pairs[i] & 0xFFFFFFFF}" for i in np.argsort(-counts, kind="stable")[:3]]
    if len(pairs) == 1:
        told = f"All are {written[0]}."
    else:
        told = f"There are {len(pairs):,} different sizes, most often {', '.join(written)}."
    some = ""
    if len(contents.picture_bytes) < len(widths):
        some = f" File sizes are of the {len(contents.picture_bytes):,} pictures in the shards that samples come from."
    return (
        note(
            f"Columns count pictures. {told} Shard files hold "
            f"{in_bytes(contents.shard_bytes / len(widths))} a picture, labels included.{some}"
        )
        + '<div class="panels">'
        + _distribution("Width", widths, "pixels")
        + _distribution("Height", heights, "pixels")
        + _aspects(np.log2(widths / heights))
        + _distribution("File size", contents.picture_bytes / 1000, "kB")
        + "</div>"
    )


def _distribution(title: str, values: np.ndarray, unit: str) -> str:
    whole = unit == "pixels"
    low, median, high = (float(value) for value in np.quantile(values, (0, 0.5, 1)))
    least, middle, most = (f"{value:,.0f}" if whole else f"{value:.3g}" for value in (low, median, high))
    if low == high:
        return _figure(title, "", f'<p class="same">All {least} {unit}.</p>')
    end = 1.5 * float(np.quantile(values, 0.99, method="lower"))
    beyond = int((values > end).sum()) if high > end else 0
    edges = ticks(low, min(high, end), steps=24, whole=whole)
    counts = np.histogram(np.minimum(values, edges[-1]), edges)[0].tolist()
    told = f"{least} to {most} {unit}, median {middle}"
    x_title = unit + (f"; the last column holds {counted(beyond, 'larger one')} too" if beyond else "")
    x_ticks = [(tick, f"{tick:g}") for tick in ticks(edges[0], edges[-1], whole=whole)]
    chart = histogram(f"{title} of pictures: {told}", counts, edges, x_title=x_title, x_ticks=x_ticks)
    return _figure(title, told, chart)


def _aspects(log_ratios: np.ndarray) -> str:
    """Width over height, on a scale where 1:2 is as far from the middle as 2:1."""
    edges = ((np.arange(26) - 12.5) / 6).tolist()
    counts = np.histogram(np.clip(log_ratios, edges[0], edges[-1]), edges)[0].tolist()
    names = {"1:4": -2, "1:2": -1, "2:3": -np.log2(1.5), "1:1": 0, "3:2": np.log2(1.5), "2:1": 1, "4:1": 2}
    square = abs(log_ratios) < 1e-9
    portrait, landscape = int((log_ratios[~square] < 0).sum()), int((log_ratios[~square] > 0).sum())
    told = f"{portrait:,} portrait, {int(square.sum()):,} square, {landscape:,} landscape"
    x_ticks = [(float(x), name) for name, x in names.items()]
    chart = histogram(
        f"Shape of pictures: {told}",
        counts,
        edges,
        x_title="width : height",
        x_ticks=x_ticks,
        written=lambda edge: f"{2**edge:.2f}",
    )
    return _figure("Shape", told, chart)


def _figure(title: str, told: str, content: str) -> str:
    return f'<figure><figcaption><h3>{title}</h3><span class="soft">{told}</span></figcaption>{content}</figure>'


def in_bytes(number: float) -> str:
    """A number of bytes in units of a thousand, three digits."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"
