"""A label matrix in NumPy's format with a list of images, as Cole et al. 2021 (arXiv 2106.09708) store their corpora.

    formatted_train_labels.npy      N x C: 1 present, 0 absent
    formatted_train_labels_obs.npy  observed labels: 1 present, -1 absent, 0 unknown; see Cole et al.
    formatted_train_images.npy      N texts, paths below `--images`; or formatted_train_images.txt, one per line
    classes.txt                     names of the C labels, one per line; without it their numbers are the labels

`--annotations` is a matrix; the other files are beside it. 0 is unknown in a matrix whose name ends in `_obs.npy` or
that contains -1. The matrix is read in parts, twice.
"""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy

from sigrl_core.corpora.listing import ListedImage, Listing, corpus_vocabulary, require_file, require_folder
from sigrl_core.corpora.text import read_names
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage

_READ_BYTES = 1 << 22
_MAX_HEADER_BYTES = 20_000  # numpy itself refuses headers above 10,000 bytes
_MAX_IMAGES_BYTES = 4_000_000_000  # of the list of images, which is held in memory
_MAX_COLUMN_MAJOR_BYTES = 4_000_000_000  # of a matrix that is stored by columns, which is held in memory


class _Header(NamedTuple):
    """What the start of an .npy file describes."""

    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype
    start: int  # first byte of the values


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists the rows in order; does not check that image files exist.

    Raises:
        CorpusError: a file is missing, is no such array, or has another number of rows; a value other than -1, 0, 1.
    """
    require_folder(images)
    where = require_file("label_matrix", annotations)
    header = _read_header(where)
    if len(header.shape) != 2 or header.dtype.kind not in "biuf":
        raise CorpusError(f"{where}: shape {header.shape}, type {header.dtype}; expected an N x C matrix of numbers")
    num_rows, num_labels = header.shape
    names = _read_images(where)
    if len(names) != num_rows:
        raise CorpusError(
            f"{where}: {num_rows} rows, but {len(names)} images are listed beside it; use files of one set"
        )
    if not num_rows or not num_labels:
        raise CorpusError(f"{where}: no images, or no labels; found shape {header.shape}")
    classes_file = storage.join(posixpath.dirname(storage.absolute(where)), "classes.txt")
    classes = read_names(classes_file) if storage.exists(classes_file) else [str(c) for c in range(num_labels)]
    if len(classes) != num_labels:
        raise CorpusError(f"{classes_file}: {len(classes)} names, but {where} has {num_labels} columns; correct one")
    return Listing(_list_images(where, header, names, classes), corpus_vocabulary(classes, classes_file))


def _list_images(where: str, header: _Header, names: list[str], classes: list[str]) -> Iterator[ListedImage]:
    has_unknown = where.endswith("_obs.npy")
    for start, rows_NC in _read_rows(where, header):
        wrong = np.argwhere((rows_NC != 0) & (rows_NC != 1) & (rows_NC != -1))
        if len(wrong):
            row, column = wrong[0]
            value = rows_NC[row, column]
            raise CorpusError(f"{where}, row {start + row}, column {column}: {value}, expected -1, 0 or 1")
        has_unknown = has_unknown or bool((rows_NC == -1).any())
    for start, rows_NC in _read_rows(where, header):
        for number, row_C in enumerate(rows_NC, start):
            present, negative = (tuple(classes[c] for c in np.flatnonzero(row_C == value)) for value in (1, -1))
            if not has_unknown or len(present) + len(negative) == len(classes):
                yield ListedImage(names[number], present)
            elif present or negative:
                yield ListedImage(names[number], present, negative)
            else:
                yield ListedImage(names[number], None)


def _read_images(matrix: str) -> list[str]:
    """Reads the list of images beside a matrix."""
    folder, name = posixpath.split(storage.absolute(matrix))
    prefix = name.rpartition("labels")[0]  # formatted_train_ or formatted_train_uniform_
    prefixes = dict.fromkeys((prefix, prefix.rstrip("_").rpartition("_")[0] + "_"))
    candidates = [storage.join(folder, f"{each}images{ending}") for each in prefixes for ending in (".npy", ".txt")]
    where = next((each for each in candidates if storage.exists(each)), None)
    if where is None:
        expected = " or ".join(posixpath.basename(each) for each in candidates[:2])
        raise CorpusError(f"{candidates[0]}: no such file; put {expected}, the list of images, beside {name}")
    if where.endswith(".txt"):
        return read_names(where)
    header = _read_header(where)
    if header.dtype.kind == "O":
        raise CorpusError(
            f"{where}: an array of Python objects, which can run code when it is loaded; if you trust the file, "
            f"convert it in its folder: python -c \"import numpy as n; f = '{posixpath.basename(where)}'; "
            'n.save(f, n.load(f, allow_pickle=True).astype(str))"'
        )
    if header.dtype.kind not in "US" or len(header.shape) != 1:
        raise CorpusError(f"{where}: shape {header.shape}, type {header.dtype}; expected a list of N texts")
    try:
        array = np.load(io.BytesIO(storage.read_bytes(where, _MAX_IMAGES_BYTES)), allow_pickle=False)
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in array.tolist()]
        for name in names:
            name.encode()
    except ValueError as error:
        raise CorpusError(f"{where}: not readable as texts ({error}); save the list again") from error
    if "" in names:
        raise CorpusError(f"{where}: image {names.index('')} has an empty name; correct the list")
    return names


def _read_header(where: str) -> _Header:
    """Reads the header and checks that the file has as many bytes as it describes."""
    with storage.open_input(where) as file:
        size = file.size()
        head = io.BytesIO(file.read_at(min(size, _MAX_HEADER_BYTES), 0))
    try:
        version = npy.read_magic(head)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version}")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, by_columns, dtype = read(head)
        start = head.tell()
    except Exception as error:  # numpy parses Python text: errors of tokens and syntax too
        reason = str(error).partition("\n")[0]
        raise CorpusError(f"{where}: not an array of numpy.save ({reason}); save it again") from error
    num_values = 1
    for length in shape:
        num_values *= length
    if dtype.kind != "O" and (min(shape, default=0) < 0 or start + num_values * dtype.itemsize != size):
        expected = start + num_values * dtype.itemsize
        raise CorpusError(f"{where}: {size} bytes, expected {expected} for shape {shape}; the file is not whole")
    return _Header(shape, by_columns, dtype, start)


def _read_rows(where: str, header: _Header) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the number of the first row and the rows of each part of a matrix."""
    num_rows, num_labels = header.shape
    if header.by_columns:
        data = storage.read_bytes(where, _MAX_COLUMN_MAJOR_BYTES)[header.start :]
        yield 0, np.frombuffer(data, header.dtype).reshape(num_labels, num_rows).T
        return
    row_bytes = num_labels * header.dtype.itemsize
    rows_per_read = max(1, _READ_BYTES // row_bytes)
    with storage.open_input(where) as file:
        for start in range(0, num_rows, rows_per_read):
            count = min(rows_per_read, num_rows - start)
            data = file.read_at(count * row_bytes, header.start + start * row_bytes)
            if len(data) < count * row_bytes:
                raise CorpusError(f"{where}: ends within row {start + len(data) // row_bytes}; the file is not whole")
            yield start, np.frombuffer(data, header.dtype).reshape(count, num_labels)
