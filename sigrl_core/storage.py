"""Files on local disks and in object stores, behind one factory.

A location is a local path (`runs/a`, `/data`, `~/data`, `file:///data`), `s3://bucket/prefix` (object_store.py says
how it is reached), `gs://bucket/prefix` or `abfs://container@account.dfs.core.windows.net/prefix`. What a store fails
to do is tried again for PATIENCE_SECONDS.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import tenacity
from pyarrow import NativeFile, fs

from sigrl_core import object_store
from sigrl_core.errors import StorageError
from sigrl_core.object_store import S3Settings

PATIENCE_SECONDS = 60.0
"""How long a store that does not answer is asked again before a command gives up."""

_OTHER_STORES = ("gs", "abfs", "abfss")
_SPOOL_BYTES = 64_000_000
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.DOTALL)


def is_transient(error: BaseException) -> bool:
    """Whether the store, not this one file, failed, so that the same call may succeed later."""
    return isinstance(error, StorageError) and object_store.is_transient(error.__cause__)


_Call = TypeVar("_Call", bound=Callable[..., Any])


def patient(call: _Call) -> _Call:
    """Repeats a call that may be repeated while the store fails, with growing, random pauses."""
    persistent = tenacity.retry(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=0.25, max=5),
        stop=tenacity.stop_after_delay(PATIENCE_SECONDS),
        reraise=True,
    )
    return cast(_Call, persistent(call))


class File(NamedTuple):
    """One entry of `walk`: path below the folder, size in bytes, time of change in ns since 1970, the store's mark of
    its content."""

    path: str
    size: int
    mtime: int
    etag: str = ""

    @property
    def version(self) -> str:
        """Changes with the content: the store's mark, or size and time of change where there is none."""
        return self.etag or f"{self.size:x}-{self.mtime:x}"


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
    if scheme[1] not in ("s3", *_OTHER_STORES):
        raise StorageError(f"{uri}: scheme {scheme[1]}:// is not known; give a local path, s3://, gs:// or abfs://")
    if not path:
        raise StorageError(f"{uri}: no bucket named; give {scheme[0]}bucket/prefix")
    if scheme[1] == "s3":
        return object_store.s3_filesystem(S3Settings.from_environment()), path
    try:
        return fs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError) as error:  # of a build without it, or a location that it does not take
        raise StorageError(
            f"{uri}: this pyarrow cannot reach it ({error}); copy the data to s3:// or a disk"
        ) from error


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


def below(root: str, path: str) -> str:
    """Where a file is that `walk` found below `root`; a key may look like a location or end with a slash."""
    return f"{root.rstrip('/')}/{path}"


@patient
def exists(uri: str) -> bool:
    filesystem, path = filesystem_for(uri)
    with _explained(uri, "looked at"):
        return filesystem.get_file_info(path).type != fs.FileType.NotFound


@patient
def is_folder(uri: str) -> bool:
    """Whether there is such a folder, in an object store something below it.

    Raises:
        StorageError: denied, unreachable, no such bucket.
    """
    filesystem, path = filesystem_for(uri)
    with _explained(uri, "looked at"):
        if uri.startswith("s3://"):
            entries, _ = object_store.s3_page(path + "/" * ("/" in path))
            return bool(entries) or "/" not in path
        return filesystem.get_file_info(path).type == fs.FileType.Directory


def read_bytes(uri: str, max_bytes: int | None = None) -> bytes:
    """The whole file.

    Raises:
        StorageError: missing, denied, unreachable, or larger than `max_bytes`; see `is_transient`.
    """
    filesystem, path = filesystem_for(uri)
    read = _read_disk if isinstance(filesystem, fs.LocalFileSystem) else _read_store
    try:
        return read(uri, path, max_bytes)
    except object_store.OversizeError as error:
        raise StorageError(f"{uri}: {error.size} bytes; at most {max_bytes} are read") from error


def _read_disk(uri: str, path: str, max_bytes: int | None) -> bytes:
    """Without Arrow and patience, which cost more than it takes to read a picture."""
    with _explained(uri, "read"), open(path, "rb", buffering=0) as file:
        if max_bytes is not None and (size := os.fstat(file.fileno()).st_size) > max_bytes:
            raise object_store.OversizeError(size)
        return file.read()


@patient
def _read_store(uri: str, path: str, max_bytes: int | None) -> bytes:
    with _explained(uri, "read"):
        if uri.startswith("s3://"):
            return object_store.s3_read(uri.removeprefix("s3://"), max_bytes)  # a key may end with a slash
        filesystem, _ = filesystem_for(uri)
        with filesystem.open_input_file(path) as file:
            if max_bytes is not None and file.size() > max_bytes:
                raise object_store.OversizeError(file.size())
            return file.read()


@contextlib.contextmanager
def reading(uri: str) -> Iterator[NativeFile]:
    """The file opened to read pieces of it; raises StorageError as `read_bytes`."""
    filesystem, path = filesystem_for(uri)
    with _explained(uri, "read"), filesystem.open_input_file(path) as file:
        yield file


@contextlib.contextmanager
def writing(uri: str) -> Iterator[Any]:
    """The file opened to be written from its start; it has its name when the body ends, and never where that fails.

    Raises:
        StorageError: denied, disk full, store unreachable.
    """
    filesystem, path = filesystem_for(uri)
    with _explained(uri, "written"):
        if not isinstance(filesystem, fs.LocalFileSystem):
            with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as spool:  # a stream to a store cannot be called back
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


@patient
def _upload(uri: str, file: Any) -> None:
    filesystem, path = filesystem_for(uri)
    file.seek(0)
    with _explained(uri, "written"), filesystem.open_output_stream(path, compression=None) as stream:
        shutil.copyfileobj(file, stream, 1 << 20)  # the object appears when the stream is closed


@patient
def write_bytes(uri: str, data: bytes) -> None:
    """Writes the whole file or nothing: no reader ever sees a part of it under its name; raises as `writing`."""
    with writing(uri) as file:
        file.write(data)


def read_json(uri: str) -> Any:
    """Raises StorageError: as `read_bytes`, or not JSON (with the line)."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:  # bad JSON, bad UTF-8
        raise StorageError(f"{uri}: not valid JSON ({error}); the file was altered, make it again") from error


def write_json(uri: str, value: Any) -> None:
    """Writes JSON that is the same bytes for the same value; see `write_bytes`."""
    write_bytes(uri, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def walk(uri: str, suffixes: Sequence[str] = ("",), every_key: bool = False) -> Iterator[File]:
    """Files below a folder as they are found, all levels, in the order of their paths, without those that are hidden:
    with a dot before their name or that of a folder above them.

    Holds the names of one folder, or one page of an object store, at a time.

    Args:
        suffixes: endings to keep, in lower case; the file's own case does not matter.
        every_key: of an object store, nothing counts as hidden, and what consoles make to show a folder as a file.

    Raises:
        StorageError: no such folder, denied, unreachable.
    """
    filesystem, root = filesystem_for(uri)
    endings = tuple(suffixes)
    with _explained(uri, "listed"):
        if isinstance(filesystem, fs.LocalFileSystem):
            yield from _walk_disk(root, "", endings)
            return
        files = _walk_s3(uri, root) if uri.startswith("s3://") else _walk_any(filesystem, root)
        for file in files:
            hidden = file.path.startswith(".") or "/." in file.path or file.path.endswith("/")
            if (every_key or not hidden) and file.path.lower().endswith(endings):
                yield file


def list_files(uri: str, suffixes: Sequence[str] = ("",)) -> list[File]:
    """All that `walk` finds."""
    return list(walk(uri, suffixes))


def _walk_disk(root: str, folder: str, endings: tuple[str, ...]) -> Iterator[File]:
    with os.scandir(os.path.join(root, folder)) as entries:
        found = [
            (entry.name + "/" * is_folder, is_folder)
            for entry in entries
            if not entry.name.startswith(".")
            and ((is_folder := entry.is_dir()) or entry.name.lower().endswith(endings))
        ]
    found.sort()  # with the slash, as an object store sorts keys
    for name, is_folder in found:
        path = folder + name
        if is_folder:
            yield from _walk_disk(root, path, endings)
        elif (told := _stat(os.path.join(root, path))) is not None:
            yield File(path, told.st_size, told.st_mtime_ns)


def _stat(path: str) -> os.stat_result | None:
    """None for what is no file: a pipe, a device, a file that has gone since."""
    try:
        told = os.stat(path)
    except FileNotFoundError:
        return None
    return told if stat.S_ISREG(told.st_mode) else None


def _walk_any(filesystem: fs.FileSystem, root: str) -> Iterator[File]:
    entries = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    start = len(root.rstrip("/")) + 1
    return iter(sorted(File(e.path[start:], e.size, e.mtime_ns or 0) for e in entries if e.is_file))


def _walk_s3(uri: str, root: str) -> Iterator[File]:
    below = root + "/" * ("/" in root)
    start = len(below.partition("/")[2])
    found, token = False, None
    while True:
        entries, token = _s3_page(uri, below, token)
        for entry in entries:
            found = True
            if path := entry["Key"][start:]:
                changed = int(entry["LastModified"].timestamp()) * 1_000_000_000
                yield File(path, entry["Size"], changed, entry["ETag"].strip('"'))
        if token is None:
            break
    if not found and start:
        raise FileNotFoundError(root)


@patient
def _s3_page(uri: str, below: str, token: str | None) -> tuple[list[dict[str, Any]], str | None]:
    with _explained(uri, "listed"):
        return object_store.s3_page(below, token)


@patient
def move(source: str, target: str) -> None:
    """Gives a file another place in the same file system; where it already has been moved, nothing is left to do.

    Raises:
        StorageError: neither is there; denied, unreachable.
    """
    filesystem, path = filesystem_for(source)
    _, new = filesystem_for(target)
    with _explained(source, "moved"):
        if isinstance(filesystem, fs.LocalFileSystem):
            os.makedirs(os.path.dirname(new), exist_ok=True)
            os.replace(path, new)
        elif filesystem.get_file_info(path).type != fs.FileType.NotFound:  # else it was, and only the answer was lost
            filesystem.move(path, new)
        elif filesystem.get_file_info(new).type == fs.FileType.NotFound:
            raise FileNotFoundError(path)


@patient
def make_folder(uri: str) -> None:
    """Makes a folder and those above it; object stores have none, so there it only looks for the bucket."""
    filesystem, path = filesystem_for(uri)
    with _explained(uri, "made"):
        if isinstance(filesystem, fs.LocalFileSystem):
            filesystem.create_dir(path, recursive=True)
        elif filesystem.get_file_info(bucket := path.split("/")[0]).type == fs.FileType.NotFound:
            raise StorageError(f"{uri}: no bucket {bucket}; make it first, or name another")


@patient
def remove(uri: str) -> None:
    """Removes a file or a folder with all that is in it; nothing there is fine."""
    filesystem, path = filesystem_for(uri)
    with _explained(uri, "removed"):
        kind = filesystem.get_file_info(path).type
        if kind == fs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind != fs.FileType.NotFound:
            filesystem.delete_file(path)


def remove_unfinished(uri: str) -> None:
    """Removes what `writing` left at any level of a folder where its process was killed; only disks have such files.

    Nobody may be writing there: who does fails with StorageError.
    """
    filesystem, root = filesystem_for(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        with _explained(uri, "removed"):
            for folder, _, names in os.walk(root):
                for name in filter(_UNFINISHED.fullmatch, names):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(os.path.join(folder, name))


@functools.cache
def _local() -> fs.LocalFileSystem:
    return fs.LocalFileSystem()


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
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "permission denied; check the rights of this user"
    if told := object_store.reason(error):
        return told
    return f"{error.strerror or error}; check the path and the connection, then run the same command again"
