"""Parquet files with the pictures in them, as Hugging Face's datasets have; all below `--images`, which is one split.

A column has the picture: its bytes, or a struct of `bytes` and `path`, which is where the picture is if it has no
bytes. The column `labels` or `label`, or the only one that the file describes as labels, has names or numbers of
classes, one or a list of them; other labels are absent. Where it is null or -1, or there is none, all are unknown.

Classes have the names that the file's schema gives, or those of `--annotations`, a text file with one a line; else a
number is the label. Listing reads labels and paths, no pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from sigrl_core import storage
from sigrl_core.corpora.listing import Listing, Row, class_name, own_vocabulary, require_file, require_folder
from sigrl_core.corpora.parquet import is_list, is_text, opened
from sigrl_core.corpora.text import names
from sigrl_core.errors import CorpusError

_ROWS_AT_A_TIME = 1000
_PICTURES_AT_A_TIME = 8


class Columns(NamedTuple):
    """Where a Parquet file has what we need."""

    picture: str  # the column, or the field of it, with the bytes
    path: str | None  # the field with the path
    labels: str | None
    classes: tuple[str, ...] | None  # names of the classes, where the schema has them


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists the rows of every file, files in the order of their paths.

    Raises:
        CorpusError: no files, one that is not Parquet, has no picture or other columns than the first; a class without
            a name; names the file and the column or row.
    """
    require_folder(images)
    given = None if annotations is None else tuple(names(require_file("hugging_face", annotations)))
    first = next(storage.walk(images, [".parquet"]), None)
    if first is None:
        raise CorpusError(f"{images}: no Parquet files (*.parquet) under it; check --images")
    where = storage.join(images, first.path)
    with opened(where) as file:
        columns = find_columns(file.schema_arrow, where)
    classes = given or columns.classes
    vocabulary = None if classes is None else own_vocabulary(classes, where if given is None else str(annotations))
    return Listing(_rows(images, columns, classes), vocabulary)


def find_columns(schema: pa.Schema, where: str) -> Columns:
    """Raises CorpusError where there is no column of pictures, or it is not clear which."""
    features = _features(schema)
    picture = _only(
        [name for name in schema.names if _kind(features.get(name)) == "Image"]
        or [name for name in schema.names if _holds_bytes(schema.field(name).type)],
        ("image",),
        f"{where}: column with pictures",
    )
    if picture is None or not _holds_bytes(schema.field(picture).type):
        raise CorpusError(
            f"{where}: no column of bytes, or of structs with bytes; found {', '.join(schema.names[:10])}"
        )
    labels = _only(
        [name for name in ("labels", "label") if name in schema.names]
        or [name for name in schema.names if _class_names(features.get(name)) is not None],
        ("labels",),
        f"{where}: column with labels",
    )
    if labels is not None and not _is_label(found := schema.field(labels).type):
        raise CorpusError(f"{where}: column {labels} has {found}; expected names, numbers of classes, or lists of them")
    kind = schema.field(picture).type
    in_struct = types.is_struct(kind)
    return Columns(
        f"{picture}.bytes" if in_struct else picture,
        f"{picture}.path" if in_struct and kind.get_field_index("path") >= 0 else None,
        labels,
        None if labels is None else _class_names(features.get(labels)),
    )


def pictures_in(file: pq.ParquetFile, columns: Columns, start: int) -> Iterator[tuple[int, bytes | None]]:
    """Row number and bytes of every picture from a row on; reads its row group and those behind it, a few at a time."""
    number = 0
    for group in range(file.metadata.num_row_groups):
        num_rows = file.metadata.row_group(group).num_rows
        if number + num_rows <= start:
            number += num_rows
            continue
        for batch in file.iter_batches(_PICTURES_AT_A_TIME, row_groups=[group], columns=[columns.picture]):
            cells = _field(batch.column(0), "bytes")
            for position in range(max(0, start - number), len(cells)):
                yield number + position, cells[position].as_py()
            number += len(cells)


def _rows(images: str, columns: Columns, classes: tuple[str, ...] | None) -> Iterator[Row]:
    row = None
    for shard in storage.walk(images, [".parquet"]):
        where = storage.join(images, shard.path)
        with opened(where) as file:
            if find_columns(file.schema_arrow, where) != columns:
                raise CorpusError(f"{where}: other columns or names of classes than in the first file; give one split")
            for number, (path, labels, inside) in enumerate(_cells(file, columns)):
                told = _labels(labels, classes, f"{where}, row {number}")
                if inside or not path:
                    row = Row(f"{shard.path}#{number}", told, offset=number, etag=shard.version)
                else:
                    row = Row(path, told)
                yield row
    if row is None:
        raise CorpusError(f"{images}: no rows in its Parquet files; check --images")


def _cells(file: pq.ParquetFile, columns: Columns) -> Iterator[tuple[str | None, Any, bool]]:
    """Path, labels, and whether the bytes are in the file, of every row."""
    wanted = [name for name in (columns.path, columns.labels) if name is not None]
    for group in range(file.metadata.num_row_groups):
        inside = _have_bytes(file, group, columns)
        if not wanted:
            yield from ((None, None, has_bytes) for has_bytes in inside)
            continue
        for batch in file.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=wanted):
            nobody = [None] * batch.num_rows
            paths = nobody if columns.path is None else _field(batch.column(_top(columns.path)), "path").to_pylist()
            labels = nobody if columns.labels is None else batch.column(columns.labels).to_pylist()
            yield from zip(paths, labels, inside, strict=False)  # `inside` goes on to the next batch


def _have_bytes(file: pq.ParquetFile, group: int, columns: Columns) -> Iterator[bool]:
    """Whether each row of a row group has bytes: by the file's statistics, which say how many have none."""
    metadata = file.metadata.row_group(group)
    if columns.path is None:
        yield from (True for _ in range(metadata.num_rows))
        return
    chunks = (metadata.column(index) for index in range(metadata.num_columns))
    statistics = next(chunk.statistics for chunk in chunks if chunk.path_in_schema == columns.picture)
    missing = statistics.null_count if statistics is not None and statistics.has_null_count else None
    if missing in (0, metadata.num_rows):
        yield from (missing == 0 for _ in range(metadata.num_rows))
        return
    for batch in file.iter_batches(_PICTURES_AT_A_TIME, row_groups=[group], columns=[columns.picture]):
        yield from _field(batch.column(0), "bytes").is_valid().to_pylist()


def _top(column: str) -> str:
    return column.rpartition(".")[0]


def _field(column: pa.Array, name: str) -> pa.Array:
    """The field of a struct, null where the struct is; a column that is none as it is."""
    return column.flatten()[column.type.get_field_index(name)] if types.is_struct(column.type) else column


def _labels(found: Any, classes: tuple[str, ...] | None, where: str) -> tuple[str, ...] | None:
    if found is None or found == -1:  # how datasets write that nobody told
        return None
    listed = found if isinstance(found, list) else [found]
    if None in listed:
        raise CorpusError(f"{where}: a label is null; leave it out")
    return tuple(one.strip() if isinstance(one, str) else class_name(one, classes, where) for one in listed)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What Hugging Face's datasets wrote of the columns; nothing where they did not, or it cannot be read."""
    try:
        return dict(json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError):
        return {}


def _kind(feature: Any) -> str | None:
    return feature.get("_type") if isinstance(feature, dict) else None


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """Names of the classes of a feature that is a class, or a list of classes in any of the spellings there are."""
    inner: Any = feature
    if isinstance(feature, list):
        inner = feature[0] if len(feature) == 1 else None
    elif _kind(feature) in ("Sequence", "List", "LargeList"):
        inner = feature.get("feature")
    named = inner.get("names") if _kind(inner) == "ClassLabel" else None
    return tuple(map(str, named)) if isinstance(named, list) else None


def _only(found: list[str], preferred: tuple[str, ...], what: str) -> str | None:
    """The one column, or the preferred one of several."""
    if len(found) > 1:
        found = [name for name in found if name in preferred] or found
    if len(found) > 1:
        raise CorpusError(f"{what}: {', '.join(found)}; name the one that is meant {preferred[0]}, or drop the others")
    return found[0] if found else None


def _holds_bytes(found: pa.DataType) -> bool:
    if types.is_struct(found):
        position = found.get_field_index("bytes")
        return position >= 0 and _holds_bytes(found.field(position).type)
    return types.is_binary(found) or types.is_large_binary(found) or types.is_binary_view(found)


def _is_label(found: pa.DataType) -> bool:
    inner = found.value_type if is_list(found) else found
    return is_text(inner) or types.is_integer(inner)
