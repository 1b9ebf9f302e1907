"""The listing that every corpus returns: images in a fixed order, with their labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from sigrl_core.config import LabelPolicy
from sigrl_core.data.label_states import LISTED_ABSENT, LISTED_PRESENT, NOT_LISTED, PRESENT, UNKNOWN, states_of
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
        left_out: number of files that are not listed, by description (`.txt`, `.dat (not an image)`); filled while
            `images` is iterated, for example by `image_walk.walk_images`.
        describe_source: returns where labels were looked for and what is there instead, as in `no column 'labels';
            found 'path', 'tags'`; called after `images` was iterated if no image has a label.
    """

    images: Iterable[ListedImage]
    vocabulary: Vocabulary | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    describe_source: Callable[[], str] | None = None


def label_evidence(
    images: Sequence[ListedImage], vocabulary: Vocabulary, annotated: Literal["all", "seen"] = "all"
) -> np.ndarray:
    """Returns what N rows say of the labels, as uint8 [N, C]; see `data.label_states`.

    Args:
        vocabulary: contains all labels of the images.
        annotated: the labels that annotators looked for in every annotated image.
    """
    not_listed_C = np.full(len(vocabulary), NOT_LISTED, dtype=np.uint8)
    if annotated == "seen":
        not_listed_C[vocabulary.positions("unseen")] = 0
    index = vocabulary.index
    evidence_NC = np.zeros((len(images), len(vocabulary)), dtype=np.uint8)
    for image, evidence_C in zip(images, evidence_NC, strict=True):
        if image.labels is not None and image.negatives is None:
            evidence_C[:] = not_listed_C
        evidence_C[[index[name] for name in image.negatives or ()]] |= LISTED_ABSENT
        evidence_C[[index[name] for name in image.labels or ()]] |= LISTED_PRESENT
    return evidence_NC


def label_states(
    images: Sequence[ListedImage], vocabulary: Vocabulary, annotated: Literal["all", "seen"] = "all"
) -> np.ndarray:
    """Returns the label states of N images as int8 [N, C], each by its own row; arguments as `label_evidence`."""
    return states_of(label_evidence(images, vocabulary, annotated))


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
