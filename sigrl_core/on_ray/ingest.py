"""corpus -> shards: list once, decode the parts in parallel, settle duplicates on the driver.

parts.py says how a killed run goes on, records.py what is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import sigrl_core
from sigrl_core import storage
from sigrl_core.config import PreprocessConfig
from sigrl_core.corpora import WALKED, get_corpus, label_states, told
from sigrl_core.corpora.listing_file import Listed, parts_of, read_listed, read_part, write_listing
from sigrl_core.corpora.pictures import fetch
from sigrl_core.duplicates import first_of_equals, first_of_near
from sigrl_core.errors import CorpusError, ImageError, StorageError
from sigrl_core.images import to_jpeg
from sigrl_core.on_ray.parts import Work, run_parts
from sigrl_core.on_ray.session import connect
from sigrl_core.parts import Job, Part
from sigrl_core.records import (
    DUPLICATES_SCHEMA,
    QUARANTINE_SCHEMA,
    SCHEMA_VERSION,
    SHARD_SCHEMA,
    ShardFolder,
    add_counts,
    count_states,
    decode_states,
    encode_states,
    from_parquet,
    load_vocabulary,
    seal,
    sha256_of,
    split_of,
    to_parquet,
)
from sigrl_core.vocabulary import Vocabulary

LISTING = "listing.parquet"


def preprocess(config: PreprocessConfig, workers: int | None = None, retry_failed: bool = False) -> dict[str, Any]:
    """Makes a shard folder, or goes on with one, or finds it finished; returns its manifest.

    The bytes written depend on the corpus and the configuration alone, not on `workers` or on where a run was killed.
    A corpus is listed once: a run that goes on takes the pictures that the first one found.

    Args:
        workers: parts decoded at a time; None for as many as the cluster has CPUs.
        retry_failed: takes pictures again that could not be reached; the folder is then as if they had been.

    Raises:
        CorpusError: the corpus cannot be listed, or has no usable picture.
        StorageError: `config.out` cannot be written, holds another run, or another run is at work in it.
    """
    config = _absolute(config)
    job = Job(config.out)
    listing = get_corpus(config.corpus)(config.images, config.annotations)
    vocabulary = None if config.vocabulary is None else load_vocabulary(config.vocabulary)
    plan = {**_portable(config), "vocabulary_hash": vocabulary and vocabulary.hash}
    write = partial(
        write_listing,
        listing,
        vocabulary=vocabulary,
        rows_per_part=config.rows_per_shard,
        bytes_per_part=config.bytes_per_shard,
    )
    if (manifest := job.manifest()) is not None:
        job.agree(plan)
        if not retry_failed:
            _agree_on_listing(config, manifest, write(None))
        ShardFolder.open(config.out).verify()
        if not (retry_failed and _unreachable(job)):
            return manifest
    with job.claimed(plan) as lease:
        where, waiting = job.path(LISTING), job.path("work", LISTING)
        if storage.exists(where):
            listed = read_listed(where)
        else:
            listed = write(waiting)
            job.start(plan)
            storage.move(waiting, where)
        if retry_failed:
            job.take_back(_unreachable(job))
        parts = parts_of(where)
        connect()
        make_work = partial(_make_work, config, listed.vocabulary)
        while True:
            run_parts(job, parts, make_work, lease, label="preprocess", workers=workers)
            settled = _settle(config, job, listed.vocabulary, parts)
            undone = [part for part, each in zip(parts, settled, strict=True) if each is None]
            if not undone:
                return _finish(config, job, listed, parts, [each for each in settled if each is not None])
            job.take_back(undone)


def _unreachable(job: Job) -> list[Part]:
    """The parts done that lack pictures because these could not be reached."""
    parts = parts_of(job.path(LISTING)) if storage.exists(job.path(LISTING)) else []
    pending = set(job.pending(parts))
    done = [part for part in parts if part not in pending]
    lacking = [any(row["reason"] == "unreachable" for row in record["quarantine"]) for record in job.records(done)]
    return [part for part, lacks in zip(done, lacking, strict=True) if lacks]


def _absolute(config: PreprocessConfig) -> PreprocessConfig:
    """Paths as any process of the cluster can use them; the same wherever the command is called from."""
    names = ("images", "annotations", "vocabulary", "out")
    paths = {name: value and storage.absolute(value) for name in names for value in [getattr(config, name)]}
    return dataclasses.replace(config, **paths)


def _portable(config: PreprocessConfig) -> dict[str, Any]:
    """The configuration without `out`: a finished folder may be moved."""
    return {key: value for key, value in dataclasses.asdict(config).items() if key != "out"}


def _agree_on_listing(config: PreprocessConfig, manifest: dict[str, Any], found: Listed) -> None:
    noted = manifest["listing"]
    if (noted["rows"], noted["sha256"]) != (found.num_rows, found.sha256):
        raise StorageError(
            f"{config.out}: was made of {noted['rows']} listed pictures of {config.images}, which now lists "
            f"{found.num_rows}, or others, or with other labels; delete the folder or choose another --out"
        )


# ---- in a worker ----


def _make_work(config: PreprocessConfig, vocabulary: Vocabulary) -> Work:
    return partial(preprocess_part, config, vocabulary)


def preprocess_part(config: PreprocessConfig, vocabulary: Vocabulary, part: Part) -> dict[str, Any]:
    """Writes the shard that a part would be if it had no duplicates; returns what tells them, and what is unusable."""
    job = Job(config.out)
    listed = read_part(job.path(LISTING), part)
    states_NC = label_states(listed, vocabulary, config.annotated)
    rows, hashes, quarantine, num_bytes = [], [], [], 0
    fetched = fetch(config.images, listed, walked=config.corpus in WALKED)
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
                keep_exif=config.keep_exif,
                perceptual_hash=config.near_duplicates is not None,
            )
        except ImageError as error:
            quarantine.append({"uri": row.uri, "reason": error.reason, "detail": error.detail})
            continue
        sha256 = sha256_of(data)
        if _split(config, sha256) == "train":
            states_C = told(states_C, config.labels, sha256, config.seed)
        if jpeg.perceptual_hash is not None:
            hashes.append(jpeg.perceptual_hash)
        picture = {"image": jpeg.data, "width": jpeg.width, "height": jpeg.height}
        rows.append({"uri": row.uri, "sha256": sha256, **picture, "label_states": encode_states(states_C)})
    table = pa.Table.from_pylist(rows, schema=SHARD_SCHEMA)
    data = to_parquet(table)
    storage.write_bytes(_candidate(job, part), data)
    return {
        "uris": [row["uri"] for row in rows],
        "sha256": [row["sha256"] for row in rows],
        "perceptual_hash": hashes,
        "shard": _described(data, table, vocabulary),
        "quarantine": quarantine,
        "bytes_in": num_bytes,
        "num_failed": len(quarantine),
    }


def _split(config: PreprocessConfig, sha256: str) -> str:
    return split_of(sha256, config.seed, config.validation_fraction, config.test_fraction)


def _described(data: bytes, table: pa.Table, vocabulary: Vocabulary) -> dict[str, Any]:
    states_NC = decode_states(table["label_states"], len(vocabulary))
    return {"rows": table.num_rows, "sha256": sha256_of(data), "label_counts": count_states(states_NC, vocabulary)}


# ---- on the driver, when all parts are done ----


class _Settled(NamedTuple):
    """What became of a part: its shard, None where it has no rows left, and the rows that did not go into it."""

    shard: dict[str, Any] | None
    duplicates: list[dict[str, str]]
    quarantine: list[dict[str, str]]


def _settle(config: PreprocessConfig, job: Job, vocabulary: Vocabulary, parts: Sequence[Part]) -> list[_Settled | None]:
    """Puts every part's shard in its place, without pictures that an earlier row has.

    Returns:
        What became of each part; None for one that has to be done again, as it lacks a picture that was a duplicate
        when the part was settled before, and no longer is.
    """
    rows, digests, hashes = [], bytearray(), []
    for record in job.records(parts):  # two passes over the records, so that few are held
        rows.append(len(record["sha256"]))
        digests += bytes.fromhex("".join(record["sha256"]))
        if config.near_duplicates is not None:
            hashes.append(np.array(record["perceptual_hash"], np.uint64))
    first = first_of_equals(digests)
    kinds = np.where(first, "", "exact")
    if config.near_duplicates is not None:
        kinds[first & ~first_of_near(np.concatenate(hashes), config.near_duplicates, first)] = "near"
    of_part = np.split(kinds, np.cumsum(rows)[:-1])
    with ThreadPoolExecutor(8) as pool:  # an object store copies many at a time
        return list(pool.map(partial(_settle_part, job, vocabulary), parts, of_part))


def _settle_part(job: Job, vocabulary: Vocabulary, part: Part, kinds: np.ndarray) -> _Settled | None:
    record = job.record(part)
    told = zip(record["uris"], record["sha256"], kinds, strict=True)
    duplicates = [{"uri": uri, "sha256": sha256, "kind": kind} for uri, sha256, kind in told if kind]
    keep = [sha256 for sha256, kind in zip(record["sha256"], kinds, strict=True) if not kind]
    candidate, place = _candidate(job, part), job.path("shards", part.name + ".parquet")
    if not keep:
        storage.remove(place)
        return _Settled(None, duplicates, record["quarantine"])
    settled_before = not storage.exists(candidate)
    if settled_before and not storage.exists(place):
        return None
    described = record["shard"]
    if not duplicates and not settled_before:
        storage.move(candidate, place)
    elif duplicates or _sha256s(place) != keep:
        data = storage.read_bytes(place if settled_before else candidate)
        table = from_parquet(data).read(use_threads=False)
        left = dict.fromkeys(keep)
        mask = [left.pop(sha256, False) is None for sha256 in table["sha256"].to_pylist()]  # the first of each
        if left:
            return None
        if not all(mask):
            table = table.filter(pa.array(mask))
            data = to_parquet(table)
            storage.write_bytes(place, data)
        described = _described(data, table, vocabulary)
    return _Settled({"name": part.name + ".parquet", **described}, duplicates, record["quarantine"])


def _sha256s(shard: str) -> list[str]:
    with storage.reading(shard) as file:
        return pq.ParquetFile(file).read(["sha256"])["sha256"].to_pylist()


def _finish(
    config: PreprocessConfig, job: Job, listed: Listed, parts: Sequence[Part], settled: Sequence[_Settled]
) -> dict[str, Any]:
    """Writes what is told of all parts together, the manifest last; returns it."""
    unusable = [row for each in settled for row in each.quarantine]
    quarantine = _write_table(job, "quarantine", QUARANTINE_SCHEMA, unusable)
    duplicates = [row for each in settled for row in each.duplicates]
    _write_table(job, "duplicates", DUPLICATES_SCHEMA, duplicates)
    if len(unusable) == listed.num_rows:
        reasons = sorted({row["reason"] for row in unusable})
        raise CorpusError(
            f"{config.images}: none of {listed.num_rows} pictures can be used ({', '.join(reasons)}); "
            f"{job.path('quarantine.parquet')} says why for each"
        )
    shards = [each.shard for each in settled if each.shard is not None]
    storage.write_bytes(job.path("vocabulary.json"), listed.vocabulary.to_json().encode())
    manifest = seal(
        {
            "kind": "shards",
            "schema_version": SCHEMA_VERSION,
            "code_version": sigrl_core.__version__,
            "config": _portable(config),
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


def _write_table(job: Job, name: str, schema: pa.Schema, rows: list[dict[str, str]]) -> dict[str, Any]:
    data = to_parquet(pa.Table.from_pylist(rows, schema))
    storage.write_bytes(job.path(name + ".parquet"), data)
    return {"name": name + ".parquet", "sha256": sha256_of(data)}


def _present(counts: dict[str, dict[str, int]]) -> dict[str, int]:
    """How often labels are present, those that are."""
    return {name: states["present"] for name, states in counts.items() if states["present"]}


def _candidate(job: Job, part: Part) -> str:
    """Where a part's shard waits until its duplicates are known. Not its place: a worker that outlives its driver may
    write it once more."""
    return job.path("work", "shards", part.name + ".parquet")
