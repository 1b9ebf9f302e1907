"""All files of a folder or keys of a bucket, whatever their names. Files that are no images fail when they are read."""

from __future__ import annotations

import os
from collections.abc import Iterator

from sigrl_core.corpora.listing import ListedImage, Listing, require_folder, require_none
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage
from sigrl_core.io.prefetch import is_local


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists all files at all depths, in the order of paths, without labels; leaves out hidden files of a disk.

    Raises:
        CorpusError: the folder is missing or empty, or annotations are given.
    """
    require_none("files", annotations)
    require_folder(images)
    return Listing(_list_images(images))


def _list_images(images: str) -> Iterator[ListedImage]:
    file, on_disk = None, is_local(images)
    for file in storage.walk(images, every_key=True):
        # file names on a disk may not be UTF-8; such files are listed too, and are reported as unreachable later
        uri = os.fsencode(file.path).decode(errors="replace") if on_disk else file.path
        yield ListedImage(uri, None, size=file.size, etag=file.version)
    if file is None:
        raise CorpusError(f"{images}: no files under it; check --images")
