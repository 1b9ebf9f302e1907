"""Published and exported tables with one column per class; class_columns.py describes the cells.

`roboflow`, `_classes.csv` in each folder of images, which it names; `--annotations` is one of them, or not given::

    filename, cat, dog
    a.jpg, 1, 0

`chexpert`, `train.csv` or `valid.csv`; empty cells (not mentioned in the report) and -1 (uncertain) are unknown::

    Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema
    CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,-1.0

`celeba`, `list_attr_celeba.txt` (the number of images, the names of attributes, then image and 1 or -1 per line), or
the same table as CSV; -1 is absent.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from itertools import chain

from sigrl_core.corpora.class_columns import ClassColumns, read_states
from sigrl_core.corpora.image_paths import ImagePaths
from sigrl_core.corpora.listing import ListedImage, Listing, corpus_vocabulary, require_file, require_folder
from sigrl_core.corpora.text import read_lines, read_records
from sigrl_core.data.label_states import ABSENT, UNKNOWN
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage

ROBOFLOW_NAME = "_classes.csv"
CHEXPERT_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA")


def list_roboflow(images: str, annotations: str | None = None) -> Listing:
    """Lists the rows of one table, or of all tables below the folder of images, in order.

    Raises:
        CorpusError: no table, other columns in one of several, or a malformed row; the message has the line.
    """
    require_folder(images)
    if annotations is not None:
        tables = {require_file("roboflow", annotations): ""}
    else:
        paths = [file.path for file in storage.walk(images, [ROBOFLOW_NAME])]
        tables = {storage.join(images, path): posixpath.dirname(path) for path in paths}
    if not tables:
        raise CorpusError(f"{images}: no {ROBOFLOW_NAME} in it; unpack the export, or name one with --annotations")
    rows = [_read_table(where, ("filename",), None) for where in tables]
    names = list(rows[0][0])
    for (columns, _), where in zip(rows, tables, strict=True):
        if set(columns) != set(names):
            raise CorpusError(f"{where}: other classes than in {next(iter(tables))}; preprocess them one by one")
    listed = (
        image._replace(uri=posixpath.join(folder, image.uri))
        for folder, (_, rows_of_table) in zip(tables.values(), rows, strict=True)
        for image in rows_of_table
    )
    return Listing(listed, corpus_vocabulary(names, next(iter(tables))))


def list_chexpert(images: str, annotations: str | None = None) -> Listing:
    """Lists the rows in order; see `list_roboflow`."""
    require_folder(images)
    where = require_file("chexpert", annotations)
    names, rows = _read_table(where, CHEXPERT_COLUMNS, UNKNOWN)
    paths = ImagePaths(images)
    return Listing((row._replace(uri=paths.find(row.uri, where)) for row in rows), corpus_vocabulary(names, where))


def list_celeba(images: str, annotations: str | None = None) -> Listing:
    """Lists the rows in order; see `list_roboflow`."""
    require_folder(images)
    where = require_file("celeba", annotations)
    _, first = next(read_lines(where), (0, ""))
    if "," in first:
        names, rows = _read_table(where, ("image_id",), ABSENT)
        return Listing(rows, corpus_vocabulary(names, where))
    lines = ((number, text.split()) for number, text in read_lines(where))
    if not first.isdecimal():
        raise CorpusError(f"{where}: expected the number of images in the first line, found {first[:80]!r}")
    next(lines)
    _, names = next(lines, (0, []))
    if not names:
        raise CorpusError(f"{where}: ends after the first line; expected the names of the attributes")
    rows = _read_rows(where, lines, ["image", *names], 1, ABSENT)
    return Listing(_check_count(rows, first, where), corpus_vocabulary(names, where))


def _check_count(rows: Iterator[ListedImage], expected: str, where: str) -> Iterator[ListedImage]:
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007
        yield row
    if str(count) != expected.lstrip("0"):
        raise CorpusError(f"{where}: {count} images, but {expected[:20]} in its first line; download it again")


def _read_table(
    where: str, other_columns: Sequence[str], minus_one: int | None
) -> tuple[list[str], Iterator[ListedImage]]:
    """Returns the names of the classes, all columns but the first ones, and the rows."""
    records = read_records(where)
    line, header = next(records, (0, []))
    header = [name.strip() for name in header]
    count = len(other_columns)
    if header[:count] != list(other_columns) or len(header) == count:
        expected = ",".join([*other_columns, "CLASS", "..."])
        raise CorpusError(f"{where}, line {line}: found {','.join(header)[:80]!r}, expected the columns {expected}")
    return header[count:], _read_rows(where, records, header, count, minus_one)


def _read_rows(
    where: str, records: Iterator[tuple[int, list[str]]], header: list[str], first_class: int, minus_one: int | None
) -> Iterator[ListedImage]:
    positions = {name: position for position, name in enumerate(header) if position >= first_class}
    columns = ClassColumns(positions, minus_one)
    first = next(records, None)
    if first is None:
        raise CorpusError(f"{where}: no rows")
    for line, record in chain([first], records):
        position = f"{where}, line {line}"
        if len(record) != len(header):
            raise CorpusError(f"{position}: {len(record)} fields, expected {len(header)}; correct the line")
        if not record[0].strip():
            raise CorpusError(f"{position}: no image; name its file")
        yield ListedImage(record[0].strip(), *read_states(record, columns, position))
