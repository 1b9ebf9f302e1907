"""YOLO: the objects of `images/train/1.jpg` are in `labels/train/1.txt`, one a line: `class x y width height`.

`--annotations` has the names of the classes: `data.yaml` (`names:`, a list or number: name), or a text file with one a
line. A picture has the labels of its objects, others are absent; without a text file it has none. The text file is
where the last folder called `images` of a picture's path is called `labels`; without such a folder it is beside the
picture.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from functools import partial
from typing import Any

import yaml

from sigrl_core import storage
from sigrl_core.corpora.ahead import ahead, files_in_flight
from sigrl_core.corpora.listing import Listing, Row, class_name, own_vocabulary, require_file, require_folder
from sigrl_core.corpora.text import names
from sigrl_core.errors import CorpusError, StorageError
from sigrl_core.images import SUFFIXES

_MOST_BYTES = 10_000_000  # of a text file of one picture, or of names


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists every picture at every depth, in the order of paths.

    Raises:
        CorpusError: no file, no pictures, no text files at all, names or a line that are not as above; says where.
    """
    where = require_file("yolo", annotations)
    require_folder(images)
    classes = _yaml_names(where) if where.lower().endswith((".yaml", ".yml")) else names(where)
    vocabulary = own_vocabulary(classes, where)
    return Listing(_rows(storage.absolute(images), classes), vocabulary)


def _yaml_names(where: str) -> list[str]:
    try:
        content: Any = yaml.safe_load(storage.read_bytes(where, _MOST_BYTES))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # says the line
        raise CorpusError(f"{where}: not valid YAML ({error}); write names: [cat, dog]") from error
    found = content.get("names") if isinstance(content, dict) else None
    if isinstance(found, dict):
        if sorted(map(str, found)) != sorted(map(str, range(len(found)))):
            raise CorpusError(f"{where}: names must be numbered from 0 without gaps")
        found = [found[number] for number in sorted(found, key=int)]
    if isinstance(found, list) and any(isinstance(name, bool) for name in found):
        raise CorpusError(
            f"{where}: a name is yes, no, on or off, which YAML takes for true or false; put it in quotes"
        )
    if not isinstance(found, list) or not found or not all(isinstance(name, str | int) for name in found):
        raise CorpusError(f"{where}: no names of classes; write names: [cat, dog] or names: with number: name below it")
    if content.get("nc", len(found)) != len(found):
        raise CorpusError(f"{where}: nc is not {len(found)}, the number of names; correct one of them")
    return [str(name).strip() for name in found]


def _rows(images: str, classes: list[str]) -> Iterator[Row]:
    files = storage.walk(images, SUFFIXES)
    any_text, text = False, ""
    for found in ahead(partial(_read, images, classes), files, files_in_flight(images)):
        file, text, labels = found
        any_text = any_text or labels is not None
        yield Row(file.path, labels or (), size=file.size)
    if not text:
        raise CorpusError(f"{images}: no image files with suffixes {', '.join(SUFFIXES)} under it; check --images")
    if not any_text:
        raise CorpusError(f"{text}: no such file, nor any other of a picture; put the folder labels beside images")


def _read(images: str, classes: list[str], file: storage.File) -> tuple[storage.File, str, tuple[str, ...] | None]:
    """The picture, where its objects are, and its labels; None where there is no such file."""
    before, folder, after = storage.join(images, file.path).rpartition("/images/")
    text = posixpath.splitext(f"{before}/labels/{after}" if folder else after)[0] + ".txt"
    try:
        data = storage.read_bytes(text, _MOST_BYTES)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return file, text, None
        raise
    labels: dict[str, None] = {}
    for number, line in enumerate(data.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) < 5 or not words[0].isdigit():
            raise CorpusError(f"{text}, line {number}: expected `class x y width height`, found {line[:80]!r}")
        labels[class_name(int(words[0]), classes, f"{text}, line {number}")] = None
    return file, text, tuple(labels)
