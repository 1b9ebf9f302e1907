"""MS COCO instances JSON. Labels of the annotated objects (also crowds) are present, all others absent."""

from __future__ import annotations

import json
from typing import Any

from sigrl_core.corpora.listing import ListedImage, Listing, corpus_vocabulary, require_file, require_folder
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage

_KEYS = ("images", "annotations", "categories", "id", "name", "file_name", "image_id", "category_id")


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists the `images` of the JSON in order, with `categories` as vocabulary; does not check that files exist.

    Raises:
        CorpusError: no file, not a COCO instances file, an annotation of an unknown image or category.
    """
    where = require_file("coco", annotations)
    require_folder(images)
    try:
        content = json.loads(storage.read_bytes(where), object_hook=_drop_unused_keys)
    except (ValueError, RecursionError) as error:  # the message has the line
        raise CorpusError(f"{where}: not valid JSON ({error}); give a COCO instances file") from error
    names = {row["id"]: row["name"].strip() for row in _rows(content, "categories", {"id": int, "name": str}, where)}
    entries = _rows(content, "images", {"id": int, "file_name": str}, where)
    if not entries:
        raise CorpusError(f"{where}: images is empty; expected one row per image")
    labels: dict[int, dict[str, None]] = {row["id"]: {} for row in entries}  # an ordered set
    if len(labels) < len(entries):
        raise CorpusError(f"{where}: {len(entries) - len(labels)} rows of images repeat an id; ids must differ")
    annotated = _rows(content, "annotations", {"image_id": int, "category_id": int}, where)
    for number, row in enumerate(annotated):
        for key, known in (("image_id", labels), ("category_id", names)):
            if row[key] not in known:
                raise CorpusError(f"{where}: annotations[{number}] has {key} {row[key]}, which the file does not list")
        labels[row["image_id"]][names[row["category_id"]]] = None
    listed = [ListedImage(row["file_name"], tuple(labels[row["id"]])) for row in entries]
    return Listing(listed, corpus_vocabulary(names.values(), where))


def _drop_unused_keys(value: dict) -> dict:
    """Drops outlines and other unused values while parsing; they would take nine tenths of the memory."""
    return {key: value[key] for key in _KEYS if key in value}


def _rows(content: Any, key: str, fields: dict[str, type], where: str) -> list[dict]:
    rows = content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise CorpusError(f"{where}: no list {key!r} at the top; give a COCO instances file")
    for number, row in enumerate(rows):
        for field, type_ in fields.items():
            if not isinstance(row, dict) or not isinstance(row.get(field), type_):
                raise CorpusError(f"{where}: {key}[{number}] has no {field} of type {type_.__name__}")
    return rows
