"""Files on local disks and in object stores, behind one factory.

A location is a local path (`runs/a`, `/data`, `~/data`, `file:///data`) or `s3://bucket/prefix`. Endpoint, region and
credentials of S3 come from the environment: `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, `AWS_REGION` or
`AWS_DEFAULT_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`; without keys, as AWS tools do.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from pyarrow import fs

from sigrl_core.errors import StorageError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class File(NamedTuple):
    """One entry of `list_files`: path below the listed folder, size in bytes, time of change in ns since 1970."""

    path: str
    size: int
    mtime: int


def filesystem_for(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a location, and the location's path in it.

    Raises:
        StorageError: an unknown scheme, or an S3 location without a bucket.
    """
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return _local(), os.path.abspath(os.path.expanduser(uri))
    if scheme[1] == "file":
        return _local(), os.path.abspath(unquote(urlsplit(uri).path))
    path = uri[scheme.end() :].strip("/")
    if scheme[1] != "s3":
        raise StorageError(f"{uri}: scheme {scheme[1]}:// is not known; give a local path, file:// or s3://")
    if not path:
        raise StorageError(f"{uri}: no bucket named; give s3://bucket/prefix")
    environment = os.environ.get
    return _s3(
        environment("AWS_ENDPOINT_URL_S3") or environment("AWS_ENDPOINT_URL"),
        environment("AWS_REGION") or environment("AWS_DEFAULT_REGION") or "us-east-1",
        environment("AWS_ACCESS_KEY_ID"),
        environment("AWS_SECRET_ACCESS_KEY"),
        environment("AWS_SESSION_TOKEN"),
    ), path


def is_absolute(uri: str) -> bool:
    """Whether a location stands on its own: it has a scheme, or is a path from the root or from home."""
    return bool(_SCHEME.match(uri)) or uri.startswith(("/", "~"))


def absolute(uri: str) -> str:
    """The location as any process of the cluster can use it; a relative path is one from this process' folder."""
    return uri if _SCHEME.match(uri) else os.path.abspath(os.path.expanduser(uri))


def join(uri: str, *names: str) -> str:
    """The location of `names` below `uri`."""
    return "/".join([uri.rstrip("/"), *(name.strip("/") for name in names)])


def locate(root: str, uri: str) -> str:
    """Where `uri`, as a corpus writes it, is: itself when absolute, else below `root`."""
    return uri if is_absolute(uri) else join(root, uri)


def exists(uri: str) -> bool:
    filesystem, path = filesystem_for(uri)
    with _explained(uri, "looked at"):
        return filesystem.get_file_info(path).type != fs.FileType.NotFound


def is_folder(uri: str) -> bool:
    filesystem, path = filesystem_for(uri)
    with _explained(uri, "looked at"):
        return filesystem.get_file_info(path).type == fs.FileType.Directory


def read_bytes(uri: str, max_bytes: int | None = None) -> bytes:
    """The whole file.

    Raises:
        StorageError: missing, denied, unreachable, or larger than `max_bytes`; see `is_transient`.
    """
    filesystem, path = filesystem_for(uri)
    with _explained(uri, "read"), filesystem.open_input_file(path) as file:
        if max_bytes is not None and (size := file.size()) > max_bytes:
            raise StorageError(f"{uri}: {size} bytes; at most {max_bytes} are read")
        return file.read()


def write_bytes(uri: str, data: bytes) -> None:
    """Writes the whole file or nothing: no reader ever sees a part of it under its name.

    Raises:
        StorageError: denied, disk full, store unreachable.
    """
    filesystem, path = filesystem_for(uri)
    with _explained(uri, "written"):
        if not isinstance(filesystem, fs.LocalFileSystem):
            with filesystem.open_output_stream(path, compression=None) as stream:  # an object appears when closed
                stream.write(data)
            return
        folder, name = os.path.split(path)
        os.makedirs(folder, exist_ok=True)
        temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")  # same disk: the rename is atomic
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def read_json(uri: str) -> Any:
    """Raises StorageError: as `read_bytes`, or not JSON (with the line)."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:  # bad JSON, bad UTF-8
        raise StorageError(f"{uri}: not valid JSON ({error}); the file was altered, make it again") from error


def write_json(uri: str, value: Any) -> None:
    """Writes JSON that is the same bytes for the same value; see `write_bytes`."""
    write_bytes(uri, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def list_files(uri: str, suffixes: Sequence[str] = ("",)) -> list[File]:
    """Files below a folder, all levels, sorted by path; those whose name starts with a dot are not listed.

    Args:
        suffixes: endings to keep, in lower case; the file's own case does not matter.

    Raises:
        StorageError: no such folder, denied, unreachable.
    """
    filesystem, root = filesystem_for(uri)
    with _explained(uri, "listed"):
        entries = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    start = len(root.rstrip("/")) + 1
    return sorted(
        File(entry.path[start:], entry.size, entry.mtime_ns or 0)
        for entry in entries
        if entry.is_file and not entry.base_name.startswith(".") and entry.base_name.lower().endswith(tuple(suffixes))
    )


def make_folder(uri: str) -> None:
    """Makes a folder and those above it; object stores have none, so there it only looks for the bucket."""
    filesystem, path = filesystem_for(uri)
    with _explained(uri, "made"):
        if isinstance(filesystem, fs.LocalFileSystem):
            filesystem.create_dir(path, recursive=True)
        elif filesystem.get_file_info(bucket := path.split("/")[0]).type == fs.FileType.NotFound:
            raise StorageError(f"{uri}: no bucket {bucket}; make it first, or name another")


def remove(uri: str) -> None:
    """Removes a file or a folder with all that is in it; nothing there is fine."""
    filesystem, path = filesystem_for(uri)
    with _explained(uri, "removed"):
        kind = filesystem.get_file_info(path).type
        if kind == fs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind != fs.FileType.NotFound:
            filesystem.delete_file(path)


def is_transient(error: StorageError) -> bool:
    """Whether the store, not this one file, failed, so that the same call may succeed later."""
    cause = error.__cause__
    if not isinstance(cause, OSError) or isinstance(cause, FileNotFoundError | PermissionError | IsADirectoryError):
        return False
    text = str(cause)
    return "AWS Error" in text and not any(word in text for word in ("ACCESS_DENIED", "NO_SUCH", "NOT_FOUND"))


@functools.cache
def _local() -> fs.LocalFileSystem:
    return fs.LocalFileSystem()


@functools.cache
def _s3(endpoint: str | None, region: str, key: str | None, secret: str | None, token: str | None) -> fs.FileSystem:
    scheme, _, host = (endpoint or "").rpartition("://")
    return fs.S3FileSystem(
        access_key=key,
        secret_key=secret,
        session_token=token,
        region=region,
        endpoint_override=host.rstrip("/") or None,
        scheme=scheme or "https",
        connect_timeout=5,
        request_timeout=30,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=5),
        allow_delayed_open=True,  # a small object is one PUT
    )


@contextlib.contextmanager
def _explained(uri: str, action: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"{uri}: no such file or folder; check the path") from error
    except OSError as error:
        raise StorageError(f"{uri}: cannot be {action}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk full; free some space and run the same command again"
    if "NO_SUCH_BUCKET" in str(error):
        return "no such bucket; make it first, or check the name"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) or "ACCESS_DENIED" in str(error):
        return "permission denied; check the rights of this user or of these credentials"
    return f"{error.strerror or error}; check the path and the connection, then run the same command again"
