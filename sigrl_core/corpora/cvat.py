"""CVAT for images 1.1: one XML file, `annotations.xml`, with an element per image.

    <image id="0" name="a.jpg" width="640" height="480"><tag label="cat"/><box label="dog" .../></image>

Labels of tags and of all shapes are present, all others absent, as in CVAT's own exports to other formats: CVAT exports
images without annotations too and does not mark them. The labels of the task define the vocabulary and its order.
The file is read in parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from sigrl_core.corpora.json_files import unique_names
from sigrl_core.corpora.listing import ListedImage, Listing, corpus_vocabulary, require_file, require_folder
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage

_READ_BYTES = 1 << 16
_MAX_IMAGE_BYTES = 50_000_000  # of the text of one element: masks and outlines are long
_FORM = "export it as `CVAT for images 1.1`"


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists the images in order; does not check that image files exist.

    Raises:
        CorpusError: no file, not such an XML file, no images, an image without name or a shape without label; the
            message has the line.
    """
    require_folder(images)
    where = require_file("cvat", annotations)
    content = _Content(where)
    for _ in _read(where, content):  # until the first image
        if content.images:
            break
    names = unique_names(iter(content.labels))
    return Listing(_list_images(where), corpus_vocabulary(names, where) if names else None)


def _list_images(where: str) -> Iterator[ListedImage]:
    content, is_empty = _Content(where), True
    for _ in _read(where, content):
        yield from content.images
        is_empty = is_empty and not content.images
        content.images.clear()
    if is_empty:
        raise CorpusError(f"{where}: no <image> in it; {_FORM}")


def _read(where: str, content: _Content) -> Iterator[None]:
    """Parses the file in parts; yields after each."""
    parser = ElementTree.XMLParser(target=content)
    try:
        with storage.open_input(where) as file:
            while data := file.read(_READ_BYTES):
                content.num_bytes += len(data)
                if content.num_bytes > _MAX_IMAGE_BYTES:
                    raise CorpusError(f"{where}: an element with more than {_MAX_IMAGE_BYTES} bytes; {_FORM}")
                parser.feed(data)
                yield
        parser.close()
        yield
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the message has line and column
        raise CorpusError(f"{where}: not valid XML ({error}); {_FORM}") from error


class _Content:
    """Receives the elements of the file; holds the images that were complete since the last reading.

    Attributes:
        labels: names of the labels of the task.
        images: complete images.
        num_bytes: bytes since the end of the last image.
    """

    def __init__(self, where: str) -> None:
        self.labels: list[str] = []
        self.images: list[ListedImage] = []
        self.num_bytes = 0
        self._where = where
        self._open: list[str] = []  # names of the elements around the present position
        self._name = ""
        self._present: list[str] = []
        self._text: list[str] = []

    def doctype(self, name: str, pubid: Any, system: Any) -> None:
        """Refuses declarations of entities, which can grow without limit."""
        raise CorpusError(f"{self._where}: has a DOCTYPE, which CVAT does not write; {_FORM}")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._open and tag != "annotations":
            raise CorpusError(f"{self._where}: starts with <{tag[:80]}>, expected <annotations>; {_FORM}")
        if self._open == ["annotations"]:
            if tag == "track":
                raise CorpusError(f"{self._where}: has <track>, so it is of a video; {_FORM}")
            if tag == "image":
                self._name = attributes.get("name", "").strip()
                if not self._name:
                    raise CorpusError(f"{self._where}: an <image> without name; {_FORM}")
                self._present = []
        elif self._open == ["annotations", "image"]:
            label = attributes.get("label", "").strip()
            if not label:
                raise CorpusError(f"{self._where}: image {self._name}: <{tag[:80]}> without label; {_FORM}")
            self._present.append(label)
        self._text = []
        self._open.append(tag)

    def data(self, text: str) -> None:
        if self._open[1:2] == ["meta"]:
            self._text.append(text)

    def end(self, tag: str) -> None:
        if self._open[-2:] == ["label", "name"] and self._open[1:2] == ["meta"]:
            self.labels.append("".join(self._text).strip())
        elif self._open == ["annotations", "image"]:
            self.images.append(ListedImage(self._name.replace("\\", "/"), unique_names(iter(self._present))))
            self.num_bytes = 0
        self._open.pop()
        if len(self._open) < 2:
            self.num_bytes = 0

    def close(self) -> None:
        pass
