"""Opens annotation files that may be compressed by gzip. The first bytes decide, not the ending of the name."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import Any

from sigrl_core.errors import CorpusError
from sigrl_core.io import storage

GZIP = b"\x1f\x8b"
"""First bytes of compressed files."""

_BUFFER_BYTES = 1 << 20  # the size of one request to an object store


@contextlib.contextmanager
def open_decompressed(location: str, buffer_bytes: int = _BUFFER_BYTES) -> Iterator[io.BufferedReader]:
    """Opens the file to read it from its start; decompresses gzip while it is read.

    Args:
        buffer_bytes: size of one read from the file.

    Raises:
        CorpusError: the compressed data is damaged or incomplete, also while the file is read.
        StorageError: as `storage.open_input`.
    """
    with storage.open_input(location) as file:
        reader = io.BufferedReader(file, buffer_bytes)
        if not reader.peek(len(GZIP)).startswith(GZIP):
            yield reader
            return
        with decompress(reader, location) as content:
            yield io.BufferedReader(content, buffer_bytes)  # pyright: ignore[reportArgumentType]


@contextlib.contextmanager
def decompress(file: Any, location: str) -> Iterator[gzip.GzipFile]:
    """Reads an open gzip file; raises CorpusError as `open_decompressed`."""
    try:
        yield gzip.GzipFile(fileobj=file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorpusError(f"{location}: damaged gzip data ({error}); copy or compress the file again") from error
