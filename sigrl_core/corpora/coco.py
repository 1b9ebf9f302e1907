"""MS COCO instances JSON: a picture has the labels of the objects marked in it (crowds too); others are absent."""

from __future__ import annotations

import json
from typing import Any

from sigrl_core import storage
from sigrl_core.corpora.listing import Listing, Row, own_vocabulary, require_file, require_folder
from sigrl_core.errors import CorpusError

_KEYS = ("images", "annotations", "categories", "id", "name", "file_name", "image_id", "category_id")


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists `images` of the JSON in its order, whether their files are there or not, with `categories` as labels.

    Raises:
        CorpusError: no file, not such JSON, an annotation of an unknown picture or category.
    """
    where = require_file("coco", annotations)
    require_folder(images)
    try:
        content = json.loads(storage.read_bytes(where), object_hook=_needed)
    except (ValueError, RecursionError) as error:  # json says the line
        raise CorpusError(f"{where}: not valid JSON ({error}); give a COCO instances file") from error
    names = {row["id"]: row["name"].strip() for row in _rows(content, "categories", {"id": int, "name": str}, where)}
    pictures = _rows(content, "images", {"id": int, "file_name": str}, where)
    if not pictures:
        raise CorpusError(f"{where}: images is empty; expected one row per picture")
    labels: dict[int, dict[str, None]] = {row["id"]: {} for row in pictures}  # a dict keeps the order of a set
    if len(labels) < len(pictures):
        raise CorpusError(f"{where}: {len(pictures) - len(labels)} rows of images repeat an id; ids must differ")
    annotated = _rows(content, "annotations", {"image_id": int, "category_id": int}, where)
    for number, row in enumerate(annotated):
        for key, known in (("image_id", labels), ("category_id", names)):
            if row[key] not in known:
                raise CorpusError(f"{where}: annotations[{number}] has {key} {row[key]}, which the file does not list")
        labels[row["image_id"]][names[row["category_id"]]] = None
    rows = [Row(row["file_name"], tuple(labels[row["id"]])) for row in pictures]
    return Listing(rows, own_vocabulary(names.values(), where))


def _needed(value: dict) -> dict:
    """An object without outlines and the like, as soon as it is read: they are nine tenths of the memory."""
    return {key: value[key] for key in _KEYS if key in value}


def _rows(content: Any, key: str, fields: dict[str, type], where: str) -> list[dict]:
    rows = content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise CorpusError(f"{where}: no list {key!r} at the top; give a COCO instances file")
    for number, row in enumerate(rows):
        for field, kind in fields.items():
            if not isinstance(row, dict) or not isinstance(row.get(field), kind):
                raise CorpusError(f"{where}: {key}[{number}] has no {field} of type {kind.__name__}")
    return rows
