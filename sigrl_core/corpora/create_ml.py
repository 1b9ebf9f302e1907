"""Create ML's JSON annotations: a list with an entry per image.

    [{"image": "a.jpg", "annotations": [{"label": "cat", "coordinates": {...}}, {"label": "dog"}]}]

The key of the image may also be `imagefilename` or `imageURL`, that of the labels `annotation`, `labels` or `label`,
with one text or a list of texts. Other labels are absent; in an entry without labels all are unknown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sigrl_core.corpora.image_paths import ImagePaths
from sigrl_core.corpora.json_files import read_document, require_list, require_text, show, unique_names
from sigrl_core.corpora.listing import ListedImage, Listing, require_file, require_folder
from sigrl_core.errors import CorpusError

IMAGE_KEYS = ("image", "imagefilename", "imageURL")
LABEL_KEYS = ("annotations", "annotation", "labels", "label")
_FORM = 'Create ML annotations, [{"image": "a.jpg", "annotations": [{"label": "cat"}]}]'


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists the entries in order.

    Raises:
        CorpusError: no file, not such a list, no entries, or a malformed entry; the message has its number.
    """
    require_folder(images)
    where = require_file("create_ml", annotations)
    entries = require_list(read_document(where, _FORM), where, _FORM)
    if not entries:
        raise CorpusError(f"{where}: no entries; give {_FORM}")
    return Listing(_list_images(images, where, entries))


def _list_images(images: str, annotations: str, entries: list[Any]) -> Iterator[ListedImage]:
    paths = ImagePaths(images)
    for number, entry in enumerate(entries):
        where = f"{annotations}: entry {number}"
        keys = [key for key in IMAGE_KEYS if isinstance(entry, dict) and key in entry]
        if len(keys) != 1:
            raise CorpusError(f"{where}: expected one of {', '.join(IMAGE_KEYS)}, found {show(entry)}; give {_FORM}")
        uri = paths.find(require_text(entry[keys[0]], f"{where}: {keys[0]}"), where)
        label_keys = [key for key in LABEL_KEYS if entry.get(key) is not None]
        if len(label_keys) > 1:
            raise CorpusError(f"{where}: has {' and '.join(label_keys)}; keep one")
        if not label_keys:
            yield ListedImage(uri, None)
            continue
        key = label_keys[0]
        value = entry[key] if isinstance(entry[key], list) else [entry[key]]
        names = (item.get("label") if isinstance(item, dict) else item for item in value)
        yield ListedImage(uri, unique_names(require_text(name, f"{where}: {key}") for name in names))
