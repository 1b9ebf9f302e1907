"""WebDataset: tar files below `--images`. Adjacent files with the same name up to the first dot are one sample::

    0001.jpg  0001.json                     an image of a format that images.py reads, and its labels

Labels come from `json` (`{"labels": ["cat"]}` or `{"label": "cat"}`, with `negatives` as in the corpus `jsonl`), else
from `cls` (a class number), else from `txt` (one label per line, no captions). Other labels are absent; without these
files, or without these keys, all labels are unknown. `--annotations` is a text file with the class names, one per line,
for labels that are numbers; without it the number is the label.

Listing reads only headers and labels of a tar file on a disk, and all of one in an object store, in large blocks.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

from sigrl_core.corpora.listing import ListedImage, Listing, class_name, corpus_vocabulary, require_file, require_folder
from sigrl_core.corpora.text import read_names
from sigrl_core.data.images import SUFFIXES
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage
from sigrl_core.io.prefetch import is_local

_LABELS = ("json", "cls", "txt")  # the first one with labels is used
_MAX_BYTES = 10_000_000  # largest file with labels, or name of a file
_DISK_BYTES, _STORE_BYTES = 1 << 13, 1 << 22  # size of one read, on a disk and in an object store


class _Member(NamedTuple):
    """One file in a tar."""

    sample: str  # the name up to the first dot, with its folder
    extension: str  # the name after the first dot
    name: str
    offset: int  # of its first byte in the tar
    size: int
    data: bytes | None  # of a file with labels


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists all images of all tar files, in the order of the tar files' paths.

    Raises:
        CorpusError: no tar files or images; a tar file that is damaged or has links, sparse files, or names that lead
            out of the folder; malformed labels; the message has the tar file and the byte.
    """
    require_folder(images)
    classes = None if annotations is None else read_names(require_file("webdataset", annotations))
    return Listing(
        _list_images(images, classes), None if classes is None else corpus_vocabulary(classes, str(annotations))
    )


def _list_images(images: str, classes: list[str] | None) -> Iterator[ListedImage]:
    image = None
    for shard in storage.walk(images, [".tar"]):
        where = storage.join(images, shard.path)
        for _, group in groupby(_read_members(where), key=lambda member: member.sample):
            sample = list(group)
            members = [member for member in sample if f".{member.extension}" in SUFFIXES]
            if not members:
                continue
            labels, negatives = _read_labels({member.extension: member for member in sample}, where, classes)
            for member in members:
                image = ListedImage(
                    f"{shard.path}#{member.name}", labels, negatives, member.size, member.offset, shard.version
                )
                yield image
    if image is None:
        raise CorpusError(f"{images}: no images in tars (*.tar) under it; check --images")


def _read_members(where: str) -> Iterator[_Member]:
    with storage.open_input(where) as file:
        reader = _Reader(file, _DISK_BYTES if is_local(where) else _STORE_BYTES)
        tar, offset = None, 0
        try:
            tar = tarfile.TarFile(fileobj=reader)
            while (member := tar.next()) is not None:
                tar.members = []  # tarfile would keep all of them  # pyright: ignore[reportAttributeAccessIssue]
                offset = tar.offset
                _check(member, where)
                sample, extension = _split_name(member.name)
                if member.isfile() and extension:
                    data = None
                    if extension in _LABELS:
                        reader.seek(member.offset_data)
                        data = reader.read(member.size)
                    name = member.name.removeprefix("./")
                    yield _Member(sample, extension, name, member.offset_data, member.size, data)
            reader.seek(offset)  # tarfile takes a damaged header for the end of the file
            if reader.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("neither a header nor the end")
        except tarfile.TarError as error:
            raise CorpusError(
                f"{where}, byte {offset}: not a tar file, or damaged ({error}); write it again"
            ) from error


class _Reader(io.BufferedReader):
    """A file that refuses reads above `_MAX_BYTES`, because their sizes come from headers of the tar file."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_BYTES:
            raise tarfile.ReadError(f"{size} bytes of names or labels, more than {_MAX_BYTES}")
        return super().read(size)


def _check(member: tarfile.TarInfo, where: str) -> None:
    name = member.name
    position = f"{where}, byte {member.offset}: {name[:200]!r}"
    if name.startswith("/") or ".." in name.split("/") or not _is_utf8(name):
        raise CorpusError(f"{position} leads out of the folder, or is not UTF-8; write the tar with plain names")
    if member.issparse() or not (member.isfile() or member.isdir()):
        raise CorpusError(f"{position} is a link, a device or a sparse file; write the tar with the files themselves")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _split_name(name: str) -> tuple[str, str]:
    """Returns sample and extension; no extension for names without dot and hidden files, such as those of macOS."""
    folder, slash, file = name.rpartition("/")
    first, _, extension = file.partition(".")
    return folder + slash + first, extension.lower() if first else ""


_Labels = tuple[tuple[str, ...] | None, tuple[str, ...] | None]


def _read_labels(sample: dict[str, _Member], where: str, classes: list[str] | None) -> _Labels:
    for extension in _LABELS:
        if (member := sample.get(extension)) is None or member.data is None:
            continue
        position = f"{where}#{member.name}, byte {member.offset}"
        try:
            text = member.data.decode("utf-8-sig")
            if extension == "json":
                labels = _labels_of_json(json.loads(text), position, classes)
            else:
                labels = _labels_of_text(extension, text, position, classes)
        except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, bad number
            raise CorpusError(f"{position}: not valid {extension} ({error}); see docs/corpora.md") from error
        if labels != (None, None):
            return labels
    return None, None


def _labels_of_text(extension: str, text: str, where: str, classes: list[str] | None) -> _Labels:
    if extension == "cls":
        return (class_name(int(text), classes, where),), None
    return tuple(line.strip() for line in text.splitlines() if line.strip()), None


def _labels_of_json(value: Any, where: str, classes: list[str] | None) -> _Labels:
    if not isinstance(value, dict):
        raise CorpusError(f"{where}: expected an object, found {json.dumps(value)[:80]}")

    def read(key: str) -> tuple[str, ...] | None:
        if (labels := value.get(key)) is None:
            return None
        listed: list[Any] = labels if isinstance(labels, list) else [labels]
        if not all(isinstance(label, str | int) and not isinstance(label, bool) for label in listed):
            raise CorpusError(f"{where}: {key} must be texts or class numbers, found {json.dumps(labels)[:80]}")
        return tuple(label.strip() if isinstance(label, str) else class_name(label, classes, where) for label in listed)

    labels = read("labels")
    return read("label") if labels is None else labels, read("negatives")
