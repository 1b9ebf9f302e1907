"""Lists of images with labels in the formats of three cloud services, one JSON object per line.

`azure`, Azure AutoML for images; an object of a picture is `{"label": "cat"}`::

    {"image_url": "azureml://.../paths/a.jpg", "label": "cat"}          or a list of texts, or of objects

`vertex`, Vertex AI; `classificationAnnotation` has one label, `boundingBoxAnnotations` have one per object::

    {"imageGcsUri": "gs://bucket/a.jpg", "classificationAnnotations": [{"displayName": "cat"}]}

`sagemaker`, the augmented manifest of SageMaker Ground Truth; the label attribute has any name::

    {"source-ref": "s3://bucket/a.jpg", "animals": [0, 1], "animals-metadata": {"class-map": {"0": "cat", "1": "dog"}}}

Other labels are absent. In a line without labels, or one that Ground Truth failed to label, all are unknown. Locations
become paths below `--images` if copies exist there, see image_paths.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sigrl_core.corpora.image_paths import ImagePaths
from sigrl_core.corpora.json_files import read_objects, require_list, require_text, show, unique_names
from sigrl_core.corpora.listing import ListedImage, Listing, require_file, require_folder
from sigrl_core.errors import CorpusError

_Labels = tuple[str, ...] | None


def list_azure(images: str, annotations: str | None = None) -> Listing:
    """Lists the lines of an Azure AutoML file in order.

    Raises:
        CorpusError: no file, no lines, or a malformed line; the message has the line.
    """
    return _list_corpus("azure", images, annotations, "image_url", _azure_labels)


def list_vertex(images: str, annotations: str | None = None) -> Listing:
    """Lists the lines of a Vertex AI import or export file in order; see `list_azure`."""
    return _list_corpus("vertex", images, annotations, "imageGcsUri", _vertex_labels)


def list_sagemaker(images: str, annotations: str | None = None) -> Listing:
    """Lists the lines of an augmented manifest in order; see `list_azure`."""
    return _list_corpus("sagemaker", images, annotations, "source-ref", _sagemaker_labels)


def _list_corpus(
    corpus: str, images: str, annotations: str | None, key: str, read_labels: Callable[[dict, str], _Labels]
) -> Listing:
    require_folder(images)
    return Listing(_list_images(images, require_file(corpus, annotations), key, read_labels))


def _list_images(
    images: str, annotations: str, key: str, read_labels: Callable[[dict, str], _Labels]
) -> Iterator[ListedImage]:
    paths = ImagePaths(images)
    for where, row in read_objects(annotations):
        uri = require_text(row.get(key), f"{where}: {key}")
        yield ListedImage(paths.find(uri, where), read_labels(row, where))


def _azure_labels(row: dict, where: str) -> _Labels:
    value = row.get("label")
    if value is None:
        return None
    entries = value if isinstance(value, list) else [value]
    names = (entry.get("label") if isinstance(entry, dict) else entry for entry in entries)
    return unique_names(require_text(name, f"{where}: label") for name in names)


def _vertex_labels(row: dict, where: str) -> _Labels:
    entries: list[Any] = []
    keys = [
        key
        for key in ("classificationAnnotation", "classificationAnnotations", "boundingBoxAnnotations")
        if row.get(key) is not None
    ]
    for key in keys:
        entries += (
            [row[key]] if key == "classificationAnnotation" else require_list(row[key], f"{where}: {key}", "a list")
        )
    if not keys:
        return None
    for entry in entries:
        if not isinstance(entry, dict):
            raise CorpusError(f"{where}: expected an annotation with displayName, found {show(entry)}")
    return unique_names(require_text(entry.get("displayName"), f"{where}: displayName") for entry in entries)


def _sagemaker_labels(row: dict, where: str) -> _Labels:
    metadata_by_name = {
        key.removesuffix("-metadata"): value
        for key, value in row.items()
        if key.endswith("-metadata") and isinstance(value, dict) and key.removesuffix("-metadata") in row
    }
    names = [name for name, value in metadata_by_name.items() if value.get("type") != "groundtruth/label-verification"]
    if not names:
        return None
    if len(names) > 1:
        raise CorpusError(f"{where}: label attributes {', '.join(names)}; keep one of them and its -metadata")
    name, metadata = names[0], metadata_by_name[names[0]]
    if "failure-reason" in metadata:
        return None
    value = row[name]
    if isinstance(value, dict):  # boxes
        entries = require_list(value.get("annotations"), f"{where}: {name}", '{"annotations": [...]}')
        value = [entry.get("class_id") if isinstance(entry, dict) else entry for entry in entries]
    class_map = metadata.get("class-map")
    if not isinstance(class_map, dict):
        class_name = require_text(metadata.get("class-name"), f"{where}: class-name, without class-map")
        if isinstance(value, list):
            raise CorpusError(f"{where}: {name}-metadata has no class-map for {show(value)}")
        return (class_name,)
    numbers = value if isinstance(value, list) else [value]
    return unique_names(require_text(class_map.get(str(n)), f"{where}: class-map of {show(n)}") for n in numbers)
