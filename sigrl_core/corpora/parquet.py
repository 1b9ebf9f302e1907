"""Opens Parquet files from other sources, with specific errors, and classifies their column types."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from sigrl_core.errors import CorpusError
from sigrl_core.io import storage

_BUFFER_BYTES = 1 << 20


@contextlib.contextmanager
def open_parquet(location: str) -> Iterator[pq.ParquetFile]:
    """Opens the file to read it in parts; memory holds the requested part of a column and a buffer.

    Raises:
        CorpusError: not a Parquet file, or damaged.
        StorageError: as `storage.open_input`.
    """
    with storage.open_input(location) as file:
        try:
            yield pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error)):
                raise  # the disk or store failed, not the file
            raise CorpusError(f"{location}: cannot be read as Parquet ({error}); write the file again") from error


def is_text(type_: pa.DataType) -> bool:
    if types.is_dictionary(type_):
        type_ = type_.value_type
    return types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_)


def is_list(type_: pa.DataType) -> bool:
    return types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_)
