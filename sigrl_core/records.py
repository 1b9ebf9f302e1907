"""The shard folder, what `preprocess.py` writes and training reads::

    manifest.json            written last: counts, hashes, the configuration; without it the folder is not finished
    vocabulary.json          the labels, in the order of every C axis
    shards/00000.parquet     rows of SHARD_SCHEMA: one decoded, shrunk, once-only picture each
    quarantine.parquet       rows of QUARANTINE_SCHEMA: what could not be used, and why
    duplicates.parquet       rows of DUPLICATES_SCHEMA: what is in the shards already
    dataset.html             what is in it, to look at
    listing.parquet, parts/  what was listed and what became of each part of it, so that pictures that could not be
                             reached can be taken again
    plan.json, run_log.jsonl what the folder was started with, and who worked on it when; see parts.py

A folder that `cache_features.py` wrote is one too, of kind `features`: its rows, of `feature_schema`, hold in the place
of a picture what a frozen backbone gives for it.

rows_in = rows_out + quarantined + duplicates, always. `python -m sigrl_core.records FOLDER` checks every byte.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sigrl_core import storage
from sigrl_core.errors import ShardError, SigrlError, StorageError, VocabularyError
from sigrl_core.vocabulary import Vocabulary

PRESENT, ABSENT, UNKNOWN = 1, -1, 0

Split = Literal["train", "validation", "test"]
Kind = Literal["shards", "features"]

SCHEMA_VERSION = 2

SHARD_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),  # as the corpus names it; below `config.images` if relative
        pa.field("sha256", pa.string(), nullable=False),  # of the source file's bytes, hexadecimal
        pa.field("image", pa.binary(), nullable=False),  # JPEG
        pa.field("width", pa.int32(), nullable=False),  # of that JPEG, in pixels
        pa.field("height", pa.int32(), nullable=False),
        pa.field("label_states", pa.binary(), nullable=False),  # C signed bytes in vocabulary order
    ]
)
QUARANTINE_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("uri", "reason", "detail")])
DUPLICATES_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("uri", "sha256", "kind")])

_AGAIN = "run preprocess.py again"


def load_vocabulary(uri: str) -> Vocabulary:
    """A label file, see `Vocabulary.parse`; raises StorageError or VocabularyError where it is none."""
    try:
        return Vocabulary.parse(storage.read_bytes(storage.absolute(uri)).decode(), uri)
    except UnicodeDecodeError as error:
        raise VocabularyError(f"{uri}: not UTF-8 text ({error}); save it as plain text") from error


def feature_schema(tokens: int, width: int) -> pa.Schema:
    """Rows of a folder of features: what a frozen backbone gives for a picture, 16-bit floats [tokens, width]."""
    fields = [SHARD_SCHEMA.field(name) for name in ("uri", "sha256", "label_states")]
    return pa.schema([*fields, pa.field("tokens", pa.binary(2 * tokens * width), nullable=False)])


def encode_states(states_C: np.ndarray) -> bytes:
    """Label states as they lie in a shard row: one signed byte per label."""
    return np.asarray(states_C, dtype=np.int8).tobytes()


def decode_states(column: pa.Array | pa.ChunkedArray, num_labels: int) -> np.ndarray:
    """The `label_states` column as int8 [N, C].

    Raises:
        ShardError: a row of another length than `num_labels`.
    """
    rows = column.to_pylist()
    for number, row in enumerate(rows):
        if len(row) != num_labels:
            raise ShardError(f"row {number}: {len(row)} label states, the vocabulary has {num_labels}; {_AGAIN}")
    return np.frombuffer(b"".join(rows), dtype=np.int8).reshape(len(rows), num_labels)


def count_states(states_NC: np.ndarray, vocabulary: Vocabulary) -> dict[str, dict[str, int]]:
    """How often each label is present, absent and unknown."""
    counts = {"present": PRESENT, "absent": ABSENT, "unknown": UNKNOWN}
    totals = {key: (states_NC == state).sum(axis=0).tolist() for key, state in counts.items()}
    return {name: {key: totals[key][c] for key in counts} for c, name in enumerate(vocabulary.names)}


def add_counts(first: dict[str, dict[str, int]], second: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Sums of two such counts."""
    return {name: {key: count + second[name][key] for key, count in states.items()} for name, states in first.items()}


def split_of(sha256: str, seed: int, validation: float, test: float = 0.0) -> Split:
    """Which split a picture belongs to: by its content, so that the same picture is never in two.

    Args:
        validation: share of pictures held out of training.
        test: share held out of both; changes no other picture's side of validation.
    """
    digest = hashlib.sha256(f"{seed}:{sha256}".encode()).digest()
    drawn = int.from_bytes(digest[:8], "big") / 2**64
    return "validation" if drawn < validation else "test" if drawn >= 1 - test else "train"


def to_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file, the same bytes for the same table; pictures are not compressed twice."""
    sink = pa.BufferOutputStream()
    compression: Any = {name: "none" if name in ("image", "tokens") else "zstd" for name in table.column_names}
    pq.write_table(
        table,
        sink,
        compression=compression,
        use_dictionary=False,
        row_group_size=max(1, table.num_rows),
        write_statistics=False,
    )
    return sink.getvalue().to_pybytes()


def from_parquet(data: bytes) -> pq.ParquetFile:
    """A Parquet file in memory; its tables are to be read with `use_threads=False`.

    Arrow's threads would let go of `data`, which is Python's, when they come to it; where the process ends before, they
    end it with "terminate called without an active exception" (apache/arrow issue 34314).
    """
    return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def seal(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the hash of everything else in it, so that a changed number is noticed."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return {**content, "sha256": sha256_of(json.dumps(content, sort_keys=True).encode())}


@dataclass
class ShardFolder:
    """A finished shard folder; make one with `open`."""

    uri: str
    manifest: dict[str, Any]
    vocabulary: Vocabulary
    _checked: set[int] = field(default_factory=set, repr=False)

    @classmethod
    def open(cls, uri: str) -> ShardFolder:
        """Reads the manifest and the vocabulary and looks whether the files are there; `read_shard` checks their bytes.

        Raises:
            ShardError: not a finished shard folder, or one that was altered.
        """
        folder = cls(uri, _read_manifest(uri), _read_vocabulary(uri))
        folder._check_manifest()
        return folder

    def with_unseen(self, names: Collection[str]) -> ShardFolder:
        """The same rows, seen as if labels of these names were unseen."""
        return replace(self, vocabulary=self.vocabulary.with_unseen(names))

    @property
    def kind(self) -> Kind:
        """Whether its rows hold pictures or features of them."""
        return self.manifest["kind"]

    @property
    def schema(self) -> pa.Schema:
        """Of its shards."""
        if self.kind == "shards":
            return SHARD_SCHEMA
        features = self.manifest["features"]
        return feature_schema(features["tokens"], features["width"])

    def check_features(self, frozen_sha256: Callable[[], str], whose: str) -> None:
        """Looks whether features, if these are, come from a backbone.

        Args:
            frozen_sha256: hashes what is frozen of it, `Backbone.frozen_sha256`; called for features alone.
            whose: what has that backbone.

        Raises:
            ShardError: they come from another, or up to another block.
        """
        if self.kind == "shards":
            return
        found, frozen = self.manifest["features"], frozen_sha256()
        if found["frozen_sha256"] != frozen:
            raise ShardError(
                f"{self.uri}: features after {found['blocks']} frozen blocks of {found['name']} "
                f"({found['frozen_sha256'][:8]}), but {whose} has other weights below its seam, or another seam "
                f"({frozen[:8]}); run cache_features.py with that backbone, or set --backbone.* to the cached one"
            )

    def pictures(self) -> ShardFolder | None:
        """Where the pictures of its rows are: itself, or what features were made of; None where that is gone."""
        if self.kind == "shards":
            return self
        features = self.manifest["features"]
        try:
            source = ShardFolder.open(features["source"])
        except SigrlError:
            return None
        return source if source.manifest["sha256"] == features["source_sha256"] else None

    @property
    def num_rows(self) -> int:
        return self.manifest["rows_out"]

    @property
    def shard_rows(self) -> list[int]:
        """Rows of each shard, in order."""
        return [shard["rows"] for shard in self.manifest["shards"]]

    def read_shard(self, i: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The `i`-th shard, all columns or those named; the first read of each checks the whole file's hash.

        Raises:
            ShardError: the file is not the one the manifest lists.
        """
        shard = self.manifest["shards"][i]
        name = f"shards/{shard['name']}"
        try:
            if i in self._checked:
                return self._read_columns(name, columns)
            data = storage.read_bytes(storage.join(self.uri, name))
            self._check(name, "sha256", sha256_of(data)[:12], shard["sha256"][:12])
            file = from_parquet(data)
            table = file.read(columns and list(columns), use_threads=False)
        except (StorageError, pa.ArrowException, OSError) as error:
            raise ShardError(f"{storage.join(self.uri, name)}: cannot be read ({error}); {self._again}") from error
        self._check(name, "schema", file.schema_arrow.to_string(), self.schema.to_string())
        self._check(name, "number of rows", table.num_rows, shard["rows"])
        self._checked.add(i)
        return table

    def read_columns(self, i: int, columns: Sequence[str]) -> pa.Table:
        """Columns of the `i`-th shard without the bytes of the others, and so without a look at the file's hash.

        Raises:
            ShardError: the file does not have them, or has another number of rows.
        """
        shard = self.manifest["shards"][i]
        name = f"shards/{shard['name']}"
        try:
            table = self._read_columns(name, columns)
        except (StorageError, pa.ArrowException, OSError) as error:
            raise ShardError(f"{storage.join(self.uri, name)}: cannot be read ({error}); {self._again}") from error
        self._check(name, "columns", sorted(table.column_names), sorted(columns))
        self._check(name, "number of rows", table.num_rows, shard["rows"])
        return table

    def by_shard(self, numbers: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Of rows counted over the whole folder, each shard that has some and which of its own rows they are."""
        start = 0
        for shard, rows in enumerate(self.shard_rows):
            if inside := [number - start for number in sorted(numbers) if start <= number < start + rows]:
                yield shard, inside
            start += rows

    def read_quarantine(self) -> pa.Table:
        """What could not be used: uri, reason, detail; its bytes checked against the manifest."""
        listed = self.manifest["quarantine"]
        data = storage.read_bytes(storage.join(self.uri, listed["name"]))
        self._check(listed["name"], "sha256", sha256_of(data)[:12], listed["sha256"][:12])
        table = from_parquet(data).read(use_threads=False)
        self._check(listed["name"], "number of rows", table.num_rows, self.manifest["quarantined"])
        return table

    def verify(self) -> None:
        """Reads everything and compares all of it with the manifest.

        Raises:
            ShardError: the first thing that does not agree.
        """
        found = [file.path for file in storage.list_files(storage.join(self.uri, "shards"))]
        listed = [shard["name"] for shard in self.manifest["shards"]]
        if differing := sorted(set(found) ^ set(listed)):
            where = "not in the manifest" if differing[0] in found else "missing"
            raise ShardError(f"{storage.join(self.uri, 'shards', differing[0])}: {where}; {self._again}")
        self.read_quarantine()
        totals = count_states(np.zeros((0, len(self.vocabulary)), np.int8), self.vocabulary)
        seen: set[str] = set()
        for i in range(len(listed)):
            table = self.read_shard(i, ["sha256", "label_states"])
            counts = count_states(decode_states(table["label_states"], len(self.vocabulary)), self.vocabulary)
            totals = add_counts(totals, counts)
            seen.update(table["sha256"].to_pylist())
        self._check("manifest.json", "label counts", totals, self.manifest["label_counts"])
        self._check("shards", "number of different pictures", len(seen), self.num_rows)

    def _check_manifest(self) -> None:
        manifest = self.manifest
        self._check("vocabulary.json", "hash", self.vocabulary.hash[:12], manifest["vocabulary_hash"][:12])
        self._check("manifest.json", "rows over all shards", sum(self.shard_rows), manifest["rows_out"])
        parts = [manifest[key] for key in ("rows_out", "quarantined", "duplicates")]
        self._check("manifest.json", "rows_out + quarantined + duplicates", sum(parts), manifest["rows_in"])
        present = {file.path for file in storage.list_files(self.uri, (".parquet",))}
        for name in [*(f"shards/{shard['name']}" for shard in manifest["shards"]), manifest["quarantine"]["name"]]:
            if name not in present:
                raise ShardError(f"{storage.join(self.uri, name)}: listed in manifest.json but missing; {self._again}")

    def _read_columns(self, name: str, columns: Sequence[str] | None) -> pa.Table:
        filesystem, path = storage.filesystem_for(storage.join(self.uri, name))
        with filesystem.open_input_file(path) as file:
            return pq.ParquetFile(file).read(columns and list(columns))

    @property
    def _again(self) -> str:
        return _AGAIN if self.kind == "shards" else "delete the folder and run cache_features.py again"

    def _check(self, name: str, what: str, found: object, expected: object) -> None:
        if found != expected:
            raise ShardError(f"{storage.join(self.uri, name)}: {what} is {found}, expected {expected}; {self._again}")


def _read_manifest(uri: str) -> dict[str, Any]:
    where = storage.join(uri, "manifest.json")
    if not storage.exists(where):
        if storage.exists(plan := storage.join(uri, "plan.json")):
            script = "cache_features.py" if "frozen_sha256" in storage.read_json(plan) else "preprocess.py"
            raise ShardError(f"{uri}: {script} has not finished here (no manifest.json); run the same command again")
        raise ShardError(f"{uri}: no shard folder here (no manifest.json); make one with preprocess.py --out {uri}")
    try:
        manifest = storage.read_json(where)
    except StorageError as error:
        raise ShardError(f"{error}; {_AGAIN}") from error
    if not isinstance(manifest, dict) or manifest.get("kind") not in get_args(Kind):
        raise ShardError(
            f"{where}: not the manifest of a shard folder; give one that preprocess.py or cache_features.py wrote"
        )
    if (version := manifest.get("schema_version")) != SCHEMA_VERSION:
        raise ShardError(f"{where}: schema version {version}, this program reads {SCHEMA_VERSION}; {_AGAIN}")
    if seal(manifest)["sha256"] != manifest.get("sha256"):
        raise ShardError(f"{where}: changed after it was written; {_AGAIN}")
    return manifest


def _read_vocabulary(uri: str) -> Vocabulary:
    where = storage.join(uri, "vocabulary.json")
    try:
        return Vocabulary.from_rows(storage.read_json(where), where)
    except (SigrlError, TypeError) as error:
        raise ShardError(f"{where}: not the vocabulary that was written here ({error}); {_AGAIN}") from error


def main(arguments: Sequence[str]) -> int:
    """`python -m sigrl_core.records FOLDER`: 0 and the counts, or 1 and what is wrong."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m sigrl_core.records FOLDER", file=sys.stderr)
        return 2
    try:
        folder = ShardFolder.open(arguments[0])
        folder.verify()
    except SigrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    counts = {key: folder.manifest[key] for key in ("rows_in", "rows_out", "quarantined", "duplicates", "num_labels")}
    print(f"{folder.uri}: sound; " + ", ".join(f"{key} {value}" for key, value in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
