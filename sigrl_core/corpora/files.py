"""Every file of a folder, every key of a bucket, whatever it is called: what is no picture is found out by reading."""

from __future__ import annotations

import os
from collections.abc import Iterator

from sigrl_core import storage
from sigrl_core.corpora.ahead import is_local
from sigrl_core.corpora.listing import Listing, Row, require_folder, require_none
from sigrl_core.errors import CorpusError


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists every file at every depth, in the order of paths, without labels; on a disk hidden ones are left out.

    Raises:
        CorpusError: no such folder, nothing in it, or annotations given.
    """
    require_none("files", annotations)
    require_folder(images)
    return Listing(_rows(images))


def _rows(images: str) -> Iterator[Row]:
    file, on_disk = None, is_local(images)
    for file in storage.walk(images, every_key=True):
        # a disk may hold names that are no text: they have a row as well, which says that they cannot be reached
        uri = os.fsencode(file.path).decode(errors="replace") if on_disk else file.path
        yield Row(uri, None, size=file.size, etag=file.version)
    if file is None:
        raise CorpusError(f"{images}: no files under it; check --images")
