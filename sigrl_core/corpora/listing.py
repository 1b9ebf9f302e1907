"""What every corpus becomes: rows in a fixed order, and their label states."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from sigrl_core import storage
from sigrl_core.config import LabelStates
from sigrl_core.errors import CorpusError, VocabularyError
from sigrl_core.records import ABSENT, PRESENT, UNKNOWN
from sigrl_core.vocabulary import Vocabulary

_COLUMNS = ("uri", "labels", "negatives")


class Row(NamedTuple):
    """One picture of a corpus.

    Attributes:
        uri: as the corpus writes it; below the corpus's folder of pictures unless absolute. One inside a container (a
            tar, a Parquet file) is `container#name`.
        labels: those present; None says that nobody annotated this picture.
        negatives: those absent, where the corpus tells; None says that what is not in `labels` is absent.
        size: bytes of the picture, where the corpus knows without opening it.
        offset: where a container holds it: the byte it starts at in a tar, its row in a Parquet file.
        etag: of the file or of its container, what changes when its content does; None where nobody looked.
    """

    uri: str
    labels: tuple[str, ...] | None
    negatives: tuple[str, ...] | None = None
    size: int | None = None
    offset: int | None = None
    etag: str | None = None


@dataclass(frozen=True)
class Listing:
    """All pictures of a corpus.

    Attributes:
        rows: in the corpus's order; read once, as they are found, so that millions need no memory.
        vocabulary: the corpus's own labels, in its order; None for those that rows mention, in alphabetical order.
    """

    rows: Iterable[Row]
    vocabulary: Vocabulary | None = None


def label_states(rows: Sequence[Row], vocabulary: Vocabulary, annotated: Literal["all", "seen"] = "all") -> np.ndarray:
    """Labels of N rows, all of the vocabulary, as int8 [N, C] in its order: PRESENT, ABSENT or UNKNOWN.

    Args:
        annotated: the labels that were looked for in every annotated picture.
    """
    not_listed_C = np.full(len(vocabulary), ABSENT, dtype=np.int8)
    if annotated == "seen":
        not_listed_C[vocabulary.positions("unseen")] = UNKNOWN
    index = vocabulary.index
    states_NC = np.full((len(rows), len(vocabulary)), UNKNOWN, dtype=np.int8)
    for row, states_C in zip(rows, states_NC, strict=True):
        if row.labels is not None and row.negatives is None:
            states_C[:] = not_listed_C
        states_C[[index[name] for name in row.negatives or ()]] = ABSENT
        states_C[[index[name] for name in row.labels or ()]] = PRESENT
    return states_NC


def told(states_C: np.ndarray, labels: LabelStates, sha256: str, seed: int) -> np.ndarray:
    """Of a picture's label states, those that training is told; a function of its content and the seed.

    `single-positive` draws one of the labels present with equal chance, as Cole et al. 2021 (arXiv 2106.09708).
    """
    if labels == "full":
        return states_C
    positives = np.flatnonzero(states_C == PRESENT)
    if labels == "single-positive" and len(positives):
        drawn = np.random.default_rng([seed, int(sha256[:16], 16)]).integers(len(positives))
        positives = positives[drawn : drawn + 1]
    told_C = np.full_like(states_C, UNKNOWN)
    told_C[positives] = PRESENT
    return told_C


def own_vocabulary(names: Iterable[str], where: str, unseen: Iterable[str] = ()) -> Vocabulary:
    """The labels that a corpus lists; raises CorpusError when they are no label list."""
    try:
        return Vocabulary(Vocabulary.of(names).labels + Vocabulary.of(unseen, "unseen").labels)
    except VocabularyError as error:
        raise CorpusError(f"{where}: {error}") from error


def require_annotations(corpus: str, annotations: str | None) -> str:
    """The location of an annotation file, or folder, that this corpus cannot do without."""
    if annotations is None:
        raise CorpusError(f"corpus {corpus}: needs an annotation file, none given; add --annotations FILE")
    if not storage.exists(annotations):
        raise CorpusError(f"corpus {corpus}: annotations {annotations}: no such file or folder; check the path")
    return annotations


def require_none(corpus: str, annotations: str | None) -> None:
    """For a corpus that takes no annotations."""
    if annotations is not None:
        raise CorpusError(f"corpus {corpus}: takes no annotations, found {annotations}; leave --annotations out")


def require_file(corpus: str, annotations: str | None) -> str:
    """The same, where it must be a file."""
    location = require_annotations(corpus, annotations)
    if storage.is_folder(location):
        raise CorpusError(f"corpus {corpus}: annotations {annotations}: a folder, expected a file; name one in it")
    return location


def first_there(*locations: str) -> str:
    """The first of the places where a published corpus may have a file; raises CorpusError where it has none."""
    for location in locations:
        if storage.exists(location):
            return location
    raise CorpusError(f"{locations[0]}: no such file; unpack the corpus as it is published")


def class_name(number: int, classes: Sequence[str] | None, where: str) -> str:
    """The name of a class told by its number; the number itself where classes have no names."""
    if classes is None:
        return str(number)
    if not 0 <= number < len(classes):
        raise CorpusError(f"{where}: class {number}, but there are {len(classes)} names; correct one of them")
    return classes[number]


def known_columns(found: Sequence[str], where: str) -> list[str]:
    """Those of `uri`, `labels` and `negatives` that a table has; it may have others, but none that looks like a slip.

    Raises:
        CorpusError: no `uri`, one of them twice, or a column that is nearly one of them.
    """
    if "uri" not in found:
        raise CorpusError(f"{where}: no column 'uri'; found {', '.join(map(repr, found[:10]))}")
    for name in found:
        meant = difflib.get_close_matches(name.lower(), _COLUMNS, n=1, cutoff=0.75)
        if name not in _COLUMNS and meant and meant[0] not in found:
            raise CorpusError(f"{where}: unknown column {name!r}; did you mean {meant[0]!r}?")
    for name in _COLUMNS:
        if found.count(name) > 1:
            raise CorpusError(f"{where}: column {name!r} twice; keep one")
    return [name for name in _COLUMNS if name in found]


def require_folder(images: str) -> None:
    if storage.is_folder(images):
        return
    if storage.exists(images):
        raise CorpusError(f"{images}: a file, expected the folder of the pictures; check --images")
    raise CorpusError(f"{images}: no such folder of pictures; check --images")
