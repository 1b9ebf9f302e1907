"""Lists the rows of a pandas DataFrame with columns `uri`, `labels` and optionally `negatives`, as parquet_list.py.

Every value of `labels` is a list of names; None or nan means that the image is not annotated.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from sigrl_core.corpora.listing import ListedImage
from sigrl_core.errors import CorpusError

_EXPECTED = "a DataFrame with the columns uri (path or URI) and labels (a list of names each)"


def list_table(table: Any) -> list[ListedImage]:
    """Lists the rows in order.

    Raises:
        CorpusError: a column is missing, there are no rows, or a value has another type; the message has the row.
    """
    columns = [str(column) for column in table.columns]
    if missing := [name for name in ("uri", "labels") if name not in columns]:
        raise CorpusError(
            f"data: found a DataFrame with the columns {', '.join(columns) or '(none)'}, "
            f"without {' and '.join(missing)}; expected {_EXPECTED}"
        )
    if not len(table):
        raise CorpusError(f"data: found a DataFrame with 0 rows; expected {_EXPECTED}")
    return list(_list_images(table, "negatives" in columns))


def _list_images(table: Any, has_negatives: bool) -> Iterator[ListedImage]:
    negatives = table["negatives"] if has_negatives else [None] * len(table)
    for number, (uri, labels, absent) in enumerate(zip(table["uri"], table["labels"], negatives, strict=True)):
        if not isinstance(uri, str | os.PathLike) or not os.fspath(uri):
            raise CorpusError(f"data, row {number}: uri is {uri!r}; expected a path or URI")
        yield ListedImage(
            os.fspath(uri),
            _parse_names(labels, f"data, row {number}: labels"),
            _parse_names(absent, f"data, row {number}: negatives"),
        )


def _parse_names(value: Any, where: str) -> tuple[str, ...] | None:
    if value is None or (isinstance(value, float) and np.isnan(value)) or type(value).__name__ == "NAType":
        return None
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if not isinstance(value, list | tuple | np.ndarray) or not all(isinstance(name, str) for name in value):
        example = f", such as [{value!r}]" if isinstance(value, str) else ""
        raise CorpusError(f"{where} is {value!r:.60}; expected a list of names{example}")
    return tuple(str(name).strip() for name in value)
