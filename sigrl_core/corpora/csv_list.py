"""A CSV file with a header: `uri`, `labels` and optionally `negatives`; other columns are ignored::

    uri,labels,negatives
    a/1.jpg,cat|dog,bird
    a/2.jpg,"[""cat|dog""]",

A cell contains labels separated by `|`, or a JSON list of texts. An empty cell of `labels` means that the image is not
annotated; `[]` means that it has none of the labels. Without the column `negatives`, labels that are not listed are
absent; with it they are unknown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from sigrl_core.corpora.listing import ListedImage, Listing, check_columns, require_file
from sigrl_core.corpora.text import read_records
from sigrl_core.errors import CorpusError

SEPARATOR = "|"


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists the rows in order.

    Raises:
        CorpusError: no file, no rows, no column `uri`, or a malformed column or line; the message has the line.
    """
    return Listing(_list_images(require_file("csv", annotations)))


def _list_images(annotations: str) -> Iterator[ListedImage]:
    header: list[str] = []
    columns: dict[str, int] = {}
    image = None
    for line, record in read_records(annotations):
        where = f"{annotations}, line {line}"
        if not header:
            header = [name.strip() for name in record]
            columns = {name: header.index(name) for name in check_columns(header, where)}
            continue
        if len(record) != len(header):
            raise CorpusError(f"{where}: {len(record)} fields, expected {len(header)}: {', '.join(header)}")
        cell = {name: record[position].strip() for name, position in columns.items()}
        if not cell["uri"]:
            raise CorpusError(f"{where}: uri is empty; name the image's file")
        labels = _parse_cell(cell["labels"], "labels", where) if cell.get("labels") else None
        negatives = _parse_cell(cell["negatives"], "negatives", where) if "negatives" in cell else None
        image = ListedImage(cell["uri"], labels, negatives)
        yield image
    if image is None:
        raise CorpusError(f"{annotations}: no rows; write a header `uri,labels` and one image per line")


def _parse_cell(cell: str, column: str, where: str) -> tuple[str, ...]:
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
