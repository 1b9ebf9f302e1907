"""Detects the format of a corpus: `--corpus auto`.

Looks at the first names of a folder and the first bytes of files, never at a whole listing or file: one page of names,
and a bounded number of requests.
"""

from __future__ import annotations

import contextlib
import csv
import json
import posixpath
import re
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from sigrl_core.config.stages import AUTO_CORPUS
from sigrl_core.corpora.class_tables import CHEXPERT_COLUMNS, ROBOFLOW_NAME
from sigrl_core.corpora.columns import URI_NAMES, normalise
from sigrl_core.corpora.create_ml import IMAGE_KEYS
from sigrl_core.corpora.listing import require_annotations, require_folder
from sigrl_core.data.images import SUFFIXES
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage

MAX_NAMES = 1000
"""Names of a folder that are looked at: one page of an object store."""

HEAD_BYTES = 1 << 16
"""First and last bytes of a file that are looked at."""

_MAX_FILES = 5  # files of a folder whose first bytes are looked at
_ANNOTATION_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".npy", ".manifest")
_NUS_WIDE_LISTS = ("Imagelist.txt", "TrainImagelist.txt", "TestImagelist.txt")
_JSON_TOKEN = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:\s*(?=(\S)))?|[{}\[\]]')
_LINE_KEYS = {
    **{"image_url": "azure", "imageGcsUri": "vertex", "source-ref": "sagemaker"},
    **dict.fromkeys(URI_NAMES, "jsonl"),
}
_COCO_KEYS = ("images", "annotations", "categories")


class Detected(NamedTuple):
    """A format that fits, and what it was recognised by."""

    corpus: str
    reason: str


def detect_corpus(images: str, annotations: str | None = None) -> Detected:
    """Returns the only format that fits.

    Args:
        images: folder of images.
        annotations: annotation file or folder.

    Raises:
        CorpusError: no format fits, or several do; the message has them, and the flag that chooses.
    """
    require_folder(images)
    if annotations is None:
        candidates, place = _formats_of_images(images), images
    else:
        place = require_annotations(AUTO_CORPUS, annotations)
        is_folder = storage.is_folder(place)
        candidates = _formats_of_folder(place) if is_folder else _formats_of_file(place, images)
    if len(candidates) == 1 and " --annotations " not in candidates[0].corpus:
        return candidates[0]
    if not candidates:
        raise CorpusError(
            f"{place}: not recognised as annotations or images of a known format, found {_content(place)}; "
            "name it with --corpus"
        )
    choices = "; ".join(f"--corpus {candidate.corpus}, because {candidate.reason}" for candidate in candidates)
    raise CorpusError(f"{place}: choose the format of the corpus, {choices}")


def _content(place: str) -> str:
    """Returns the first names of a folder, or the first characters of a file, for messages."""
    if not storage.is_folder(place):
        return repr(_head(place)[:60].decode(errors="replace"))
    names, _ = _first_names(place)
    return ", ".join(names[:3]) or "no files"


# ---- a folder of images, without annotations ----


def _formats_of_images(images: str) -> list[Detected]:
    names, has_more = _first_names(images)

    def has(name: str) -> bool:
        return name in names or (has_more and storage.exists(storage.join(images, name)))

    def first(*endings: str) -> str | None:
        return next((name for name in names if name.lower().endswith(endings)), None)

    if has("manifest.json") and re.search(rb'"kind": "shards"', _head(storage.join(images, "manifest.json"))):
        return [Detected("shards", "manifest.json is of a shard folder")]
    formats = []
    containers = {"arrow": (".arrow",), "webdataset": (".tar", ".tar.gz", ".tgz"), "hugging_face": (".parquet",)}
    for corpus, endings in containers.items():
        if name := first(*endings):
            formats.append(Detected(corpus, f"it has {name}"))
    for corpus, files in {"image_folder": ("metadata.csv", "metadata.jsonl"), "roboflow": (ROBOFLOW_NAME,)}.items():
        name = next((name for name in names if posixpath.basename(name) in files), None)
        if name := name or next(filter(has, files), None):
            formats.append(Detected(corpus, f"it has {name}"))
    picture = first(*SUFFIXES)
    if has("labels.json") and any(name.startswith("data/") for name in names):
        formats.append(Detected("fiftyone", "it has labels.json and data"))
    elif (name := first(".xml")) and (picture or has_more) and b"<annotation>" in _head(storage.join(images, name)):
        formats.append(Detected("voc_xml", f"{name} is an annotation of VOC"))
    if formats or (picture is None and not has_more):
        return formats or list(_formats_beside(images, names))
    if picture is not None and "/" in picture:
        formats.append(Detected("folder", f"it has images in sub-folders, such as {picture}"))
    formats += _formats_beside(images, names)
    return formats or [Detected("folder", f"it has images, such as {picture}, and no annotations")] * bool(picture)


def _formats_beside(images: str, names: list[str]) -> Iterator[Detected]:
    """Yields formats of annotation files in the folder of images, with the flag that names the file."""
    files = [name for name in names if name.lower().endswith(_ANNOTATION_SUFFIXES)]
    for name in files[:_MAX_FILES]:
        where = storage.join(images, name)
        for corpus, reason in _formats_of_file(where, images):
            yield Detected(f"{corpus} --annotations {where}", reason)


def _first_names(folder: str) -> tuple[list[str], bool]:
    """Returns the first names of a folder, and whether it has more."""
    names = [file.path for file in islice(storage.walk(folder), MAX_NAMES)]
    return names, len(names) == MAX_NAMES


# ---- annotations ----


def _formats_of_folder(folder: str) -> list[Detected]:
    if all(storage.exists(storage.join(folder, name)) for name in ("images.txt", "attributes")):
        return [Detected("cub", "it has images.txt and attributes")]
    names, _ = _first_names(folder)
    name = next((name for name in names if name.lower().endswith(".xml")), None)
    if name is not None and b"<annotation>" in _head(storage.join(folder, name)):
        return [Detected("voc_xml", f"{name} is an annotation of VOC")]
    return []


def _formats_of_file(where: str, images: str) -> list[Detected]:
    data, name = _head(where), posixpath.basename(where)
    if data.startswith(b"PAR1"):
        return [Detected("parquet", f"{name} is a Parquet file")]
    if data.startswith(b"\x93NUMPY"):
        return [Detected("label_matrix", f"{name} is an array of NumPy")]
    text = data.decode("utf-8-sig", errors="replace")
    match text.lstrip()[:1]:
        case "<" if root := re.search(r"<([A-Za-z][\w.-]*)[\s>]", text):
            return [Detected("cvat", f"{name} starts with <annotations>")] * (root[1] == "annotations")
        case "{" | "[":
            return _formats_of_json(text, where, name)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or "\0" in text:
        return []
    detectors: tuple[Callable[[list[str], str, str], Detected | None], ...]
    detectors = (_published_list, _published_table, _labels_table, _class_names)
    detected = (detector(lines, where, images) for detector in detectors)
    found_formats = next((each for each in detected if each is not None), None)
    if found_formats is None:
        return []
    if found_formats.corpus == "nus_wide":  # the two benchmarks use the same files
        return [found_formats, found_formats._replace(corpus="nus_wide_81")]
    return [found_formats]


def _formats_of_json(text: str, where: str, name: str) -> list[Detected]:
    keys, inner = _json_keys(text)
    if text.lstrip().startswith("["):
        if "data" in inner and inner.keys() & {"annotations", "completions", "predictions"}:
            return [Detected("label_studio", f"{name} is a list of objects with data and annotations")]
        image = next((key for key in IMAGE_KEYS if key in inner), None)
        return [Detected("create_ml", f"{name} is a list of objects with {image}")] if image else []
    lines = [(key, corpus) for key, corpus in _LINE_KEYS.items() if key in keys]
    if lines:
        key, corpus = lines[0]
        return [Detected(corpus, f"{name} has objects with the key {key}")]
    if keys.get("labels") == "{":
        return [Detected("fiftyone", f"{name} has the key labels with one entry per image")]
    end = _tail(where).decode(errors="replace")
    coco = [key for key in _COCO_KEYS if keys.get(key) == "[" or re.search(rf'"{key}"\s*:\s*\[', end)]
    return [Detected("coco", f"{name} has the keys {', '.join(coco)}")] if len(coco) > 1 else []


def _json_keys(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the keys of the outer objects of a JSON text that may be cut, and those one level below.

    Each key has the first character of its value.
    """
    levels: dict[int, dict[str, str]] = {1: {}, 2: {}}
    depth = 0
    for token in _JSON_TOKEN.finditer(text):
        if token[1] is None:
            depth += 1 if token[0] in "{[" else -1
        elif token[3] is not None and depth in levels:
            with contextlib.suppress(ValueError):  # damaged text; the reader names the line
                levels[depth].setdefault(json.loads(token[1]), token[3])
    return levels[1], levels[2]


def _published_list(lines: list[str], where: str, images: str) -> Detected | None:
    """Image lists of VOC and NUS-WIDE, which are recognised by the folders around them."""
    folder, name = posixpath.split(storage.absolute(where))
    above = posixpath.dirname(folder)
    if name in _NUS_WIDE_LISTS and storage.exists(storage.join(above, "ConceptsList")):
        has_tags = storage.exists(storage.join(above, "NUS_WID_Tags"))
        return Detected("nus_wide" if has_tags else "nus_wide_81", f"{name} is an image list of NUS-WIDE")
    if name.endswith(".txt") and posixpath.basename(above) == "ImageSets":
        return Detected("voc", f"{name} is in the folder ImageSets")
    return None


def _published_table(lines: list[str], where: str, images: str) -> Detected | None:
    name, header = posixpath.basename(where), _fields(lines[0])
    if header[0] == "ImageID" and "LabelName" in header:
        return Detected("open_images", f"{name} has the columns ImageID and LabelName")
    if header[: len(CHEXPERT_COLUMNS)] == list(CHEXPERT_COLUMNS):
        return Detected("chexpert", f"{name} has the columns {', '.join(CHEXPERT_COLUMNS)}")
    if name.lower().endswith(ROBOFLOW_NAME):
        return Detected("roboflow", f"its name is {ROBOFLOW_NAME}")
    if lines[0].isdecimal() and len(lines) > 2 and re.fullmatch(r"\S+(\s+-?1)+", lines[2]):
        return Detected("celeba", f"{name} has a number, names of attributes, and lines of 1 and -1")
    if header[0] == "image_id" and len(lines) > 1 and set(_fields(lines[1])[1:]) <= {"1", "-1"}:
        return Detected("celeba", f"{name} has the column image_id and columns of 1 and -1")
    return None


def _labels_table(lines: list[str], where: str, images: str) -> Detected | None:
    header = _fields(lines[0])
    column = next((name for name in header if normalise(name) in URI_NAMES), None)
    if column is None:
        return None
    return Detected("csv", f"{posixpath.basename(where)} has the column {column}")


def _class_names(lines: list[str], where: str, images: str) -> Detected | None:
    """Files with class names, which go with the images that they are given for."""
    name = posixpath.basename(where)
    is_yaml = name.lower().endswith((".yaml", ".yml"))
    if is_yaml:
        has_names = any(re.match(r"names\s*:", line) for line in lines)
        return Detected("yolo", f"{name} has names of classes") if has_names else None
    if not name.lower().endswith((".txt", ".names")):
        return None
    endings = {".tar": "webdataset", ".tgz": "webdataset", ".tar.gz": "webdataset", ".parquet": "hugging_face"}
    names, _ = _first_names(images)
    for path in names:
        for ending, corpus in endings.items():
            if path.lower().endswith(ending):
                return Detected(corpus, f"{name} has one name per line and the folder of images has {path}")
    picture = next((path for path in names if path.lower().endswith(SUFFIXES)), None)
    if picture is None:
        return None
    before, folder, after = storage.join(storage.absolute(images), picture).rpartition("/images/")
    text = posixpath.splitext(f"{before}/labels/{after}" if folder else after)[0] + ".txt"
    if storage.exists(text):
        return Detected("yolo", f"{name} has one name per line and {picture} has a text file")
    return None


def _fields(line: str) -> list[str]:
    separator = max(",\t;", key=line.count)
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=separator))] or [""]
    except (csv.Error, StopIteration):
        return [""]


def _head(where: str) -> bytes:
    """Returns the first bytes of a file; those of its content if it is compressed with gzip."""
    with storage.open_input(where) as file:
        data = file.read_at(min(HEAD_BYTES, file.size()), 0)
    if data.startswith(b"\x1f\x8b"):
        try:
            return zlib.decompressobj(wbits=31).decompress(data, HEAD_BYTES)
        except zlib.error:
            return b""
    return data


def _tail(where: str) -> bytes:
    with storage.open_input(where) as file:
        start = max(0, file.size() - HEAD_BYTES)
        return file.read_at(file.size() - start, start)
