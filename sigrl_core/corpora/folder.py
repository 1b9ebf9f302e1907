"""A folder of pictures. Sub-folders are labels: `cat/1.jpg` is a cat, nothing else; `1.jpg` has no labels known."""

from __future__ import annotations

from sigrl_core import storage
from sigrl_core.corpora.listing import Listing, Row, own_vocabulary, require_folder
from sigrl_core.errors import CorpusError
from sigrl_core.images import SUFFIXES


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists every picture at every depth, sorted by path; the first folder of the path is the label.

    Raises:
        CorpusError: no such folder, no pictures in it, or annotations given.
    """
    if annotations is not None:
        raise CorpusError(f"corpus folder: takes no annotations, found {annotations}; leave --annotations out")
    require_folder(images)
    paths = [file.path for file in storage.list_files(images, SUFFIXES)]
    if not paths:
        raise CorpusError(f"{images}: no image files with suffixes {', '.join(SUFFIXES)} under it; check --images")
    rows = [Row(path, (path.split("/")[0],) if "/" in path else None) for path in paths]
    names = sorted({label for row in rows for label in row.labels or ()})
    return Listing(rows, own_vocabulary(names, images))
