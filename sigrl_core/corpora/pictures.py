"""The bytes of listed pictures, wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sigrl_core import storage
from sigrl_core.corpora.listing import Row
from sigrl_core.errors import ImageError, StorageError

MAX_FILE_BYTES = 500_000_000
"""Larger source files are quarantined unread, so that no listing can fill a worker's memory."""


def fetch(images: str, rows: Sequence[Row]) -> Iterator[bytes | ImageError]:
    """The bytes of each row's picture, in order, or why they cannot be had.

    Raises:
        StorageError: the store fails, which says nothing about the picture.
    """
    for row in rows:
        try:
            yield storage.read_bytes(storage.locate(images, row.uri), MAX_FILE_BYTES)
        except StorageError as error:
            if storage.is_transient(error):
                raise
            yield ImageError("unreachable", str(error))
