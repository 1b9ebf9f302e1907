"""Pascal VOC's XML files without lists of images, as annotation tools write them beside the images.

    a.jpg
    a.xml     <annotation><filename>a.jpg</filename><object><name>cat</name></object></annotation>

`--annotations` is the folder of the XML files if they are in another one, with the same sub-folders as the images. All
XML files are listed; voc.py describes how an image is found and which labels are present, absent or unknown. Images
without an XML file are not annotated; they are counted and not listed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

from sigrl_core.corpora.listing import (
    ListedImage,
    Listing,
    corpus_vocabulary,
    require_annotations,
    require_folder,
)
from sigrl_core.corpora.voc import list_image, read_xml
from sigrl_core.data.images import SUFFIXES
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage
from sigrl_core.io.prefetch import files_in_flight, prefetch_map


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists the XML files in the order of their paths.

    Raises:
        CorpusError: no XML files, or a malformed one; the message has the file.
    """
    require_folder(images)
    folder = images if annotations is None else require_annotations("voc_xml", annotations)
    if not storage.is_folder(folder):
        raise CorpusError(f"corpus voc_xml: annotations {folder}: a file, expected the folder of the XML files")
    # the files are read twice, because the absent labels of an image are known only after all labels are
    labels, num_files = set[str](), 0
    for _, objects in _read_files(images, folder):
        labels.update(objects)
        num_files += 1
    if not num_files:
        raise CorpusError(f"{folder}: no XML files (*.xml) under it; name their folder with --annotations")
    num_images = sum(1 for _ in storage.walk(images, SUFFIXES))
    if num_images > num_files:
        print(
            f"{images}: {num_images - num_files} of {num_images} images have no XML file and are not listed",
            file=sys.stderr,
        )
    return Listing(_list_images(images, folder, sorted(labels)), corpus_vocabulary(sorted(labels), folder))


def _list_images(images: str, folder: str, labels: list[str]) -> Iterator[ListedImage]:
    for uri, objects in _read_files(images, folder):
        present = [label for label, is_certain in objects.items() if is_certain]
        yield list_image(uri, present, [label for label in labels if label not in objects], len(labels))


def _read_files(images: str, folder: str) -> Iterator[tuple[str, dict[str, bool]]]:
    stems = (file.path[: -len(".xml")] for file in storage.walk(folder, [".xml"]) if file.path.endswith(".xml"))
    for uri, objects in prefetch_map(partial(read_xml, images, folder), stems, files_in_flight(folder)):
        if objects is not None:  # removed meanwhile
            yield uri, objects
