"""Turns a corpus into shards: lists it once, decodes the partitions in parallel, removes duplicates on the driver.

`io.resumable_job` explains how a run is resumed, `data.shards` the format of the files, `on_ray.deduplicate` what
happens to images that occur more than once.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import pyarrow as pa

import sigrl_core
from sigrl_core.config import PreprocessConfig, Resources
from sigrl_core.config.deprecated import keep_defaults_of_0_1, upgrade_plan
from sigrl_core.config.stages import AUTO_CORPUS
from sigrl_core.corpora import PATH_CORPORA, open_corpus
from sigrl_core.corpora.detect import detect_corpus
from sigrl_core.corpora.image_files import read_images
from sigrl_core.corpora.image_walk import describe_left_out
from sigrl_core.corpora.listing import ListedImage, Listing, label_evidence
from sigrl_core.corpora.listing_file import (
    ListingSummary,
    list_partitions,
    read_listing_summary,
    read_partition,
    write_listing,
)
from sigrl_core.corpora.locations import check_locations
from sigrl_core.data.images import to_jpeg
from sigrl_core.data.label_states import add_counts
from sigrl_core.data.shards import (
    CONFLICTS_SCHEMA,
    DUPLICATES_SCHEMA,
    QUARANTINE_SCHEMA,
    SCHEMA_VERSION,
    SHARD_SCHEMA,
    ShardFolder,
)
from sigrl_core.errors import CorpusError, ImageError, StorageError
from sigrl_core.io import storage
from sigrl_core.io.checksums import sha256_of, with_checksum
from sigrl_core.io.parquet import to_parquet
from sigrl_core.io.resumable_job import PLAN, Partition, ResumableJob
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.on_ray.deduplicate import LISTING, Deduplicated, deduplicate, shard_entry, shard_states, staged_shard
from sigrl_core.on_ray.partitions import Work, run_partitions
from sigrl_core.on_ray.session import connect

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
        CorpusError: the corpus cannot be listed, has no usable image, or has no labels without `config.no_labels`.
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
            if "united" not in manifest and manifest["duplicates"]:
                print(
                    f"{config.out}: of {manifest['duplicates']} duplicates, version {manifest['code_version']} dropped "
                    "the labels; to unite them with those of the images that stayed, choose another --out",
                    file=sys.stderr,
                )
            return manifest
    with job.locked(plan) as lease:
        where, staged = job.path(LISTING), job.path("work", LISTING)
        if storage.exists(where):
            listed = read_listing_summary(where)
        else:
            listed = write(staged)
            _check_labels(config, listed, listing)
            job.start(plan)
            storage.move(staged, where)
        if retry_failed:
            job.reopen(_unreachable(job))
        parts = list_partitions(where)
        connect()
        make_work = partial(_make_work, config, listed.vocabulary)
        while True:
            run_partitions(job, parts, make_work, lease, label="preprocess", resources=resources)
            deduplicated = deduplicate(config, job, listed.vocabulary, parts)
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
    """Returns what decides the content of the folder: not `out`, because a finished folder may be moved."""
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in ("out", "no_labels")}


def _check_labels(config: PreprocessConfig, listed: ListingSummary, listing: Listing) -> None:
    """Raises CorpusError if no image has a label and the configuration does not confirm it."""
    if listed.has_labels or config.no_labels:
        return
    source = f" ({listing.describe_source()})" if listing.describe_source else ""
    raise CorpusError(
        f"{config.annotations or config.images}: none of {listed.num_rows} images has a label{source}; correct the "
        "annotations or --corpus, or add --no-labels if images without labels are intended"
    )


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
    distinct: dict[tuple[str, int | None], ListedImage] = {}
    for row in listed:  # an image that is listed several times is read once
        distinct.setdefault((row.uri, row.offset), row)
    evidence_NC = label_evidence(list(distinct.values()), vocabulary, config.annotation_scope)
    results: dict[tuple[str, int | None], ImageError | tuple[str, int | None]] = {}
    rows, num_bytes = [], 0
    fetched = read_images(config.images, list(distinct.values()), uris_are_paths=config.corpus in PATH_CORPORA)
    for key, evidence_C, data in zip(distinct, evidence_NC, fetched, strict=True):
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
            results[key] = error
            continue
        sha256 = sha256_of(data)
        results[key] = sha256, jpeg.perceptual_hash
        image = {"image": jpeg.data, "width": jpeg.width, "height": jpeg.height}
        states = shard_states(config, evidence_C, sha256)
        rows.append({"uri": key[0], "sha256": sha256, **image, "label_states": states})
    table = pa.Table.from_pylist(rows, schema=SHARD_SCHEMA)
    data = to_parquet(table)
    storage.write_bytes(staged_shard(job, part), data)
    outcomes = [results[row.uri, row.offset] for row in listed]
    quarantine = [
        {"uri": row.uri, "reason": outcome.reason, "detail": outcome.detail}
        for row, outcome in zip(listed, outcomes, strict=True)
        if isinstance(outcome, ImageError)
    ]
    usable = [(number, *each) for number, each in enumerate(outcomes) if not isinstance(each, ImageError)]
    return {
        "rows": [number for number, _, _ in usable],
        "uris": [listed[number].uri for number, _, _ in usable],
        "sha256": [sha256 for _, sha256, _ in usable],
        "perceptual_hash": [each for _, _, each in usable if each is not None],
        "shard": shard_entry(data, table, vocabulary),
        "quarantine": quarantine,
        "bytes_in": num_bytes,
        "num_failed": len(quarantine),
    }


# ---- on the driver, when all partitions are finished ----


def _finish(
    config: PreprocessConfig,
    job: ResumableJob,
    listed: ListingSummary,
    parts: Sequence[Partition],
    deduplicated: Sequence[Deduplicated],
) -> dict[str, Any]:
    """Writes the files about the whole folder, the manifest last; returns the manifest."""
    unusable = [row for each in deduplicated for row in each.quarantine]
    quarantine = _write_table(job, "quarantine", QUARANTINE_SCHEMA, unusable)
    duplicates = [row for each in deduplicated for row in each.duplicates]
    _write_table(job, "duplicates", DUPLICATES_SCHEMA, duplicates)
    conflicts = [row for each in deduplicated for row in each.conflicts]
    _write_table(job, "conflicts", CONFLICTS_SCHEMA, conflicts)
    num_united = sum(each.num_united for each in deduplicated)
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
            "united": num_united,
            "conflicts": len(conflicts),
            "left_out": listed.left_out,
            "split": {"seed": config.seed, "validation": config.validation_fraction, "test": config.test_fraction},
            "quarantine": quarantine,
            "shards": [{**shard, "label_counts": _present(shard["label_counts"])} for shard in shards],
            "label_counts": reduce(add_counts, (shard["label_counts"] for shard in shards)),
        }
    )
    _report(job, listed, num_united, conflicts)
    job.finish(manifest, parts)
    return manifest


def _report(job: ResumableJob, listed: ListingSummary, num_united: int, conflicts: Sequence[dict[str, Any]]) -> None:
    """Prints what a user would not expect: files that are left out, labels that were united, and conflicts."""
    if listed.left_out:
        print(f"preprocess: left out: {describe_left_out(listed.left_out)}", file=sys.stderr)
    if num_united:
        print(f"preprocess: images whose labels were united from several rows or copies: {num_united}", file=sys.stderr)
    if conflicts:
        row = conflicts[0]
        print(
            "preprocess: labels that are present in one row of an image and absent in another, and therefore unknown: "
            f"{len(conflicts)}, such as {row['label']!r}, present for {row['present_uri']} (row {row['present_row']}), "
            f"absent for {row['absent_uri']} (row {row['absent_row']}); {job.path('conflicts.parquet')} lists them",
            file=sys.stderr,
        )


def _write_table(job: ResumableJob, name: str, schema: pa.Schema, rows: list[dict[str, str]]) -> dict[str, Any]:
    data = to_parquet(pa.Table.from_pylist(rows, schema))
    storage.write_bytes(job.path(name + ".parquet"), data)
    return {"name": name + ".parquet", "sha256": sha256_of(data)}


def _present(counts: dict[str, dict[str, int]]) -> dict[str, int]:
    """Returns the number of images with each label, for labels that occur."""
    return {name: states["present"] for name, states in counts.items() if states["present"]}
