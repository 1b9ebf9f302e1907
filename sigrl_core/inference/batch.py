"""Tags one key range and writes its files. A key is the location of an image below `--images`.

Only rows that are new or changed are tagged: a row whose key and etag are in the range's previous file is copied from
there. The cost of tagging a folder that has grown is therefore proportional to what was added.
"""

from __future__ import annotations

import base64
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from sigrl_core.config import TagConfig
from sigrl_core.corpora import PATH_CORPORA
from sigrl_core.corpora.image_files import read_images
from sigrl_core.corpora.listing import ListedImage
from sigrl_core.corpora.listing_file import read_partition
from sigrl_core.data import images
from sigrl_core.data.transforms import centre_crop
from sigrl_core.errors import ImageError, StorageError
from sigrl_core.inference.heat_map import to_png
from sigrl_core.inference.ranges import KeyRange
from sigrl_core.inference.tag_files import (
    SIDECAR,
    is_sidecar,
    split_error,
    tags_schema,
    to_error,
    to_json_lines,
    to_tag_records,
)
from sigrl_core.inference.tagger import Tagger, Tags
from sigrl_core.io import storage
from sigrl_core.io.checksums import sha256_of
from sigrl_core.io.key_ranges import range_name
from sigrl_core.io.parquet import open_parquet_bytes, to_parquet
from sigrl_core.io.prefetch import files_in_flight, is_local, prefetch
from sigrl_core.io.resumable_job import Partition
from sigrl_core.labels.vocabulary import Vocabulary

STAGING = "work"
"""Folder, below the output folder, of staged files; see `ranges.staged_ranges`."""
LISTING = "work/listing.parquet"
NUM_EXAMPLES = 3
"""Example images in the commit record of a range with `KeyRange.examples`."""
STAGES: tuple[str, ...] = ("read", "decode", "model", "write")


class DecodedBatch(NamedTuple):
    """A batch of images that were read and decoded.

    Attributes:
        images: pixels of each image, or the reason why it is unreadable.
        num_bytes: size of their files together.
        seconds: duration by stage, `read` and `decode`.
    """

    images: list[np.ndarray | ImageError]
    num_bytes: int
    seconds: dict[str, float]


class TaggingTask(NamedTuple):
    """The labels to score and the model that scores them.

    Attributes:
        embeddings_CE: the user's own label embeddings, see `Tagger.encode_labels`.
        model_hash: hash of the checkpoint that scores, `Checkpoint.sha256`; whoever loads it checks it.
        embedding_dim: length of an image embedding.
    """

    vocabulary: Vocabulary
    embeddings_CE: np.ndarray | None
    model_hash: str
    embedding_dim: int


class PartitionTagger:
    """Tags key ranges with one model.

    Args:
        tagger: the model.
        task: the labels to score.
        config: images to tag, and format of the tags.
        staged: names of the ranges whose files are written to `STAGING` first, see `ranges.staged_ranges`.
        retry_failed: tags images again that were unreachable in the previous run.
        load_images: reads and decodes the images of rows, in batches; None does so in this process.
    """

    def __init__(
        self,
        tagger: Tagger,
        task: TaggingTask,
        config: TagConfig,
        staged: set[str],
        retry_failed: bool = False,
        load_images: Callable[[Sequence[ListedImage]], Iterator[DecodedBatch]] | None = None,
    ) -> None:
        self.tagger, self.task, self.config = tagger, task, config
        self.staged, self.retry_failed = staged, retry_failed
        self.load_images = load_images or self._load_images
        tagger.encode_labels(task.vocabulary, task.embeddings_CE)

    def __call__(self, part: Partition) -> dict[str, Any]:
        """Writes a range's files and returns its commit record. A repeated call writes the same bytes."""
        assert isinstance(part, KeyRange)
        seconds = dict.fromkeys(STAGES, 0.0)
        rows = read_partition(storage.join(self.config.out, LISTING), part)
        previous = self._previous_table(part)
        previous_position = {
            version: position
            for position, version in enumerate(
                zip(previous["uri"].to_pylist(), previous["etag"].to_pylist(), strict=True)
            )
        }
        positions = [None if row.etag is None else previous_position.get((row.uri, row.etag)) for row in rows]
        new_rows = [row for row, position in zip(rows, positions, strict=True) if position is None]
        tags, examples, num_bytes = self.tag_rows(new_rows, seconds, NUM_EXAMPLES if part.examples else 0)
        with _timed(seconds, "write"):
            new_position = itertools.count(previous.num_rows)
            order = [next(new_position) if position is None else position for position in positions]
            table = pa.concat_tables([previous, self._table(new_rows, tags)]).take(pa.array(order, pa.int64()))
            if self.config.format == "sidecar":
                self._write_sidecars(new_rows, tags)
            files = self._write_files(part, table)
        errors = Counter(split_error(error)[0] for error in table["error"].to_pylist() if error)
        labels = Counter(name for names in table["labels"].to_pylist() for name in names)
        return {
            "listing": part.listing,
            "rows": table.num_rows,
            "files": {path: sha256_of(data) for path, data in files.items()},
            "errors": dict(sorted(errors.items())),
            "labels": dict(sorted(labels.items())),
            "examples": examples,
            "work": {"images": len(new_rows), "seconds": seconds},
            "bytes_in": num_bytes,
            "num_failed": sum(bool(each.error) for each in tags),
        }

    def _previous_table(self, part: KeyRange) -> pa.Table:
        """Reads the rows that the previous run wrote for these keys; empty if there are none."""
        table = self._table([], [])
        if part.previous_range is not None:
            uri = storage.join(self.config.out, f"tags/{range_name(part.previous_range)}.parquet")
            if storage.exists(uri):
                stored = open_parquet_bytes(storage.read_bytes(uri)).read(use_threads=False)
                table = stored.cast(table.schema)  # Parquet gives the items of lists another field name
        return table.filter(pc.field("error") != "unreachable") if self.retry_failed else table

    def _write_files(self, part: KeyRange, table: pa.Table) -> dict[str, bytes]:
        """Writes the range's files; returns their contents by path."""
        files = {part.file_path("tags"): to_parquet(table)}
        if self.config.format == "jsonl":
            files[part.file_path("jsonl")] = to_json_lines(table)
        root = [self.config.out, STAGING] if part.name in self.staged else [self.config.out]
        for path, data in files.items():
            storage.write_bytes(storage.join(*root, path), data)
        return files

    def tag_rows(
        self, rows: Sequence[ListedImage], seconds: dict[str, float] | None = None, num_examples: int = 0
    ) -> tuple[list[Tags], list[dict[str, Any]], int]:
        """Tags rows.

        Args:
            seconds: the duration of each of `STAGES` is added to it.
            num_examples: number of readable images to return as the model received them.

        Returns:
            The tags of every row in order, the examples, and the number of bytes read.
        """
        seconds = dict.fromkeys(STAGES, 0.0) if seconds is None else seconds
        tags: list[Tags] = []
        examples: list[dict[str, Any]] = []
        num_bytes = 0
        for batch in self.load_images(rows):
            num_bytes += batch.num_bytes
            for stage, duration in batch.seconds.items():
                seconds[stage] += duration
            with _timed(seconds, "model"):
                batch_tags = self.tagger.tag(
                    batch.images,
                    self.task.vocabulary,
                    self.config.top_k,
                    self.config.threshold,
                    self.config.heat_maps,
                    self.config.embeddings,
                )
            for image, each, row in zip(batch.images, batch_tags, rows[len(tags) :], strict=False):
                if len(examples) < num_examples and not isinstance(image, ImageError):
                    records = to_tag_records(each.labels, each.scores)
                    examples.append({"uri": row.uri, "jpeg": _thumbnail(image), "tags": records})
            tags += batch_tags
        return tags, examples, num_bytes

    def _load_images(self, rows: Sequence[ListedImage]) -> Iterator[DecodedBatch]:
        batches = load_images(self.config, self.tagger.model.backbone.image_size, rows)
        return batches if is_local(self.config.images) else prefetch(batches)  # hides an object store's latency

    def _table(self, rows: Sequence[ListedImage], tags: Sequence[Tags]) -> pa.Table:
        columns: dict[str, Any] = {
            "uri": [row.uri for row in rows],
            "etag": [row.etag for row in rows],
            "size": [row.size for row in rows],
            "labels": [each.labels for each in tags],
            "scores": [each.scores for each in tags],
            "error": [to_error(each.error, each.detail) for each in tags],
            "model": [self.task.model_hash] * len(rows),
            "vocabulary": [self.task.vocabulary.hash] * len(rows),
        }
        if self.config.heat_maps:
            columns["heat_maps"] = [[to_png(heat) for heat in each.heat_maps] for each in tags]
        if self.config.embeddings:
            columns["embedding"] = [each.embedding_D for each in tags]
        return pa.table(columns, schema=tags_schema(self.config, self.task.embedding_dim))

    def _write_sidecars(self, rows: Sequence[ListedImage], tags: Sequence[Tags]) -> None:
        lines = to_json_lines(self._table(rows, tags)).splitlines(keepends=True)
        with ThreadPoolExecutor(files_in_flight(self.config.images)) as pool:
            list(pool.map(self._write_sidecar, rows, lines))

    def _write_sidecar(self, row: ListedImage, line: bytes) -> None:
        uri = storage.join_walked(self.config.images, row.uri + SIDECAR)
        if storage.exists(uri) and not is_sidecar(storage.read_bytes(uri)):
            raise StorageError(
                f"{uri}: not written by tag.py, so it is not overwritten; move it away or use --format jsonl"
            )
        storage.write_bytes(uri, line)


def load_images(config: TagConfig, image_size: int, rows: Sequence[ListedImage]) -> Iterator[DecodedBatch]:
    """Reads and decodes images in batches, `image_size` pixels on a side; raises as `read_images`."""
    files = read_images(config.images, rows, config.max_file_bytes, uris_are_paths=config.corpus in PATH_CORPORA)
    for _ in range(0, len(rows), config.batch_size):
        seconds = {"read": 0.0, "decode": 0.0}
        with _timed(seconds, "read"):
            batch = list(itertools.islice(files, config.batch_size))
        with _timed(seconds, "decode"):
            crops = [centre_crop(file, image_size) for file in batch]
        yield DecodedBatch(crops, sum(len(file) for file in batch if isinstance(file, bytes)), seconds)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] += time.perf_counter() - started


def _thumbnail(pixels_HWC: np.ndarray) -> str:
    return base64.b64encode(images.encode_jpeg(Image.fromarray(pixels_HWC), 75)).decode()
