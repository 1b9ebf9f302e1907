"""Reads parts of a file in an object store that may fail for a while."""

from __future__ import annotations

import io
from typing import Any

from pyarrow import fs

from sigrl_core.io.retry import explain_errors, with_retries


class StoreFile(io.RawIOBase):
    """A file of an object store, to read parts of it; the open and every read are repeated while the store fails.

    Args:
        uri: the location, for errors.
        filesystem: the store's file system.
        path: the file's path in it.

    Raises:
        StorageError: missing, denied, unreachable.
    """

    def __init__(self, uri: str, filesystem: fs.FileSystem, path: str) -> None:
        self._uri, self._position = uri, 0
        self._file: Any = None  # `close` is called even if the open fails
        self._file = self._open(filesystem, path)

    @with_retries
    def _open(self, filesystem: fs.FileSystem, path: str) -> Any:
        with explain_errors(self._uri, "read"):
            return filesystem.open_input_file(path)

    @with_retries
    def read_at(self, nbytes: int, offset: int) -> bytes:
        """Reads at most `nbytes` bytes from `offset`; threads may call it at the same time."""
        with explain_errors(self._uri, "read"):
            return self._file.read_at(nbytes, offset)

    def size(self) -> int:
        return self._file.size()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size()}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        rest = max(0, self.size() - self._position)
        size = rest if size is None or size < 0 else min(size, rest)
        data = self.read_at(size, self._position) if size else b""
        self._position += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()
