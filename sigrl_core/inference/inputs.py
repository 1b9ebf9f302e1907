"""Arguments of the public API: images and labels in every form, and one line of error for a wrong argument."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from sigrl_core.errors import ConfigError, StorageError, VocabularyError
from sigrl_core.io import storage
from sigrl_core.io.resumable_job import describe_folder
from sigrl_core.labels.vocabulary import Label, Vocabulary

TAG_BATCH = 32
"""Number of images that go through the model together."""
IMAGE_FORMS = (
    "a path or URI (str, Path), bytes, a PIL image, a uint8 array of shape (height, width, 3), or a sequence of these"
)
LABEL_FORMS = "a list of names, a label file (str, Path), or a Vocabulary"

OneImage = str | os.PathLike[str] | bytes | Image.Image | np.ndarray


class ImageList(NamedTuple):
    """Images to tag.

    Attributes:
        images: the images, not read yet.
        names: one per image: its path or URI, or else its position.
        is_single: whether the caller passed one image, not a sequence.
    """

    images: list[OneImage]
    names: list[str | int]
    is_single: bool


def parse_images(images: Any) -> ImageList:
    """Checks the form of one image or a sequence of images; reads no file.

    Raises:
        ConfigError: not one of `IMAGE_FORMS`.
    """
    is_single = _is_image(images)
    items = [images] if is_single else _items(images)
    if items is None:
        raise ConfigError(f"images: found {describe(images)}; expected {IMAGE_FORMS}")
    if not items:
        raise ConfigError(f"images: found {describe(images)} without items; expected {IMAGE_FORMS}")
    for position, item in enumerate(items):
        if not _is_image(item):
            raise ConfigError(f"images[{position}]: found {describe(item)}; expected {IMAGE_FORMS}")
        if isinstance(item, np.ndarray):
            _check_pixels(item, "images" if is_single else f"images[{position}]")
    names = [os.fspath(item) if _is_path(item) else position for position, item in enumerate(items)]
    return ImageList(items, names, is_single)


def read_image(image: OneImage) -> bytes | Image.Image:
    """Returns an image as `Tagger.tag` takes it; reads the file of a path.

    Raises:
        ConfigError: the path is a folder.
        StorageError: there is no such file, or it cannot be read.
    """
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    if isinstance(image, bytes | Image.Image):
        return image
    uri = os.fspath(image)
    try:
        return storage.read_bytes(storage.absolute(uri))
    except StorageError as error:
        if storage.is_folder(uri):
            raise ConfigError(
                f"images: {uri} is {describe_folder(uri) or 'a folder'}; expected an image file; "
                "sigrl.tag(checkpoint, folder, out=...) tags a folder"
            ) from error
        raise


def read_batches(images: Sequence[OneImage]) -> Iterator[list[Any]]:
    """Yields the results of `read_image` for all images, `TAG_BATCH` at a time."""
    with ThreadPoolExecutor(8) as pool:  # an object store answers several requests at a time
        for start in range(0, len(images), TAG_BATCH):
            yield list(pool.map(read_image, images[start : start + TAG_BATCH]))


def parse_labels(labels: Any, default: Vocabulary) -> Vocabulary:
    """Returns the vocabulary to score; None returns `default`.

    Raises:
        ConfigError: not one of `LABEL_FORMS`.
        VocabularyError, StorageError: the names or the file cannot be used.
    """
    if labels is None:
        return default
    if isinstance(labels, Vocabulary):
        return labels
    if _is_path(labels):
        uri = os.fspath(labels)
        try:
            return Vocabulary.load(uri)
        except StorageError as error:
            raise VocabularyError(f"labels: {error}; label names are given as a list, labels=[{uri!r}]") from error
    items = _items(labels)
    if not items:
        description = describe(labels) if items is None else f"{describe(labels)} without items"
        raise ConfigError(f"labels: found {description}; expected {LABEL_FORMS}")
    for position, item in enumerate(items):
        if not isinstance(item, str | Label):
            raise ConfigError(f"labels[{position}]: found {describe(item)}; expected {LABEL_FORMS}")
    return Vocabulary(tuple(item if isinstance(item, Label) else Label(name=item) for item in items))


def parse_location(value: Any, name: str, expected: str) -> str:
    """Returns a path or URI as str; raises ConfigError, which says what was `expected`, for anything else."""
    if _is_path(value) and os.fspath(value):
        return os.fspath(value)
    raise ConfigError(f"{name}: found {describe(value)}; expected {expected} (str, Path or s3:// URI)")


def resolve_device(device: str) -> str:
    """Returns the torch device; `auto` is a GPU if there is one. Raises ConfigError for an unusable device."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device is {device!r} ({reason}); expected auto, cpu, cuda or cuda:N") from error
    return device


def check_tag_options(top_k: Any, threshold: Any) -> None:
    """Raises ConfigError unless these are options of `Tagger.tag`."""
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise ConfigError(f"top_k is {top_k!r}; expected 1 or more, or None")
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if not (threshold is None or threshold == "calibrated" or (is_number and 0 <= threshold <= 1)):
        raise ConfigError(f"threshold is {threshold!r}; expected a probability in [0, 1], 'calibrated', or None")


def describe(value: object) -> str:
    """Returns what a wrong argument is, for an error message."""
    if value is None:
        return "nothing"
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} array of shape {value.shape}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):  # a tensor
        return f"a {type(value).__name__} of shape {tuple(value.shape)} and type {value.dtype}"  # pyright: ignore
    if isinstance(value, list | tuple | dict | set):
        first = next(iter(value), None)
        of = f" of {type(first).__name__}" if value else ""
        return f"a {type(value).__name__}{of}"
    return f"a {type(value).__name__}" if _is_table(value) else f"{type(value).__name__} {value!r:.60}"


def _is_path(value: object) -> bool:
    return isinstance(value, str | Path) or (isinstance(value, os.PathLike) and isinstance(os.fspath(value), str))


def _is_image(value: object) -> bool:
    is_array = isinstance(value, np.ndarray) and value.ndim != 1 and value.ndim != 4
    return is_array or _is_path(value) or isinstance(value, bytes | Image.Image)


def _check_pixels(pixels: np.ndarray, where: str) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ConfigError(
            f"{where}: found {describe(pixels)}; expected a uint8 array of shape (height, width, 3), RGB from 0 to 255"
        )


def _items(value: object) -> list[Any] | None:
    """Returns the items of a sequence; None for anything else."""
    if _is_table(value) and getattr(value, "ndim", 0) == 1:  # a Series or an Index
        return list(value)  # type: ignore[call-overload]
    if isinstance(value, np.ndarray) and value.ndim in (1, 4):
        return list(value)
    if isinstance(value, Sequence | Iterator) and not isinstance(value, str | bytes | bytearray):
        return list(value)
    return None


def _is_table(value: object) -> bool:
    """Returns whether this is an object of pandas; pandas is not imported for that."""
    pandas: Any = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame | pandas.Series | pandas.Index)
