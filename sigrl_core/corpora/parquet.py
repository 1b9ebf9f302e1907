"""Parquet files of others: opened with errors that say what is wrong, and what types of columns mean."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from sigrl_core import storage
from sigrl_core.errors import CorpusError

_BUFFER_BYTES = 1 << 20


@contextlib.contextmanager
def opened(location: str) -> Iterator[pq.ParquetFile]:
    """The file, to be read in pieces: never more of a column at a time than what is asked for, and a buffer.

    Raises:
        CorpusError: not a Parquet file, or damaged.
        StorageError: as `storage.reading`.
    """
    with storage.reading(location) as file:
        try:
            yield pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error)):
                raise  # the disk or the store, not the file
            raise CorpusError(f"{location}: cannot be read as Parquet ({error}); write the file again") from error


def is_text(found: pa.DataType) -> bool:
    if types.is_dictionary(found):
        found = found.value_type
    return types.is_string(found) or types.is_large_string(found) or types.is_string_view(found)


def is_list(found: pa.DataType) -> bool:
    return types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found)
