"""A Parquet file with columns `uri` (text), `labels` and, where wanted, `negatives` (lists of texts).

Other columns are not read. As in JSON lines: without `negatives`, or where it is null, labels not listed are absent;
with it they are unknown. Where `labels` is null too, all are unknown.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from sigrl_core.corpora.listing import Listing, Row, known_columns, require_file
from sigrl_core.corpora.parquet import is_list, is_text, opened
from sigrl_core.errors import CorpusError

_ROWS_AT_A_TIME = 1000


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists the rows in their order.

    Raises:
        CorpusError: no file, not Parquet, no rows, a column that is missing or of another type; names column or row.
    """
    return Listing(_rows(require_file("parquet", annotations)))


def _rows(annotations: str) -> Iterator[Row]:
    number = 0
    with opened(annotations) as file:
        schema = file.schema_arrow
        columns = known_columns(schema.names, annotations)
        for name in columns:
            _check_type(name, schema.field(name).type, annotations)
        for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=columns):
            cells = {name: batch.column(name).to_pylist() for name in columns}
            nobody = [None] * batch.num_rows
            told = (cells.get(name, nobody) for name in ("labels", "negatives"))
            for uri, labels, negatives in zip(cells["uri"], *told, strict=True):
                where = f"{annotations}, row {number}"
                if not uri:
                    raise CorpusError(f"{where}: uri is empty; name the picture's file")
                yield Row(uri, _names(labels, where), _names(negatives, where))
                number += 1
    if not number:
        raise CorpusError(f"{annotations}: no rows; write one a picture")


def _check_type(name: str, found: pa.DataType, where: str) -> None:
    expected = "text" if name == "uri" else "lists of texts"
    if not (is_text(found) if name == "uri" else is_list(found) and is_text(found.value_type)):
        raise CorpusError(f"{where}: column {name} has {found}, expected {expected}; write it as such")


def _names(names: list[str | None] | None, where: str) -> tuple[str, ...] | None:
    if names is None:
        return None
    if None in names:
        raise CorpusError(f"{where}: a label is null; leave it out")
    return tuple(name.strip() for name in names if name is not None)
