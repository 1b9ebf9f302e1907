"""Stores a listing as a Parquet file with one row group per partition; it is written while the corpus is listed."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from sigrl_core.corpora.listing import ListedImage, Listing
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage
from sigrl_core.io.resumable_job import Partition
from sigrl_core.labels.vocabulary import Vocabulary, is_text

_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.string())),
        pa.field("negatives", pa.list_(pa.string())),
        pa.field("size", pa.int64()),
        pa.field("offset", pa.int64()),
        pa.field("etag", pa.string()),
    ]
)

_KEY = "sigrl_listing"


class ListingSummary(NamedTuple):
    """What is known of a listing when it is complete.

    Attributes:
        num_rows: number of images.
        sha256: hash of the images and their labels.
        vocabulary: the labels.
        left_out: as `Listing.left_out`.
        has_labels: whether an image has a label that is present.
    """

    num_rows: int
    sha256: str
    vocabulary: Vocabulary
    left_out: dict[str, int]
    has_labels: bool = True


def write_listing(
    listing: Listing,
    uri: str | None,
    vocabulary: Vocabulary | None = None,
    rows_per_partition: int = 1000,
    bytes_per_partition: int | None = None,
    partition: Callable[[Iterable[ListedImage]], Iterable[list[ListedImage]]] | None = None,
) -> ListingSummary:
    """Writes a listing; memory holds the images of one partition at a time.

    Args:
        uri: file to write; None computes the summary alone.
        vocabulary: the permitted labels, in place of the corpus's own.
        rows_per_partition: maximum number of images of a partition.
        bytes_per_partition: maximum number of bytes of a partition's images, unless it has a single image.
        partition: cuts the listing into partitions, in place of these two limits.

    Raises:
        CorpusError: errors of the corpus; a label that is not in the vocabulary, is empty, is both present and absent,
            or is not valid Unicode; an image of unknown size with `bytes_per_partition`.
    """
    vocabulary = vocabulary or listing.vocabulary
    index = None if vocabulary is None else vocabulary.index
    names: set[str] = set()
    digest, num_rows, has_labels = hashlib.sha256(), 0, False
    output: Any = contextlib.nullcontext(pa.MockOutputStream()) if uri is None else storage.open_output(uri)
    with output as file, pq.ParquetWriter(file, _SCHEMA, compression="zstd") as writer:
        for images in (
            partition(listing.images) if partition else _cut(listing.images, rows_per_partition, bytes_per_partition)
        ):
            for image in images:
                _check(image, index)
                names.update(image.labels or (), image.negatives or ())
                has_labels = has_labels or bool(image.labels)
            columns = list(zip(*images, strict=True))
            digest.update(json.dumps(columns[:-1]).encode())  # without etags, which differ in a copy of the corpus
            num_rows += len(images)
            try:
                table = pa.table([list(column) for column in columns], schema=_SCHEMA)
            except UnicodeEncodeError as error:
                raise _text_error(images) from error
            writer.write_table(table)
        vocabulary = vocabulary or Vocabulary.from_names(sorted(names))
        summary = ListingSummary(num_rows, digest.hexdigest(), vocabulary, dict(listing.left_out), has_labels)
        payload = {"rows": summary.num_rows, "sha256": summary.sha256, "vocabulary": vocabulary.to_rows()}
        if summary.left_out:
            payload["left_out"] = summary.left_out
        writer.add_key_value_metadata({_KEY: json.dumps(payload)})
    return summary


def read_listing_summary(uri: str) -> ListingSummary:
    """Reads the summary that `write_listing` returned when it wrote the file."""
    with storage.open_input(uri) as file:
        payload = json.loads(pq.ParquetFile(file).metadata.metadata[_KEY.encode()])
    vocabulary = Vocabulary.from_rows(payload["vocabulary"], uri)
    return ListingSummary(payload["rows"], payload["sha256"], vocabulary, payload.get("left_out", {}))


def list_partitions(uri: str) -> list[Partition]:
    """Returns the partitions of a listing file, in order."""
    with storage.open_input(uri) as file:
        metadata = pq.ParquetFile(file).metadata
    num_rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    return [Partition(index, stop - num_rows[index], stop) for index, stop in enumerate(accumulate(num_rows))]


def read_partition(uri: str, partition: Partition) -> list[ListedImage]:
    """Reads the images of one partition of a listing file, and no others."""
    with storage.open_input(uri) as file:
        table = pq.ParquetFile(file).read_row_group(partition.index)
    labels_and_negatives = [
        [None if names is None else tuple(names) for names in table[key].to_pylist()] for key in ("labels", "negatives")
    ]
    position = [table[key].to_pylist() for key in ("size", "offset", "etag")]
    rows = zip(table["uri"].to_pylist(), *labels_and_negatives, *position, strict=True)
    return [ListedImage(*row) for row in rows]


def _cut(images: Iterable[ListedImage], max_rows: int, max_bytes: int | None) -> Iterator[list[ListedImage]]:
    partition: list[ListedImage] = []
    num_bytes = 0
    for image in images:
        if max_bytes is not None and image.size is None:
            raise CorpusError(f"{image.uri}: this corpus lists no sizes; set --rows-per-shard, not --bytes-per-shard")
        size = image.size or 0
        if partition and (len(partition) == max_rows or (max_bytes is not None and num_bytes + size > max_bytes)):
            yield partition
            partition, num_bytes = [], 0
        partition.append(image)
        num_bytes += size
    if partition:
        yield partition


def _text_error(images: Iterable[ListedImage]) -> CorpusError:
    """Returns the error for the first text that is not Unicode: JSON can contain half of a surrogate pair."""
    texts = (
        (image.uri, each) for image in images for each in (image.uri, *(image.labels or ()), *(image.negatives or ()))
    )
    uri, text = next((uri, text) for uri, text in texts if not is_text(text))
    return CorpusError(f"image {uri!r}: {text!r} is not valid Unicode; correct the annotations")


def _check(image: ListedImage, index: dict[str, int] | None) -> None:
    labels, negatives = image.labels or (), image.negatives or ()
    if negatives and (both := set(labels) & set(negatives)):
        raise CorpusError(f"{image.uri}: label {min(both)!r} is both in labels and in negatives; keep one")
    for name in (*labels, *negatives):
        if not name.strip():
            raise CorpusError(f"{image.uri}: an empty label; give it a name or leave it out")
        if index is not None and name not in index:
            raise CorpusError(f"{image.uri}: label {name!r} is not in the vocabulary{_suggest(name, index)}")


def _suggest(name: str, index: dict[str, int]) -> str:
    similar = difflib.get_close_matches(name, index, n=1)
    return (
        f"; did you mean {similar[0]!r}?" if similar else f" of {len(index)} labels; add it there or leave it out here"
    )
