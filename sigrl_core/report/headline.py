"""The headline: rows x protocols, as an HTML table and as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from sigrl_core.report.markup import counted, definitions, escape, note, percent, scrollable

TITLES = {
    "sigrl": "SigRL",
    "sigrl_independent": "SigRL, any vocabulary",
    "mkt_style": "MKT-style",
    "clip_global": "CLIP, global",
    "clip_global_local": "CLIP, global + local",
}
"""Rows in the order of the table; others follow under their own names."""

MEASURES = {"map": "mAP", "f1@3": "F1@3", "f1@5": "F1@5"}
PROTOCOLS = {
    "zsl": ("Unseen (ZSL)", ("map", "f1@3", "f1@5")),
    "zsl_asked_all": ("ZSL, asked all", ("map",)),
    "gzsl": ("All (GZSL)", ("map", "f1@3", "f1@5")),
    "seen": ("Seen", ("map",)),
}
"""protocol -> its title and what the table shows of it."""


class _Column(NamedTuple):
    protocol: str
    measure: str

    @property
    def opens(self) -> bool:
        """Whether it is the first of its protocol."""
        return self.measure == PROTOCOLS[self.protocol][1][0]


def print_table(metrics: dict[str, Any]) -> str:
    """The headline of `Evaluation.metrics` as text for a terminal, in percent; `*` marks the best of each column."""
    rows = ordered(metrics["rows"])
    columns = _columns(rows)
    best = _best(rows, columns)
    lines = [
        ["", *(PROTOCOLS[column.protocol][0] if column.opens else "" for column in columns)],
        ["", *(MEASURES[column.measure] for column in columns)],
    ]
    for row in rows:
        cells = (percent(value(row, *column)) + "*" * (row["name"] in best[column]) for column in columns)
        lines.append([row["name"], *cells])
    widths = [max(len(cell) for cell in cells) for cells in zip(*lines, strict=True)]
    rule = [["-" * width for width in widths]]
    padded = (
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines[:2] + rule + lines[2:]
    )
    return "\n".join("  ".join(line).rstrip() for line in padded)


def row_title(name: str) -> str:
    return TITLES.get(name, name)


def ordered(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    order = list(TITLES)
    return sorted(rows, key=lambda row: order.index(row["name"]) if row["name"] in order else len(order))


def value(row: dict[str, Any], protocol: str, measure: str) -> float:
    """A number of a row, nan where it was not measured."""
    found = row.get(protocol, {}).get(measure)
    return math.nan if found is None else float(found)


def lead(metrics: dict[str, Any]) -> str:
    """What came out, in a sentence."""
    by_name = {row["name"]: row for row in metrics["rows"]}
    found = []
    for protocol, labels in (("zsl", "the unseen labels"), ("gzsl", "all labels")):
        ours, clip = (value(by_name.get(name, {}), protocol, "map") for name in ("sigrl", "clip_global"))
        if not math.isnan(ours):
            beside = "" if math.isnan(clip) else f" (CLIP alone: {percent(clip)})"
            found.append(f"<strong>{percent(ours)} % mAP</strong> on {labels}{beside}")
    reached = f"SigRL reaches {' and '.join(found)}," if found else "SigRL was"
    return f"{reached} measured on {counted(metrics['pictures'], 'picture')}."


def section(metrics: dict[str, Any]) -> str:
    """The table, and how to read it."""
    return (
        note(
            "In percent, the best of each column bold. mAP averages over the labels that occur in these pictures at "
            "all; F1@k takes the k best labels of every picture as its tags."
        )
        + _table(metrics)
        + note("A score depends on the labels it is asked with, so every column says what was asked:")
        + _protocols(metrics)
    )


def _table(metrics: dict[str, Any]) -> str:
    rows = ordered(metrics["rows"])
    columns = _columns(rows)
    best = _best(rows, columns)

    def cell(tag: str, column: _Column, text: str) -> str:
        first = ' class="first"' if column.opens else ""
        return f"<{tag}{first}>{text}</{tag.split()[0]}>"

    def number(row: dict[str, Any], column: _Column) -> str:
        text = percent(value(row, *column))
        return f"<strong>{text}</strong>" if row["name"] in best[column] else text

    groups = "".join(
        cell(f'th scope="colgroup" colspan="{len(PROTOCOLS[c.protocol][1])}"', c, PROTOCOLS[c.protocol][0])
        for c in columns
        if c.opens
    )
    heads = "".join(cell('th scope="col"', column, MEASURES[column.measure]) for column in columns)
    body = "".join(
        f'<tr><th scope="row"><span class="name">{escape(row_title(row["name"]))}</span></th>'
        f"{''.join(cell('td', column, number(row, column)) for column in columns)}</tr>"
        for row in rows
    )
    return scrollable(
        "Headline table",
        f'<table class="headline"><thead><tr><th scope="col" rowspan="2">Model</th>{groups}</tr>'
        f"<tr>{heads}</tr></thead><tbody>{body}</tbody></table>",
    )


def _protocols(metrics: dict[str, Any]) -> str:
    """What each protocol was asked with and measured on."""
    seen, unseen = (metrics["labels"][split] for split in ("seen", "unseen"))
    everything = counted(seen + unseen, "label")
    meanings = {
        "zsl": f"asked with the {counted(unseen, 'unseen label')} alone, measured on them.",
        "zsl_asked_all": f"asked with all {everything}, measured on the unseen ones.",
        "gzsl": f"asked with all {everything}, measured on all.",
        "seen": f"asked with the {counted(seen, 'seen label')} alone, measured on them.",
    }
    measured = [column.protocol for column in _columns(metrics["rows"]) if column.opens]
    return definitions((PROTOCOLS[protocol][0], meanings[protocol]) for protocol in measured)


def _columns(rows: Sequence[dict[str, Any]]) -> list[_Column]:
    """Protocols that nobody measured have none."""
    return [
        _Column(protocol, measure)
        for protocol, (_, measures) in PROTOCOLS.items()
        if any(protocol in row for row in rows)
        for measure in measures
    ]


def _best(rows: Sequence[dict[str, Any]], columns: Sequence[_Column]) -> dict[_Column, set[str]]:
    """Names of the rows that show the highest number of each column; nobody where there is no number."""
    best: dict[_Column, set[str]] = {}
    for column in columns:
        shown = {row["name"]: round(value(row, *column), 3) for row in rows}
        highest = max((number for number in shown.values() if not math.isnan(number)), default=None)
        best[column] = {name for name, number in shown.items() if number == highest}
    return best
