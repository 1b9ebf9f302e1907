"""WebDataset: tars below `--images`. Files with the same name up to the first dot are a sample, and lie together::

    0001.jpg  0001.json                     a picture of any kind we read, and its labels

Labels are those of `json` (`{"labels": ["cat"]}` or `{"label": "cat"}`, with `negatives` as in a list of JSON lines),
else of `cls` (number of a class), else of `txt` (one a line: no captions). Other labels are absent; without any of the
files, or of the keys, all are unknown. `--annotations` is a text file with the names of classes, one a line, for
labels told by number; without it a number is the label.

Of a tar on a disk only headers and labels are read; one in an object store is read once, in large pieces.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

from sigrl_core import storage
from sigrl_core.corpora.ahead import is_local
from sigrl_core.corpora.listing import Listing, Row, class_name, own_vocabulary, require_file, require_folder
from sigrl_core.corpora.text import names
from sigrl_core.errors import CorpusError
from sigrl_core.images import SUFFIXES

_LABELS = ("json", "cls", "txt")  # the first that tells labels counts
_MOST_BYTES = 10_000_000  # of a file of labels, or of a member's name
_DISK_BYTES, _STORE_BYTES = 1 << 13, 1 << 22  # read at a time


class _Member(NamedTuple):
    sample: str
    kind: str  # what is behind the first dot
    name: str
    offset: int  # where its bytes start in the tar
    size: int
    data: bytes | None  # of a file of labels


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists every picture of every tar, tars in the order of their paths.

    Raises:
        CorpusError: no tars, no pictures; a tar that is damaged or has what no sample has (links, sparse files, names
            that lead out of a folder); labels that are not as above; names the tar and the byte.
    """
    require_folder(images)
    classes = None if annotations is None else names(require_file("webdataset", annotations))
    return Listing(_rows(images, classes), None if classes is None else own_vocabulary(classes, str(annotations)))


def _rows(images: str, classes: list[str] | None) -> Iterator[Row]:
    row = None
    for shard in storage.walk(images, [".tar"]):
        where = storage.join(images, shard.path)
        for _, group in groupby(_members(where), key=lambda member: member.sample):
            sample = list(group)
            pictures = [member for member in sample if f".{member.kind}" in SUFFIXES]
            if not pictures:
                continue
            labels, negatives = _labels({member.kind: member for member in sample}, where, classes)
            for picture in pictures:
                row = Row(
                    f"{shard.path}#{picture.name}", labels, negatives, picture.size, picture.offset, shard.version
                )
                yield row
    if row is None:
        raise CorpusError(f"{images}: no pictures in tars (*.tar) under it; check --images")


def _members(where: str) -> Iterator[_Member]:
    with storage.reading(where) as file:
        reader = _Reader(file, _DISK_BYTES if is_local(where) else _STORE_BYTES)
        tar, at = None, 0
        try:
            tar = tarfile.TarFile(fileobj=reader)
            while (member := tar.next()) is not None:
                tar.members = []  # tarfile would keep them all  # pyright: ignore[reportAttributeAccessIssue]
                at = tar.offset
                _check(member, where)
                sample, kind = _split(member.name)
                if member.isfile() and kind:
                    data = None
                    if kind in _LABELS:
                        reader.seek(member.offset_data)
                        data = reader.read(member.size)
                    yield _Member(sample, kind, member.name.removeprefix("./"), member.offset_data, member.size, data)
            reader.seek(at)  # tarfile takes a damaged header for the end
            if reader.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("neither a header nor the end")
        except tarfile.TarError as error:
            raise CorpusError(f"{where}, byte {at}: not a tar, or damaged ({error}); write it again") from error


class _Reader(io.BufferedReader):
    """Refuses to hold what a header says is huge."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MOST_BYTES:
            raise tarfile.ReadError(f"{size} bytes of names or labels; at most {_MOST_BYTES} are read")
        return super().read(size)


def _check(member: tarfile.TarInfo, where: str) -> None:
    name = member.name
    at = f"{where}, byte {member.offset}: {name[:200]!r}"
    if name.startswith("/") or ".." in name.split("/") or not _is_utf8(name):
        raise CorpusError(f"{at} leads out of the folder, or is no UTF-8; write the tar with plain names")
    if member.issparse() or not (member.isfile() or member.isdir()):
        raise CorpusError(f"{at} is a link, a device or a sparse file; write the tar with the files themselves")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _split(name: str) -> tuple[str, str]:
    """Sample and kind; no kind for what is hidden, as the notes that macOS leaves, or has no dot."""
    folder, slash, file = name.rpartition("/")
    first, _, kind = file.partition(".")
    return folder + slash + first, kind.lower() if first else ""


_Told = tuple[tuple[str, ...] | None, tuple[str, ...] | None]


def _labels(sample: dict[str, _Member], where: str, classes: list[str] | None) -> _Told:
    for kind in _LABELS:
        if (member := sample.get(kind)) is None or member.data is None:
            continue
        at = f"{where}#{member.name}, byte {member.offset}"
        try:
            text = member.data.decode("utf-8-sig")
            told = _of_json(json.loads(text), at, classes) if kind == "json" else _of_text(kind, text, at, classes)
        except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, bad number
            raise CorpusError(f"{at}: not valid {kind} ({error}); see docs/corpora.md") from error
        if told != (None, None):
            return told
    return None, None


def _of_text(kind: str, text: str, at: str, classes: list[str] | None) -> _Told:
    if kind == "cls":
        return (class_name(int(text), classes, at),), None
    return tuple(line.strip() for line in text.splitlines() if line.strip()), None


def _of_json(value: Any, at: str, classes: list[str] | None) -> _Told:
    if not isinstance(value, dict):
        raise CorpusError(f"{at}: expected an object, found {json.dumps(value)[:80]}")

    def read(key: str) -> tuple[str, ...] | None:
        if (found := value.get(key)) is None:
            return None
        listed: list[Any] = found if isinstance(found, list) else [found]
        if not all(isinstance(one, str | int) and not isinstance(one, bool) for one in listed):
            raise CorpusError(f"{at}: {key} must be texts or numbers of classes, found {json.dumps(found)[:80]}")
        return tuple(one.strip() if isinstance(one, str) else class_name(one, classes, at) for one in listed)

    labels = read("labels")
    return read("label") if labels is None else labels, read("negatives")
