"""CUB-200-2011 with its 312 attributes as labels. `--annotations` is its folder, `--images` its sub-folder `images`::

    images.txt                             1 001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg
    train_test_split.txt                   1 0: image, 1 for training
    attributes/attributes.txt              1 has_bill_shape::curved_(up_or_down); also in the folder, or above it
    attributes/image_attribute_labels.txt  1 1 0 3 27.708: image, attribute, 1 for present, certainty, seconds

An attribute is present if it is marked, with any certainty, and absent otherwise, also if it is "not visible"
(certainty 1), as in the benchmark of Cole et al. 2021. `cub` lists all images, `cub_train` and `cub_test` those of the
split.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from itertools import groupby
from typing import Literal

from sigrl_core.corpora.listing import (
    ListedImage,
    Listing,
    corpus_vocabulary,
    first_existing,
    require_annotations,
    require_folder,
)
from sigrl_core.corpora.text import read_fields
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage


def list_corpus(images: str, annotations: str | None = None, split: Literal["all", "train", "test"] = "all") -> Listing:
    """Lists the images in the order of the attribute file; does not check that image files exist.

    Raises:
        CorpusError: a file is missing; a malformed line, an unknown image, or lines out of order.
    """
    corpus = "cub" if split == "all" else f"cub_{split}"
    folder = require_annotations(corpus, annotations)
    if not storage.is_folder(folder):
        raise CorpusError(f"corpus {corpus}: annotations {annotations}: a file, expected the folder with images.txt")
    require_folder(images)
    folder = storage.absolute(folder)
    images_file = first_existing(storage.join(folder, "images.txt"))
    names = {number: name for _, (number, name) in read_fields(images_file, "image_id image_name")}
    selected = set(names)
    if split != "all":
        selected = _read_split(first_existing(storage.join(folder, "train_test_split.txt")), split == "train")
    folders = (storage.join(folder, "attributes"), folder, posixpath.dirname(folder.rstrip("/")))
    attributes_file = first_existing(*(storage.join(place, "attributes.txt") for place in folders))
    attributes = {number: name for _, (number, name) in read_fields(attributes_file, "attribute_id attribute_name")}
    vocabulary = corpus_vocabulary(attributes.values(), attributes_file)
    labels_file = first_existing(storage.join(folder, "attributes/image_attribute_labels.txt"))
    return Listing(_list_images(labels_file, names, selected, attributes), vocabulary)


def list_train_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists the images of the training split; see `list_corpus`."""
    return list_corpus(images, annotations, "train")


def list_test_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists the images of the test split; see `list_corpus`."""
    return list_corpus(images, annotations, "test")


def _read_split(where: str, training: bool) -> set[str]:
    members: dict[str, set[str]] = {"0": set(), "1": set()}
    for line, (number, is_training) in read_fields(where, "image_id is_training_image"):
        if is_training not in members:
            raise CorpusError(f"{where}, line {line}: {is_training!r}, expected 0 or 1")
        members[is_training].add(number)
    return members["1" if training else "0"]


def _list_images(
    labels_file: str, names: dict[str, str], selected: set[str], attributes: dict[str, str]
) -> Iterator[ListedImage]:
    remaining = dict(names)
    # some published lines have an extra word after the certainty
    lines = read_fields(labels_file, "image_id attribute_id is_present certainty_id ...")
    line = 0
    for image, group in groupby(lines, key=lambda numbered: numbered[1][0]):
        states: dict[str, bool] = {}
        for line, (_, attribute, present, certainty, *_rest) in group:
            where = f"{labels_file}, line {line}"
            if attribute not in attributes or attribute in states:
                raise CorpusError(f"{where}: attribute {attribute} is unknown, or twice for image {image}")
            if present not in ("0", "1") or certainty not in ("1", "2", "3", "4"):
                raise CorpusError(f"{where}: is_present {present}, certainty {certainty}; expected 0 or 1, and 1 to 4")
            states[attribute] = present == "1"
        if image not in remaining:
            raise CorpusError(f"{labels_file}, line {line}: image {image} is not in images.txt, or was listed before")
        if len(states) != len(attributes):
            raise CorpusError(
                f"{labels_file}, line {line}: image {image} has {len(states)} of {len(attributes)} attributes"
            )
        name = remaining.pop(image)
        if image in selected:
            yield ListedImage(name, tuple(attributes[number] for number, present in states.items() if present))
    if remaining:
        raise CorpusError(f"{labels_file}: ends at line {line} without image {next(iter(remaining))}; unpack it again")
