"""Open Images: labels of pictures that people checked, `train-annotations-human-imagelabels.csv`::

    ImageID,Source,LabelName,Confidence
    000002b66c9c498e,verification,/m/012mj,1

Confidence 1 is present, 0 absent, and everything else unknown; so is a label on which two lines of a picture disagree.
Pictures are `000002b66c9c498e.jpg` below `--images`. Names come from `class-descriptions.csv`, in the file's folder or
the one above; two labels of one name get theirs with the code: `Bat (/m/01h44)`.

Where `classes-trainable.txt` (codes, one a line) lies beside the names, labels are these, seen, and those of
`classes-unseen.txt` if that is there too; other lines are left out. Without it all are labels, and seen.
"""

from __future__ import annotations

import posixpath
from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import groupby

import numpy as np

from sigrl_core import storage
from sigrl_core.corpora.listing import Listing, Row, first_there, own_vocabulary, require_file, require_folder
from sigrl_core.corpora.text import lines, records
from sigrl_core.errors import CorpusError

_COLUMNS = ["ImageID", "Source", "LabelName", "Confidence"]
_DESCRIPTIONS = tuple(f"{prefix}class-descriptions.csv" for prefix in ("", "oidv6-", "oidv7-"))


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists every picture with a line, in the order of the file, whether its file is there or not.

    Raises:
        CorpusError: a file is missing; a line with other columns, an unknown label, or of a picture listed before.
    """
    where = storage.absolute(require_file("open_images", annotations))
    require_folder(images)
    folder = posixpath.dirname(where)
    places = (folder, posixpath.dirname(folder))
    named = first_there(*(storage.join(place, name) for place in places for name in _DESCRIPTIONS))
    names = _names(named)
    trainable, asked = (
        storage.join(posixpath.dirname(named), f"classes-{kind}.txt") for kind in ("trainable", "unseen")
    )
    seen, unseen = list(names), []
    if storage.exists(trainable):
        seen = _codes(trainable, names)
        unseen = _codes(asked, names) if storage.exists(asked) else []
    kept = {code: names[code] for code in (*seen, *unseen)}
    vocabulary = own_vocabulary((names[code] for code in seen), trainable, (names[code] for code in unseen))
    return Listing(_rows(where, kept, set(names)), vocabulary)


def _names(where: str) -> dict[str, str]:
    """Code -> name, each once."""
    names: dict[str, str] = {}
    for line, record in records(where):
        if len(record) != 2 or not all(record):
            raise CorpusError(f"{where}, line {line}: expected a label's code and its name, found {record}"[:300])
        if record != ["LabelName", "DisplayName"]:  # later versions have this header
            names[record[0]] = record[1].strip()
    counts = Counter(names.values())
    return {code: name if counts[name] == 1 else f"{name} ({code})" for code, name in names.items()}


def _codes(where: str, names: dict[str, str]) -> list[str]:
    codes = []
    for line, code in lines(where):
        if code not in names:
            raise CorpusError(f"{where}, line {line}: {code!r} is not in the class descriptions")
        codes.append(code)
    return codes


def _rows(where: str, kept: dict[str, str], known: set[str]) -> Iterator[Row]:
    pictures, starts = array("q"), array("q")  # of every picture 16 bytes, to find one that is listed in two places
    for image, group in groupby(_lines(where, known), key=lambda found: found[1]):
        states: dict[str, set[bool]] = {}
        first = 0
        for line, _, code, present in group:
            first = first or line
            states.setdefault(code, set()).add(present)
        pictures.append(hash(image))
        starts.append(first)
        told = {kept[code]: states[code] for code in states if code in kept}
        present, absent = (tuple(name for name, state in told.items() if state == {value}) for value in (True, False))
        yield Row(f"{image}.jpg", present, absent)
    if not len(pictures):
        raise CorpusError(f"{where}: no lines after the header; give a file of image labels")
    _refuse_repeated(where, np.asarray(pictures), np.asarray(starts))


def _refuse_repeated(where: str, pictures: np.ndarray, starts: np.ndarray) -> None:
    order = np.argsort(pictures, kind="stable")
    again = order[1:][pictures[order][1:] == pictures[order][:-1]]
    if len(again):
        raise CorpusError(f"{where}, line {starts[again.min()]}: a picture that was listed before; sort by ImageID")


def _lines(where: str, known: set[str]) -> Iterator[tuple[int, str, str, bool]]:
    header = True
    for line, record in records(where):
        if header:
            if record != _COLUMNS:
                raise CorpusError(f"{where}, line {line}: expected {','.join(_COLUMNS)}, found {','.join(record)[:80]}")
            header = False
            continue
        if len(record) != len(_COLUMNS):
            raise CorpusError(f"{where}, line {line}: {len(record)} fields, expected {','.join(_COLUMNS)}")
        image, _, code, confidence = record
        if confidence not in ("0", "1", "0.0", "1.0"):
            raise CorpusError(
                f"{where}, line {line}: Confidence {confidence!r}, expected 0 or 1; give a file of human-imagelabels, "
                "which people checked"
            )
        if code not in known:
            raise CorpusError(f"{where}, line {line}: LabelName {code!r} is not in the class descriptions")
        yield line, image, code, confidence[0] == "1"
