"""What every corpus becomes: rows in a fixed order, and their label states."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from sigrl_core import storage
from sigrl_core.config import LabelStates
from sigrl_core.errors import CorpusError, StorageError, VocabularyError
from sigrl_core.records import ABSENT, PRESENT, UNKNOWN
from sigrl_core.vocabulary import Vocabulary


class Row(NamedTuple):
    """One picture of a corpus.

    Attributes:
        uri: as the corpus writes it; below the corpus's folder of pictures unless absolute.
        labels: those present; None says that nobody annotated this picture.
        negatives: those absent, where the corpus tells; None says that what is not in `labels` is absent.
    """

    uri: str
    labels: tuple[str, ...] | None
    negatives: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Listing:
    """All pictures of a corpus, in its order, and the corpus's own labels, in its order."""

    rows: list[Row]
    vocabulary: Vocabulary


def label_states(rows: Sequence[Row], vocabulary: Vocabulary, annotated: Literal["all", "seen"] = "all") -> np.ndarray:
    """Labels of N rows as int8 [N, C], in vocabulary order: PRESENT, ABSENT or UNKNOWN.

    Args:
        annotated: the labels that were looked for in every annotated picture.

    Raises:
        CorpusError: a label that the vocabulary does not have, or one both present and absent.
    """
    not_listed_C = np.full(len(vocabulary), ABSENT, dtype=np.int8)
    if annotated == "seen":
        not_listed_C[vocabulary.positions("unseen")] = UNKNOWN
    index = vocabulary.index
    states_NC = np.full((len(rows), len(vocabulary)), UNKNOWN, dtype=np.int8)
    for row, states_C in zip(rows, states_NC, strict=True):
        labels, negatives = row.labels or (), row.negatives or ()
        if row.labels is not None and row.negatives is None:
            states_C[:] = not_listed_C
        if both := set(labels) & set(negatives):
            raise CorpusError(f"{row.uri}: label {min(both)!r} is both in labels and in negatives; keep one")
        for names, state in ((negatives, ABSENT), (labels, PRESENT)):
            for name in names:
                if name not in index:
                    raise CorpusError(f"{row.uri}: label {name!r} is not in the vocabulary{_nearest(name, index)}")
                states_C[index[name]] = state
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


def own_vocabulary(names: Iterable[str], where: str) -> Vocabulary:
    """The labels a corpus brings; raises CorpusError when they are no label list."""
    try:
        return Vocabulary.of(names)
    except VocabularyError as error:
        raise CorpusError(f"{where}: {error}") from error


def read_annotations(corpus: str, annotations: str | None) -> bytes:
    """The bytes of an annotation file that this corpus cannot do without."""
    if annotations is None:
        raise CorpusError(f"corpus {corpus}: needs an annotation file, none given; add --annotations FILE")
    try:
        return storage.read_bytes(annotations)
    except StorageError as error:
        raise CorpusError(f"corpus {corpus}: annotations {error}") from error


def require_folder(images: str) -> None:
    if not storage.exists(images):
        raise CorpusError(f"{images}: no such folder of pictures; check --images")
    if not storage.is_folder(images):
        raise CorpusError(f"{images}: a file, expected the folder of the pictures; check --images")


def _nearest(name: str, index: dict[str, int]) -> str:
    nearest = difflib.get_close_matches(name, index, n=1)
    return (
        f"; did you mean {nearest[0]!r}?" if nearest else f" of {len(index)} labels; add it there or leave it out here"
    )
