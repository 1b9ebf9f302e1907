"""Opens Arrow files from other sources, such as those of `datasets.save_to_disk`, with specific errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyarrow import ipc

from sigrl_core.errors import CorpusError
from sigrl_core.io import storage

_FILE_MAGIC = b"ARROW1"


class ArrowFile:
    """An open Arrow file: a stream of batches, as `datasets` writes, or the format with an index.

    Attributes:
        schema_arrow: the schema, under the name that `pyarrow.parquet.ParquetFile` has for it.
    """

    def __init__(self, file: Any) -> None:
        magic = file.read(len(_FILE_MAGIC))
        file.seek(0)
        self._reader = ipc.open_file(file) if magic == _FILE_MAGIC else ipc.open_stream(file)
        self.schema_arrow: pa.Schema = self._reader.schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yields the batches in order, once; memory holds one of them.

        Raises:
            pyarrow.ArrowInvalid: damaged data.
        """
        if isinstance(self._reader, ipc.RecordBatchFileReader):
            batches = (self._reader.get_batch(index) for index in range(self._reader.num_record_batches))
        else:
            batches = iter(self._reader)
        for batch in batches:
            batch.validate(full=True)  # offsets of a damaged file may lie outside its data
            yield batch


@contextlib.contextmanager
def open_arrow(location: str) -> Iterator[ArrowFile]:
    """Opens the file to read its batches one by one.

    Raises:
        CorpusError: not an Arrow file, or damaged, also while it is read.
        StorageError: as `storage.open_input`.
    """
    with storage.open_input(location) as file:
        try:
            yield ArrowFile(file)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error)):
                raise  # the disk or store failed, not the file
            reason = str(error).partition("\n")[0]
            raise CorpusError(f"{location}: cannot be read as Arrow ({reason}); write the file again") from error
