"""The bytes of listed pictures: files of their own, members of tars, rows of Parquet files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby

from sigrl_core import storage
from sigrl_core.corpora.ahead import ahead, files_in_flight
from sigrl_core.corpora.hugging_face import find_columns, pictures_in
from sigrl_core.corpora.listing import Row
from sigrl_core.corpora.parquet import opened
from sigrl_core.errors import CorpusError, ImageError, StorageError

MAX_FILE_BYTES = 500_000_000
"""Larger source files are quarantined unread, so that no listing can fill a worker's memory."""

_FEW_ROWS = 100  # of a Parquet file: to read on over, rather than to start again with their row group

_IN_CONTAINER = re.compile(r"(.*?\.(?:tar|parquet))#", re.IGNORECASE | re.DOTALL)


def fetch(
    images: str, rows: Sequence[Row], max_file_bytes: int | None = None, *, walked: bool = False
) -> Iterator[bytes | ImageError]:
    """The bytes of every row's picture, in order, or why it has none.

    Of an object store several are asked for at a time; `ahead.FILES_IN_FLIGHT` are in memory at most. A container is
    opened once for rows that follow each other.

    Args:
        images: folder that the rows' locations are below.
        max_file_bytes: files larger than that are `unreachable`, those in no container unread.
        walked: the rows are of a corpus in `corpora.WALKED`.

    Raises:
        StorageError: the store fails, which says nothing about the pictures; see `storage.is_transient`.
    """
    locate = partial(storage.below if walked else storage.locate, images)
    for (location, in_flight), group in groupby(rows, partial(_source, locate)):
        if location is None:
            yield from ahead(partial(_file, locate, max_file_bytes or MAX_FILE_BYTES), group, in_flight)
        elif location.lower().endswith(".tar"):
            yield from _explained(_members(location, group := list(group), in_flight), group)
        else:
            yield from _explained(_cells(location, group := list(group)), group)


def _source(locate: Callable[[str], str], row: Row) -> tuple[str | None, int]:
    """The container of a row, None where the picture is a file, and how many to ask for at a time."""
    location = locate(row.uri)
    container = None
    if row.offset is not None:
        container = _container(location)
    return container, files_in_flight(location)


def _container(location: str) -> str:
    """Where the tar or Parquet file is that holds a picture; the picture's name may have a # of its own."""
    found = _IN_CONTAINER.match(location)
    return found[1] if found else location.rpartition("#")[0]


def position(row: Row) -> str:
    """A key that is as the rows of a listing: the file's path, and in a container where it is held."""
    return row.uri if row.offset is None else f"{_container(row.uri)}\0{row.offset:015d}"


def _file(locate: Callable[[str], str], max_bytes: int, row: Row) -> bytes | ImageError:
    if row.size is not None and row.size > max_bytes:  # without asking the store once more
        return ImageError("unreachable", f"{row.uri}: {row.size} bytes; at most {max_bytes} are read")
    try:
        return storage.read_bytes(locate(row.uri), max_bytes)
    except StorageError as error:
        return _unreachable(error)
    except ValueError as error:  # a name that no file can have
        return ImageError("unreachable", f"{row.uri!r}: {error}")


def _unreachable(error: StorageError) -> ImageError:
    if storage.is_transient(error):  # a store that is down says nothing about the picture
        raise error
    return ImageError("unreachable", str(error))


def _explained(pictures: Iterator[bytes | ImageError], rows: Sequence[Row]) -> Iterator[bytes | ImageError]:
    """As many answers as rows, also where the container cannot be read from one of them on."""
    given = 0
    try:
        for picture in pictures:
            yield picture
            given += 1
        return
    except StorageError as error:
        answer = _unreachable(error)
    except CorpusError as error:  # no container of its kind any more
        answer = ImageError("truncated", str(error))
    yield from (answer for _ in rows[given:])


def _members(location: str, rows: Sequence[Row], in_flight: int) -> Iterator[bytes | ImageError]:
    with storage.reading(location) as file:

        def read(row: Row) -> bytes | ImageError:
            size, offset = row.size or 0, row.offset or 0
            if size > MAX_FILE_BYTES:
                return ImageError("unreachable", f"{row.uri}: {size} bytes; at most {MAX_FILE_BYTES} are read")
            data = file.read_at(size, offset)
            if len(data) < size:
                return ImageError("truncated", f"{location} ends in it; it was cut short since it was listed")
            return data

        yield from ahead(read, rows, in_flight)


def _cells(location: str, rows: Sequence[Row]) -> Iterator[bytes | ImageError]:
    with opened(location) as file:
        columns = find_columns(file.schema_arrow, location)
        cells: Iterator[tuple[int, bytes | None]] = iter(())
        at = None  # the row that was read last
        for row in rows:
            wanted = row.offset or 0
            if at is None or not at < wanted <= at + _FEW_ROWS:
                cells = pictures_in(file, columns, wanted)
            at, data = next((cell for cell in cells if cell[0] == wanted), (None, None))
            if at is None:
                yield ImageError("truncated", f"{location} has no row {wanted}; it was changed since it was listed")
            elif data is None:
                yield ImageError("empty", f"{row.uri}: no bytes, and no path")
            elif len(data) > MAX_FILE_BYTES:
                yield ImageError("unreachable", f"{row.uri}: {len(data)} bytes; at most {MAX_FILE_BYTES} are read")
            else:
                yield data
