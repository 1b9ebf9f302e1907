"""Turns a corpus into shards: lists it once, decodes the partitions in parallel, removes duplicates on the driver.

`io.resumable_job` explains how a run is resumed, `data.shards` the format of the files.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import sigrl_core
from sigrl_core.config import PreprocessConfig, Resources
from sigrl_core.config.deprecated import keep_defaults_of_0_1, upgrade_plan
from sigrl_core.config.stages import AUTO_CORPUS
from sigrl_core.corpora import PATH_CORPORA, apply_label_policy, label_states, open_corpus
from sigrl_core.corpora.detect import detect_corpus
from sigrl_core.corpora.image_files import read_images
from sigrl_core.corpora.listing import Listing
from sigrl_core.corpora.listing_file import (
    ListingSummary,
    list_partitions,
    read_listing_summary,
    read_partition,
    write_listing,
)
from sigrl_core.corpora.locations import check_locations
from sigrl_core.data.duplicates import keep_dissimilar, keep_unique
from sigrl_core.data.images import to_jpeg
from sigrl_core.data.label_states import add_counts, count_states, decode_states, encode_states
from sigrl_core.data.shards import (
    DUPLICATES_SCHEMA,
    QUARANTINE_SCHEMA,
    SCHEMA_VERSION,
    SHARD_SCHEMA,
    ShardFolder,
    assign_split,
)
from sigrl_core.errors import CorpusError, ImageError, StorageError
from sigrl_core.io import storage
from sigrl_core.io.checksums import sha256_of, with_checksum
from sigrl_core.io.parquet import open_parquet_bytes, to_parquet
from sigrl_core.io.resumable_job import PLAN, Partition, ResumableJob
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.on_ray.partitions import Work, run_partitions
from sigrl_core.on_ray.session import connect

LISTING = "listing.parquet"
READER_FLAGS = ("label_separator", "label_field", "label_numbers")
"""Fields of the configuration that `open_corpus` passes to the corpus; a manifest has those that are set."""


def preprocess(
    config: PreprocessConfig,
    resources: Resources | None = None,
    *,
    retry_failed: bool = False,
    listing: Listing | None = None,
    vocabulary: Vocabulary | None = None,
) -> dict[str, Any]:
    """Writes a shard folder or resumes it; returns its manifest. Does nothing if the folder is finished.

    The written bytes depend only on the corpus and the configuration, not on `resources` or on interruptions. A corpus
    is listed once: a resumed run uses the listing of the first run.

    Args:
        config: corpus, options, and output.
        resources: the workers that decode images.
        retry_failed: fetches unreachable images again; the result is the same as if they had been reachable before.
        listing: replaces the listing of `config.corpus`.
        vocabulary: replaces the labels of `config.vocabulary`.

    Raises:
        CorpusError: the corpus cannot be listed, or has no usable image.
        StorageError: `config.out` cannot be written, contains another run, or is used by another run.
    """
    resources = resources or Resources()
    resources.refuse("preprocess", "gpus_per_worker")
    config = _absolute(config)
    job = ResumableJob(config.out, upgrade_plan=upgrade_plan("preprocess"))
    if listing is None:
        check_locations(config.corpus, config.images, config.out, config.annotations)
    config = _with_detected_corpus(config, job)
    if storage.exists(job.path(PLAN)):
        config = keep_defaults_of_0_1(config, storage.read_json(job.path(PLAN)))
    listing = listing or open_corpus(
        config.corpus,
        config.images,
        config.annotations,
        **{name: getattr(config, name) for name in READER_FLAGS},
    )
    if vocabulary is None and config.vocabulary is not None:
        vocabulary = Vocabulary.load(config.vocabulary)
    plan = {**_portable(config), "vocabulary_hash": vocabulary and vocabulary.hash}
    write = partial(
        write_listing,
        listing,
        vocabulary=vocabulary,
        rows_per_partition=config.rows_per_shard,
        bytes_per_partition=config.bytes_per_shard,
    )
    if (manifest := job.manifest()) is not None:
        job.check_plan(plan)
        if not retry_failed:
            _check_listing(config, manifest, write(None))
        ShardFolder.open(config.out).verify()
        if not (retry_failed and _unreachable(job)):
            return manifest
    with job.locked(plan) as lease:
        where, staged = job.path(LISTING), job.path("work", LISTING)
        if storage.exists(where):
            listed = read_listing_summary(where)
        else:
            listed = write(staged)
            job.start(plan)
            storage.move(staged, where)
        if retry_failed:
            job.reopen(_unreachable(job))
        parts = list_partitions(where)
        connect()
        make_work = partial(_make_work, config, listed.vocabulary)
        while True:
            run_partitions(job, parts, make_work, lease, label="preprocess", resources=resources)
            deduplicated = _deduplicate(config, job, listed.vocabulary, parts)
            incomplete = [part for part, each in zip(parts, deduplicated, strict=True) if each is None]
            if not incomplete:
                return _finish(config, job, listed, parts, [each for each in deduplicated if each is not None])
            job.reopen(incomplete)


def _unreachable(job: ResumableJob) -> list[Partition]:
    """Returns the finished partitions that have unreachable images."""
    parts = list_partitions(job.path(LISTING)) if storage.exists(job.path(LISTING)) else []
    pending = set(job.pending(parts))
    done = [part for part in parts if part not in pending]
    return [
        part
        for part, record in zip(done, job.records(done), strict=True)
        if any(row["reason"] == "unreachable" for row in record["quarantine"])
    ]


def _absolute(config: PreprocessConfig) -> PreprocessConfig:
    """Makes the paths absolute, because workers run in other folders."""
    names = ("images", "annotations", "vocabulary", "out")
    paths = {name: value and storage.absolute(value) for name in names for value in [getattr(config, name)]}
    return dataclasses.replace(config, **paths)


def _with_detected_corpus(config: PreprocessConfig, job: ResumableJob) -> PreprocessConfig:
    """Replaces the corpus `auto` by that of the folder's plan, or by the format that is recognised."""
    if config.corpus != AUTO_CORPUS:
        return config
    if storage.exists(job.path(PLAN)):
        return dataclasses.replace(config, corpus=job.plan().get("corpus", AUTO_CORPUS))
    detected = detect_corpus(config.images, config.annotations)
    print(f"corpus: {detected.corpus}, because {detected.reason}", file=sys.stderr)
    return dataclasses.replace(config, corpus=detected.corpus)


def _portable(config: PreprocessConfig) -> dict[str, Any]:
    """Returns the configuration without `out`, because a finished folder may be moved."""
    return {key: value for key, value in dataclasses.asdict(config).items() if key != "out"}


def _check_listing(config: PreprocessConfig, manifest: dict[str, Any], current: ListingSummary) -> None:
    """Raises StorageError if the corpus is not the one that the folder was made of."""
    recorded = manifest["listing"]
    if (recorded["rows"], recorded["sha256"]) != (current.num_rows, current.sha256):
        raise StorageError(
            f"{config.out}: was made of {recorded['rows']} listed images of {config.images}, which now lists "
            f"{current.num_rows}, or others, or with other labels; delete the folder or choose another --out"
        )


# ---- in a worker ----


def _make_work(config: PreprocessConfig, vocabulary: Vocabulary) -> Work:
    return partial(preprocess_partition, config, vocabulary)


def preprocess_partition(config: PreprocessConfig, vocabulary: Vocabulary, part: Partition) -> dict[str, Any]:
    """Decodes the images of a partition and stages its shard, with duplicates; returns its commit record.

    The record contains the hashes from which the driver detects duplicates, and the unusable images.
    """
    job = ResumableJob(config.out)
    listed = read_partition(job.path(LISTING), part)
    states_NC = label_states(listed, vocabulary, config.annotation_scope)
    rows, hashes, quarantine, num_bytes = [], [], [], 0
    fetched = read_images(config.images, listed, uris_are_paths=config.corpus in PATH_CORPORA)
    for row, states_C, data in zip(listed, states_NC, fetched, strict=True):
        try:
            if isinstance(data, ImageError):
                raise data
            num_bytes += len(data)
            jpeg = to_jpeg(
                data,
                config.short_side,
                config.quality,
                config.max_pixels,
                chroma=config.chroma,
                long_side=config.long_side,
                keep_exif=config.keep_exif,
                perceptual_hash=config.near_duplicates is not None,
            )
        except ImageError as error:
            quarantine.append({"uri": row.uri, "reason": error.reason, "detail": error.detail})
            continue
        sha256 = sha256_of(data)
        if _split(config, sha256) == "train":
            states_C = apply_label_policy(states_C, config.label_policy, sha256, config.seed)
        if jpeg.perceptual_hash is not None:
            hashes.append(jpeg.perceptual_hash)
        image = {"image": jpeg.data, "width": jpeg.width, "height": jpeg.height}
        rows.append({"uri": row.uri, "sha256": sha256, **image, "label_states": encode_states(states_C)})
    table = pa.Table.from_pylist(rows, schema=SHARD_SCHEMA)
    data = to_parquet(table)
    storage.write_bytes(_staged_shard(job, part), data)
    return {
        "uris": [row["uri"] for row in rows],
        "sha256": [row["sha256"] for row in rows],
        "perceptual_hash": hashes,
        "shard": _shard_entry(data, table, vocabulary),
        "quarantine": quarantine,
        "bytes_in": num_bytes,
        "num_failed": len(quarantine),
    }


def _split(config: PreprocessConfig, sha256: str) -> str:
    return assign_split(sha256, config.seed, config.validation_fraction, config.test_fraction)


def _shard_entry(data: bytes, table: pa.Table, vocabulary: Vocabulary) -> dict[str, Any]:
    """Returns the entry of a shard in the manifest, except its name."""
    states_NC = decode_states(table["label_states"], len(vocabulary))
    short_sides = Counter(map(str, np.minimum(table["width"].to_numpy(), table["height"].to_numpy()).tolist()))
    return {
        "rows": table.num_rows,
        "sha256": sha256_of(data),
        "label_counts": count_states(states_NC, vocabulary),
        "short_sides": dict(short_sides),
    }


# ---- on the driver, when all partitions are finished ----


class _Deduplicated(NamedTuple):
    """One partition after deduplication: its shard (None if no rows are left), and the rows that are not in it."""

    shard: dict[str, Any] | None
    duplicates: list[dict[str, str]]
    quarantine: list[dict[str, str]]


def _deduplicate(
    config: PreprocessConfig, job: ResumableJob, vocabulary: Vocabulary, parts: Sequence[Partition]
) -> list[_Deduplicated | None]:
    """Moves the shards of all partitions to their final paths, without images that equal an image of an earlier row.

    Returns:
        The result of each partition. None means that the partition must be processed again: an image that was removed
        as a duplicate in an earlier run is no longer one.
    """
    rows, digests, hashes = [], bytearray(), []
    for record in job.records(parts):  # the records are read twice, so that they are not all in memory
        rows.append(len(record["sha256"]))
        digests += bytes.fromhex("".join(record["sha256"]))
        if config.near_duplicates is not None:
            hashes.append(np.array(record["perceptual_hash"], np.uint64))
    first = keep_unique(digests)
    kinds = np.where(first, "", "exact")
    if config.near_duplicates is not None:
        kinds[first & ~keep_dissimilar(np.concatenate(hashes), config.near_duplicates, first)] = "near"
    kinds_by_part = np.split(kinds, np.cumsum(rows)[:-1])
    with ThreadPoolExecutor(8) as pool:  # an object store copies several files at a time
        return list(pool.map(partial(_deduplicate_partition, job, vocabulary), parts, kinds_by_part))


def _deduplicate_partition(
    job: ResumableJob, vocabulary: Vocabulary, part: Partition, kinds: np.ndarray
) -> _Deduplicated | None:
    """Moves the shard of a partition to its final path, without duplicates; returns None as `_deduplicate`.

    An earlier run may have moved the shard, with more or fewer images removed.
    """
    record = job.record(part)
    rows = zip(record["uris"], record["sha256"], kinds, strict=True)
    duplicates = [{"uri": uri, "sha256": sha256, "kind": kind} for uri, sha256, kind in rows if kind]
    keep = [sha256 for sha256, kind in zip(record["sha256"], kinds, strict=True) if not kind]
    staged, final = _staged_shard(job, part), job.path("shards", part.name + ".parquet")
    if not keep:
        storage.remove(final)
        return _Deduplicated(None, duplicates, record["quarantine"])
    moved_before = not storage.exists(staged)
    if moved_before and not storage.exists(final):
        return None
    shard_entry = record["shard"]
    if not duplicates and not moved_before:
        storage.move(staged, final)
    elif duplicates or _sha256s(final) != keep:
        data = storage.read_bytes(final if moved_before else staged)
        table = open_parquet_bytes(data).read(use_threads=False)
        missing = dict.fromkeys(keep)
        mask = [missing.pop(sha256, False) is None for sha256 in table["sha256"].to_pylist()]  # the first of each
        if missing:
            return None
        if not all(mask):
            table = table.filter(pa.array(mask))
            data = to_parquet(table)
            storage.write_bytes(final, data)
        shard_entry = _shard_entry(data, table, vocabulary)
    return _Deduplicated({"name": part.name + ".parquet", **shard_entry}, duplicates, record["quarantine"])


def _sha256s(shard: str) -> list[str]:
    with storage.open_input(shard) as file:
        return pq.ParquetFile(file).read(["sha256"])["sha256"].to_pylist()


def _finish(
    config: PreprocessConfig,
    job: ResumableJob,
    listed: ListingSummary,
    parts: Sequence[Partition],
    deduplicated: Sequence[_Deduplicated],
) -> dict[str, Any]:
    """Writes the files about the whole folder, the manifest last; returns the manifest."""
    unusable = [row for each in deduplicated for row in each.quarantine]
    quarantine = _write_table(job, "quarantine", QUARANTINE_SCHEMA, unusable)
    duplicates = [row for each in deduplicated for row in each.duplicates]
    _write_table(job, "duplicates", DUPLICATES_SCHEMA, duplicates)
    if len(unusable) == listed.num_rows:
        reasons = sorted({row["reason"] for row in unusable})
        raise CorpusError(
            f"{config.images}: none of {listed.num_rows} images can be used ({', '.join(reasons)}); "
            f"{job.path('quarantine.parquet')} has the reason of each"
        )
    shards = [each.shard for each in deduplicated if each.shard is not None]
    storage.write_bytes(job.path("vocabulary.json"), listed.vocabulary.to_json().encode())
    manifest = with_checksum(
        {
            "kind": "shards",
            "schema_version": SCHEMA_VERSION,
            "code_version": sigrl_core.__version__,
            "config": {
                key: value for key, value in _portable(config).items() if value is not None or key not in READER_FLAGS
            },
            "vocabulary_hash": listed.vocabulary.hash,
            "num_labels": len(listed.vocabulary),
            "listing": {"rows": listed.num_rows, "sha256": listed.sha256},
            "rows_in": listed.num_rows,
            "rows_out": sum(shard["rows"] for shard in shards),
            "quarantined": len(unusable),
            "duplicates": len(duplicates),
            "split": {"seed": config.seed, "validation": config.validation_fraction, "test": config.test_fraction},
            "quarantine": quarantine,
            "shards": [{**shard, "label_counts": _present(shard["label_counts"])} for shard in shards],
            "label_counts": reduce(add_counts, (shard["label_counts"] for shard in shards)),
        }
    )
    job.finish(manifest, parts)
    return manifest


def _write_table(job: ResumableJob, name: str, schema: pa.Schema, rows: list[dict[str, str]]) -> dict[str, Any]:
    data = to_parquet(pa.Table.from_pylist(rows, schema))
    storage.write_bytes(job.path(name + ".parquet"), data)
    return {"name": name + ".parquet", "sha256": sha256_of(data)}


def _present(counts: dict[str, dict[str, int]]) -> dict[str, int]:
    """Returns the number of images with each label, for labels that occur."""
    return {name: states["present"] for name, states in counts.items() if states["present"]}


def _staged_shard(job: ResumableJob, part: Partition) -> str:
    """Returns the path of a partition's shard until its duplicates are known.

    It differs from the final path, because a worker that outlives its driver may write the shard again.
    """
    return job.path("work", "shards", part.name + ".parquet")
