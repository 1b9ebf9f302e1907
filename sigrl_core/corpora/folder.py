"""A folder of images. The sub-folder is the only label (`cat/1.jpg`). Other images are not annotated.

If all folders directly below are named as splits (`train/cat/1.jpg`, `val/cat/2.jpg`), the folders below them are the
labels. The split itself is not used.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial

from sigrl_core.corpora.image_walk import describe_left_out, may_be_image, walk_images
from sigrl_core.corpora.listing import ListedImage, Listing, require_folder, require_none
from sigrl_core.data.images import SUFFIXES
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage

SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))
"""Names of folders, in lower case, that are splits and not labels."""


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists all images at all depths, in the order of paths; the first folder of the path is the label.

    Raises:
        CorpusError: the folder is missing or has no images, or annotations are given.
    """
    require_none("folder", annotations)
    require_folder(images)
    left_out = Counter[str]()
    return Listing(_list_images(images, left_out), left_out=left_out, describe_source=partial(_describe_source, images))


def _list_images(images: str, left_out: Counter[str]) -> Iterator[ListedImage]:
    file, depth = None, None
    for file in walk_images(images, left_out):
        *folders, _ = file.path.split("/")
        if folders and depth is None:
            depth = int(_has_splits(images, folders[0]))
        label = folders[depth] if depth is not None and len(folders) > depth else None
        yield ListedImage(file.path, None if label is None else (label,), size=file.size)
    if file is None:
        rest = f"; left out: {describe_left_out(left_out)}" if left_out else ""
        endings = ", ".join(SUFFIXES)
        raise CorpusError(f"{images}: no image files under it, by ending ({endings}) or content{rest}; check --images")


def _has_splits(images: str, first: str) -> bool:
    """Returns whether all folders directly below are splits; looks at them only if the first one with images is."""
    if first.lower() not in SPLITS:
        return False
    folders: dict[str, None] = {}
    for file in storage.walk(images):
        folder, slash, _ = file.path.partition("/")
        if slash and may_be_image(file.path):
            if folder.lower() not in SPLITS:
                return False
            folders[folder] = None
    print(
        f"{images}: {', '.join(folders)} are taken as splits, not as labels; the labels are the folders below them. "
        "The splits are not used: --validation-fraction and --test-fraction choose images by content",
        file=sys.stderr,
    )
    return True


def _describe_source(images: str) -> str:
    folders = {file.path.partition("/")[0] for file in storage.walk(images) if "/" in file.path}
    names = ", ".join(sorted(folders)[:10])
    return f"a label is the name of an image's folder; found {f'the folders {names}' if names else 'no folders'}"
