"""The pictures of a finished shard folder, by the names that they had."""

from __future__ import annotations

from collections.abc import Iterator

from sigrl_core import storage
from sigrl_core.corpora.listing import Listing, Row, require_folder, require_none
from sigrl_core.corpora.parquet import opened
from sigrl_core.errors import CorpusError
from sigrl_core.records import ShardFolder


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists every row of every shard, without labels; a shard's hash stands for the version of its pictures.

    Raises:
        CorpusError: annotations given, or a folder of features.
        ShardError: not a finished shard folder.
    """
    require_none("shards", annotations)
    require_folder(images)
    folder = ShardFolder.open(images)
    if folder.kind != "shards":
        raise CorpusError(f"{images}: holds features, not pictures; give the folder that they were computed from")
    return Listing(_rows(folder))


def _rows(folder: ShardFolder) -> Iterator[Row]:
    for shard in folder.manifest["shards"]:
        path = f"shards/{shard['name']}"
        with opened(storage.join(folder.uri, path)) as file:
            uris = (uri for batch in file.iter_batches(columns=["uri"]) for uri in batch.column(0).to_pylist())
            for number, uri in enumerate(uris):
                yield Row(f"{path}#{uri}", None, offset=number, etag=shard["sha256"])
