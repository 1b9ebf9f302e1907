"""A folder of images. The sub-folder is the only label (`cat/1.jpg`). Other images are not annotated."""

from __future__ import annotations

from collections.abc import Iterator

from sigrl_core.corpora.listing import ListedImage, Listing, require_folder, require_none
from sigrl_core.data.images import SUFFIXES
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists all images at all depths, in the order of paths; the first folder of the path is the label.

    Raises:
        CorpusError: the folder is missing or has no images, or annotations are given.
    """
    require_none("folder", annotations)
    require_folder(images)
    return Listing(_list_images(images))


def _list_images(images: str) -> Iterator[ListedImage]:
    file = None
    for file in storage.walk(images, SUFFIXES):
        label, slash, _ = file.path.partition("/")
        yield ListedImage(file.path, (label,) if slash else None, size=file.size)
    if file is None:
        raise CorpusError(f"{images}: no image files with suffixes {', '.join(SUFFIXES)} under it; check --images")
