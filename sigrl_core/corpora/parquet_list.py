"""A Parquet file with columns `uri` (text), `labels` and optionally `negatives` (lists of texts, or texts as in CSV).

`columns.py` has other usual names of these columns (`file_name`, `label`); other columns are ignored. Without
`negatives`, or if it is null, labels that are not listed are absent; with it they are unknown. If `labels` is null, all
labels are unknown. A table without a column of labels may have one column per class, with 1 and 0 or true and false,
see class_columns.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from sigrl_core.corpora.class_columns import NUM_SAMPLE_ROWS, ClassColumns, find_class_columns, read_states
from sigrl_core.corpora.columns import Columns, LabelCells, describe_columns, find_columns, report_class_columns
from sigrl_core.corpora.listing import ListedImage, Listing, corpus_vocabulary, require_file
from sigrl_core.corpora.parquet import is_list, is_text, open_parquet
from sigrl_core.errors import CorpusError

_ROWS_PER_READ = NUM_SAMPLE_ROWS


def list_corpus(
    images: str,
    annotations: str | None = None,
    *,
    label_separator: str | None = None,
    label_field: str | None = None,
) -> Listing:
    """Lists the rows in order.

    Args:
        label_separator: text between the labels of a text; None is `|`.
        label_field: the column with the labels.

    Raises:
        CorpusError: no file, not Parquet, no rows, a column that is missing or has another type; the message has the
            column or row.
    """
    where = require_file("parquet", annotations)
    with open_parquet(where) as file:
        schema = file.schema_arrow
        columns = find_columns(schema.names, where, label_field)
        for name in filter(None, columns):
            _check_type(name, schema.field(name).type, name == columns.uri, where)
        classes = ClassColumns({})
        if columns.labels is None and columns.negatives is None:
            classes = _find_classes(file, columns.uri)
            report_class_columns(where, classes.positions, schema.names, columns.uri)
    vocabulary = corpus_vocabulary(classes.positions, where) if classes.positions else None
    images_of_table = _list_images(where, columns, classes, label_separator)
    return Listing(images_of_table, vocabulary, describe_source=partial(describe_columns, schema.names))


def _find_classes(file: pq.ParquetFile, uri: str) -> ClassColumns:
    """Finds the columns with one class each; their positions are those among the returned columns."""
    candidates = [
        field.name
        for field in file.schema_arrow
        if field.name != uri
        and (types.is_boolean(field.type) or types.is_integer(field.type) or types.is_floating(field.type))
    ]
    batch = next(file.iter_batches(_ROWS_PER_READ, columns=candidates), None) if candidates else None
    if batch is None:
        return ClassColumns({})
    sample = list(zip(*(column.to_pylist() for column in batch.columns), strict=True))
    classes = find_class_columns(batch.schema.names, sample)
    return classes._replace(positions={name: position for position, name in enumerate(classes.positions)})


def _list_images(
    annotations: str, columns: Columns, classes: ClassColumns, separator: str | None
) -> Iterator[ListedImage]:
    number = 0
    texts = LabelCells(annotations, separator)
    with open_parquet(annotations) as file:
        by_class = {name.strip(): name for name in file.schema_arrow.names}
        class_columns = [by_class[name] for name in classes.positions]
        names = [name for name in (*columns, *class_columns) if name is not None]
        for batch in file.iter_batches(_ROWS_PER_READ, columns=names):
            missing = [None] * batch.num_rows
            uris, labels, negatives = (missing if name is None else batch[name].to_pylist() for name in columns)
            states = list(zip(*(batch[name].to_pylist() for name in class_columns), strict=True))
            for position, (uri, present, absent) in enumerate(zip(uris, labels, negatives, strict=True)):
                where = f"{annotations}, row {number}"
                if not uri:
                    raise CorpusError(f"{where}: uri is empty; name the image's file")
                if states:
                    yield ListedImage(uri, *read_states(states[position], classes, where))
                else:
                    yield ListedImage(uri, _parse(present, texts, where), _parse(absent, texts, where))
                number += 1
    if not number:
        raise CorpusError(f"{annotations}: no rows; write one per image")
    texts.finish()


def _check_type(name: str, type_: pa.DataType, is_uri: bool, where: str) -> None:
    expected = "text" if is_uri else "lists of texts"
    if not (is_text(type_) or (not is_uri and is_list(type_) and is_text(type_.value_type))):
        raise CorpusError(f"{where}: column {name} has type {type_}, expected {expected}; convert it")


def _parse(cell: Any, texts: LabelCells, where: str) -> tuple[str, ...] | None:
    if cell is None:
        return None
    if isinstance(cell, str):
        return texts.parse(cell.strip(), "labels", where) if cell.strip() else None
    if None in cell:
        raise CorpusError(f"{where}: a label is null; leave it out")
    return tuple(name.strip() for name in cell)
