"""FiftyOne's export of image classification: a folder `data` with the images, and `labels.json` beside it::

    {"classes": ["cat", "dog"], "labels": {"a": 0, "b": [0, 1], "c": null}}

A label is a number of `classes`, or a text; `classes` may be null. `a` is the file `data/a.jpg` without its ending.
Other labels are absent; with null, all labels are unknown. `--images` is the folder that contains `data`, or `data`
itself.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

from sigrl_core.corpora.json_files import read_document, require_list, require_text, show, unique_names
from sigrl_core.corpora.listing import (
    ListedImage,
    Listing,
    class_name,
    corpus_vocabulary,
    require_annotations,
    require_file,
    require_folder,
)
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage

_FORM = 'labels.json of FiftyOne\'s image classification, {"classes": [...], "labels": {"a": 0}}'


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists the entries of `labels` in order; `labels.json` in the folder of images is the default of annotations.

    Raises:
        CorpusError: no file, not such an export, an entry without an image or with an unknown class.
    """
    require_folder(images)
    where = storage.join(images, "labels.json") if annotations is None else annotations
    require_annotations("fiftyone", where)
    require_file("fiftyone", where)
    content = read_document(where, _FORM)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict) or not labels:
        raise CorpusError(f"{where}: no object labels with entries; give {_FORM}")
    classes = None
    if content.get("classes") is not None:
        names = require_list(content["classes"], f"{where}: classes", "a list of names")
        classes = [require_text(name, f"{where}: classes") for name in names]
    vocabulary = None if classes is None else corpus_vocabulary(classes, where)
    return Listing(_list_images(images, where, labels, classes), vocabulary)


def _list_images(images: str, where: str, labels: dict, classes: list[str] | None) -> Iterator[ListedImage]:
    folder = "data" if storage.is_folder(storage.join(images, "data")) else ""
    files: dict[str, set[str]] = {}  # name with and without its ending -> paths below `images`
    for file in storage.walk(storage.join(images, folder) if folder else images):
        for name in (file.path, posixpath.splitext(file.path)[0]):
            files.setdefault(name, set()).add(posixpath.join(folder, file.path))
    for name, target in labels.items():
        position = f"{where}: labels of {name[:200]!r}"
        paths = files.get(name, set())
        if len(paths) != 1:
            expected = f"expected one in {storage.join(images, folder)}; check --images"
            raise CorpusError(f"{position}: {len(paths)} images of that name, {expected}")
        yield ListedImage(next(iter(paths)), _parse_target(target, classes, position))


def _parse_target(target: Any, classes: list[str] | None, where: str) -> tuple[str, ...] | None:
    if target is None:
        return None
    return unique_names(_name(item, classes, where) for item in (target if isinstance(target, list) else [target]))


def _name(item: Any, classes: list[str] | None, where: str) -> str:
    value = item.get("label") if isinstance(item, dict) else item
    if isinstance(value, int) and not isinstance(value, bool) and classes is not None:
        return class_name(value, classes, where)
    if not isinstance(value, str):
        raise CorpusError(f"{where}: expected a class, found {show(item)}")
    return require_text(value, where)
