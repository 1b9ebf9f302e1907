"""Lists the image files below a folder: by their ending if it is known, else by their first bytes."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

from sigrl_core.data.images import SUFFIXES
from sigrl_core.data.signatures import PICTURE_FORMATS, SIGNATURE_BYTES, format_of
from sigrl_core.errors import StorageError
from sigrl_core.io import storage
from sigrl_core.io.first_bytes import read_first_bytes
from sigrl_core.io.prefetch import files_in_flight, is_local, prefetch_map
from sigrl_core.io.retry import is_transient

OTHER_SUFFIXES = frozenset(
    (
        *(".txt", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".yaml", ".yml", ".md", ".rst", ".toml", ".ini", ".cfg"),
        *(".parquet", ".arrow", ".feather", ".npy", ".npz", ".pkl", ".pickle", ".h5", ".hdf5", ".mat", ".db"),
        *(".tar", ".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".mp4", ".mov", ".avi", ".mkv", ".webm"),
        *(".mp3", ".wav", ".py", ".ipynb", ".sh", ".js", ".css", ".html", ".htm", ".pdf", ".log", ".docx", ".xlsx"),
        *(".pt", ".pth", ".onnx", ".safetensors"),
    )
)
"""Endings of files that are not images; these files are not opened."""

MAX_DESCRIPTIONS = 100
"""Maximum number of descriptions of `left_out`; hashed file names have any number of endings."""
_CHUNK = 256  # files whose first bytes are read together, in an object store


def walk_images(images: str, left_out: Counter[str], annotations: Sequence[str] = ()) -> Iterator[storage.File]:
    """Lists the image files at all depths, in the order of paths.

    A file with an ending of `SUFFIXES` is listed and not opened. A file with an ending of `OTHER_SUFFIXES` is left out
    and not opened. Of every other file, the first bytes are read, in one request: it is listed if they are those of one
    of `PICTURE_FORMATS`, decoded here or not. A file that cannot be read is listed, so that it is quarantined later.

    Args:
        left_out: the number of files that are left out is added here, by ending. `describe_left_out` describes it.
        annotations: endings of files with annotations, in lower case; they are neither listed nor counted.

    Raises:
        StorageError: as `storage.walk`, or the store fails.
    """
    on_disk = is_local(images)
    files = (file for file in storage.walk(images) if _ending(file.path) not in annotations)
    examine = partial(_examine, images)
    while chunk := list(islice(files, 1 if on_disk else _CHUNK)):
        unknown = [file for file in chunk if _ending(file.path) not in _KNOWN]
        reasons = dict(zip(unknown, prefetch_map(examine, unknown, files_in_flight(images)), strict=True))
        for file in chunk:
            ending = _ending(file.path)
            reason = reasons.get(file, "" if ending in OTHER_SUFFIXES else None)
            if reason is not None:
                _count(left_out, " ".join(filter(None, (ending or "without ending", reason))))
            else:
                # file names on a disk may not be UTF-8; such files are reported as unreachable later
                path = os.fsencode(file.path).decode(errors="replace") if on_disk else file.path
                yield file._replace(path=path)


def describe_left_out(left_out: Counter[str] | dict[str, int]) -> str:
    """Returns the counts in one line, largest first: `12 .txt, 3 .dat (not an image)`."""
    counts = Counter(left_out).most_common()
    rest = sum(count for _, count in counts[10:])
    return ", ".join([*(f"{count} {name}" for name, count in counts[:10]), *([f"{rest} others"] if rest else [])])


def may_be_image(path: str) -> bool:
    """Returns whether the ending of a file does not rule out that it is an image."""
    return _ending(path) not in OTHER_SUFFIXES


_KNOWN = OTHER_SUFFIXES | set(SUFFIXES)


def _ending(path: str) -> str:
    return posixpath.splitext(path)[1].lower()


def _count(left_out: Counter[str], name: str) -> None:
    left_out[name if name in left_out or len(left_out) < MAX_DESCRIPTIONS else "other endings"] += 1


def _examine(images: str, file: storage.File) -> str | None:
    """Returns None for an image, else the reason why the file is none."""
    if not file.size:
        return "(empty)"
    try:
        name = format_of(read_first_bytes(storage.join_walked(images, file.path), SIGNATURE_BYTES))
    except StorageError as error:
        if is_transient(error):  # the store fails, not the file
            raise
        return None
    return None if name in PICTURE_FORMATS else f"({name or 'not an image'})"
