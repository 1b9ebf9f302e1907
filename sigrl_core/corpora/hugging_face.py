"""Parquet files that contain images, as in Hugging Face's datasets. `--images` is the folder of one split.

The column with images contains bytes, or structs of `bytes` and `path`; without bytes, `path` locates the image below
`--images`. The column with labels is `labels` or `label`, or the only one that the schema describes as labels. It
contains class names or numbers, single or in a list; other labels are absent. If a cell is null or -1, or the column
does not exist, all labels are unknown.

`--annotations` is a text file with class names, one per line; without it they come from the file's schema, or the
number is the label. Listing reads labels and paths, and images only where a part of a row group's rows has no bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from sigrl_core.corpora.listing import ListedImage, Listing, class_name, corpus_vocabulary, require_file, require_folder
from sigrl_core.corpora.parquet import is_list, is_text, open_parquet
from sigrl_core.corpora.text import read_names
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage

_ROWS_PER_READ = 1000
_IMAGES_PER_READ = 8


class Columns(NamedTuple):
    """The columns of a Parquet file that are read."""

    image: str  # the column with the bytes, or `column.bytes` for a struct
    path: str | None  # `column.path` of the struct
    labels: str | None
    classes: tuple[str, ...] | None  # class names, if the schema has them


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists the rows of all files, in the order of the files' paths.

    Raises:
        CorpusError: no files; a file that is not Parquet, has no images, or has other columns than the first file; a
            class without a name; the message has the file and the column or row.
    """
    require_folder(images)
    given_classes = None if annotations is None else tuple(read_names(require_file("hugging_face", annotations)))
    first = next(storage.walk(images, [".parquet"]), None)
    if first is None:
        raise CorpusError(f"{images}: no Parquet files (*.parquet) under it; check --images")
    where = storage.join(images, first.path)
    with open_parquet(where) as file:
        columns = find_columns(file.schema_arrow, where)
    classes = given_classes or columns.classes
    vocabulary = (
        None if classes is None else corpus_vocabulary(classes, where if given_classes is None else str(annotations))
    )
    return Listing(_list_images(images, columns, classes), vocabulary)


def find_columns(schema: pa.Schema, where: str) -> Columns:
    """Finds the columns with images and labels; raises CorpusError if there are none, or several candidates."""
    features = _features(schema)
    image = _choose_column(
        [name for name in schema.names if _feature_type(features.get(name)) == "Image"]
        or [name for name in schema.names if _has_bytes(schema.field(name).type)],
        ("image",),
        f"{where}: column with images",
    )
    if image is None or not _has_bytes(schema.field(image).type):
        raise CorpusError(
            f"{where}: no column of bytes, or of structs with bytes; found {', '.join(schema.names[:10])}"
        )
    labels = _choose_column(
        [name for name in ("labels", "label") if name in schema.names]
        or [name for name in schema.names if _class_names(features.get(name)) is not None],
        ("labels",),
        f"{where}: column with labels",
    )
    if labels is not None and not _is_label(type_ := schema.field(labels).type):
        raise CorpusError(f"{where}: column {labels} has type {type_}; expected class names, numbers, or lists of them")
    image_type = schema.field(image).type
    in_struct = types.is_struct(image_type)
    return Columns(
        f"{image}.bytes" if in_struct else image,
        f"{image}.path" if in_struct and image_type.get_field_index("path") >= 0 else None,
        labels,
        None if labels is None else _class_names(features.get(labels)),
    )


def read_images_from(file: pq.ParquetFile, columns: Columns, start: int) -> Iterator[tuple[int, bytes | None]]:
    """Yields row number and bytes of the images from row `start` on; reads a few images at a time."""
    number = 0
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


def _list_images(images: str, columns: Columns, classes: tuple[str, ...] | None) -> Iterator[ListedImage]:
    image = None
    for shard in storage.walk(images, [".parquet"]):
        where = storage.join(images, shard.path)
        with open_parquet(where) as file:
            if find_columns(file.schema_arrow, where) != columns:
                raise CorpusError(f"{where}: other columns or class names than in the first file; give one split")
            for number, (path, cell, has_bytes) in enumerate(_read_cells(file, columns)):
                labels = _parse_labels(cell, classes, f"{where}, row {number}")
                if has_bytes or not path:
                    image = ListedImage(f"{shard.path}#{number}", labels, offset=number, etag=shard.version)
                else:
                    image = ListedImage(path, labels)
                yield image
    if image is None:
        raise CorpusError(f"{images}: no rows in the Parquet files under it; check --images")


def _read_cells(file: pq.ParquetFile, columns: Columns) -> Iterator[tuple[str | None, Any, bool]]:
    """Yields path, labels, and whether the file contains the bytes, of every row."""
    names = [name for name in (columns.path, columns.labels) if name is not None]
    for group in range(file.metadata.num_row_groups):
        has_bytes_rows = _find_bytes(file, group, columns)
        if not names:
            yield from ((None, None, has_bytes) for has_bytes in has_bytes_rows)
            continue
        for batch in file.iter_batches(_ROWS_PER_READ, row_groups=[group], columns=names):
            missing = [None] * batch.num_rows
            paths = missing if columns.path is None else _field(batch.column(_top(columns.path)), "path").to_pylist()
            labels = missing if columns.labels is None else batch.column(columns.labels).to_pylist()
            yield from zip(paths, labels, has_bytes_rows, strict=False)  # the next batch continues the iterator


def _find_bytes(file: pq.ParquetFile, group: int, columns: Columns) -> Iterator[bool]:
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


def _parse_labels(cell: Any, classes: tuple[str, ...] | None, where: str) -> tuple[str, ...] | None:
    if cell is None or cell == -1:  # datasets use -1 for unlabelled images
        return None
    listed = cell if isinstance(cell, list) else [cell]
    if None in listed:
        raise CorpusError(f"{where}: a label is null; leave it out")
    return tuple(label.strip() if isinstance(label, str) else class_name(label, classes, where) for label in listed)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Returns the descriptions of columns that the library `datasets` writes; empty if missing or malformed."""
    try:
        return dict(json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError):
        return {}


def _feature_type(feature: Any) -> str | None:
    return feature.get("_type") if isinstance(feature, dict) else None


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """Returns the class names of a class, or of a list of classes in the forms of all versions of `datasets`."""
    inner: Any = feature
    if isinstance(feature, list):
        inner = feature[0] if len(feature) == 1 else None
    elif _feature_type(feature) in ("Sequence", "List", "LargeList"):
        inner = feature.get("feature")
    named = inner.get("names") if _feature_type(inner) == "ClassLabel" else None
    return tuple(map(str, named)) if isinstance(named, list) else None


def _choose_column(names: list[str], preferred: tuple[str, ...], what: str) -> str | None:
    """Returns the only column, or the preferred one of several; raises CorpusError if that leaves a choice."""
    if len(names) > 1:
        names = [name for name in names if name in preferred] or names
    if len(names) > 1:
        raise CorpusError(f"{what}: {', '.join(names)}; rename the right one to {preferred[0]}, or drop the others")
    return names[0] if names else None


def _has_bytes(type_: pa.DataType) -> bool:
    if types.is_struct(type_):
        position = type_.get_field_index("bytes")
        return position >= 0 and _has_bytes(type_.field(position).type)
    return types.is_binary(type_) or types.is_large_binary(type_) or types.is_binary_view(type_)


def _is_label(type_: pa.DataType) -> bool:
    inner = type_.value_type if is_list(type_) else type_
    return is_text(inner) or types.is_integer(inner)
