"""A CSV file with a header: `uri`, `labels` and optionally `negatives`; other columns are ignored::

    uri,labels,negatives
    a/1.jpg,cat|dog,bird
    a/2.jpg,"[""cat|dog""]",

`columns.py` has other usual names of these columns (`file_name`, `label`). Fields are separated by a tab, comma or
semicolon, as in the header. A cell contains labels separated by `|`, a JSON list of texts, or the text of a Python
list. An empty cell of `labels` means that the image is not annotated; `[]` means that it has none of the labels.
Without the column `negatives`, labels that are not listed are absent; with it they are unknown.

A table without a column of labels may have one column per class, with 1 and 0, see class_columns.py.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from typing import NamedTuple

from sigrl_core.corpora.class_columns import NUM_SAMPLE_ROWS, ClassColumns, find_class_columns, read_states
from sigrl_core.corpora.columns import Columns, LabelCells, describe_columns, find_columns, report_class_columns
from sigrl_core.corpora.listing import ListedImage, Listing, corpus_vocabulary, require_file
from sigrl_core.corpora.text import read_records
from sigrl_core.errors import CorpusError

_DELIMITERS = "\t,;"


class _Table(NamedTuple):
    """What the header and the first rows of a table define."""

    columns: Columns
    positions: dict[str, int]  # of all columns
    classes: ClassColumns


def list_corpus(
    images: str,
    annotations: str | None = None,
    *,
    label_separator: str | None = None,
    label_field: str | None = None,
) -> Listing:
    """Lists the rows in order.

    Args:
        label_separator: text between the labels of a cell; None is `|`.
        label_field: the column with the labels.

    Raises:
        CorpusError: no file, no rows, no column `uri`, or a malformed column or line; the message has the line.
    """
    where = require_file("csv", annotations)
    table = _read_table(where, label_field)
    vocabulary = corpus_vocabulary(table.classes.positions, where) if table.classes.positions else None
    images_of_table = _list_images(where, table, label_separator)
    return Listing(images_of_table, vocabulary, describe_source=partial(describe_columns, list(table.positions)))


def _read_table(annotations: str, label_field: str | None) -> _Table:
    with closing(_read_rows(annotations)) as rows:
        where, header = next(rows, ("", []))
        if not header:
            raise CorpusError(f"{annotations}: no rows; write a header `uri,labels` and one image per line")
        header = [name.strip() for name in header]
        columns = find_columns(header, where, label_field)
        classes = ClassColumns({})
        if columns.labels is None and columns.negatives is None and len(header) > 1:
            sample = [record for _, record in islice(rows, NUM_SAMPLE_ROWS)]
            classes = find_class_columns(header, sample, [columns.uri])
            report_class_columns(annotations, classes.positions, header, columns.uri)
        return _Table(columns, {name: header.index(name) for name in header}, classes)


def _read_rows(annotations: str) -> Generator[tuple[str, list[str]]]:
    """Yields the place and the fields of the header and of every row; checks that rows are as long as the header."""
    header: list[str] = []
    for line, record in read_records(annotations, _DELIMITERS):
        where = f"{annotations}, line {line}"
        header = header or record
        if len(record) != len(header):
            raise CorpusError(f"{where}: {len(record)} fields, expected {len(header)}: {', '.join(header)}")
        yield where, record


def _list_images(annotations: str, table: _Table, separator: str | None) -> Iterator[ListedImage]:
    columns, positions, classes = table
    cells = LabelCells(annotations, separator)
    image = None
    for where, record in islice(_read_rows(annotations), 1, None):
        uri, labels, negatives = ("" if name is None else record[positions[name]].strip() for name in columns)
        if not uri:
            raise CorpusError(f"{where}: uri is empty; name the image's file")
        if classes.positions:
            image = ListedImage(uri, *read_states(record, classes, where))
        else:
            image = ListedImage(
                uri,
                cells.parse(labels, "labels", where) if labels else None,
                cells.parse(negatives, "negatives", where) if columns.negatives is not None else None,
            )
        yield image
    if image is None:
        raise CorpusError(f"{annotations}: no rows; write a header `uri,labels` and one image per line")
    cells.finish()
