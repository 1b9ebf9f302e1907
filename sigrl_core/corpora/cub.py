"""CUB-200-2011 with its 312 attributes as labels: `--annotations` is its folder, `--images` the folder `images` in it::

    images.txt                             1 001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg
    train_test_split.txt                   1 0: picture, 1 for training
    attributes/attributes.txt              1 has_bill_shape::curved_(up_or_down); also in the folder, or above it
    attributes/image_attribute_labels.txt  1 1 0 3 27.708: picture, attribute, 1 for present, certainty, seconds

An attribute is present where it was marked, however certain, and absent otherwise, "not visible" (certainty 1) too: as
Cole et al. 2021, whose benchmark this is. `cub` lists all pictures, `cub_train` and `cub_test` those of the split.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from itertools import groupby
from typing import Literal

from sigrl_core import storage
from sigrl_core.corpora.listing import Listing, Row, first_there, own_vocabulary, require_annotations, require_folder
from sigrl_core.corpora.text import fields
from sigrl_core.errors import CorpusError


def list_corpus(images: str, annotations: str | None = None, split: Literal["all", "train", "test"] = "all") -> Listing:
    """Lists the pictures in the order of their attributes' file, whether their files are there or not.

    Raises:
        CorpusError: a file is missing; a line that is not as above, names an unknown picture, or is out of order.
    """
    corpus = "cub" if split == "all" else f"cub_{split}"
    folder = require_annotations(corpus, annotations)
    if not storage.is_folder(folder):
        raise CorpusError(f"corpus {corpus}: annotations {annotations}: a file, expected the folder with images.txt")
    require_folder(images)
    folder = storage.absolute(folder)
    images_file = first_there(storage.join(folder, "images.txt"))
    names = {number: name for _, (number, name) in fields(images_file, "image_id image_name")}
    wanted = set(names)
    if split != "all":
        wanted = _of_split(first_there(storage.join(folder, "train_test_split.txt")), split == "train")
    places = (storage.join(folder, "attributes"), folder, posixpath.dirname(folder.rstrip("/")))
    attributes_file = first_there(*(storage.join(place, "attributes.txt") for place in places))
    attributes = {number: name for _, (number, name) in fields(attributes_file, "attribute_id attribute_name")}
    vocabulary = own_vocabulary(attributes.values(), attributes_file)
    told = first_there(storage.join(folder, "attributes/image_attribute_labels.txt"))
    return Listing(_rows(told, names, wanted, attributes), vocabulary)


def _of_split(where: str, training: bool) -> set[str]:
    states: dict[str, set[str]] = {"0": set(), "1": set()}
    for line, (number, is_training) in fields(where, "image_id is_training_image"):
        if is_training not in states:
            raise CorpusError(f"{where}, line {line}: {is_training!r}, expected 0 or 1")
        states[is_training].add(number)
    return states["1" if training else "0"]


def _rows(told: str, names: dict[str, str], wanted: set[str], attributes: dict[str, str]) -> Iterator[Row]:
    waiting = dict(names)
    # some published lines have a word too many behind the certainty
    lines = fields(told, "image_id attribute_id is_present certainty_id ...")
    line = 0
    for image, group in groupby(lines, key=lambda found: found[1][0]):
        states: dict[str, bool] = {}
        for line, (_, attribute, present, certainty, *_rest) in group:
            where = f"{told}, line {line}"
            if attribute not in attributes or attribute in states:
                raise CorpusError(f"{where}: attribute {attribute} is unknown, or twice for picture {image}")
            if present not in ("0", "1") or certainty not in ("1", "2", "3", "4"):
                raise CorpusError(f"{where}: is_present {present}, certainty {certainty}; expected 0 or 1, and 1 to 4")
            states[attribute] = present == "1"
        if image not in waiting:
            raise CorpusError(f"{told}, line {line}: picture {image} is not in images.txt, or was listed before")
        if len(states) != len(attributes):
            raise CorpusError(f"{told}, line {line}: picture {image} has {len(states)} of {len(attributes)} attributes")
        name = waiting.pop(image)
        if image in wanted:
            yield Row(name, tuple(attributes[number] for number, present in states.items() if present))
    if waiting:
        raise CorpusError(f"{told}: ends at line {line} without picture {next(iter(waiting))}; unpack it again")
