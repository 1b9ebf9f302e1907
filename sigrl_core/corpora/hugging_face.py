"""Parquet files that contain images, as in Hugging Face's datasets. `--images` is the folder of one split.

The column with images contains bytes, or structs of `bytes` and `path`; without bytes, `path` locates the image below
`--images`. `hugging_face_labels.py` describes which columns contain the labels, and `number_lists.py` how lists of
numbers are read; other labels are absent. If a cell is null or -1, or there is no such column, all labels are unknown.

`--annotations` is a text file with class names, one per line; without it they come from the file's schema, or the
number is the label. Listing reads labels and paths, and images only where a part of a row group's rows has no bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from sigrl_core.corpora.arrow_file import ArrowFile, open_arrow
from sigrl_core.corpora.columns import describe_columns, report_class_columns
from sigrl_core.corpora.hugging_face_labels import (
    LabelColumns,
    choose_column,
    feature_type,
    find_label_columns,
    read_features,
)
from sigrl_core.corpora.listing import ListedImage, Listing, corpus_vocabulary, require_file, require_folder
from sigrl_core.corpora.number_lists import LabelNumbers, NumberLists
from sigrl_core.corpora.parquet import open_parquet
from sigrl_core.corpora.text import read_names
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage

_ROWS_PER_READ = 1000
_IMAGES_PER_READ = 8


class ImageColumns(NamedTuple):
    """The columns with images of a Parquet file."""

    image: str  # the column with the bytes, or `column.bytes` for a struct
    path: str | None  # `column.path` of the struct


class _Row(NamedTuple):
    """One row: its image without labels, the cell with its labels, and its place for messages."""

    image: ListedImage
    cell: Any
    where: str


def list_corpus(
    images: str,
    annotations: str | None = None,
    *,
    label_field: str | None = None,
    label_numbers: LabelNumbers | None = None,
    with_labels: bool = True,
    suffix: str = ".parquet",
) -> Listing:
    """Lists the rows of all files, in the order of the files' paths.

    Args:
        label_field: the column with the labels, or a field of objects, `objects.category`.
        label_numbers: meaning of lists of numbers.
        with_labels: False reads no labels.
        suffix: ending of the files: `.parquet` or `.arrow`.

    Raises:
        CorpusError: no files; a file that is not Parquet, has no images, or has other columns than the first file; a
            class without a name; the message has the file and the column or row.
    """
    require_folder(images)
    given_classes = None if annotations is None else tuple(read_names(require_file("hugging_face", annotations)))
    first = next(storage.walk(images, [suffix]), None)
    if first is None:
        raise CorpusError(f"{images}: no files *{suffix} under it; check --images")
    where = storage.join(images, first.path)
    with open_table(where) as file:
        columns = find_columns(file.schema_arrow, where)
        labels = find_label_columns(file.schema_arrow, where, label_field) if with_labels else LabelColumns()
        all_names = file.schema_arrow.names
    numbers = NumberLists(given_classes or labels.classes, label_numbers, labels.classes is not None)
    if labels.field is not None:  # objects have class numbers
        numbers = numbers._replace(meaning="classes")
    classes = numbers.classes
    if labels.has_class_per_column:
        classes = labels.names
        report_class_columns(where, classes, all_names, columns.image.partition(".")[0])
    vocabulary = (
        None if classes is None else corpus_vocabulary(classes, where if given_classes is None else str(annotations))
    )
    rows = _read_rows(images, suffix, columns, labels, label_field if with_labels else None, with_labels)
    describe_source = partial(describe_columns, all_names)
    return Listing(_list_images(rows, labels, numbers, images), vocabulary, describe_source=describe_source)


def find_columns(schema: pa.Schema, where: str) -> ImageColumns:
    """Finds the columns with images; raises CorpusError if there are none, or several candidates."""
    features = read_features(schema)
    image = choose_column(
        [name for name in schema.names if feature_type(features.get(name)) == "Image"]
        or [name for name in schema.names if _has_bytes(schema.field(name).type)],
        ("image",),
        f"{where}: column with images",
    )
    if image is None or not _has_bytes(schema.field(image).type):
        raise CorpusError(
            f"{where}: no column of bytes, or of structs with bytes; found {', '.join(schema.names[:10])}"
        )
    image_type = schema.field(image).type
    in_struct = types.is_struct(image_type)
    return ImageColumns(
        f"{image}.bytes" if in_struct else image,
        f"{image}.path" if in_struct and image_type.get_field_index("path") >= 0 else None,
    )


def open_table(where: str) -> AbstractContextManager[pq.ParquetFile | ArrowFile]:
    """Opens a Parquet or Arrow file, by its ending."""
    return open_arrow(where) if where.lower().endswith(".arrow") else open_parquet(where)


def read_images_from(
    file: pq.ParquetFile | ArrowFile, columns: ImageColumns, start: int
) -> Iterator[tuple[int, bytes | None]]:
    """Yields row number and bytes of the images from row `start` on; reads a few images at a time."""
    number = 0
    if isinstance(file, ArrowFile):
        for batch in file.batches():
            cells = _field(batch.column(columns.image.partition(".")[0]), "bytes")
            for position in range(max(0, start - number), len(cells)):
                yield number + position, cells[position].as_py()
            number += len(cells)
        return
    for group in range(file.metadata.num_row_groups):
        num_rows = file.metadata.row_group(group).num_rows
        if number + num_rows <= start:
            number += num_rows
            continue
        for batch in file.iter_batches(_IMAGES_PER_READ, row_groups=[group], columns=[columns.image]):
            cells = _field(batch.column(0), "bytes")
            for position in range(max(0, start - number), len(cells)):
                yield number + position, cells[position].as_py()
            number += len(cells)


def _list_images(
    rows: Iterator[_Row], labels: LabelColumns, numbers: NumberLists, images: str
) -> Iterator[ListedImage]:
    row = None
    for row, lists in numbers.resolve(rows, lambda row: row.cell, images):
        if labels.has_class_per_column:
            present, absent = (
                tuple(name for name, each in zip(labels.names, row.cell, strict=True) if each is value)
                for value in (True, False)
            )
            if present or absent:
                is_complete = len(present) + len(absent) == len(labels.names)
                yield row.image._replace(labels=present, negatives=None if is_complete else absent)
            else:
                yield row.image
        elif row.cell is None or row.cell == -1:  # datasets use -1 for unlabelled images
            yield row.image
        else:
            present, absent = lists.read(row.cell, row.where)
            yield row.image._replace(labels=present, negatives=absent)
    if row is None:
        raise CorpusError(f"{images}: no rows in the files under it; check --images")


def _read_rows(
    images: str, suffix: str, columns: ImageColumns, labels: LabelColumns, label_field: str | None, with_labels: bool
) -> Iterator[_Row]:
    for shard in storage.walk(images, [suffix]):
        where = storage.join(images, shard.path)
        with open_table(where) as file:
            schema = file.schema_arrow
            own_labels = find_label_columns(schema, where, label_field) if with_labels else LabelColumns()
            if (find_columns(schema, where), own_labels) != (columns, labels):
                raise CorpusError(f"{where}: other columns or class names than in the first file; give one split")
            for number, (path, cell, has_bytes) in enumerate(_read_cells(file, columns, labels)):
                if has_bytes or not path:
                    image = ListedImage(f"{shard.path}#{number}", None, offset=number, etag=shard.version)
                else:
                    image = ListedImage(path, None)
                yield _Row(image, cell, f"{where}, row {number}")


def _read_cells(
    file: pq.ParquetFile | ArrowFile, columns: ImageColumns, labels: LabelColumns
) -> Iterator[tuple[str | None, Any, bool]]:
    """Yields path, labels, and whether the file contains the bytes, of every row."""
    if isinstance(file, ArrowFile):
        for batch in file.batches():
            column = batch.column(columns.image.partition(".")[0])
            paths = [None] * batch.num_rows if columns.path is None else _field(column, "path").to_pylist()
            yield from zip(paths, labels.cells(batch), _field(column, "bytes").is_valid().to_pylist(), strict=True)
        return
    names = [*([] if columns.path is None else [columns.path]), *labels.read_names(file.schema_arrow)]
    for group in range(file.metadata.num_row_groups):
        has_bytes_rows = _find_bytes(file, group, columns)
        if not names:
            yield from ((None, None, has_bytes) for has_bytes in has_bytes_rows)
            continue
        for batch in file.iter_batches(_ROWS_PER_READ, row_groups=[group], columns=names):
            missing = [None] * batch.num_rows
            paths = missing if columns.path is None else _field(batch.column(_top(columns.path)), "path").to_pylist()
            yield from zip(paths, labels.cells(batch), has_bytes_rows, strict=False)  # the next batch continues


def _find_bytes(file: pq.ParquetFile, group: int, columns: ImageColumns) -> Iterator[bool]:
    """Yields whether each row of a row group has bytes; reads the images only if some rows have none."""
    metadata = file.metadata.row_group(group)
    if columns.path is None:
        yield from (True for _ in range(metadata.num_rows))
        return
    chunks = (metadata.column(index) for index in range(metadata.num_columns))
    statistics = next(chunk.statistics for chunk in chunks if chunk.path_in_schema == columns.image)
    num_missing = statistics.null_count if statistics is not None and statistics.has_null_count else None
    if num_missing in (0, metadata.num_rows):
        yield from (num_missing == 0 for _ in range(metadata.num_rows))
        return
    for batch in file.iter_batches(_IMAGES_PER_READ, row_groups=[group], columns=[columns.image]):
        yield from _field(batch.column(0), "bytes").is_valid().to_pylist()


def _top(column: str) -> str:
    return column.rpartition(".")[0]


def _field(column: pa.Array, name: str) -> pa.Array:
    """Returns a field of a struct column, null where the struct is null; returns any other column unchanged."""
    return column.flatten()[column.type.get_field_index(name)] if types.is_struct(column.type) else column


def _has_bytes(type_: pa.DataType) -> bool:
    if types.is_struct(type_):
        position = type_.get_field_index("bytes")
        return position >= 0 and _has_bytes(type_.field(position).type)
    return types.is_binary(type_) or types.is_large_binary(type_) or types.is_binary_view(type_)
