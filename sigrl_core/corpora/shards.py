"""The images of a finished shard folder, with their original uris."""

from __future__ import annotations

from collections.abc import Iterator

from sigrl_core.corpora.listing import ListedImage, Listing, require_folder, require_none
from sigrl_core.corpora.parquet import open_parquet
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists all rows of all shards, without labels; the etag of an image is its shard's hash.

    Raises:
        CorpusError: annotations are given, or the folder contains features.
        ShardError: not a finished shard folder.
    """
    require_none("shards", annotations)
    require_folder(images)
    folder = ShardFolder.open(images)
    if folder.kind != "shards":
        raise CorpusError(f"{images}: contains features, not images; give the folder that they were computed from")
    return Listing(_list_images(folder))


def _list_images(folder: ShardFolder) -> Iterator[ListedImage]:
    for shard in folder.manifest["shards"]:
        path = f"shards/{shard['name']}"
        with open_parquet(storage.join(folder.uri, path)) as file:
            uris = (uri for batch in file.iter_batches(columns=["uri"]) for uri in batch.column(0).to_pylist())
            for number, uri in enumerate(uris):
                yield ListedImage(f"{path}#{uri}", None, offset=number, etag=shard["sha256"])
