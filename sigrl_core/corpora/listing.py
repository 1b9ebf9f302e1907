"""The listing that every corpus returns: images in a fixed order, with their labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from sigrl_core.config import LabelPolicy
from sigrl_core.data.label_states import ABSENT, PRESENT, UNKNOWN
from sigrl_core.errors import CorpusError, VocabularyError
from sigrl_core.io import storage
from sigrl_core.labels.vocabulary import Vocabulary


class ListedImage(NamedTuple):
    """One image of a corpus.

    Attributes:
        uri: location as the corpus writes it; relative ones are below the folder of images. An image in a container (a
            tar, a Parquet file) is `container#name`.
        labels: labels that are present; None for an image that is not annotated.
        negatives: labels that are absent, all others being unknown; None if all labels outside `labels` are absent.
        size: size in bytes, if the corpus has it without opening the image.
        offset: position in a container: the first byte in a tar, the row in a Parquet file.
        etag: a text that changes with the content of the file or container, if the corpus has it.
    """

    uri: str
    labels: tuple[str, ...] | None
    negatives: tuple[str, ...] | None = None
    size: int | None = None
    offset: int | None = None
    etag: str | None = None


@dataclass(frozen=True)
class Listing:
    """All images of a corpus.

    Attributes:
        images: images in the corpus's order; can be iterated once, and is not held in memory.
        vocabulary: the corpus's own labels, in its order; None for the labels of the images, in alphabetical order.
    """

    images: Iterable[ListedImage]
    vocabulary: Vocabulary | None = None


def label_states(
    images: Sequence[ListedImage], vocabulary: Vocabulary, annotated: Literal["all", "seen"] = "all"
) -> np.ndarray:
    """Returns the label states of N images as int8 [N, C]: PRESENT, ABSENT or UNKNOWN.

    Args:
        vocabulary: contains all labels of the images.
        annotated: the labels that annotators looked for in every annotated image.
    """
    not_listed_C = np.full(len(vocabulary), ABSENT, dtype=np.int8)
    if annotated == "seen":
        not_listed_C[vocabulary.positions("unseen")] = UNKNOWN
    index = vocabulary.index
    states_NC = np.full((len(images), len(vocabulary)), UNKNOWN, dtype=np.int8)
    for image, states_C in zip(images, states_NC, strict=True):
        if image.labels is not None and image.negatives is None:
            states_C[:] = not_listed_C
        states_C[[index[name] for name in image.negatives or ()]] = ABSENT
        states_C[[index[name] for name in image.labels or ()]] = PRESENT
    return states_NC


def apply_label_policy(states_C: np.ndarray, policy: LabelPolicy, sha256: str, seed: int) -> np.ndarray:
    """Returns the label states of an image that training uses; the others are unknown.

    `single-positive` keeps one present label, chosen uniformly at random as in Cole et al. 2021 (arXiv 2106.09708). The
    choice depends on the image's hash and the seed.
    """
    if policy == "full":
        return states_C
    positives = np.flatnonzero(states_C == PRESENT)
    if policy == "single-positive" and len(positives):
        choice = np.random.default_rng([seed, int(sha256[:16], 16)]).integers(len(positives))
        positives = positives[choice : choice + 1]
    kept_C = np.full_like(states_C, UNKNOWN)
    kept_C[positives] = PRESENT
    return kept_C


def corpus_vocabulary(names: Iterable[str], where: str, unseen: Iterable[str] = ()) -> Vocabulary:
    """Makes a vocabulary of a corpus's own labels; raises CorpusError for empty or repeated names."""
    try:
        return Vocabulary(Vocabulary.from_names(names).labels + Vocabulary.from_names(unseen, "unseen").labels)
    except VocabularyError as error:
        raise CorpusError(f"{where}: {error}") from error


def require_annotations(corpus: str, annotations: str | None) -> str:
    """Returns the location of the annotation file or folder; raises CorpusError if it is missing."""
    if annotations is None:
        raise CorpusError(f"corpus {corpus}: needs an annotation file, none given; add --annotations FILE")
    if not storage.exists(annotations):
        raise CorpusError(f"corpus {corpus}: annotations {annotations}: no such file or folder; check the path")
    return annotations


def require_none(corpus: str, annotations: str | None) -> None:
    """Raises CorpusError if annotations are given to a corpus that takes none."""
    if annotations is not None:
        raise CorpusError(f"corpus {corpus}: takes no annotations, found {annotations}; leave --annotations out")


def require_file(corpus: str, annotations: str | None) -> str:
    """Returns the location of the annotation file; raises CorpusError if it is missing or a folder."""
    location = require_annotations(corpus, annotations)
    if storage.is_folder(location):
        raise CorpusError(f"corpus {corpus}: annotations {annotations}: a folder, expected a file; name one in it")
    return location


def first_existing(*locations: str) -> str:
    """Returns the first of these locations that exists; raises CorpusError if there is none."""
    for location in locations:
        if storage.exists(location):
            return location
    raise CorpusError(f"{locations[0]}: no such file; unpack the corpus as it is published")


def class_name(number: int, classes: Sequence[str] | None, where: str) -> str:
    """Returns the name of a class by its number; the number itself if classes have no names."""
    if classes is None:
        return str(number)
    if not 0 <= number < len(classes):
        raise CorpusError(f"{where}: class {number}, but there are {len(classes)} class names; correct one of them")
    return classes[number]


def require_folder(images: str) -> None:
    """Raises CorpusError if the folder of images is missing or a file."""
    if storage.is_folder(images):
        return
    if storage.exists(images):
        raise CorpusError(f"{images}: a file, expected the folder of the images; check --images")
    raise CorpusError(f"{images}: no such folder of images; check --images")
