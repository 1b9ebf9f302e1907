"""A CSV file with a header: `uri`, `labels` and, where wanted, `negatives`; other columns are not read::

    uri,labels,negatives
    a/1.jpg,cat|dog,bird
    a/2.jpg,"[""cat|dog""]",

A cell has labels with `|` between them, or is a JSON list of texts. An empty cell of `labels` says that nobody
annotated the picture; `[]` says that it has none of the labels. Without the column `negatives`, labels not listed are
absent; with it they are unknown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from sigrl_core.corpora.listing import Listing, Row, known_columns, require_file
from sigrl_core.corpora.text import records
from sigrl_core.errors import CorpusError

SEPARATOR = "|"


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists the lines in their order.

    Raises:
        CorpusError: no file, no rows, no column `uri`, a column or line that is not as above; names the line.
    """
    return Listing(_rows(require_file("csv", annotations)))


def _rows(annotations: str) -> Iterator[Row]:
    header: list[str] = []
    columns: dict[str, int] = {}
    row = None
    for line, record in records(annotations):
        where = f"{annotations}, line {line}"
        if not header:
            header = [name.strip() for name in record]
            columns = {name: header.index(name) for name in known_columns(header, where)}
            continue
        if len(record) != len(header):
            raise CorpusError(f"{where}: {len(record)} fields, expected {len(header)}: {', '.join(header)}")
        cell = {name: record[position].strip() for name, position in columns.items()}
        if not cell["uri"]:
            raise CorpusError(f"{where}: uri is empty; name the picture's file")
        labels = _names(cell["labels"], "labels", where) if cell.get("labels") else None
        negatives = _names(cell["negatives"], "negatives", where) if "negatives" in cell else None
        row = Row(cell["uri"], labels, negatives)
        yield row
    if row is None:
        raise CorpusError(f"{annotations}: no rows; write a header `uri,labels` and one picture a line")


def _names(cell: str, column: str, where: str) -> tuple[str, ...]:
    if not cell.startswith("["):
        return tuple(name.strip() for name in cell.split(SEPARATOR)) if cell else ()
    try:
        names = json.loads(cell)
    except ValueError as error:
        raise CorpusError(
            f"{where}: {column} is not a JSON list ({error}), found {cell[:80]}; write cat{SEPARATOR}dog"
        ) from error
    if not all(isinstance(name, str) for name in names):
        raise CorpusError(f"{where}: {column} must be a list of texts, found {cell[:80]}")
    return tuple(name.strip() for name in names)
