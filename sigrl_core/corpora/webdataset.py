"""WebDataset: tar files below `--images`. Adjacent files with the same name up to the first dot are one sample::

    0001.jpg  0001.json                     an image of a format that images.py reads, and its labels

Labels come from the first of these: `json` (`{"labels": ["cat"]}` or `{"label": "cat"}`, with `negatives` as in the
corpus `jsonl`), `cls` (a class number), a list of texts in the JSON (`tags`), `npy` (one value per class, only with
class names), and `txt` (one label per line). Other labels are absent; without any of these, all labels are unknown.
`number_lists.py` describes lists of numbers. `--annotations` is a text file with the class names, one per line; without
it the number is the label. Captions are no labels unless `--label-field` says so: `txt` reads the text files, another
name the key of the JSON. `webdataset_texts.py` describes how captions are recognised.

An image with a longer ending, `22.05.jpg`, has the labels of `22.05.json`, else those of its sample, `22.json`. It is
left out beside a plain image, `22.jpg`, if it has no labels of its own, because it may be a mask, `22.seg.png`; a line
on stderr counts these.

Tars may be compressed by gzip (`.tar.gz`, `.tgz`). Listing reads only headers and labels of a tar file on a disk, and
all of one that is compressed or in an object store, in large blocks.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from sigrl_core.corpora.columns import LABEL_NAMES
from sigrl_core.corpora.listing import ListedImage, Listing, corpus_vocabulary, require_file, require_folder
from sigrl_core.corpora.number_lists import LabelNumbers, NumberLists
from sigrl_core.corpora.tar_members import Member, read_members
from sigrl_core.corpora.text import read_names
from sigrl_core.corpora.webdataset_texts import Sample, select_texts
from sigrl_core.data.images import SUFFIXES
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")

_LABEL_ENDINGS = ("json", "cls", "npy", "txt")
_MAX_APART = 1000  # samples without an image, of a tar, whose image is searched for


def list_corpus(
    images: str,
    annotations: str | None = None,
    *,
    label_field: str | None = None,
    label_numbers: LabelNumbers | None = None,
    with_labels: bool = True,
) -> Listing:
    """Lists all images of all tar files, in the order of the tar files' paths.

    Args:
        label_field: the ending of the files with labels (`txt`, `cls`, `npy`), or a key of the JSON.
        label_numbers: meaning of lists of numbers.
        with_labels: False reads no labels, and lists also images that may be masks.

    Raises:
        CorpusError: no tar files or images; a tar file that is damaged or has links, sparse files, or names that lead
            out of the folder; malformed labels; image and labels of a sample that are not adjacent; the message has the
            tar file and the byte.
    """
    require_folder(images)
    classes = None if annotations is None else read_names(require_file("webdataset", annotations))
    reader = _Reader(images, classes, label_field, with_labels)
    samples = select_texts(reader.samples(), label_field, images)
    numbers = NumberLists(classes, label_numbers)
    return Listing(
        _list_images(samples, numbers, images),
        None if classes is None else corpus_vocabulary(classes, str(annotations)),
        describe_source=lambda: f"labels of an image are in a member of its sample, *.{', *.'.join(_LABEL_ENDINGS)}",
    )


def _list_images(samples: Iterator[Sample], numbers: NumberLists, images: str) -> Iterator[ListedImage]:
    sample = None
    for sample, lists in numbers.resolve(samples, lambda sample: sample.cell, images):
        labels, negatives = (None, None) if sample.cell is None else lists.read(sample.cell, sample.where)
        if sample.negatives is not None:
            negatives, _ = lists.read(sample.negatives, sample.where)
        yield sample.image._replace(labels=labels, negatives=negatives)
    if sample is None:
        raise CorpusError(f"{images}: no images in tars (*.tar) under it; check --images")


class _Reader:
    """Reads the samples of all tars, and counts the images that it leaves out."""

    def __init__(self, images: str, classes: Sequence[str] | None, label_field: str | None, with_labels: bool) -> None:
        self._images, self._with_labels, self._label_field = images, with_labels, label_field
        self._endings = _LABEL_ENDINGS if with_labels else ()
        if classes is None and label_field != "npy":
            self._endings = tuple(ending for ending in self._endings if ending != "npy")
        self._num_left_out, self._left_out = 0, ""
        self._num_arrays, self._array = 0, ""

    def samples(self) -> Iterator[Sample]:
        for shard in storage.walk(self._images, TAR_SUFFIXES):
            where = storage.join(self._images, shard.path)
            apart: dict[str, str] = {}
            for _, group in groupby(read_members(where, self._endings), key=lambda member: member.sample):
                members = list(group)
                pictures = self._pictures(members, where)
                for member, labels in pictures:
                    image = ListedImage(
                        f"{shard.path}#{member.name}", None, None, member.size, member.offset, shard.version
                    )
                    yield self._read_sample(image, labels, where)
                if not pictures and self._with_labels and len(apart) < _MAX_APART:
                    apart |= {each.sample: each.name for each in members if _ending(each) in _LABEL_ENDINGS}
            if apart:
                _check_apart(where, apart)
        self._report()

    def _pictures(self, members: list[Member], where: str) -> list[tuple[Member, dict[str, Member]]]:
        """Returns the images of a sample that are listed, with the files that have labels, by ending."""
        pictures = [member for member in members if f".{_ending(member)}" in SUFFIXES]
        has_plain = any("." not in member.extension for member in pictures)
        listed = []
        for picture in pictures:
            own = _label_files(members, picture.extension.rpartition(".")[0])
            if "." in picture.extension and has_plain and not own and self._with_labels:
                self._num_left_out += 1
                self._left_out = self._left_out or f"{where}#{picture.name}"
            else:
                listed.append((picture, own or _label_files(members, "")))
        return listed

    def _read_sample(self, image: ListedImage, files: dict[str, Member], where: str) -> Sample:
        if self._with_labels and "npy" in files and "npy" not in self._endings:
            self._num_arrays += 1
            self._array = self._array or f"{where}#{files['npy'].name}"
        content: dict[str, Any] = {}
        for ending, member in files.items():
            if member.data is not None:
                position = f"{where}#{member.name}, byte {member.offset}"
                try:
                    content[ending] = _PARSERS[ending](member.data)
                except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, bad number
                    raise CorpusError(f"{position}: not valid {ending} ({error}); see docs/corpora.md") from error
        positions = {ending: f"{where}#{member.name}, byte {member.offset}" for ending, member in files.items()}
        return self._choose_labels(image, content, positions)

    def _choose_labels(self, image: ListedImage, content: dict[str, Any], positions: dict[str, str]) -> Sample:
        value = content.get("json", {})
        if not isinstance(value, dict):
            raise CorpusError(f"{positions['json']}: expected an object, found {json.dumps(value)[:80]}")
        field = self._label_field
        has_caption = field is None and "caption" in value
        are_texts_read = field == "txt" or (field is None and not has_caption)
        sample = Sample(image, texts=content.get("txt") if are_texts_read else None, has_caption=has_caption)
        keys = LABEL_NAMES[:2] if field is None else (field,)
        if field not in _LABEL_ENDINGS:
            cell = next((value[key] for key in keys if value.get(key) is not None), None)
            if cell is not None or value.get("negatives") is not None:
                where = positions["json"]
                _check_values(cell, "labels", where)
                _check_values(value.get("negatives"), "negatives", where)
                return sample._replace(cell=cell, negatives=value.get("negatives"), texts=None, where=where)
        if field in (None, "cls") and "cls" in content:
            return sample._replace(cell=content["cls"], texts=None, where=positions["cls"])
        if field is None:
            lists = [value[key] for key in LABEL_NAMES[2:] if _is_list_of_texts(value.get(key))]
            if lists:
                return sample._replace(cell=lists[0], texts=None, where=positions["json"])
        if field in (None, "npy") and "npy" in content:
            return sample._replace(cell=content["npy"], texts=None, where=positions["npy"])
        return sample._replace(where=positions.get("txt", ""))

    def _report(self) -> None:
        if self._num_left_out:
            print(
                f"{self._images}: {self._num_left_out} images with longer endings are left out, because their sample "
                f"has a plain image and they have no labels, for example {self._left_out}",
                file=sys.stderr,
            )
        if self._num_arrays:
            print(
                f"{self._images}: {self._num_arrays} .npy files are not read, for example {self._array}; if they have "
                "one value per class, give the class names as --annotations",
                file=sys.stderr,
            )


def _ending(member: Member) -> str:
    return member.extension.rpartition(".")[2]


def _label_files(members: list[Member], prefix: str) -> dict[str, Member]:
    """Returns the files with labels whose extension is the prefix and an ending, by ending."""
    return {
        _ending(member): member
        for member in members
        if _ending(member) in _LABEL_ENDINGS and member.extension.rpartition(".")[0] == prefix
    }


def _check_apart(where: str, apart: dict[str, str]) -> None:
    """Raises CorpusError if an image belongs to one of these samples, which have labels but no image beside them."""
    for member in read_members(where):
        if f".{_ending(member)}" in SUFFIXES and member.sample in apart:
            raise CorpusError(
                f"{where}: {member.name} and {apart[member.sample]} belong to one sample, but are not adjacent; write "
                "the files of a sample one after the other, for example sorted by name"
            )


def _check_values(labels: Any, key: str, where: str) -> None:
    listed: list[Any] = labels if isinstance(labels, list) else [labels]
    if labels is not None and not all(
        isinstance(label, str | int | float) and not isinstance(label, bool) for label in listed
    ):
        raise CorpusError(f"{where}: {key} must be texts or class numbers, found {json.dumps(labels)[:80]}")


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _parse_array(data: bytes) -> list[Any]:
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise ValueError(f"an array of shape {array.shape} and type {array.dtype}, expected one number per class")
    return array.tolist()


_PARSERS = {
    "json": lambda data: json.loads(data.decode("utf-8-sig")),
    "cls": lambda data: int(data.decode("utf-8-sig")),
    "npy": _parse_array,
    "txt": lambda data: [line.strip() for line in data.decode("utf-8-sig").splitlines() if line.strip()],
}
