"""Label Studio's JSON export: a list of tasks.

Labels are choices and the labels of regions (`choices`, `rectanglelabels`, `polygonlabels`, ...). Others are absent. A
task with several annotations is listed once for each; cancelled ones are left out. Predictions are ignored. In a task
without annotations all labels are unknown. Locations become paths below `--images` if copies exist there, see
image_paths.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sigrl_core.corpora.image_paths import ImagePaths
from sigrl_core.corpora.json_files import read_document, require_list, require_text, show, unique_names
from sigrl_core.corpora.listing import ListedImage, Listing, require_file, require_folder
from sigrl_core.errors import CorpusError

_FORM = "Label Studio's JSON export, a list of tasks with data and annotations (not JSON-MIN)"


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists the annotations of all tasks in order.

    Raises:
        CorpusError: no file, not an export, no tasks, or a task that is malformed or has no image; the message has the
            task.
    """
    require_folder(images)
    where = require_file("label_studio", annotations)
    tasks = require_list(read_document(where, _FORM), where, _FORM)
    if not tasks:
        raise CorpusError(f"{where}: no tasks; export {_FORM}")
    return Listing(_list_images(images, where, tasks))


def _list_images(images: str, annotations: str, tasks: list[Any]) -> Iterator[ListedImage]:
    paths = ImagePaths(images)
    for number, task in enumerate(tasks):
        where = f"{annotations}: task {number}"
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            raise CorpusError(f"{where}: no data, found {show(task)}; export {_FORM}")
        uri = paths.find(_image(task["data"], where), where)
        entries = task.get("annotations", task.get("completions"))
        completed = [
            entry
            for entry in require_list([] if entries is None else entries, where, "a list of annotations")
            if not (isinstance(entry, dict) and entry.get("was_cancelled"))
        ]
        if not completed:
            yield ListedImage(uri, None)
        for entry in completed:
            if not isinstance(entry, dict):
                raise CorpusError(f"{where}: expected an annotation with result, found {show(entry)}; export {_FORM}")
            results = require_list(entry.get("result"), f"{where}: result", "a list")
            yield ListedImage(uri, unique_names(_names(results, where)))


def _image(data: dict[str, Any], where: str) -> str:
    """Returns the location of the image: the entry `image`, or the only text."""
    texts = [data["image"]] if "image" in data else [value for value in data.values() if isinstance(value, str)]
    if len(texts) != 1:
        raise CorpusError(f"{where}: {len(texts)} texts in data, expected one image; rename its key to image")
    return require_text(texts[0], f"{where}: image")


def _names(results: list[Any], where: str) -> Iterator[str]:
    for result in results:
        kind, value = (result.get("type"), result.get("value")) if isinstance(result, dict) else (None, None)
        if not isinstance(kind, str) or not (kind == "choices" or kind.endswith("labels")):
            continue  # a text, a rating, a relation
        names = value.get(kind) if isinstance(value, dict) else None
        for name in require_list([] if names is None else names, f"{where}: {kind}", "a list of labels"):
            yield require_text(name, f"{where}: {kind}")
