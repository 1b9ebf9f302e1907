"""Pascal VOC. `--annotations` is a list of images, `ImageSets/Main/trainval.txt`, one per line (`2008_000002`).

Names may contain spaces. Lines that start with `#` and a space are comments.

Labels come from the lists of the classes beside it (`cat_trainval.txt`: image and 1, -1 or 0), if there are any, else
from the objects in `Annotations/2008_000002.xml`. A class is present if it has an object that is not difficult. It is
unknown if all its objects are difficult (0 in its list), because VOC's evaluation ignores these images; Cole et al.
2021 count them as absent. Other classes are absent. All classes of an image without an XML file are unknown.

The image of `2008_000002` is `<filename>` of its XML if that is the same name with the ending of an image. Otherwise,
after the image was renamed for example, it is the name in the list with the ending of an existing file.
"""

from __future__ import annotations

import contextlib
import posixpath
import sys
from collections.abc import Generator, Iterator
from functools import partial
from xml.etree import ElementTree

from sigrl_core.corpora.listing import ListedImage, Listing, corpus_vocabulary, require_file, require_folder
from sigrl_core.corpora.text import read_lines
from sigrl_core.data.images import SUFFIXES
from sigrl_core.errors import CorpusError, StorageError
from sigrl_core.io import storage
from sigrl_core.io.prefetch import files_in_flight, prefetch_map

_MAX_XML_BYTES = 10_000_000
_ENDINGS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
_DIFFICULT = {  # some programs write words; "Unspecified" is as if the element were missing
    **dict.fromkeys(("0", "false", "no", "unspecified"), False),
    **dict.fromkeys(("1", "true", "yes"), True),
}


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists the images of the list in order; does not check that image files exist.

    Raises:
        CorpusError: no list, an unknown image in the list of a class, a malformed XML file; the message has the file
            and line.
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
    labels = set[str]()
    for _, objects in _read_objects(images, image_list, xml_folder, report=True):
        labels.update(objects or ())
    return Listing(
        _list_from_xml(images, image_list, xml_folder, sorted(labels)), corpus_vocabulary(sorted(labels), xml_folder)
    )


def list_image(uri: str, present: list[str], absent: list[str], num_labels: int) -> ListedImage:
    """Returns a listed image; its other labels are unknown if it has any."""
    is_complete = len(present) + len(absent) == num_labels
    return ListedImage(uri, tuple(present), None if is_complete else tuple(absent))


def _list_from_class_lists(image_list: str, classes: dict[str, str]) -> Iterator[ListedImage]:
    count = 0
    with contextlib.ExitStack() as stack:
        class_lists = {label: _read_class_list(uri) for label, uri in classes.items()}
        for class_list in class_lists.values():
            stack.callback(class_list.close)
        for stem in _read_image_list(image_list):
            states = {label: _read_state(classes[label], lines, stem) for label, lines in class_lists.items()}
            present, absent = ([label for label, state in states.items() if state == value] for value in ("1", "-1"))
            yield list_image(f"{stem}.jpg", present, absent, len(classes))
            count += 1
        if not count:
            raise CorpusError(f"{image_list}: no images in it; write one per line")
        for label, lines in class_lists.items():
            for line, stem, _ in lines:
                where = f"{classes[label]}, line {line}"
                raise CorpusError(f"{where}: {stem} is not in {image_list}; take lists of one set")


def _read_image_list(image_list: str) -> Iterator[str]:
    return (text for _, text in read_lines(image_list) if not _is_comment(text))


def _is_comment(text: str) -> bool:
    return text == "#" or text.startswith(("# ", "#\t"))


def _read_class_list(uri: str) -> Generator[tuple[int, str, str]]:
    """Yields line number, image and state."""
    for line, text in read_lines(uri):
        if _is_comment(text):
            continue
        words = text.rsplit(maxsplit=1)
        if len(words) != 2:
            raise CorpusError(f"{uri}, line {line}: expected `image 1|-1|0`, found {text[:80]!r}")
        yield line, words[0], words[1]


def _read_state(uri: str, lines: Iterator[tuple[int, str, str]], stem: str) -> str:
    line, listed, state = next(lines, (0, "", ""))
    if listed != stem:
        where = f"line {line}: found {listed}" if line else "it ends"
        raise CorpusError(f"{uri}, {where}, expected {stem} as in the list of images")
    if state not in ("1", "-1", "0"):
        raise CorpusError(f"{uri}, line {line}: {state!r}, expected 1, -1 or 0")
    return state


def _list_from_xml(images: str, image_list: str, xml_folder: str, labels: list[str]) -> Iterator[ListedImage]:
    for uri, objects in _read_objects(images, image_list, xml_folder):
        if objects is None:
            yield ListedImage(uri, None)
            continue
        present = [label for label, certain in objects.items() if certain]
        yield list_image(uri, present, [label for label in labels if label not in objects], len(labels))


_Objects = dict[str, bool] | None  # label -> whether one of its objects is not difficult; None without an XML file


def _read_objects(
    images: str, image_list: str, xml_folder: str, report: bool = False
) -> Iterator[tuple[str, _Objects]]:
    """Yields the file name of every image, with its objects.

    Args:
        report: whether to print how many images have no XML file.
    """
    count, num_missing, example = 0, 0, ""
    for uri, objects in prefetch_map(
        partial(read_xml, images, xml_folder), _read_image_list(image_list), files_in_flight(xml_folder)
    ):
        count += 1
        if objects is None:
            num_missing += 1
            example = example or uri
        yield uri, objects
    if not count:
        raise CorpusError(f"{image_list}: no images in it; write one per line")
    if num_missing == count:
        raise CorpusError(f"{xml_folder}: no XML file of any image in {image_list}; check the list")
    if num_missing and report:
        print(
            f"{xml_folder}: no XML file of {num_missing} of {count} images, for example {example}; all of their labels "
            "are unknown",
            file=sys.stderr,
        )


def read_xml(images: str, xml_folder: str, stem: str) -> tuple[str, _Objects]:
    """Reads the XML file of a name in the list; returns the path of the image, and its objects.

    Raises:
        CorpusError: not a file of VOC.
    """
    where = storage.join(xml_folder, f"{stem}.xml")
    try:
        data = storage.read_bytes(where, _MAX_XML_BYTES)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return _find_image(images, stem, ""), None
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
        is_difficult = _DIFFICULT.get(difficult.lower())
        if is_difficult is None:
            raise CorpusError(f"{where}: object {number} has <difficult> {difficult!r}, expected 0 or 1")
        objects[label] = objects.get(label, False) or not is_difficult
    return _find_image(images, stem, (root.findtext("filename") or "").strip()), objects


def _find_image(images: str, stem: str, filename: str) -> str:
    """Returns the path of the image; examines files only if `<filename>` is not the name in the list."""
    name, ending = posixpath.splitext(filename)
    if name == stem and ending.lower() in SUFFIXES:
        return filename
    own_ending = [ending] if ending.lower() in SUFFIXES else []
    candidates = [*(stem + each for each in (*own_ending, *_ENDINGS)), filename]
    for path in dict.fromkeys(candidates):
        if path and "\0" not in path and storage.exists(storage.join(images, path)):
            return path
    return candidates[0]
