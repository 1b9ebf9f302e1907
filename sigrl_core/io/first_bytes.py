"""Reads the first bytes of a file, in one request to an object store."""

from __future__ import annotations

from sigrl_core.io import object_store
from sigrl_core.io.retry import explain_errors, with_retries
from sigrl_core.io.storage import filesystem_for


@with_retries
def read_first_bytes(uri: str, num_bytes: int) -> bytes:
    """Reads at most `num_bytes` from the start of a file that is not empty; raises StorageError as `read_bytes`."""
    filesystem, path = filesystem_for(uri)
    with explain_errors(uri, "read"):
        if uri.startswith("s3://"):
            return object_store.read_s3(uri.removeprefix("s3://"), num_bytes=num_bytes)
        with filesystem.open_input_file(path) as file:
            return file.read(num_bytes)
