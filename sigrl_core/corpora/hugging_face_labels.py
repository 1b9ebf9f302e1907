"""Finds and reads the labels in the Parquet files of `hugging_face.py`.

Without `--label-field`, the first of these is used:

1. the column `labels` or `label`: class names or numbers, single or in a list, or lists with one value per class;
2. the only column that the schema describes as class labels;
3. a column `tags`, or another of `columns.LABEL_NAMES`, with lists of texts;
4. a field `category`, or one of `_OBJECT_FIELDS`, of a column with objects: `objects.category`;
5. all columns of truth values, one per class, where null is unknown.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import types

from sigrl_core.corpora.class_columns import OTHER_COLUMNS
from sigrl_core.corpora.columns import LABEL_NAMES
from sigrl_core.corpora.parquet import is_list, is_text
from sigrl_core.errors import CorpusError

_OBJECT_FIELDS = ("category", "categories", "category_id", "label", "labels", "class", "classes", "class_id")


class LabelColumns(NamedTuple):
    """The columns with labels.

    Attributes:
        names: one column, several with one class each, or none.
        field: field of the objects in the column; None if they are no objects.
        classes: class names, if the schema has them.
        has_class_per_column: whether each column is one class.
    """

    names: tuple[str, ...] = ()
    field: str | None = None
    classes: tuple[str, ...] | None = None
    has_class_per_column: bool = False

    def read_names(self, schema: pa.Schema) -> list[str]:
        """Returns the columns to read from the file; only the field of a struct."""
        if self.field is not None and types.is_struct(schema.field(self.names[0]).type):
            return [f"{self.names[0]}.{self.field}"]
        return list(self.names)

    def cells(self, batch: pa.RecordBatch) -> list[Any]:
        """Returns one cell per row: None, a label, a list of labels, or a tuple of truth values."""
        if self.has_class_per_column:
            return list(zip(*(batch.column(name).to_pylist() for name in self.names), strict=True))
        if not self.names:
            return [None] * batch.num_rows
        cells = batch.column(self.names[0]).to_pylist()
        return cells if self.field is None else [_labels_of_objects(cell, self.field) for cell in cells]


def find_label_columns(schema: pa.Schema, where: str, label_field: str | None = None) -> LabelColumns:
    """Finds the columns with labels, if there are any.

    Raises:
        CorpusError: several candidates, or a column of another type.
    """
    features = read_features(schema)
    if label_field is not None:
        column, _, field = label_field.partition(".")
        if column not in schema.names or (field and field not in _object_fields(schema.field(column).type)):
            raise CorpusError(f"{where}: no column {label_field!r} (--label-field); found {describe(schema)}")
        return _objects(features, column, field) if field else _one_column(schema, features, column, where)
    named = [
        [name for name in ("labels", "label") if name in schema.names],
        [name for name in schema.names if class_names(features.get(name)) is not None],
        [name for name in schema.names if name in LABEL_NAMES and _is_list_of_texts(schema.field(name).type)],
    ]
    column = choose_column(next(filter(None, named), []), ("labels",), f"{where}: column with labels")
    if column is not None:
        return _one_column(schema, features, column, where)
    objects = [
        f"{name}.{field}"
        for name in schema.names
        for field in _object_fields(schema.field(name).type)
        if field in _OBJECT_FIELDS and feature_type(features.get(name)) != "Image"
    ]
    if len(objects) > 1:
        raise CorpusError(f"{where}: {', '.join(objects)} may each be the labels; add --label-field with the right one")
    if objects:
        return _objects(features, *objects[0].split(".", 1))
    flags = [field.name for field in schema if types.is_boolean(field.type) and field.name.lower() not in OTHER_COLUMNS]
    return LabelColumns(tuple(flags), has_class_per_column=True) if flags else LabelColumns()


def _one_column(schema: pa.Schema, features: dict[str, Any], column: str, where: str) -> LabelColumns:
    if not _is_label(type_ := schema.field(column).type):
        raise CorpusError(f"{where}: column {column} has type {type_}; expected class names, numbers, or lists of them")
    return LabelColumns((column,), None, class_names(features.get(column)))


def _objects(features: dict[str, Any], column: str, field: str) -> LabelColumns:
    fields = _inner(features.get(column))
    feature = fields.get(field) if isinstance(fields, dict) else None
    named = class_names(feature) or class_names([feature])
    return LabelColumns((column,), field, named)


def _labels_of_objects(cell: Any, field: str) -> list[Any] | None:
    if cell is None:
        return None
    labels = cell[field] if isinstance(cell, dict) else [each[field] for each in cell]
    listed = labels if isinstance(labels, list) else [labels]
    return list(dict.fromkeys(listed))


def _object_fields(type_: pa.DataType) -> list[str]:
    """Returns the fields with class names or numbers of a struct of lists, or of a list of structs."""
    inner = type_.value_type if is_list(type_) else type_
    if not types.is_struct(inner):
        return []
    fields = [inner.field(number) for number in range(inner.num_fields)]
    return [field.name for field in fields if _is_label(field.type)]


def describe(schema: pa.Schema) -> str:
    """Returns names and types of the first columns, for messages."""
    return ", ".join(f"{field.name} ({str(field.type)[:40]})" for field in list(schema)[:10])


def read_features(schema: pa.Schema) -> dict[str, Any]:
    """Returns the descriptions of columns that the library `datasets` writes; empty if missing or malformed."""
    try:
        return dict(json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError):
        return {}


def feature_type(feature: Any) -> str | None:
    return feature.get("_type") if isinstance(feature, dict) else None


def class_names(feature: Any) -> tuple[str, ...] | None:
    """Returns the class names of a class, or of a list of classes in the forms of all versions of `datasets`."""
    inner = _inner(feature)
    named = inner.get("names") if feature_type(inner) == "ClassLabel" else None
    return tuple(map(str, named)) if isinstance(named, list) else None


def _inner(feature: Any) -> Any:
    """Returns the description of a list's elements, or the description itself."""
    if isinstance(feature, list):
        return feature[0] if len(feature) == 1 else None
    if feature_type(feature) in ("Sequence", "List", "LargeList"):
        return feature.get("feature")
    return feature


def choose_column(names: list[str], preferred: tuple[str, ...], what: str) -> str | None:
    """Returns the only column, or the preferred one of several; raises CorpusError if that leaves a choice."""
    if len(names) > 1:
        names = [name for name in names if name in preferred] or names
    if len(names) > 1:
        raise CorpusError(f"{what}: {', '.join(names)}; rename the right one to {preferred[0]}, or drop the others")
    return names[0] if names else None


def _is_list_of_texts(type_: pa.DataType) -> bool:
    return is_list(type_) and is_text(type_.value_type)


def _is_label(type_: pa.DataType) -> bool:
    inner = type_.value_type if is_list(type_) else type_
    may_be_multi_hot = is_list(type_) and (types.is_floating(inner) or types.is_boolean(inner))
    return is_text(inner) or types.is_integer(inner) or may_be_multi_hot
