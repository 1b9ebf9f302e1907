"""The headline of an evaluation: models x protocols, as data for the page and as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from sigrl_core.report.page import counted, percent

TITLES = {
    "sigrl": "SigRL",
    "sigrl_independent": "SigRL, any vocabulary",
    "mkt_style": "MKT-style",
    "clip_global": "CLIP, global",
    "clip_global_local": "CLIP, global + local",
}
"""Rows in the order of the table; others follow under their own names."""

MEASURES = {"map": "mAP", "f1@3": "F1@3", "f1@5": "F1@5"}
TABLE_COLUMNS = {
    "zsl": ("Unseen (ZSL)", ("map", "f1@3", "f1@5")),
    "zsl_asked_all": ("ZSL, all labels", ("map",)),
    "gzsl": ("All (GZSL)", ("map", "f1@3", "f1@5")),
    "seen": ("Seen", ("map",)),
}
"""protocol -> its title and the measures that the table shows."""


class _Column(NamedTuple):
    protocol: str
    measure: str

    @property
    def opens(self) -> bool:
        """Whether it is the first column of its protocol."""
        return self.measure == TABLE_COLUMNS[self.protocol][1][0]

    @property
    def title(self) -> str:
        return MEASURES[self.measure]


class _Cell(NamedTuple):
    text: str
    is_best: bool
    opens: bool


def print_table(metrics: dict[str, Any]) -> str:
    """Returns the headline of `Evaluation.metrics` as text, in percent; `*` marks the best of each column."""
    columns, rows = _columns(metrics["rows"]), _rows(metrics["rows"])
    lines = [
        ["", *(TABLE_COLUMNS[column.protocol][0] if column.opens else "" for column in columns)],
        ["", *(column.title for column in columns)],
        *([row["name"], *(cell.text + "*" * cell.is_best for cell in cells)] for row, cells in rows),
    ]
    widths = [max(len(cell) for cell in cells) for cells in zip(*lines, strict=True)]
    lines.insert(2, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def row_title(name: str) -> str:
    return TITLES.get(name, name)


def sorted_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    order = list(TITLES)
    return sorted(rows, key=lambda row: order.index(row["name"]) if row["name"] in order else len(order))


def lead(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns mAP of SigRL, the labels it is of, and mAP of CLIP (empty if not measured), for the main protocols."""
    by_name = {row["name"]: row for row in metrics["rows"]}
    reached = []
    for protocol, labels in (("zsl", "the unseen labels"), ("gzsl", "all labels")):
        sigrl, clip = (_value(by_name.get(name, {}), _Column(protocol, "map")) for name in ("sigrl", "clip_global"))
        if not math.isnan(sigrl):
            reached.append((percent(sigrl), labels, "" if math.isnan(clip) else percent(clip)))
    return reached


def table(metrics: dict[str, Any]) -> dict[str, Any]:
    """Returns the table of the page, and what each protocol scores and measures."""
    columns = _columns(metrics["rows"])
    protocols = [column.protocol for column in columns if column.opens]
    meanings = _meanings(metrics["labels"]["seen"], metrics["labels"]["unseen"])
    return {
        "protocols": [(TABLE_COLUMNS[protocol][0], len(TABLE_COLUMNS[protocol][1])) for protocol in protocols],
        "columns": columns,
        "rows": [{"title": row_title(row["name"]), "cells": cells} for row, cells in _rows(metrics["rows"])],
        "meanings": [(TABLE_COLUMNS[protocol][0], meanings[protocol]) for protocol in protocols],
    }


def _meanings(seen: int, unseen: int) -> dict[str, str]:
    all_labels = counted(seen + unseen, "label")
    return {
        "zsl": f"scored with the {counted(unseen, 'unseen label')} only, measured on them.",
        "zsl_asked_all": f"scored with all {all_labels}, measured on the unseen ones.",
        "gzsl": f"scored with all {all_labels}, measured on all.",
        "seen": f"scored with the {counted(seen, 'seen label')} only, measured on them.",
    }


def _columns(rows: Sequence[dict[str, Any]]) -> list[_Column]:
    """Returns the columns of the protocols that were measured."""
    return [
        _Column(protocol, measure)
        for protocol, (_, measures) in TABLE_COLUMNS.items()
        if any(protocol in row for row in rows)
        for measure in measures
    ]


def _rows(rows: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], list[_Cell]]]:
    """Returns each row with its cells; the best of a column are all that show its highest number."""
    columns = _columns(rows)
    shown = {column: [round(_value(row, column), 3) for row in rows] for column in columns}
    best = {column: max((x for x in shown[column] if not math.isnan(x)), default=None) for column in columns}
    return [
        (
            row,
            [
                _Cell(percent(value), round(value, 3) == best[column], column.opens)
                for column in columns
                for value in [_value(row, column)]
            ],
        )
        for row in sorted_rows(rows)
    ]


def _value(row: dict[str, Any], column: _Column) -> float:
    """Returns a number of a row, nan if it was not measured."""
    value = row.get(column.protocol, {}).get(column.measure)
    return math.nan if value is None else float(value)
