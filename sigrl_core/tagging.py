"""A listing tagged range by range: what is tagged again when it changes, and what one worker does for one range.

A range's rows are tagged where its file has none for the same version of the same picture, and taken from there
elsewhere, so that a folder that has grown costs what came.
"""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from sigrl_core import images, storage
from sigrl_core.config import TagConfig
from sigrl_core.corpora import WALKED, get_corpus
from sigrl_core.corpora.ahead import files_in_flight, is_local, one_ahead
from sigrl_core.corpora.listing import Listing, Row
from sigrl_core.corpora.listing_file import read_part
from sigrl_core.corpora.pictures import fetch, position
from sigrl_core.decoding import centre_crop
from sigrl_core.errors import ImageError, StorageError
from sigrl_core.heat_map import to_png
from sigrl_core.key_ranges import cut, name_of
from sigrl_core.parts import Part
from sigrl_core.records import from_parquet, sha256_of, to_parquet
from sigrl_core.tagger import Tagger, Tags
from sigrl_core.vocabulary import Vocabulary

WAITING = "work"
"""Below it, in a range's own path, is what replaces a range that was cut, until all that replaces it is there."""
LISTING = "work/listing.parquet"
SIDECAR = ".json"
EXAMPLES = 3
"""Pictures of a range that `examples` asks for."""
STAGES: tuple[str, ...] = ("read", "decode", "model", "write")


@dataclass(frozen=True)
class RangePart(Part):
    """One range of keys.

    Attributes:
        key: where it starts.
        held_by: start of the range that had these keys the last time; None where there was none.
        listing: hash of its rows, as listed.
        examples: whether its record shows a few of its pictures.
    """

    key: str
    held_by: str | None
    listing: str
    examples: bool

    @property
    def name(self) -> str:
        return name_of(self.key)

    def path(self, kind: str) -> str:
        """Of its file of a kind, `tags` or `jsonl`, in the folder."""
        return f"{kind}/{self.name}.{'parquet' if kind == 'tags' else kind}"


class Crops(NamedTuple):
    """A batch as the model takes it: pictures, or why there is none, the bytes that they were, and seconds by stage."""

    pictures: list[np.ndarray | ImageError]
    num_bytes: int
    seconds: dict[str, float]


class Question(NamedTuple):
    """What is asked of every picture; see `Tagger.tag`."""

    vocabulary: Vocabulary
    embeddings_CE: np.ndarray | None
    model: str
    width: int


# ---- what there is to do ----


def listing_of(config: TagConfig) -> Listing:
    """All keys, without sidecars of our own; raises CorpusError where there is none."""
    listing = get_corpus(config.corpus)(config.images, None)
    return Listing(_without_sidecars(listing.rows)) if config.format == "sidecar" else listing


def _without_sidecars(rows: Iterable[Row]) -> Iterator[Row]:
    """Without KEY.json where KEY is listed as well."""
    above: list[str] = []  # keys that the last one starts with
    for row in rows:
        while above and not row.uri.startswith(above[-1]):
            above.pop()
        if any(row.uri == key + SIDECAR for key in above):
            continue
        above.append(row.uri)
        yield row


def plan_ranges(
    config: TagConfig, rows: Iterable[Row], held_by: dict[str, str], note: Callable[[RangePart], None]
) -> Iterator[list[Row]]:
    """Cuts a listing; tells of each range, then gives its rows. Pictures are shown of ever fewer ranges.

    Args:
        held_by: starts of the ranges of the last time, in order, and of those whose files had their keys.
        note: is told.
    """
    stop = 0
    for index, (found, held) in enumerate(cut(rows, position, list(held_by), config.rows_per_part)):
        told = json.dumps([[row.uri, row.size, row.offset, row.etag] for row in held])
        note(
            RangePart(
                index=index,
                start=stop,
                stop=(stop := stop + len(held)),
                key=found.start,
                held_by=None if found.held_by is None else held_by[found.held_by],
                listing=sha256_of(told.encode()),
                examples=(index + 1).bit_count() == 1,
            )
        )
        yield held


def waiting(parts: Sequence[RangePart]) -> set[str]:
    """Names of the ranges that take the place of one that was cut."""
    pieces = Counter(part.held_by for part in parts)
    return {part.name for part in parts if part.held_by is not None and pieces[part.held_by] > 1}


# ---- in a worker ----


class PartTagger:
    """A model that tags ranges.

    Args:
        tagger: the model.
        question: what it is asked.
        config: of what, and what is written.
        waits: names of the ranges whose files wait for others.
        retry_failed: tags pictures again that could not be reached.
        crops: makes batches of rows; None makes them here.
    """

    def __init__(
        self,
        tagger: Tagger,
        question: Question,
        config: TagConfig,
        waits: set[str],
        retry_failed: bool = False,
        crops: Callable[[Sequence[Row]], Iterator[Crops]] | None = None,
    ) -> None:
        self.tagger, self.question, self.config = tagger, question, config
        self.waits, self.retry_failed = waits, retry_failed
        self.crops = crops or self._crops_here
        tagger.ask(question.vocabulary, question.embeddings_CE)

    def __call__(self, part: Part) -> dict[str, Any]:
        """Writes a range's files; returns its commit record. Another call writes the same bytes."""
        assert isinstance(part, RangePart)
        seconds = dict.fromkeys(STAGES, 0.0)
        rows = read_part(storage.join(self.config.out, LISTING), part)
        earlier = self._earlier(part)
        versions = zip(earlier["uri"].to_pylist(), earlier["etag"].to_pylist(), strict=True)
        found = {version: number for number, version in enumerate(versions)}
        kept = [None if row.etag is None else found.get((row.uri, row.etag)) for row in rows]
        asked = [row for row, number in zip(rows, kept, strict=True) if number is None]
        tagged, examples, num_bytes = self.tag_rows(asked, seconds, EXAMPLES if part.examples else 0)
        with _timed(seconds, "write"):
            new = itertools.count(earlier.num_rows)
            order = [next(new) if number is None else number for number in kept]
            table = pa.concat_tables([earlier, self._table(asked, tagged)]).take(pa.array(order, pa.int64()))
            if self.config.format == "sidecar":
                self._write_sidecars(asked, tagged)
            files = {part.path("tags"): to_parquet(table)}
            if self.config.format == "jsonl":
                files[part.path("jsonl")] = to_lines(table)
            root = [self.config.out, WAITING] if part.name in self.waits else [self.config.out]
            for path, data in files.items():
                storage.write_bytes(storage.join(*root, path), data)
        errors = Counter(reason for reason in table["error"].to_pylist() if reason)
        labels = Counter(name for names in table["labels"].to_pylist() for name in names)
        return {
            "listing": part.listing,
            "rows": table.num_rows,
            "files": {path: sha256_of(data) for path, data in files.items()},
            "errors": dict(sorted(errors.items())),
            "labels": dict(sorted(labels.items())),
            "examples": examples,
            "work": {"pictures": len(asked), "seconds": seconds},
            "bytes_in": num_bytes,
            "num_failed": sum(bool(tags.error) for tags in tagged),
        }

    def _earlier(self, part: RangePart) -> pa.Table:
        """The rows that were written of these keys the last time and are still to be had."""
        table = self._table([], [])
        if part.held_by is not None:
            where = storage.join(self.config.out, f"tags/{name_of(part.held_by)}.parquet")
            if storage.exists(where):
                found = from_parquet(storage.read_bytes(where)).read(use_threads=False)
                table = found.cast(table.schema)  # Parquet calls the items of lists by another name
        return table.filter(pc.field("error") != "unreachable") if self.retry_failed else table

    def tag_rows(
        self, rows: Sequence[Row], seconds: dict[str, float] | None = None, examples: int = 0
    ) -> tuple[list[Tags], list[dict[str, Any]], int]:
        """Tags of every row in order, so many pictures as they were seen, and how many bytes were read.

        Args:
            seconds: what each of `STAGES` takes is added to it.
        """
        seconds = dict.fromkeys(STAGES, 0.0) if seconds is None else seconds
        tagged: list[Tags] = []
        shown: list[dict[str, Any]] = []
        num_bytes = 0
        for crops in self.crops(rows):
            num_bytes += crops.num_bytes
            for stage, spent in crops.seconds.items():
                seconds[stage] += spent
            with _timed(seconds, "model"):
                found = self.tagger.tag(
                    crops.pictures,
                    self.question.vocabulary,
                    self.config.top_k,
                    self.config.threshold,
                    self.config.heat_maps,
                    self.config.embeddings,
                )
            for crop, tags, row in zip(crops.pictures, found, rows[len(tagged) :], strict=False):
                if len(shown) < examples and not isinstance(crop, ImageError):
                    shown.append({"uri": row.uri, "jpeg": _thumbnail(crop), "tags": tags_of(tags.labels, tags.scores)})
            tagged += found
        return tagged, shown, num_bytes

    def _crops_here(self, rows: Sequence[Row]) -> Iterator[Crops]:
        batches = crops_of(self.config, self.tagger.recogniser.backbone.image_size, rows)
        return batches if is_local(self.config.images) else one_ahead(batches)  # a store is waited for

    def _table(self, rows: Sequence[Row], tagged: Sequence[Tags]) -> pa.Table:
        columns: dict[str, Any] = {
            "uri": [row.uri for row in rows],
            "etag": [row.etag for row in rows],
            "size": [row.size for row in rows],
            "labels": [tags.labels for tags in tagged],
            "scores": [tags.scores for tags in tagged],
            "error": [tags.error for tags in tagged],
            "model": [self.question.model] * len(rows),
            "vocabulary": [self.question.vocabulary.hash] * len(rows),
        }
        if self.config.heat_maps:
            columns["heat_maps"] = [[to_png(heat) for heat in tags.heat_maps] for tags in tagged]
        if self.config.embeddings:
            columns["embedding"] = [tags.embedding_D for tags in tagged]
        return pa.table(columns, schema=tags_schema(self.config, self.question.width))

    def _write_sidecars(self, rows: Sequence[Row], tagged: Sequence[Tags]) -> None:
        lines = to_lines(self._table(rows, tagged)).splitlines(keepends=True)
        with ThreadPoolExecutor(files_in_flight(self.config.images)) as pool:
            list(pool.map(self._write_sidecar, rows, lines))

    def _write_sidecar(self, row: Row, line: bytes) -> None:
        where = storage.below(self.config.images, row.uri + SIDECAR)
        if storage.exists(where) and not _is_ours(storage.read_bytes(where)):
            raise StorageError(f"{where}: not written by tag.py, so it stays; move it away or choose --format jsonl")
        storage.write_bytes(where, line)


def _is_ours(data: bytes) -> bool:
    try:
        return {"uri", "tags", "model", "vocabulary"} <= json.loads(data).keys()
    except (ValueError, AttributeError):
        return False


def crops_of(config: TagConfig, size: int, rows: Sequence[Row]) -> Iterator[Crops]:
    """Reads and decodes pictures, a batch at a time, `size` pixels on a side; raises as `fetch`."""
    fetched = fetch(config.images, rows, config.max_file_bytes, walked=config.corpus in WALKED)
    for _ in range(0, len(rows), config.batch_size):
        seconds = {"read": 0.0, "decode": 0.0}
        with _timed(seconds, "read"):
            pictures = list(itertools.islice(fetched, config.batch_size))
        with _timed(seconds, "decode"):
            crops = [centre_crop(picture, size) for picture in pictures]
        yield Crops(crops, sum(len(picture) for picture in pictures if isinstance(picture, bytes)), seconds)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] += time.perf_counter() - started


# ---- what is written ----


def tags_schema(config: TagConfig, width: int) -> pa.Schema:
    """Of `tags/*.parquet`; `width` numbers an embedding."""
    fields = [
        pa.field("uri", pa.string(), nullable=False),  # below `config.images`
        pa.field("etag", pa.string()),  # of the file or its container: the store's, or size and time of change
        pa.field("size", pa.int64()),  # bytes, where the listing tells
        pa.field("labels", pa.list_(pa.string()), nullable=False),  # best first
        # rank within the vocabulary asked; with a threshold they are probabilities
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
        pa.field("error", pa.string(), nullable=False),  # one of images.REASONS, or empty
        pa.field("model", pa.string(), nullable=False),  # hash of the checkpoint's manifest
        pa.field("vocabulary", pa.string(), nullable=False),  # hash of the labels asked
    ]
    if config.heat_maps:
        fields.append(pa.field("heat_maps", pa.list_(pa.binary()), nullable=False))  # a PNG for each label
    if config.embeddings:
        fields.append(pa.field("embedding", pa.list_(pa.float32(), width)))
    return pa.schema(fields)


def to_lines(table: pa.Table) -> bytes:
    """The rows as JSON lines, without heat maps."""
    chosen = table.drop_columns([name for name in ("heat_maps",) if name in table.column_names])
    return "".join(_line(row) for row in chosen.to_pylist()).encode()


def _line(row: dict[str, Any]) -> str:
    told = {"uri": row["uri"], "etag": row["etag"], "size": row["size"], "tags": tags_of(row["labels"], row["scores"])}
    told |= {"error": row["error"]} if row["error"] else {}
    told |= {name: row[name] for name in ("model", "vocabulary", "embedding") if name in row}
    return json.dumps(told, ensure_ascii=False) + "\n"


def tags_of(labels: Sequence[str], scores: Sequence[float]) -> list[dict[str, Any]]:
    """As lines hold them."""
    return [{"label": label, "score": round(score, 6)} for label, score in zip(labels, scores, strict=True)]


def _thumbnail(pixels_HWC: np.ndarray) -> str:
    return base64.b64encode(images.encode_jpeg(Image.fromarray(pixels_HWC), 75)).decode()
