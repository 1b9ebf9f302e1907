"""Checks the locations of a command before anything is listed: exchanged, of another kind, or inside each other."""

from __future__ import annotations

from sigrl_core.errors import ConfigError, CorpusError
from sigrl_core.io import storage
from sigrl_core.io.resumable_job import FOLDER_KINDS, describe_folder


def check_locations(corpus: str, images: str, out: str, annotations: str | None = None) -> None:
    """Checks the input and output of a command that lists a corpus.

    Args:
        corpus: format of the images.
        images: folder of the images; absolute, as the other locations.
        out: folder to write.
        annotations: file or folder of the annotations.

    Raises:
        CorpusError: images and annotations are exchanged, or `images` is a folder that a command of this program wrote.
        ConfigError: `out` is inside the folder that is listed.
    """
    if annotations is not None and storage.is_folder(annotations) and _is_file(images):
        raise CorpusError(f"images: {images} is a file, and annotations {annotations} is a folder; exchange the two")
    description = describe_folder(images)
    is_shards = description == FOLDER_KINDS["shards"]  # which `auto` recognises
    if description is not None and not (is_shards and corpus in ("shards", "auto")):
        step = "add --corpus shards" if is_shards else "give the folder with the image files"
        raise CorpusError(f"{images}: {description}, expected a folder of images; {step}")
    if annotations is None and storage.join(out, "").startswith(storage.join(images, "")):
        raise ConfigError(f"out is {out}, below images, where the next run would list it; choose another folder")


def _is_file(uri: str) -> bool:
    return storage.exists(uri) and not storage.is_folder(uri)
