"""Reads the names of the files in a tar, and the contents of those with labels. The tar may be compressed by gzip."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Collection, Iterator
from typing import IO, NamedTuple, cast

from sigrl_core.corpora.compressed import open_decompressed
from sigrl_core.errors import CorpusError
from sigrl_core.io.prefetch import is_local
from sigrl_core.labels.vocabulary import is_text

_MAX_BYTES = 10_000_000  # largest file with labels, or name of a file
_DISK_BYTES, _STORE_BYTES = 1 << 13, 1 << 22  # size of one read, on a disk and in an object store


class Member(NamedTuple):
    """One file in a tar."""

    sample: str  # the name up to the first dot, with its folder
    extension: str  # the name after the first dot, in lower case
    name: str
    offset: int  # of its first byte in the tar
    size: int
    data: bytes | None  # of a file with labels


def read_members(where: str, label_endings: Collection[str] = ()) -> Iterator[Member]:
    """Yields the files of a tar, in order.

    Args:
        label_endings: endings, in lower case, of the files whose content is read.

    Raises:
        CorpusError: not a tar file, or damaged; a link, a sparse file, or a name that leads out of the folder.
    """
    with open_decompressed(where, _DISK_BYTES if is_local(where) else _STORE_BYTES) as file:
        reader = _TarReader(file)
        tar, offset = None, 0
        try:
            tar = tarfile.TarFile(fileobj=cast(IO[bytes], reader))
            while (member := tar.next()) is not None:
                tar.members = []  # tarfile would keep all of them  # pyright: ignore[reportAttributeAccessIssue]
                offset = tar.offset
                _check(member, where)
                sample, extension = _split_name(member.name)
                if member.isfile() and extension:
                    data, ending = None, extension.rpartition(".")[2]
                    if ending in label_endings and (ending == extension or member.size <= _MAX_BYTES):
                        reader.seek(member.offset_data)
                        data = reader.read(member.size)
                    name = member.name.removeprefix("./")
                    yield Member(sample, extension, name, member.offset_data, member.size, data)
            reader.seek(offset)  # tarfile takes a damaged header for the end of the file
            if reader.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("neither a header nor the end")
        except tarfile.TarError as error:
            raise CorpusError(
                f"{where}, byte {offset}: not a tar file, or damaged ({error}); write it again"
            ) from error


class _TarReader:
    """A file that refuses reads above `_MAX_BYTES`, because their sizes come from headers of the tar file."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_BYTES:
            raise tarfile.ReadError(f"{size} bytes of names or labels, more than {_MAX_BYTES}")
        return self._file.read(size)


def _check(member: tarfile.TarInfo, where: str) -> None:
    name = member.name
    position = f"{where}, byte {member.offset}: {name[:200]!r}"
    if name.startswith("/") or ".." in name.split("/") or not is_text(name):
        raise CorpusError(f"{position} leads out of the folder, or is not UTF-8; write the tar with plain names")
    if member.issparse() or not (member.isfile() or member.isdir()):
        raise CorpusError(f"{position} is a link, a device or a sparse file; write the tar with the files themselves")


def _split_name(name: str) -> tuple[str, str]:
    """Returns sample and extension; no extension for names without dot and hidden files, such as those of macOS."""
    folder, slash, file = name.rpartition("/")
    first, _, extension = file.partition(".")
    return folder + slash + first, extension.lower() if first else ""
