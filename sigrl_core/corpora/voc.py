"""Pascal VOC: `--annotations` is a list of pictures, `ImageSets/Main/trainval.txt`, one a line (`2008_000002`).

Where every class has its own list beside it (`cat_trainval.txt`: picture and 1, -1 or 0), labels are taken from these,
else from the objects of `Annotations/2008_000002.xml`. A class is present where it has an object that is not marked
difficult, and unknown where all its objects are (0 in its list), as VOC's evaluation leaves these pictures out; Cole et
al. 2021 count them absent. Other classes are absent.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator
from functools import partial
from xml.etree import ElementTree

from sigrl_core import storage
from sigrl_core.corpora.ahead import ahead, files_in_flight
from sigrl_core.corpora.listing import Listing, Row, own_vocabulary, require_file, require_folder
from sigrl_core.corpora.text import fields
from sigrl_core.errors import CorpusError, StorageError

_MOST_XML_BYTES = 10_000_000


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists the pictures of the list in its order, whether their files are there or not.

    Raises:
        CorpusError: no file, an unknown picture in a class's list, an XML file that is missing or not VOC's; names the
            file and its line.
    """
    pictures = storage.absolute(require_file("voc", annotations))
    require_folder(images)
    folder, name = posixpath.split(pictures)
    ending = f"_{name}"
    # lists of classes have their picture list's whole name after the class: cat_val.txt is not of trainval.txt
    lists = [file.path for file in storage.walk(folder, [ending.lower()]) if file.path.endswith(ending)]
    classes = {path.removesuffix(ending): storage.join(folder, path) for path in lists if "/" not in path}
    if classes:
        return Listing(_rows_of_lists(pictures, classes), own_vocabulary(classes, pictures))
    xml_folder = storage.join(posixpath.dirname(posixpath.dirname(folder)), "Annotations")
    if not storage.exists(xml_folder):
        raise CorpusError(f"{xml_folder}: no such folder, nor cat{ending} in {folder}; unpack VOC as published")
    # whether a label is absent or unknown can be told when all are known, so the files are read twice
    found = sorted({label for _, objects in _objects(pictures, xml_folder) for label in objects})
    return Listing(_rows_of_xml(pictures, xml_folder, found), own_vocabulary(found, xml_folder))


def _row(uri: str, present: list[str], absent: list[str], num_labels: int) -> Row:
    all_told = len(present) + len(absent) == num_labels
    return Row(uri, tuple(present), None if all_told else tuple(absent))


def _rows_of_lists(pictures: str, classes: dict[str, str]) -> Iterator[Row]:
    count = 0
    with contextlib.ExitStack() as stack:
        lists = {label: fields(uri, "picture 1|-1|0") for label, uri in classes.items()}
        for each in lists.values():
            stack.callback(each.close)
        for _, (picture,) in fields(pictures, "picture"):
            states = {label: _state(classes[label], each, picture) for label, each in lists.items()}
            present, absent = ([label for label, state in states.items() if state == told] for told in ("1", "-1"))
            yield _row(f"{picture}.jpg", present, absent, len(classes))
            count += 1
        if not count:
            raise CorpusError(f"{pictures}: no pictures in it; write one a line")
        for label, each in lists.items():
            for line, (picture, _) in each:
                where = f"{classes[label]}, line {line}"
                raise CorpusError(f"{where}: {picture} is not in {pictures}; take lists of one set")


def _state(uri: str, lines: Iterator[tuple[int, list[str]]], picture: str) -> str:
    line, (listed, state) = next(lines, (0, ("", "")))
    if listed != picture:
        where = f"line {line}: found {listed}" if line else "it ends"
        raise CorpusError(f"{uri}, {where}, expected {picture}, as the list of pictures has it")
    if state not in ("1", "-1", "0"):
        raise CorpusError(f"{uri}, line {line}: {state!r}, expected 1, -1 or 0")
    return state


def _rows_of_xml(pictures: str, xml_folder: str, labels: list[str]) -> Iterator[Row]:
    for uri, objects in _objects(pictures, xml_folder):
        present = [label for label, certain in objects.items() if certain]
        yield _row(uri, present, [label for label in labels if label not in objects], len(labels))


def _objects(pictures: str, xml_folder: str) -> Iterator[tuple[str, dict[str, bool]]]:
    """File name of every picture, its labels, and whether one of their objects is not difficult."""
    names = (words[0] for _, words in fields(pictures, "picture"))
    found = None
    for found in ahead(partial(_read, xml_folder), names, files_in_flight(xml_folder)):
        yield found
    if found is None:
        raise CorpusError(f"{pictures}: no pictures in it; write one a line")


def _read(xml_folder: str, picture: str) -> tuple[str, dict[str, bool]]:
    where = storage.join(xml_folder, f"{picture}.xml")
    try:
        data = storage.read_bytes(where, _MOST_XML_BYTES)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise CorpusError(f"{where}: no such file, but the list of pictures has {picture}") from error
        raise
    if b"<!DOCTYPE" in data or b"\0" in data:  # nothing that could declare entities, in no encoding
        raise CorpusError(f"{where}: has a DOCTYPE, or is no text; VOC's annotations have none")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError) as error:  # says line and column
        raise CorpusError(f"{where}: not valid XML ({error}); write it again") from error
    if root.tag != "annotation":
        raise CorpusError(f"{where}: starts with <{root.tag}>, expected <annotation>")
    objects: dict[str, bool] = {}
    for number, found in enumerate(root.findall("object"), 1):
        label, difficult = (found.findtext("name") or "").strip(), (found.findtext("difficult") or "0").strip()
        if not label:
            raise CorpusError(f"{where}: object {number} has no <name>; give it one")
        if difficult not in ("0", "1"):
            raise CorpusError(f"{where}: object {number} has <difficult> {difficult!r}, expected 0 or 1")
        objects[label] = objects.get(label, False) or difficult == "0"
    return (root.findtext("filename") or "").strip() or f"{picture}.jpg", objects
