"""Pascal VOC. `--annotations` is a list of images, `ImageSets/Main/trainval.txt`, one per line (`2008_000002`).

Labels come from the lists of the classes beside it (`cat_trainval.txt`: image and 1, -1 or 0), if there are any, else
from the objects in `Annotations/2008_000002.xml`. A class is present if it has an object that is not difficult. It is
unknown if all its objects are difficult (0 in its list), because VOC's evaluation ignores these images; Cole et al.
2021 count them as absent. Other classes are absent.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator
from functools import partial
from xml.etree import ElementTree

from sigrl_core.corpora.listing import ListedImage, Listing, corpus_vocabulary, require_file, require_folder
from sigrl_core.corpora.text import read_fields
from sigrl_core.errors import CorpusError, StorageError
from sigrl_core.io import storage
from sigrl_core.io.prefetch import files_in_flight, prefetch_map

_MAX_XML_BYTES = 10_000_000


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists the images of the list in order; does not check that image files exist.

    Raises:
        CorpusError: no list, an unknown image in the list of a class, an XML file that is missing or malformed; the
            message has the file and line.
    """
    image_list = storage.absolute(require_file("voc", annotations))
    require_folder(images)
    folder, name = posixpath.split(image_list)
    ending = f"_{name}"
    # a class's list is the class, "_" and the whole name of the image list: cat_val.txt does not belong to trainval.txt
    lists = [file.path for file in storage.walk(folder, [ending.lower()]) if file.path.endswith(ending)]
    classes = {path.removesuffix(ending): storage.join(folder, path) for path in lists if "/" not in path}
    if classes:
        return Listing(_list_from_class_lists(image_list, classes), corpus_vocabulary(classes, image_list))
    xml_folder = storage.join(posixpath.dirname(posixpath.dirname(folder)), "Annotations")
    if not storage.exists(xml_folder):
        raise CorpusError(f"{xml_folder}: no such folder, nor cat{ending} in {folder}; unpack VOC as published")
    # the files are read twice, because the absent labels of an image are known only after all labels are
    labels = sorted({label for _, objects in _read_objects(image_list, xml_folder) for label in objects})
    return Listing(_list_from_xml(image_list, xml_folder, labels), corpus_vocabulary(labels, xml_folder))


def _listed_image(uri: str, present: list[str], absent: list[str], num_labels: int) -> ListedImage:
    is_complete = len(present) + len(absent) == num_labels
    return ListedImage(uri, tuple(present), None if is_complete else tuple(absent))


def _list_from_class_lists(image_list: str, classes: dict[str, str]) -> Iterator[ListedImage]:
    count = 0
    with contextlib.ExitStack() as stack:
        class_lists = {label: read_fields(uri, "image 1|-1|0") for label, uri in classes.items()}
        for class_list in class_lists.values():
            stack.callback(class_list.close)
        for _, (stem,) in read_fields(image_list, "image"):
            states = {label: _read_state(classes[label], lines, stem) for label, lines in class_lists.items()}
            present, absent = ([label for label, state in states.items() if state == value] for value in ("1", "-1"))
            yield _listed_image(f"{stem}.jpg", present, absent, len(classes))
            count += 1
        if not count:
            raise CorpusError(f"{image_list}: no images in it; write one per line")
        for label, lines in class_lists.items():
            for line, (stem, _) in lines:
                where = f"{classes[label]}, line {line}"
                raise CorpusError(f"{where}: {stem} is not in {image_list}; take lists of one set")


def _read_state(uri: str, lines: Iterator[tuple[int, list[str]]], stem: str) -> str:
    line, (listed, state) = next(lines, (0, ("", "")))
    if listed != stem:
        where = f"line {line}: found {listed}" if line else "it ends"
        raise CorpusError(f"{uri}, {where}, expected {stem} as in the list of images")
    if state not in ("1", "-1", "0"):
        raise CorpusError(f"{uri}, line {line}: {state!r}, expected 1, -1 or 0")
    return state


def _list_from_xml(image_list: str, xml_folder: str, labels: list[str]) -> Iterator[ListedImage]:
    for uri, objects in _read_objects(image_list, xml_folder):
        present = [label for label, certain in objects.items() if certain]
        yield _listed_image(uri, present, [label for label in labels if label not in objects], len(labels))


def _read_objects(image_list: str, xml_folder: str) -> Iterator[tuple[str, dict[str, bool]]]:
    """Yields the file name of every image, with its labels and whether one of their objects is not difficult."""
    names = (words[0] for _, words in read_fields(image_list, "image"))
    is_empty = True
    for image in prefetch_map(partial(_read_xml, xml_folder), names, files_in_flight(xml_folder)):
        is_empty = False
        yield image
    if is_empty:
        raise CorpusError(f"{image_list}: no images in it; write one per line")


def _read_xml(xml_folder: str, stem: str) -> tuple[str, dict[str, bool]]:
    where = storage.join(xml_folder, f"{stem}.xml")
    try:
        data = storage.read_bytes(where, _MAX_XML_BYTES)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise CorpusError(f"{where}: no such file, but the list of images has {stem}") from error
        raise
    if b"<!DOCTYPE" in data or b"\0" in data:  # refuses declarations of entities in any encoding
        raise CorpusError(f"{where}: has a DOCTYPE or null bytes, which VOC's annotations do not have; write it again")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError) as error:  # the message has line and column
        raise CorpusError(f"{where}: not valid XML ({error}); write it again") from error
    if root.tag != "annotation":
        raise CorpusError(f"{where}: starts with <{root.tag}>, expected <annotation>")
    objects: dict[str, bool] = {}
    for number, object_ in enumerate(root.findall("object"), 1):
        label, difficult = (object_.findtext("name") or "").strip(), (object_.findtext("difficult") or "0").strip()
        if not label:
            raise CorpusError(f"{where}: object {number} has no <name>; give it one")
        if difficult not in ("0", "1"):
            raise CorpusError(f"{where}: object {number} has <difficult> {difficult!r}, expected 0 or 1")
        objects[label] = objects.get(label, False) or difficult == "0"
    return (root.findtext("filename") or "").strip() or f"{stem}.jpg", objects
