"""A folder of images with metadata files, as Hugging Face's `imagefolder` reads it.

    train/metadata.csv    file_name,labels    also metadata.jsonl or metadata.parquet, in any folder
    train/a.jpg

`file_name` is relative to the folder of the metadata file. The files are read as the corpora `csv`, `jsonl` and
`parquet` are, which describe columns and label states; images that no file names are not listed. `--annotations` is one
of the files, whose names are then relative to `--images`, or not given.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

from sigrl_core.corpora import csv_list, jsonl, parquet_list
from sigrl_core.corpora.listing import ListedImage, Listing, require_file, require_folder
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage

METADATA = {
    "metadata.csv": csv_list.list_corpus,
    "metadata.jsonl": jsonl.list_corpus,
    "metadata.parquet": parquet_list.list_corpus,
}
"""Names of metadata files, and their readers."""


def list_corpus(images: str, annotations: str | None = None, *, label_field: str | None = None) -> Listing:
    """Lists the rows of all metadata files, in the order of their paths.

    Args:
        label_field: the column or key with the labels.

    Raises:
        CorpusError: no metadata file, errors of its reader, or files with different columns for classes.
    """
    require_folder(images)
    if annotations is not None:
        files = {require_file("image_folder", annotations): ""}
    else:
        paths = [file.path for file in storage.walk(images, [".csv", ".jsonl", ".parquet"])]
        paths = [path for path in paths if posixpath.basename(path) in METADATA]
        files = {storage.join(images, path): posixpath.dirname(path) for path in paths}
    if not files:
        raise CorpusError(f"{images}: no {', '.join(METADATA)} in it; check --images")
    options: dict[str, Any] = {} if label_field is None else {"label_field": label_field}
    tables = {}
    for where in files:
        name = posixpath.basename(where)
        if name not in METADATA:
            raise CorpusError(f"{where}: expected one of {', '.join(METADATA)}; rename it, or use its own corpus")
        tables[where] = METADATA[name](images, where, **options)
    vocabularies = {tuple(table.vocabulary.names) if table.vocabulary else None for table in tables.values()}
    if len(vocabularies) > 1:
        raise CorpusError(f"{images}: its metadata files have different class columns; preprocess them one by one")
    return Listing(_list_images(tables, files), next(iter(tables.values())).vocabulary)


def _list_images(tables: dict[str, Listing], folders: dict[str, str]) -> Iterator[ListedImage]:
    for where, table in tables.items():
        for image in table.images:
            yield image._replace(uri=posixpath.join(folders[where], image.uri))
