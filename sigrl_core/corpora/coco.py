"""COCO's JSON of instances, also compressed by gzip. Labels of annotated objects, also crowds, are present.

All other labels of an image are absent, except in LVIS: an image with `neg_category_ids` has only these as absent
labels. The others are unknown, also those of `not_exhaustive_category_ids`. LVIS 1 names its images by `coco_url`; the
uri is then the URL's last folder and name, or only the name if `--images` has the name of that folder.

Exports of other tools are read as well: ids that are texts, several categories of one name (one label), backslashes
between folders. A category that only groups others is left out: Roboflow writes one with the number 0, which no
annotation has, whose supercategory is "none" and whose name is the supercategory of other categories.
"""

from __future__ import annotations

import json
import posixpath
import sys
from collections import Counter
from collections.abc import Collection
from typing import Any

from sigrl_core.corpora.compressed import open_decompressed
from sigrl_core.corpora.listing import ListedImage, Listing, corpus_vocabulary, require_file, require_folder
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage

_KEYS = (
    *("images", "annotations", "categories", "id", "name", "file_name", "image_id", "category_id"),
    *("supercategory", "neg_category_ids", "coco_url"),
)
_ID = (int, str)


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists the `images` of the JSON in order, with `categories` as vocabulary; does not check that files exist.

    Raises:
        CorpusError: no file, not a COCO instances file, a category id with two names, an annotation of an unknown image
            or category.
    """
    where = require_file("coco", annotations)
    require_folder(images)
    content = _read_json(where)
    categories = _rows(content, "categories", {"id": _ID, "name": str}, where)
    entries = _rows(content, "images", {"id": _ID}, where)
    if not entries:
        raise CorpusError(f"{where}: images is empty; expected one row per image")
    names = _category_names(categories, where)
    labels: dict[str, dict[str, None]] = {str(row["id"]): {} for row in entries}  # an ordered set
    if len(labels) < len(entries):
        raise CorpusError(f"{where}: {len(entries) - len(labels)} rows of images repeat an id; ids must differ")
    used = set()
    for number, row in enumerate(_rows(content, "annotations", {"image_id": _ID, "category_id": _ID}, where)):
        for key, known in (("image_id", labels), ("category_id", names)):
            if str(row[key]) not in known:
                raise CorpusError(f"{where}: annotations[{number}] has {key} {row[key]}, which the file does not list")
        used.add(str(row["category_id"]))
        labels[str(row["image_id"])][names[str(row["category_id"])]] = None
    _drop_groups(names, categories, used, where)
    backslashes = _Backslashes(images)
    listed = [
        ListedImage(
            backslashes.replace(_uri(row, number, images, where)),
            tuple(labels[str(row["id"])]),
            _negatives(row, labels[str(row["id"])], names, f"{where}: images[{number}]"),
        )
        for number, row in enumerate(entries)
    ]
    return Listing(listed, corpus_vocabulary(dict.fromkeys(names.values()), where))


def _read_json(where: str) -> Any:
    try:
        with open_decompressed(where) as file:
            return json.loads(file.read(), object_hook=_drop_unused_keys)
    except (ValueError, RecursionError) as error:  # the message has the line
        raise CorpusError(f"{where}: not valid JSON ({error}); give a COCO instances file") from error


def _drop_unused_keys(value: dict) -> dict:
    """Drops outlines and other unused values while parsing; they would take nine tenths of the memory."""
    return {key: value[key] for key in _KEYS if key in value and (key != "coco_url" or "file_name" not in value)}


def _rows(content: Any, key: str, fields: dict[str, type | tuple[type, ...]], where: str) -> list[dict]:
    rows = content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise CorpusError(f"{where}: no list {key!r} at the top; give a COCO instances file")
    for number, row in enumerate(rows):
        for field, type_ in fields.items():
            if not isinstance(row, dict) or not isinstance(row.get(field), type_):
                expected = "number or text" if type_ == _ID else "text"
                raise CorpusError(f"{where}: {key}[{number}] has no {field} ({expected})")
    return rows


def _category_names(categories: list[dict], where: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for number, row in enumerate(categories):
        name = row["name"].strip()
        if (earlier := names.setdefault(str(row["id"]), name)) != name:
            raise CorpusError(
                f"{where}: categories[{number}] gives id {row['id']} the name {name!r}, but an earlier row gives it "
                f"{earlier!r}; give each category an id of its own"
            )
    return names


def _drop_groups(names: dict[str, str], categories: list[dict], used: Collection[str], where: str) -> None:
    """Removes the categories that only group others."""
    groups = Counter(row.get("supercategory") for row in categories)
    for row in categories:
        key, name = str(row["id"]), row["name"].strip()
        num_others = groups[row["name"]] - (row.get("supercategory") == row["name"])
        is_top = str(row.get("supercategory")).lower() == "none" and num_others > 0
        if is_top and key not in used and names.pop(key, None) is not None:
            print(
                f"{where}: category {key} {name!r} is left out: it groups other categories, and no annotation has it",
                file=sys.stderr,
            )


def _uri(row: dict, number: int, images: str, where: str) -> str:
    if isinstance(row.get("file_name"), str):
        return row["file_name"]
    if not isinstance(row.get("coco_url"), str) or not row["coco_url"]:
        raise CorpusError(f"{where}: images[{number}] has no file_name (text), nor coco_url")
    folder, name = row["coco_url"].rpartition("/")[::2]
    folder = posixpath.basename(folder)
    return name if posixpath.basename(images.rstrip("/")) == folder else f"{folder}/{name}"


def _negatives(row: dict, present: Collection[str], names: dict[str, str], where: str) -> tuple[str, ...] | None:
    if (numbers := row.get("neg_category_ids")) is None:
        return None
    if not isinstance(numbers, list) or not all(isinstance(number, _ID) for number in numbers):
        raise CorpusError(f"{where}: neg_category_ids must be a list of category ids")
    for number in numbers:
        if str(number) not in names:
            raise CorpusError(f"{where} has the category {number} in neg_category_ids, which the file does not list")
    return tuple(dict.fromkeys(names[str(number)] for number in numbers))


class _Backslashes:
    """Replaces `\\` in paths by `/`, unless the first such path is the name of a file."""

    def __init__(self, images: str) -> None:
        self._images = images
        self._is_separator: bool | None = None

    def replace(self, uri: str) -> str:
        if "\\" not in uri:
            return uri
        if self._is_separator is None:
            self._is_separator = not storage.exists(storage.resolve(self._images, uri))
        return uri.replace("\\", "/") if self._is_separator else uri
