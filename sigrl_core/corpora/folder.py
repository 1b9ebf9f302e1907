"""A folder of pictures. Sub-folders are labels: `cat/1.jpg` is a cat, nothing else; `1.jpg` has no labels known."""

from __future__ import annotations

from collections.abc import Iterator

from sigrl_core import storage
from sigrl_core.corpora.listing import Listing, Row, require_folder, require_none
from sigrl_core.errors import CorpusError
from sigrl_core.images import SUFFIXES


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists every picture at every depth, in the order of paths; the first folder of the path is the label.

    Raises:
        CorpusError: no such folder, no pictures in it, or annotations given.
    """
    require_none("folder", annotations)
    require_folder(images)
    return Listing(_rows(images))


def _rows(images: str) -> Iterator[Row]:
    file = None
    for file in storage.walk(images, SUFFIXES):
        label, slash, _ = file.path.partition("/")
        yield Row(file.path, (label,) if slash else None, size=file.size)
    if file is None:
        raise CorpusError(f"{images}: no image files with suffixes {', '.join(SUFFIXES)} under it; check --images")
