"""A listing on disk: a Parquet file, one row group for each part of the work, written once, while it is listed."""

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

from sigrl_core import storage
from sigrl_core.corpora.listing import Listing, Row
from sigrl_core.errors import CorpusError
from sigrl_core.parts import Part
from sigrl_core.vocabulary import Vocabulary

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


class Listed(NamedTuple):
    """What was listed: how much, a hash of all of it, and the labels that it is told in."""

    num_rows: int
    sha256: str
    vocabulary: Vocabulary


def write_listing(
    listing: Listing,
    uri: str | None,
    vocabulary: Vocabulary | None = None,
    rows_per_part: int = 1000,
    bytes_per_part: int | None = None,
    cut: Callable[[Iterable[Row]], Iterable[list[Row]]] | None = None,
) -> Listed:
    """Writes a listing as its rows come; holds the rows of one part at a time.

    Args:
        uri: file to write; None only looks what there is.
        vocabulary: the labels that rows may have, in place of the corpus's own.
        rows_per_part: rows of each part at most.
        bytes_per_part: ends a part before its pictures, as listed, are more bytes; every part has one at least.
        cut: makes the parts in place of these two.

    Raises:
        CorpusError: what the corpus raises; a label that the vocabulary lacks, an empty one, one both present and
            absent; a picture of unknown size where `bytes_per_part` needs to know it.
    """
    vocabulary = vocabulary or listing.vocabulary
    index = None if vocabulary is None else vocabulary.index
    names: set[str] = set()
    digest, num_rows = hashlib.sha256(), 0
    opened: Any = contextlib.nullcontext(pa.MockOutputStream()) if uri is None else storage.writing(uri)
    with opened as file, pq.ParquetWriter(file, _SCHEMA, compression="zstd") as writer:
        for rows in cut(listing.rows) if cut else _parts(listing.rows, rows_per_part, bytes_per_part):
            for row in rows:
                _check(row, index)
                names.update(row.labels or (), row.negatives or ())
            columns = list(zip(*rows, strict=True))
            digest.update(json.dumps(columns[:-1]).encode())  # a copy has the same pictures, changed at another time
            num_rows += len(rows)
            writer.write_table(pa.table([list(column) for column in columns], schema=_SCHEMA))
        listed = Listed(num_rows, digest.hexdigest(), vocabulary or Vocabulary.of(sorted(names)))
        told = {"rows": listed.num_rows, "sha256": listed.sha256, "vocabulary": listed.vocabulary.to_rows()}
        writer.add_key_value_metadata({_KEY: json.dumps(told)})
    return listed


def read_listed(uri: str) -> Listed:
    """What `write_listing` returned when it wrote that file."""
    with storage.reading(uri) as file:
        told = json.loads(pq.ParquetFile(file).metadata.metadata[_KEY.encode()])
    return Listed(told["rows"], told["sha256"], Vocabulary.from_rows(told["vocabulary"], uri))


def parts_of(uri: str) -> list[Part]:
    """The parts that a listing file was cut into, in order."""
    with storage.reading(uri) as file:
        groups = pq.ParquetFile(file).metadata
    rows = [groups.row_group(index).num_rows for index in range(groups.num_row_groups)]
    return [Part(index, stop - rows[index], stop) for index, stop in enumerate(accumulate(rows))]


def read_part(uri: str, part: Part) -> list[Row]:
    """The rows of one part of a listing file; reads no others."""
    with storage.reading(uri) as file:
        table = pq.ParquetFile(file).read_row_group(part.index)
    told = [
        [None if names is None else tuple(names) for names in table[key].to_pylist()] for key in ("labels", "negatives")
    ]
    where = [table[key].to_pylist() for key in ("size", "offset", "etag")]
    return [Row(*row) for row in zip(table["uri"].to_pylist(), *told, *where, strict=True)]


def _parts(rows: Iterable[Row], most_rows: int, most_bytes: int | None) -> Iterator[list[Row]]:
    part: list[Row] = []
    num_bytes = 0
    for row in rows:
        if most_bytes is not None and row.size is None:
            raise CorpusError(f"{row.uri}: this corpus lists no sizes; set --rows-per-shard, not --bytes-per-shard")
        size = row.size or 0
        if part and (len(part) == most_rows or (most_bytes is not None and num_bytes + size > most_bytes)):
            yield part
            part, num_bytes = [], 0
        part.append(row)
        num_bytes += size
    if part:
        yield part


def _check(row: Row, index: dict[str, int] | None) -> None:
    labels, negatives = row.labels or (), row.negatives or ()
    if negatives and (both := set(labels) & set(negatives)):
        raise CorpusError(f"{row.uri}: label {min(both)!r} is both in labels and in negatives; keep one")
    for name in (*labels, *negatives):
        if not name.strip():
            raise CorpusError(f"{row.uri}: an empty label; give it a name or leave it out")
        if index is not None and name not in index:
            raise CorpusError(f"{row.uri}: label {name!r} is not in the vocabulary{_nearest(name, index)}")


def _nearest(name: str, index: dict[str, int]) -> str:
    nearest = difflib.get_close_matches(name, index, n=1)
    return (
        f"; did you mean {nearest[0]!r}?" if nearest else f" of {len(index)} labels; add it there or leave it out here"
    )
