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
        self._file = file
        self.schema_arrow: pa.Schema = self._open().schema

    def _open(self) -> ipc.RecordBatchFileReader | ipc.RecordBatchStreamReader:
        self._file.seek(0)
        magic = self._file.read(len(_FILE_MAGIC))
        self._file.seek(0)
        return ipc.open_file(self._file) if magic == _FILE_MAGIC else ipc.open_stream(self._file)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yields the batches from the first one on; memory holds one of them.

        Only the iterator of the last call may be used.

        Raises:
            pyarrow.ArrowInvalid: damaged data.
        """
        reader = self._open()
        if isinstance(reader, ipc.RecordBatchFileReader):
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            batches = iter(reader)
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
