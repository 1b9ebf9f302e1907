"""YOLO. The objects of `images/train/1.jpg` are in `labels/train/1.txt`, one per line: `class x y width height`.

`--annotations` has the class names: `data.yaml` (`names:`, a list or number: name), or a text file with one per line.
Labels of an image's objects are present, all others absent; an image without text file has no labels. The path of the
text file is the image's path with the last folder `images` replaced by `labels`; without such a folder, the text file
is beside the image.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import yaml

from sigrl_core.corpora.image_walk import walk_images
from sigrl_core.corpora.listing import ListedImage, Listing, class_name, corpus_vocabulary, require_file, require_folder
from sigrl_core.corpora.text import read_names
from sigrl_core.data.images import SUFFIXES
from sigrl_core.errors import CorpusError, StorageError
from sigrl_core.io import storage
from sigrl_core.io.prefetch import files_in_flight, prefetch_map

_MAX_BYTES = 10_000_000  # of a text file of an image, or of class names


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists all images at all depths, in the order of paths.

    Raises:
        CorpusError: no file, no images, no text files, malformed class names, or a malformed line; the message has the
            file and line.
    """
    where = require_file("yolo", annotations)
    require_folder(images)
    classes = _read_yaml_names(where) if where.lower().endswith((".yaml", ".yml")) else read_names(where)
    vocabulary = corpus_vocabulary(classes, where)
    left_out = Counter[str]()
    return Listing(_list_images(storage.absolute(images), classes, left_out), vocabulary, left_out)


def _read_yaml_names(where: str) -> list[str]:
    try:
        content: Any = yaml.safe_load(storage.read_bytes(where, _MAX_BYTES))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the message has the line
        raise CorpusError(f"{where}: not valid YAML ({error}); write names: [cat, dog]") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
            raise CorpusError(f"{where}: names must be numbered from 0 without gaps")
        names = [names[number] for number in sorted(names, key=int)]
    if isinstance(names, list) and any(isinstance(name, bool) for name in names):
        raise CorpusError(f"{where}: a name is yes, no, on or off, which YAML reads as true or false; put it in quotes")
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
        raise CorpusError(f"{where}: no class names; write names: [cat, dog] or names: with number: name below it")
    if content.get("nc", len(names)) != len(names):
        raise CorpusError(f"{where}: nc is not {len(names)}, the number of names; correct one of them")
    # PyYAML leaves a character that JSON escapes as two code units in two halves
    return [str(name).encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip() for name in names]


def _list_images(images: str, classes: list[str], left_out: Counter[str]) -> Iterator[ListedImage]:
    files = walk_images(images, left_out, annotations=(".txt", ".yaml", ".yml"))
    any_text, text = False, ""
    read = partial(_read_labels, images, classes)
    for file, text, labels in prefetch_map(read, files, files_in_flight(images)):  # noqa: B007
        any_text = any_text or labels is not None
        yield ListedImage(file.path, labels or (), size=file.size)
    if not text:
        raise CorpusError(f"{images}: no image files with suffixes {', '.join(SUFFIXES)} under it; check --images")
    if not any_text:
        raise CorpusError(
            f"{text}: no such file, and no text file of another image; put the folder labels beside images"
        )


def _read_labels(
    images: str, classes: list[str], file: storage.File
) -> tuple[storage.File, str, tuple[str, ...] | None]:
    """Returns the image, the location of its text file, and its labels; None if there is no text file."""
    before, folder, after = storage.join(images, file.path).rpartition("/images/")
    text = posixpath.splitext(f"{before}/labels/{after}" if folder else after)[0] + ".txt"
    try:
        data = storage.read_bytes(text, _MAX_BYTES)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return file, text, None
        raise
    labels: dict[str, None] = {}
    for number, line in enumerate(data.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) < 5 or (class_ := _parse_class(words[0])) is None:
            raise CorpusError(f"{text}, line {number}: expected `class x y width height`, found {line[:80]!r}")
        labels[class_name(class_, classes, f"{text}, line {number}")] = None
    return file, text, tuple(labels)


def _parse_class(word: bytes) -> int | None:
    """Returns a class number, which some programs write as `1.000000e+00`; None for other text."""
    if word.isdigit():
        return int(word)
    try:
        number = float(word)
    except ValueError:
        return None
    return int(number) if number.is_integer() and number >= 0 else None
