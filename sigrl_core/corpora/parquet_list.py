"""A Parquet file with columns `uri` (text), `labels` and optionally `negatives` (lists of texts).

Other columns are ignored. Without `negatives`, or if it is null, labels that are not listed are absent; with it they
are unknown. If `labels` is null, all labels are unknown.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from sigrl_core.corpora.listing import ListedImage, Listing, check_columns, require_file
from sigrl_core.corpora.parquet import is_list, is_text, open_parquet
from sigrl_core.errors import CorpusError

_ROWS_PER_READ = 1000


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists the rows in order.

    Raises:
        CorpusError: no file, not Parquet, no rows, a column that is missing or has another type; the message has the
            column or row.
    """
    return Listing(_list_images(require_file("parquet", annotations)))


def _list_images(annotations: str) -> Iterator[ListedImage]:
    number = 0
    with open_parquet(annotations) as file:
        schema = file.schema_arrow
        columns = check_columns(schema.names, annotations)
        for name in columns:
            _check_type(name, schema.field(name).type, annotations)
        for batch in file.iter_batches(_ROWS_PER_READ, columns=columns):
            cells = {name: batch.column(name).to_pylist() for name in columns}
            missing = [None] * batch.num_rows
            labels_and_negatives = (cells.get(name, missing) for name in ("labels", "negatives"))
            for uri, labels, negatives in zip(cells["uri"], *labels_and_negatives, strict=True):
                where = f"{annotations}, row {number}"
                if not uri:
                    raise CorpusError(f"{where}: uri is empty; name the image's file")
                yield ListedImage(uri, _strip_names(labels, where), _strip_names(negatives, where))
                number += 1
    if not number:
        raise CorpusError(f"{annotations}: no rows; write one per image")


def _check_type(name: str, type_: pa.DataType, where: str) -> None:
    expected = "text" if name == "uri" else "lists of texts"
    if not (is_text(type_) if name == "uri" else is_list(type_) and is_text(type_.value_type)):
        raise CorpusError(f"{where}: column {name} has type {type_}, expected {expected}; convert it")


def _strip_names(names: list[str | None] | None, where: str) -> tuple[str, ...] | None:
    if names is None:
        return None
    if None in names:
        raise CorpusError(f"{where}: a label is null; leave it out")
    return tuple(name.strip() for name in names if name is not None)
