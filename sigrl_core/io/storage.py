"""Reads, writes, lists and moves files on local disks and in object stores.

A location is a local path (`runs/a`, `/data`, `~/data`, `file:///data`), `s3://bucket/prefix` (see object_store.py for
endpoint and credentials), `gs://bucket/prefix` or `abfs://container@account.dfs.core.windows.net/prefix`. Calls that
fail because of the store are repeated, see retry.py.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from sigrl_core.errors import StorageError
from sigrl_core.io import object_store
from sigrl_core.io.object_store import S3Settings
from sigrl_core.io.retry import explain_errors, with_retries
from sigrl_core.io.store_file import StoreFile

_OTHER_STORES = ("gs", "abfs", "abfss")
_SPOOL_BYTES = 64_000_000
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_TYPO = re.compile(r"(s3|gs|abfss?):/*", re.IGNORECASE)
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.DOTALL)


class File(NamedTuple):
    """One entry of `walk`.

    Attributes:
        path: path below the folder.
        size: size in bytes.
        mtime: time of the last change, in ns since 1970.
        etag: the object store's hash of the content; empty on a disk.
    """

    path: str
    size: int
    mtime: int
    etag: str = ""

    @property
    def version(self) -> str:
        """A text that changes with the content: the etag, or size and time of the last change if there is none."""
        return self.etag or f"{self.size:x}-{self.mtime:x}"


def filesystem_for(uri: str) -> tuple[fs.FileSystem, str]:
    """Returns the file system of a location, and the location's path in it.

    Raises:
        StorageError: an unknown or misspelt scheme, or an S3 location without a bucket.
    """
    _check_scheme(uri)
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return _local(), os.path.abspath(os.path.expanduser(uri))
    if scheme[1] == "file":
        return _local(), os.path.abspath(unquote(urlsplit(uri).path))
    path = uri[scheme.end() :].strip("/")
    if scheme[1] not in ("s3", *_OTHER_STORES):
        raise StorageError(f"{uri}: scheme {scheme[1]}:// is not known; give a local path, s3://, gs:// or abfs://")
    if not path:
        raise StorageError(f"{uri}: names no bucket; give {scheme[0]}bucket/prefix")
    if scheme[1] == "s3":
        return object_store.s3_filesystem(S3Settings.from_environment()), path
    try:
        return fs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError) as error:  # a build without this store, or a malformed location
        raise StorageError(
            f"{uri}: this pyarrow cannot reach it ({error}); copy the data to s3:// or a disk"
        ) from error


def _check_scheme(uri: str) -> None:
    """Raises StorageError for `s3:/bucket`, `s3:bucket` and `S3://bucket`, which would be paths on this machine."""
    if (typo := _TYPO.match(uri)) and not uri.startswith(scheme := typo[1].lower() + "://"):
        raise StorageError(f"{uri}: the start {typo[0]!r} is misspelt; write {scheme}{uri[typo.end() :]}")


def is_absolute(uri: str) -> bool:
    """Returns whether a location has a scheme, or is a path from the root or the home folder."""
    return bool(_SCHEME.match(uri)) or uri.startswith(("/", "~"))


def absolute(uri: str) -> str:
    """Returns the location independent of the working directory; raises StorageError for a misspelt scheme."""
    _check_scheme(uri)
    return uri if _SCHEME.match(uri) else os.path.abspath(os.path.expanduser(uri))


def join(uri: str, *names: str) -> str:
    """Returns the location of `names` below `uri`."""
    return "/".join([uri.rstrip("/"), *(name.strip("/") for name in names)])


def resolve(root: str, uri: str) -> str:
    """Returns the location of `uri` as a corpus writes it: `uri` itself if absolute, else below `root`."""
    return uri if is_absolute(uri) else join(root, uri)


def join_walked(root: str, path: str) -> str:
    """Returns the location of `File.path` below `root`; such a key may look like a location or end with a slash."""
    return f"{root.rstrip('/')}/{path}"


@with_retries
def exists(uri: str) -> bool:
    filesystem, path = filesystem_for(uri)
    with explain_errors(uri, "examined"):
        return filesystem.get_file_info(path).type != fs.FileType.NotFound


@with_retries
def is_folder(uri: str) -> bool:
    """Returns whether the folder exists; in an object store, whether there is a key below it.

    Raises:
        StorageError: denied, unreachable, no such bucket.
    """
    filesystem, path = filesystem_for(uri)
    with explain_errors(uri, "examined"):
        if uri.startswith("s3://"):
            entries, _ = object_store.list_s3_page(path + "/" * ("/" in path))
            return bool(entries) or "/" not in path
        return filesystem.get_file_info(path).type == fs.FileType.Directory


def read_bytes(uri: str, max_bytes: int | None = None) -> bytes:
    """Reads the whole file.

    Raises:
        StorageError: missing, denied, unreachable, or larger than `max_bytes`; see `retry.is_transient`.
    """
    filesystem, path = filesystem_for(uri)
    read = _read_disk if isinstance(filesystem, fs.LocalFileSystem) else _read_store
    try:
        return read(uri, path, max_bytes)
    except object_store.OversizeError as error:
        raise StorageError(f"{uri}: {error.size} bytes; at most {max_bytes} are read") from error


def _read_disk(uri: str, path: str, max_bytes: int | None) -> bytes:
    """Reads without Arrow and retries, which take longer than reading an image from a disk."""
    with explain_errors(uri, "read"), open(path, "rb", buffering=0) as file:
        if max_bytes is not None and (size := os.fstat(file.fileno()).st_size) > max_bytes:
            raise object_store.OversizeError(size)
        return file.read()


@with_retries
def _read_store(uri: str, path: str, max_bytes: int | None) -> bytes:
    with explain_errors(uri, "read"):
        if uri.startswith("s3://"):
            return object_store.read_s3(uri.removeprefix("s3://"), max_bytes)  # a key may end with a slash
        filesystem, _ = filesystem_for(uri)
        with filesystem.open_input_file(path) as file:
            if max_bytes is not None and file.size() > max_bytes:
                raise object_store.OversizeError(file.size())
            return file.read()


@contextlib.contextmanager
def open_input(uri: str) -> Iterator[Any]:
    """Opens the file to read parts of it: a `pyarrow.NativeFile`, or a `StoreFile` with the same methods.

    Raises:
        StorageError: as `read_bytes`, also while the file is read.
    """
    filesystem, path = filesystem_for(uri)
    with explain_errors(uri, "read"):
        local = isinstance(filesystem, fs.LocalFileSystem)
        with filesystem.open_input_file(path) if local else StoreFile(uri, filesystem, path) as file:
            yield file


@contextlib.contextmanager
def open_output(uri: str) -> Iterator[Any]:
    """Opens a file to be written; it appears under its name when the body ends, and not at all if the body fails.

    Raises:
        StorageError: denied, disk full, store unreachable.
    """
    filesystem, path = filesystem_for(uri)
    with explain_errors(uri, "written"):
        if not isinstance(filesystem, fs.LocalFileSystem):
            with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as spool:  # a stream to a store cannot be aborted
                yield spool
                _upload(uri, spool)
            return
        folder, name = os.path.split(path)
        os.makedirs(folder, exist_ok=True)
        temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")  # same disk: the rename is atomic
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


@with_retries
def _upload(uri: str, file: Any) -> None:
    filesystem, path = filesystem_for(uri)
    file.seek(0)
    with explain_errors(uri, "written"), filesystem.open_output_stream(path, compression=None) as stream:
        shutil.copyfileobj(file, stream, 1 << 20)  # the object appears when the stream is closed


@with_retries
def write_bytes(uri: str, data: bytes) -> None:
    """Writes the whole file or nothing, so that no reader sees an incomplete file; raises as `open_output`."""
    with open_output(uri) as file:
        file.write(data)


def read_json(uri: str) -> Any:
    """Reads a JSON file.

    Raises:
        StorageError: as `read_bytes`; not JSON, with the line.
    """
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:  # bad JSON, bad UTF-8
        raise StorageError(f"{uri}: not valid JSON ({error}); the file was altered, create it again") from error


def write_json(uri: str, value: Any) -> None:
    """Writes JSON, the same bytes for the same value; see `write_bytes`."""
    write_bytes(uri, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def walk(uri: str, suffixes: Sequence[str] = ("",), every_key: bool = False) -> Iterator[File]:
    """Lists the files below a folder, at all levels, in the order of their paths.

    Hidden files are left out: the name of the file or of a folder above it starts with a dot. Memory holds the names
    of one folder, or one page of an object store, at a time.

    Args:
        suffixes: endings to keep, in lower case; the case of the file's name is ignored.
        every_key: lists all keys of an object store, also hidden ones and the markers that consoles create for folders.

    Raises:
        StorageError: no such folder, denied, unreachable.
    """
    filesystem, root = filesystem_for(uri)
    endings = tuple(suffixes)
    with explain_errors(uri, "listed"):
        if isinstance(filesystem, fs.LocalFileSystem):
            yield from _walk_disk(root, "", endings)
            return
        files = _walk_s3(uri, root) if uri.startswith("s3://") else _walk_any(uri, root)
        for file in files:
            hidden = file.path.startswith(".") or "/." in file.path or file.path.endswith("/")
            if (every_key or not hidden) and file.path.lower().endswith(endings):
                yield file


def list_files(uri: str, suffixes: Sequence[str] = ("",)) -> list[File]:
    """Returns all files of `walk`."""
    return list(walk(uri, suffixes))


def _walk_disk(root: str, folder: str, endings: tuple[str, ...]) -> Iterator[File]:
    with os.scandir(os.path.join(root, folder)) as entries:
        names = [
            (entry.name + "/" * is_folder, is_folder)
            for entry in entries
            if not entry.name.startswith(".")
            and ((is_folder := entry.is_dir()) or entry.name.lower().endswith(endings))
        ]
    names.sort()  # folders with their slash, as an object store sorts keys
    for name, is_folder in names:
        path = folder + name
        if is_folder:
            yield from _walk_disk(root, path, endings)
        elif (status := _stat_regular_file(os.path.join(root, path))) is not None:
            yield File(path, status.st_size, status.st_mtime_ns)


def _stat_regular_file(path: str) -> os.stat_result | None:
    """Returns None for a pipe, a device, or a file that was removed meanwhile."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


@with_retries
def _walk_any(uri: str, root: str) -> Iterator[File]:
    filesystem, _ = filesystem_for(uri)
    with explain_errors(uri, "listed"):
        entries = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    start = len(root.rstrip("/")) + 1
    return iter(sorted(File(e.path[start:], e.size, e.mtime_ns or 0) for e in entries if e.is_file))


def _walk_s3(uri: str, root: str) -> Iterator[File]:
    prefix = root + "/" * ("/" in root)
    start = len(prefix.partition("/")[2])
    is_empty, token = True, None
    while True:
        entries, token = _list_s3_page(uri, prefix, token)
        for entry in entries:
            is_empty = False
            if path := entry["Key"][start:]:
                changed = int(entry["LastModified"].timestamp()) * 1_000_000_000
                yield File(path, entry["Size"], changed, entry["ETag"].strip('"'))
        if token is None:
            break
    if is_empty and start:
        raise FileNotFoundError(root)


@with_retries
def _list_s3_page(uri: str, prefix: str, token: str | None) -> tuple[list[dict[str, Any]], str | None]:
    with explain_errors(uri, "listed"):
        return object_store.list_s3_page(prefix, token)


@with_retries
def move(source: str, target: str) -> None:
    """Moves a file within one file system; does nothing if it was moved before.

    Raises:
        StorageError: neither file exists; denied, unreachable.
    """
    filesystem, path = filesystem_for(source)
    _, new = filesystem_for(target)
    with explain_errors(source, "moved"):
        if isinstance(filesystem, fs.LocalFileSystem):
            os.makedirs(os.path.dirname(new), exist_ok=True)
            os.replace(path, new)
        elif filesystem.get_file_info(path).type != fs.FileType.NotFound:
            filesystem.move(path, new)
        elif filesystem.get_file_info(new).type == fs.FileType.NotFound:  # else an earlier attempt has moved it
            raise FileNotFoundError(path)


@with_retries
def make_folder(uri: str) -> None:
    """Creates a folder and its parents; in an object store, which has no folders, checks that the bucket exists."""
    filesystem, path = filesystem_for(uri)
    with explain_errors(uri, "created"):
        if isinstance(filesystem, fs.LocalFileSystem):
            filesystem.create_dir(path, recursive=True)
        elif filesystem.get_file_info(bucket := path.split("/")[0]).type == fs.FileType.NotFound:
            raise StorageError(f"{uri}: no bucket {bucket}; create it first, or name another")


@with_retries
def remove(uri: str) -> None:
    """Removes a file, or a folder with its content; does nothing if it does not exist."""
    filesystem, path = filesystem_for(uri)
    with explain_errors(uri, "removed"):
        kind = filesystem.get_file_info(path).type
        if kind == fs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind != fs.FileType.NotFound:
            filesystem.delete_file(path)


def remove_unfinished(uri: str) -> None:
    """Removes the temporary files, at any level of a folder on disk, of processes that were killed in `open_output`.

    No process may be writing there meanwhile; its `open_output` would raise StorageError.
    """
    filesystem, root = filesystem_for(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        with explain_errors(uri, "removed"):
            for folder, _, names in os.walk(root):
                for name in filter(_UNFINISHED.fullmatch, names):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(os.path.join(folder, name))


@functools.cache
def _local() -> fs.LocalFileSystem:
    return fs.LocalFileSystem()
