"""Reads the bytes of listed images: separate files, members of tar files, rows of Parquet and Arrow files."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby

from sigrl_core.corpora.compressed import GZIP, decompress
from sigrl_core.corpora.hugging_face import find_columns, open_table, read_images_from
from sigrl_core.corpora.listing import ListedImage
from sigrl_core.corpora.webdataset import TAR_SUFFIXES
from sigrl_core.errors import CorpusError, ImageError, StorageError
from sigrl_core.io import storage
from sigrl_core.io.prefetch import files_in_flight, prefetch_map
from sigrl_core.io.retry import is_transient

MAX_FILE_BYTES = 500_000_000
"""Larger source files are quarantined unread, so that they cannot fill a worker's memory."""

_FEW_ROWS = 100  # of a Parquet file: reading over so few rows is faster than starting at their row group

_IN_CONTAINER = re.compile(r"(.*?\.(?:tar(?:\.gz)?|tgz|parquet|arrow))#", re.IGNORECASE | re.DOTALL)


def read_images(
    images: str, listed: Sequence[ListedImage], max_file_bytes: int | None = None, *, uris_are_paths: bool = False
) -> Iterator[bytes | ImageError]:
    """Yields the bytes of each image, in order, or an ImageError.

    Several files of an object store are read concurrently, with at most `prefetch.FILES_IN_FLIGHT` in memory. A
    container is opened once for consecutive images.

    Args:
        images: folder of images, which contains relative uris.
        listed: the images to read.
        max_file_bytes: larger files are `unreachable` and are not read; does not apply to containers.
        uris_are_paths: whether the corpus is one of `corpora.PATH_CORPORA`.

    Raises:
        StorageError: the store fails, independently of the image; see `retry.is_transient`.
    """
    resolve = partial(storage.join_walked if uris_are_paths else storage.resolve, images)
    for (location, in_flight), group in groupby(listed, partial(_find_source, resolve)):
        if location is None:
            yield from prefetch_map(partial(_read_file, resolve, max_file_bytes or MAX_FILE_BYTES), group, in_flight)
        elif location.lower().endswith(TAR_SUFFIXES):
            yield from _convert_errors(_read_members(location, group := list(group), in_flight), group)
        else:
            yield from _convert_errors(_read_rows(location, group := list(group)), group)


def _find_source(resolve: Callable[[str], str], image: ListedImage) -> tuple[str | None, int]:
    """Returns the container of an image, None for a separate file, and the number of concurrent reads."""
    location = resolve(image.uri)
    container = None
    if image.offset is not None:
        container = _container(location)
    return container, files_in_flight(location)


def _container(location: str) -> str:
    """Returns the location of the tar or Parquet file that contains an image; the image's name may contain a # too."""
    match = _IN_CONTAINER.match(location)
    return match[1] if match else location.rpartition("#")[0]


def listing_key(image: ListedImage) -> str:
    """Returns a key that sorts as the listing: the file's path, or the container's path and the position in it."""
    return image.uri if image.offset is None else f"{_container(image.uri)}\0{image.offset:015d}"


def _read_file(resolve: Callable[[str], str], max_bytes: int, image: ListedImage) -> bytes | ImageError:
    if image.size is not None and image.size > max_bytes:  # saves a request
        return ImageError("unreachable", f"{image.uri}: {image.size} bytes; at most {max_bytes} are read")
    try:
        return storage.read_bytes(resolve(image.uri), max_bytes)
    except StorageError as error:
        return _unreachable(error)
    except ValueError as error:  # a name that is not valid for files
        return ImageError("unreachable", f"{image.uri!r}: {error}")


def _unreachable(error: StorageError) -> ImageError:
    if is_transient(error):  # the store fails, not the image
        raise error
    return ImageError("unreachable", str(error))


def _convert_errors(
    results: Iterator[bytes | ImageError], listed: Sequence[ListedImage]
) -> Iterator[bytes | ImageError]:
    """Yields one result per image; if the container cannot be read further, an ImageError for each remaining image."""
    num_results = 0
    try:
        for result in results:
            yield result
            num_results += 1
        return
    except StorageError as error:
        failure = _unreachable(error)
    except CorpusError as error:  # the container is damaged or was replaced
        failure = ImageError("truncated", str(error))
    yield from (failure for _ in listed[num_results:])


def _read_members(location: str, listed: Sequence[ListedImage], in_flight: int) -> Iterator[bytes | ImageError]:
    with storage.open_input(location) as file, contextlib.ExitStack() as stack:
        content = None
        if file.read_at(len(GZIP), 0) == GZIP:
            file.seek(0)
            content = stack.enter_context(decompress(file, location))

        def read(image: ListedImage) -> bytes | ImageError:
            size, offset = image.size or 0, image.offset or 0
            if size > MAX_FILE_BYTES:
                return ImageError("unreachable", f"{image.uri}: {size} bytes; at most {MAX_FILE_BYTES} are read")
            data = file.read_at(size, offset) if content is None else _read_forward(content, size, offset)
            if len(data) < size:
                return ImageError(
                    "truncated", f"{location} ends within the image; the file was truncated after it was listed"
                )
            return data

        yield from prefetch_map(read, listed, in_flight if content is None else 1)


def _read_forward(file: io.BufferedIOBase, size: int, offset: int) -> bytes:
    """Reads from a compressed file, which decompresses all data before `offset`; goes back only if it has to."""
    file.seek(offset)
    return file.read(size)


def _read_rows(location: str, listed: Sequence[ListedImage]) -> Iterator[bytes | ImageError]:
    with open_table(location) as file:
        columns = find_columns(file.schema_arrow, location)
        cells: Iterator[tuple[int, bytes | None]] = iter(())
        last_row = None
        for image in listed:
            row = image.offset or 0
            if last_row is None or not last_row < row <= last_row + _FEW_ROWS:
                cells = read_images_from(file, columns, row)
            last_row, data = next((cell for cell in cells if cell[0] == row), (None, None))
            if last_row is None:
                yield ImageError("truncated", f"{location} has no row {row}; it was changed after it was listed")
            elif data is None:
                yield ImageError("empty", f"{image.uri}: no bytes, and no path")
            elif len(data) > MAX_FILE_BYTES:
                yield ImageError("unreachable", f"{image.uri}: {len(data)} bytes; at most {MAX_FILE_BYTES} are read")
            else:
                yield data
