"""NUS-WIDE as published: `--annotations` is one of its image lists, `--images` the folder of its pictures (`Flickr`)::

    ImageList/{Imagelist,TrainImagelist,TestImagelist}.txt      actor\\0001_2124494179.jpg
    Groundtruth/AllLabels/Labels_CONCEPT.txt                    0 or 1, one a line, in the order of Imagelist
    Groundtruth/TrainTestLabels/Labels_CONCEPT_{Train,Test}.txt the same for the other two
    NUS_WID_Tags/{AllTags1k.txt,Train_Tags1k.dat,Test_Tags1k.dat}  0 or 1 for each of the 1,000 tags, one line a picture
    NUS_WID_Tags/TagList1k.txt, ConceptsList/Concepts81.txt     names, one a line

Of the zero-shot benchmark, `nus_wide`, the labels seen are the tags that are none of the 81 concepts, which are unseen.
Training pictures are told the tags alone, their concepts are unknown; the other lists are told both. Of `nus_wide_81`
the labels are the concepts, and all are told.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from itertools import compress
from typing import NamedTuple

import numpy as np

from sigrl_core import storage
from sigrl_core.corpora.listing import Listing, Row, first_there, own_vocabulary, require_file, require_folder
from sigrl_core.corpora.text import lines, names
from sigrl_core.errors import CorpusError

NUM_CONCEPTS, NUM_TAGS, NUM_SEEN = 81, 1000, 925


class _Set(NamedTuple):
    """Where the labels of one image list are."""

    truth: str  # file of one concept
    tags: str  # file of all tags


_SETS = {
    "Imagelist.txt": _Set("Groundtruth/AllLabels/Labels_{}.txt", "NUS_WID_Tags/AllTags1k"),
    "TrainImagelist.txt": _Set("Groundtruth/TrainTestLabels/Labels_{}_Train.txt", "NUS_WID_Tags/Train_Tags1k"),
    "TestImagelist.txt": _Set("Groundtruth/TrainTestLabels/Labels_{}_Test.txt", "NUS_WID_Tags/Test_Tags1k"),
}


def list_concepts(images: str, annotations: str | None = None) -> Listing:
    """`nus_wide_81`: lists the pictures of the image list in its order, whether their files are there or not.

    Raises:
        CorpusError: a file is missing or is not as published; names it and the line.
    """
    pictures, root, files = _find("nus_wide_81", images, annotations)
    concepts = _concepts(root)
    truth_CN = _truth(root, files, concepts)
    return Listing(_rows(pictures, concepts, truth_CN), own_vocabulary(concepts, root))


def list_tags_and_concepts(images: str, annotations: str | None = None) -> Listing:
    """`nus_wide`: the same with the labels of the zero-shot benchmark."""
    pictures, root, files = _find("nus_wide", images, annotations)
    concepts = _concepts(root)
    tag_file = storage.join(root, "NUS_WID_Tags/TagList1k.txt")
    tags = names(first_there(tag_file))
    seen = [tag for tag in tags if tag not in set(concepts)]
    if (len(tags), len(seen)) != (NUM_TAGS, NUM_SEEN):
        raise CorpusError(
            f"{tag_file}: {len(tags)} tags, {len(seen)} of them no concepts; published are {NUM_TAGS} and {NUM_SEEN}"
        )
    vocabulary = own_vocabulary(seen, tag_file, concepts)
    training = pictures.endswith("/TrainImagelist.txt")
    truth_CN = None if training else _truth(root, files, concepts)
    tagged = first_there(*(storage.join(root, files.tags + ending) for ending in (".dat", ".txt")))
    return Listing(_rows(pictures, concepts, truth_CN, _tagged(tagged, tags, set(seen))), vocabulary)


def _find(corpus: str, images: str, annotations: str | None) -> tuple[str, str, _Set]:
    """The image list, the folder of all of NUS-WIDE, where the labels of the list are."""
    pictures = storage.absolute(require_file(corpus, annotations))
    require_folder(images)
    folder, name = posixpath.split(pictures)
    if name not in _SETS:
        raise CorpusError(f"corpus {corpus}: annotations {annotations}: expected one of {', '.join(_SETS)}")
    return pictures, posixpath.dirname(folder), _SETS[name]


def _concepts(root: str) -> list[str]:
    where = storage.join(root, "ConceptsList/Concepts81.txt")
    concepts = names(first_there(where))
    if len(concepts) != NUM_CONCEPTS:
        raise CorpusError(f"{where}: {len(concepts)} concepts, expected the {NUM_CONCEPTS} that are published")
    return concepts


def _truth(root: str, files: _Set, concepts: list[str]) -> np.ndarray:
    """Whether each concept is in each picture, bool [C, N]: 22 MB, the only labels that are held in memory."""
    columns, of_first = [], ""
    for concept in concepts:
        where = first_there(storage.join(root, files.truth.format(concept)))
        column = np.array(storage.read_bytes(where).split())
        if len(bad := np.flatnonzero((column != b"0") & (column != b"1"))):
            raise CorpusError(f"{where}, line {bad[0] + 1}: expected 0 or 1, found {bytes(column[bad[0]])[:80]!r}")
        if columns and len(column) != len(columns[0]):
            raise CorpusError(f"{where}: {len(column)} lines, {of_first} {len(columns[0])}; take files of one set")
        columns.append(column == b"1")
        of_first = of_first or where
    return np.stack(columns)


def _tagged(where: str, tags: list[str], seen: set[str]) -> Iterator[tuple[list[str], list[str]]]:
    """The seen tags that each picture has, and has not."""
    seen_tags = [tag for tag in tags if tag in seen]
    is_seen = np.array([tag in seen for tag in tags])
    for number, text in lines(where):
        row = np.array(text.split())
        if len(row) != len(tags):
            raise CorpusError(f"{where}, line {number}: {len(row)} numbers, expected one for each of {len(tags)} tags")
        if not ((row == "0") | (row == "1")).all():
            raise CorpusError(f"{where}, line {number}: expected nothing but 0 and 1")
        present = (row == "1")[is_seen]
        yield list(compress(seen_tags, present.tolist())), list(compress(seen_tags, (~present).tolist()))


def _rows(
    pictures: str,
    concepts: list[str],
    truth_CN: np.ndarray | None,
    tagged: Iterator[tuple[list[str], list[str]]] | None = None,
) -> Iterator[Row]:
    """Rows with the labels of concepts, tags or both; where concepts are not told, what is absent is."""
    count = 0
    for number, text in lines(pictures):
        uri = text.replace("\\", "/")
        if truth_CN is not None and count == truth_CN.shape[1]:
            raise CorpusError(f"{pictures}, line {number}: Groundtruth has {count} pictures; take files of one set")
        tags = ([], []) if tagged is None else next(tagged, None)
        if tags is None:
            raise CorpusError(f"{pictures}, line {number}: NUS_WID_Tags has {count} pictures; take files of one set")
        if truth_CN is None:
            yield Row(uri, tuple(tags[0]), tuple(tags[1]))
        else:
            yield Row(uri, (*tags[0], *compress(concepts, truth_CN[:, count])))
        count += 1
    rest = 0 if truth_CN is None else truth_CN.shape[1] - count
    if not count or rest or (tagged is not None and next(tagged, None) is not None):
        raise CorpusError(f"{pictures}: {count} pictures, fewer than have labels; take files of one set")
