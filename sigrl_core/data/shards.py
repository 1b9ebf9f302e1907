"""Reads a shard folder, which `preprocess.py` writes and training reads::

    manifest.json            written last: counts, hashes, the configuration; a folder without it is not finished
    vocabulary.json          the labels, in the order of every C axis
    shards/00000.parquet     rows of SHARD_SCHEMA: one decoded, resized image each, without duplicates
    quarantine.parquet       rows of QUARANTINE_SCHEMA: images that cannot be used, with the reason
    duplicates.parquet       rows of DUPLICATES_SCHEMA: images that equal or resemble an image of the shards
    conflicts.parquet        rows of CONFLICTS_SCHEMA: labels that one row of an image has and another excludes
    dataset.html             a page about the content
    listing.parquet, parts/  the listing and the commit record of each partition, from which --retry-failed reads
                             unreachable images again
    plan.json, run_log.jsonl see io/resumable_job.py

A folder that `cache_features.py` wrote is a shard folder of kind `features`: its rows, of `feature_schema`, contain the
output of a frozen backbone in place of the image.

The counts of every manifest satisfy rows_in = rows_out + quarantined + duplicates. `python -m sigrl_core.data.shards
FOLDER` verifies the manifest, the vocabulary, the shards and the quarantine.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sigrl_core.data.label_states import add_counts, count_states, decode_states
from sigrl_core.errors import ShardError, SigrlError, StorageError
from sigrl_core.io import storage
from sigrl_core.io.checksums import Pinned, sha256_of, with_checksum
from sigrl_core.io.parquet import open_parquet_bytes
from sigrl_core.io.resumable_job import MANIFEST, PLAN, describe_folder
from sigrl_core.labels.vocabulary import Vocabulary

Split = Literal["train", "validation", "test"]
ShardKind = Literal["shards", "features"]

SCHEMA_VERSION = 2

SHARD_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),  # as in the corpus; below `config.images` if relative
        pa.field("sha256", pa.string(), nullable=False),  # of the source file's bytes, hexadecimal
        pa.field("image", pa.binary(), nullable=False),  # JPEG
        pa.field("width", pa.int32(), nullable=False),  # of this JPEG, in pixels
        pa.field("height", pa.int32(), nullable=False),
        pa.field("label_states", pa.binary(), nullable=False),  # C signed bytes in vocabulary order
    ]
)
QUARANTINE_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("uri", "reason", "detail")])
DUPLICATES_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("uri", "sha256", "kind")])
CONFLICTS_SCHEMA = pa.schema(
    [
        pa.field(name, pa.int64() if name.endswith("row") else pa.string(), nullable=False)
        for name in ("uri", "sha256", "label", "present_uri", "present_row", "absent_uri", "absent_row")
    ]
)
"""`uri`: of the image in the shards; `present_row` and `absent_row`: rows of listing.parquet, from 0."""

_NEXT_STEP = "run preprocess.py again"


def feature_schema(tokens: int, width: int) -> pa.Schema:
    """Returns the schema of a folder of features: a frozen backbone's output as 16-bit floats [tokens, width]."""
    fields = [SHARD_SCHEMA.field(name) for name in ("uri", "sha256", "label_states")]
    return pa.schema([*fields, pa.field("tokens", pa.binary(2 * tokens * width), nullable=False)])


def assign_split(sha256: str, seed: int, validation: float, test: float = 0.0) -> Split:
    """Assigns an image to a data split by its content, so that equal images are in the same split.

    Args:
        sha256: hash of the image's source file.
        seed: another seed assigns other images.
        validation: fraction of images for validation.
        test: fraction for testing; the validation images do not depend on it.
    """
    digest = hashlib.sha256(f"{seed}:{sha256}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    return "validation" if position < validation else "test" if position >= 1 - test else "train"


@dataclass
class ShardFolder:
    """A finished shard folder; see `open`."""

    uri: str
    manifest: dict[str, Any]
    vocabulary: Vocabulary
    _checked: set[int] = field(default_factory=set, repr=False)

    @classmethod
    def open(cls, uri: str, expected: Pinned | None = None) -> ShardFolder:
        """Reads the manifest and the vocabulary and checks that all files exist; `read_shard` checks their bytes.

        Args:
            uri: the folder.
            expected: `sha256` of the manifest that a plan recorded; None takes any.

        Raises:
            ShardError: not a finished shard folder, one that was altered, or another one than `expected`.
        """
        manifest = _read_manifest(uri)
        if expected is not None:
            expected.check(uri, manifest["kind"], manifest["sha256"], ShardError)
        folder = cls(uri, manifest, _read_vocabulary(uri))
        folder._check_manifest()
        return folder

    def with_unseen(self, names: Collection[str]) -> ShardFolder:
        """Returns this folder with the labels of these names marked as unseen."""
        return replace(self, vocabulary=self.vocabulary.with_unseen(names))

    @property
    def kind(self) -> ShardKind:
        """`shards` if the rows contain images, `features` if they contain features."""
        return self.manifest["kind"]

    @property
    def schema(self) -> pa.Schema:
        """Schema of the shards."""
        if self.kind == "shards":
            return SHARD_SCHEMA
        features = self.manifest["features"]
        return feature_schema(features["tokens"], features["width"])

    def check_features(self, frozen_sha256: Callable[[], str], owner: str) -> None:
        """Checks that features were computed with a given backbone; does nothing for images.

        Args:
            frozen_sha256: returns the hash of the backbone's frozen part, `Backbone.frozen_sha256`.
            owner: the checkpoint or configuration with this backbone, for errors.

        Raises:
            ShardError: another backbone, or another number of frozen blocks.
        """
        if self.kind == "shards":
            return
        features, frozen = self.manifest["features"], frozen_sha256()
        if features["frozen_sha256"] != frozen:
            raise ShardError(
                f"{self.uri}: features after {features['blocks']} frozen blocks of {features['name']} "
                f"({features['frozen_sha256'][:8]}), but {owner} has other frozen weights, or another number of frozen "
                f"blocks ({frozen[:8]}); run cache_features.py with that backbone, or set --backbone.* to the cached "
                "one"
            )

    def check_image_size(self, image_size: int, flag: str = "", allow_enlarged: bool = False) -> None:
        """Checks that a model does not get enlarged images; does nothing for features.

        Prints a line to stderr if some images are smaller because their originals are.

        Args:
            image_size: side of the model's input in pixels.
            flag: the flag that sets `allow_enlarged`, for the error; empty if there is none.
            allow_enlarged: accepts the folder in any case.

        Raises:
            ShardError: the folder was made with a `short_side` below `image_size`.
        """
        short_side = self.manifest.get("config", {}).get("short_side") or 0
        if self.kind != "shards" or allow_enlarged:
            return
        if 0 < short_side < image_size:
            raise ShardError(
                f"{self.uri}: short sides of its images are at most {short_side} pixels, but the model takes "
                f"{image_size}, so every image would be enlarged; run preprocess.py with --short-side {image_size} or "
                f"more and another --out{flag and f', or add {flag}'}"
            )
        counts = [item for shard in self.manifest["shards"] for item in shard.get("short_sides", {}).items()]
        if smaller := sum(count for side, count in counts if int(side) < image_size):
            print(
                f"{self.uri}: {smaller} of {self.num_rows} images are enlarged to the model's {image_size} pixels, "
                "because their originals are smaller",
                file=sys.stderr,
            )

    def image_folder(self) -> ShardFolder | None:
        """Returns the folder with the images of the rows: this one, or the source of the features (None if removed)."""
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
        """Number of rows of each shard, in order."""
        return [shard["rows"] for shard in self.manifest["shards"]]

    def read_shard(self, i: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads the `i`-th shard, all columns or those given; the first read of a shard checks the whole file's hash.

        Raises:
            ShardError: the file differs from the one in the manifest.
        """
        shard = self.manifest["shards"][i]
        name = f"shards/{shard['name']}"
        try:
            if i in self._checked:
                return self._read_columns(name, columns)
            data = storage.read_bytes(storage.join(self.uri, name))
            self._check(name, "sha256", sha256_of(data)[:12], shard["sha256"][:12])
            file = open_parquet_bytes(data)
            table = file.read(columns and list(columns), use_threads=False)
        except (StorageError, pa.ArrowException, OSError) as error:
            raise ShardError(f"{storage.join(self.uri, name)}: cannot be read ({error}); {self._next_step}") from error
        self._check(name, "schema", file.schema_arrow.to_string(), self.schema.to_string())
        self._check(name, "number of rows", table.num_rows, shard["rows"])
        self._checked.add(i)
        return table

    def read_columns(self, i: int, columns: Sequence[str]) -> pa.Table:
        """Reads columns of the `i`-th shard without the bytes of other columns, and thus without checking its hash.

        Raises:
            ShardError: a column is missing, or the number of rows differs.
        """
        shard = self.manifest["shards"][i]
        name = f"shards/{shard['name']}"
        try:
            table = self._read_columns(name, columns)
        except (StorageError, pa.ArrowException, OSError) as error:
            raise ShardError(f"{storage.join(self.uri, name)}: cannot be read ({error}); {self._next_step}") from error
        self._check(name, "columns", sorted(table.column_names), sorted(columns))
        self._check(name, "number of rows", table.num_rows, shard["rows"])
        return table

    def rows_by_shard(self, numbers: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Groups row numbers of the whole folder by shard; yields each shard and the row numbers within it."""
        start = 0
        for shard, rows in enumerate(self.shard_rows):
            if inside := [number - start for number in sorted(numbers) if start <= number < start + rows]:
                yield shard, inside
            start += rows

    def read_quarantine(self) -> pa.Table:
        """Reads the images that cannot be used (uri, reason, detail) and checks the file against the manifest."""
        listed = self.manifest["quarantine"]
        data = storage.read_bytes(storage.join(self.uri, listed["name"]))
        self._check(listed["name"], "sha256", sha256_of(data)[:12], listed["sha256"][:12])
        table = open_parquet_bytes(data).read(use_threads=False)
        self._check(listed["name"], "number of rows", table.num_rows, self.manifest["quarantined"])
        return table

    def verify(self) -> None:
        """Reads the shards and the quarantine and compares them with the manifest.

        Raises:
            ShardError: the first difference.
        """
        existing = [file.path for file in storage.list_files(storage.join(self.uri, "shards"))]
        listed = [shard["name"] for shard in self.manifest["shards"]]
        if differing := sorted(set(existing) ^ set(listed)):
            where = "not in the manifest" if differing[0] in existing else "missing"
            raise ShardError(f"{storage.join(self.uri, 'shards', differing[0])}: {where}; {self._next_step}")
        self.read_quarantine()
        totals = count_states(np.zeros((0, len(self.vocabulary)), np.int8), self.vocabulary)
        hashes: set[str] = set()
        for i in range(len(listed)):
            table = self.read_shard(i, ["sha256", "label_states"])
            counts = count_states(decode_states(table["label_states"], len(self.vocabulary)), self.vocabulary)
            totals = add_counts(totals, counts)
            hashes.update(table["sha256"].to_pylist())
        self._check(MANIFEST, "label counts", totals, self.manifest["label_counts"])
        self._check("shards", "number of different images", len(hashes), self.num_rows)

    def _check_manifest(self) -> None:
        manifest = self.manifest
        self._check("vocabulary.json", "hash", self.vocabulary.hash[:12], manifest["vocabulary_hash"][:12])
        self._check(MANIFEST, "rows over all shards", sum(self.shard_rows), manifest["rows_out"])
        counts = [manifest[key] for key in ("rows_out", "quarantined", "duplicates")]
        self._check(MANIFEST, "rows_out + quarantined + duplicates", sum(counts), manifest["rows_in"])
        existing = {file.path for file in storage.list_files(self.uri, (".parquet",))}
        for name in [*(f"shards/{shard['name']}" for shard in manifest["shards"]), manifest["quarantine"]["name"]]:
            if name not in existing:
                raise ShardError(f"{storage.join(self.uri, name)}: listed in {MANIFEST} but missing; {self._next_step}")

    def _read_columns(self, name: str, columns: Sequence[str] | None) -> pa.Table:
        with storage.open_input(storage.join(self.uri, name)) as file:
            return pq.ParquetFile(file).read(columns and list(columns))

    @property
    def _next_step(self) -> str:
        return _NEXT_STEP if self.kind == "shards" else "delete the folder and run cache_features.py again"

    def _check(self, name: str, quantity: str, actual: object, expected: object) -> None:
        if actual != expected:
            raise ShardError(
                f"{storage.join(self.uri, name)}: {quantity} is {actual}, expected {expected}; {self._next_step}"
            )


def _read_manifest(uri: str) -> dict[str, Any]:
    where = storage.join(uri, MANIFEST)
    if not storage.exists(where):
        if storage.exists(plan := storage.join(uri, PLAN)):
            script = "cache_features.py" if "frozen_sha256" in storage.read_json(plan) else "preprocess.py"
            raise ShardError(f"{uri}: {script} has not finished here (no {MANIFEST}); run the same command again")
        if storage.exists(uri) and not storage.is_folder(uri):
            raise ShardError(f"{uri}: a file, expected a shard folder; create one with preprocess.py")
        raise ShardError(f"{uri}: no shard folder here (no {MANIFEST}); create one with preprocess.py --out {uri}")
    try:
        manifest = storage.read_json(where)
    except StorageError as error:
        raise ShardError(f"{error}; {_NEXT_STEP}") from error
    if not isinstance(manifest, dict) or manifest.get("kind") not in get_args(ShardKind):
        raise ShardError(
            f"{where}: not the manifest of a shard folder, but of {describe_folder(uri) or 'something else'}; "
            "give a folder that preprocess.py or cache_features.py wrote"
        )
    if (version := manifest.get("schema_version")) != SCHEMA_VERSION:
        raise ShardError(f"{where}: schema version {version}, this program reads {SCHEMA_VERSION}; {_NEXT_STEP}")
    if with_checksum(manifest)["sha256"] != manifest.get("sha256"):
        raise ShardError(f"{where}: changed after it was written; {_NEXT_STEP}")
    return manifest


def _read_vocabulary(uri: str) -> Vocabulary:
    where = storage.join(uri, "vocabulary.json")
    try:
        return Vocabulary.from_rows(storage.read_json(where), where)
    except (SigrlError, TypeError) as error:
        raise ShardError(f"{where}: not the vocabulary that was written here ({error}); {_NEXT_STEP}") from error


def main(arguments: Sequence[str]) -> int:
    """Verifies a folder; prints the counts and returns 0, or prints the error and returns 1."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m sigrl_core.data.shards FOLDER", file=sys.stderr)
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
