"""Open Images: image labels verified by humans, `train-annotations-human-imagelabels.csv`::

    ImageID,Source,LabelName,Confidence
    000002b66c9c498e,verification,/m/012mj,1

Columns for boxes are ignored, so that `train-annotations-bbox.csv` is read as well; its labels are all present.
Confidence 1 means present, 0 absent. All other labels are unknown, also one for which two lines of an image disagree.
Images are `000002b66c9c498e.jpg` below `--images`. Names come from `class-descriptions.csv`, else from
`class-descriptions-boxable.csv`, in the folder of the file or its parent; names of several labels are followed by the
code: `Bat (/m/01h44)`.

With a file `classes-trainable.txt` (codes, one per line) beside `class-descriptions.csv`, the vocabulary consists of
its labels, which are seen, and of those of `classes-unseen.txt`, if it exists; lines of other labels are ignored.
Without it, all labels are in the vocabulary and seen. The names of all these files may start with `oidv6-` or `oidv7-`.
"""

from __future__ import annotations

import posixpath
from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import groupby

import numpy as np

from sigrl_core.corpora.listing import (
    ListedImage,
    Listing,
    corpus_vocabulary,
    first_existing,
    require_file,
    require_folder,
)
from sigrl_core.corpora.text import read_lines, read_records
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage

_COLUMNS = ["ImageID", "Source", "LabelName", "Confidence"]
_PREFIXES = ("", "oidv6-", "oidv7-")
_DESCRIPTIONS = tuple(f"{prefix}class-descriptions{ending}.csv" for ending in ("", "-boxable") for prefix in _PREFIXES)


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists all images that have a line, in the order of the file; does not check that image files exist.

    Raises:
        CorpusError: a file is missing; a line has other columns or an unknown label, or repeats an earlier image.
    """
    where = storage.absolute(require_file("open_images", annotations))
    require_folder(images)
    folder = posixpath.dirname(where)
    folders = (folder, posixpath.dirname(folder))
    descriptions = first_existing(*(storage.join(parent, name) for parent in folders for name in _DESCRIPTIONS))
    names = _read_names(descriptions)
    trainable, untrained = (_find_codes(posixpath.dirname(descriptions), group) for group in ("trainable", "unseen"))
    seen, unseen = list(names), []
    if trainable is not None:
        seen = _read_codes(trainable, names)
        unseen = [] if untrained is None else _read_codes(untrained, names)
    kept = {code: names[code] for code in (*seen, *unseen)}
    vocabulary = corpus_vocabulary(
        (names[code] for code in seen), trainable or descriptions, (names[code] for code in unseen)
    )
    return Listing(_list_images(where, kept, set(names)), vocabulary)


def _read_names(where: str) -> dict[str, str]:
    """Returns unique names by code."""
    names: dict[str, str] = {}
    for line, record in read_records(where):
        if len(record) != 2 or not all(record):
            raise CorpusError(f"{where}, line {line}: expected a label's code and its name, found {record}"[:300])
        if record != ["LabelName", "DisplayName"]:  # later versions have this header
            names[record[0]] = record[1].strip()
    counts = Counter(names.values())
    return {code: name if counts[name] == 1 else f"{name} ({code})" for code, name in names.items()}


def _find_codes(folder: str, group: str) -> str | None:
    locations = (storage.join(folder, f"{prefix}classes-{group}.txt") for prefix in _PREFIXES)
    return next(filter(storage.exists, locations), None)


def _read_codes(where: str, names: dict[str, str]) -> list[str]:
    codes = []
    for line, code in read_lines(where):
        if code not in names:
            raise CorpusError(f"{where}, line {line}: {code!r} is not in the class descriptions")
        codes.append(code)
    return codes


def _list_images(where: str, kept: dict[str, str], known: set[str]) -> Iterator[ListedImage]:
    images, starts = array("q"), array("q")  # 16 bytes per image, to find repeated images
    for image, group in groupby(_read_image_labels(where, known), key=lambda line: line[1]):
        states: dict[str, set[bool]] = {}
        first = 0
        for line, _, code, present in group:
            first = first or line
            states.setdefault(code, set()).add(present)
        images.append(hash(image))
        starts.append(first)
        labels = {kept[code]: states[code] for code in states if code in kept}
        present, absent = (tuple(name for name, state in labels.items() if state == {value}) for value in (True, False))
        yield ListedImage(f"{image}.jpg", present, absent)
    if not len(images):
        raise CorpusError(f"{where}: no lines after the header; give a file of image labels")
    _check_unique(where, np.asarray(images), np.asarray(starts))


def _check_unique(where: str, images: np.ndarray, starts: np.ndarray) -> None:
    order = np.argsort(images, kind="stable")
    repeated = order[1:][images[order][1:] == images[order][:-1]]
    if len(repeated):
        raise CorpusError(
            f"{where}, line {starts[repeated.min()]}: repeats an image that is listed before; sort by ImageID"
        )


def _read_image_labels(where: str, known: set[str]) -> Iterator[tuple[int, str, str, bool]]:
    header, positions = list[str](), list[int]()
    for line, record in read_records(where):
        if not header:
            header = record
            if not set(_COLUMNS) <= set(header):
                raise CorpusError(f"{where}, line {line}: expected {','.join(_COLUMNS)}, found {','.join(record)[:80]}")
            positions = [header.index(name) for name in _COLUMNS]
            continue
        if len(record) != len(header):
            raise CorpusError(f"{where}, line {line}: {len(record)} fields, expected {','.join(header)}")
        image, _, code, confidence = (record[position] for position in positions)
        if confidence not in ("0", "1", "0.0", "1.0"):
            raise CorpusError(
                f"{where}, line {line}: Confidence {confidence!r}, expected 0 or 1; give a file of human-imagelabels"
            )
        if code not in known:
            raise CorpusError(f"{where}, line {line}: LabelName {code!r} is not in the class descriptions")
        yield line, image, code, confidence[0] == "1"
