"""NUS-WIDE as published. `--annotations` is one of its image lists, `--images` the folder of its images (`Flickr`)::

    ImageList/{Imagelist,TrainImagelist,TestImagelist}.txt      actor\\0001_2124494179.jpg
    Groundtruth/AllLabels/Labels_CONCEPT.txt                    0 or 1, one per line, in the order of Imagelist
    Groundtruth/TrainTestLabels/Labels_CONCEPT_{Train,Test}.txt the same for the other two
    NUS_WID_Tags/{AllTags1k.txt,Train_Tags1k.dat,Test_Tags1k.dat}  0 or 1 for each of the 1,000 tags, one line per image
    NUS_WID_Tags/TagList1k.txt, ConceptsList/Concepts81.txt     names, one per line

In the zero-shot benchmark, `nus_wide`, the 81 concepts are the unseen labels, and the tags that are no concepts are the
seen labels. Training images have tags alone, with unknown concepts; the other lists have both. In `nus_wide_81` the
labels are the concepts, known for all images.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from itertools import compress
from typing import NamedTuple

import numpy as np

from sigrl_core.corpora.listing import (
    ListedImage,
    Listing,
    corpus_vocabulary,
    first_existing,
    require_file,
    require_folder,
)
from sigrl_core.corpora.text import read_lines, read_names
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage

NUM_CONCEPTS, NUM_TAGS, NUM_SEEN = 81, 1000, 925


class _Set(NamedTuple):
    """The label files of one image list."""

    truth: str  # file of a concept
    tags: str  # file of all tags, without suffix


_SETS = {
    "Imagelist.txt": _Set("Groundtruth/AllLabels/Labels_{}.txt", "NUS_WID_Tags/AllTags1k"),
    "TrainImagelist.txt": _Set("Groundtruth/TrainTestLabels/Labels_{}_Train.txt", "NUS_WID_Tags/Train_Tags1k"),
    "TestImagelist.txt": _Set("Groundtruth/TrainTestLabels/Labels_{}_Test.txt", "NUS_WID_Tags/Test_Tags1k"),
}


def list_concepts(images: str, annotations: str | None = None) -> Listing:
    """Lists the corpus `nus_wide_81`, in the order of the image list; does not check that image files exist.

    Raises:
        CorpusError: a file is missing or differs from the published form; the message has the file and line.
    """
    image_list, root, files = _locate_files("nus_wide_81", images, annotations)
    concepts = _read_concepts(root)
    truth_CN = _read_truth(root, files, concepts)
    return Listing(_list_images(image_list, concepts, truth_CN), corpus_vocabulary(concepts, root))


def list_tags_and_concepts(images: str, annotations: str | None = None) -> Listing:
    """Lists the corpus `nus_wide`, with the labels of the zero-shot benchmark; see `list_concepts`."""
    image_list, root, files = _locate_files("nus_wide", images, annotations)
    concepts = _read_concepts(root)
    tag_file = storage.join(root, "NUS_WID_Tags/TagList1k.txt")
    tags = read_names(first_existing(tag_file))
    seen = [tag for tag in tags if tag not in set(concepts)]
    if (len(tags), len(seen)) != (NUM_TAGS, NUM_SEEN):
        raise CorpusError(
            f"{tag_file}: {len(tags)} tags, {len(seen)} of which are no concepts; expected the published "
            f"{NUM_TAGS} and {NUM_SEEN}"
        )
    vocabulary = corpus_vocabulary(seen, tag_file, concepts)
    training = image_list.endswith("/TrainImagelist.txt")
    truth_CN = None if training else _read_truth(root, files, concepts)
    tags_file = first_existing(*(storage.join(root, files.tags + ending) for ending in (".dat", ".txt")))
    return Listing(_list_images(image_list, concepts, truth_CN, _read_tags(tags_file, tags, set(seen))), vocabulary)


def _locate_files(corpus: str, images: str, annotations: str | None) -> tuple[str, str, _Set]:
    """Returns the image list, the root folder of NUS-WIDE, and the label files of the list."""
    image_list = storage.absolute(require_file(corpus, annotations))
    require_folder(images)
    folder, name = posixpath.split(image_list)
    if name not in _SETS:
        raise CorpusError(f"corpus {corpus}: annotations {annotations}: expected one of {', '.join(_SETS)}")
    return image_list, posixpath.dirname(folder), _SETS[name]


def _read_concepts(root: str) -> list[str]:
    where = storage.join(root, "ConceptsList/Concepts81.txt")
    concepts = read_names(first_existing(where))
    if len(concepts) != NUM_CONCEPTS:
        raise CorpusError(f"{where}: {len(concepts)} concepts, expected the {NUM_CONCEPTS} that are published")
    return concepts


def _read_truth(root: str, files: _Set, concepts: list[str]) -> np.ndarray:
    """Reads which images show each concept, bool [C, N]; with 22 MB, the only labels that are held in memory."""
    columns, first_file = [], ""
    for concept in concepts:
        where = first_existing(storage.join(root, files.truth.format(concept)))
        column = np.array(storage.read_bytes(where).split())
        if len(bad := np.flatnonzero((column != b"0") & (column != b"1"))):
            raise CorpusError(f"{where}, line {bad[0] + 1}: expected 0 or 1, found {bytes(column[bad[0]])[:80]!r}")
        if columns and len(column) != len(columns[0]):
            raise CorpusError(f"{where}: {len(column)} lines, {first_file} has {len(columns[0])}; use files of one set")
        columns.append(column == b"1")
        first_file = first_file or where
    return np.stack(columns)


def _read_tags(where: str, tags: list[str], seen: set[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Yields the seen tags that are present and absent in each image."""
    seen_tags = [tag for tag in tags if tag in seen]
    is_seen = np.array([tag in seen for tag in tags])
    for number, text in read_lines(where):
        row = np.array(text.split())
        if len(row) != len(tags):
            raise CorpusError(f"{where}, line {number}: {len(row)} numbers, expected one for each of {len(tags)} tags")
        if not ((row == "0") | (row == "1")).all():
            raise CorpusError(f"{where}, line {number}: expected 0 and 1 only")
        present = (row == "1")[is_seen]
        yield list(compress(seen_tags, present.tolist())), list(compress(seen_tags, (~present).tolist()))


def _list_images(
    image_list: str,
    concepts: list[str],
    truth_CN: np.ndarray | None,
    tags_by_image: Iterator[tuple[list[str], list[str]]] | None = None,
) -> Iterator[ListedImage]:
    """Lists images with their concepts, tags or both; negatives are given if the concepts are unknown."""
    count = 0
    for number, text in read_lines(image_list):
        uri = text.replace("\\", "/")
        if truth_CN is not None and count == truth_CN.shape[1]:
            raise CorpusError(f"{image_list}, line {number}: Groundtruth has {count} images; use files of one set")
        tags = ([], []) if tags_by_image is None else next(tags_by_image, None)
        if tags is None:
            raise CorpusError(f"{image_list}, line {number}: NUS_WID_Tags has {count} images; use files of one set")
        if truth_CN is None:
            yield ListedImage(uri, tuple(tags[0]), tuple(tags[1]))
        else:
            yield ListedImage(uri, (*tags[0], *compress(concepts, truth_CN[:, count])))
        count += 1
    rest = 0 if truth_CN is None else truth_CN.shape[1] - count
    if not count or rest or (tags_by_image is not None and next(tags_by_image, None) is not None):
        raise CorpusError(f"{image_list}: {count} images, but more have labels; use files of one set")
