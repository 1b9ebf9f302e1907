"""corpus -> shards: list once, plan, decode in parallel, finish on the driver. records.py draws what it writes."""

from __future__ import annotations

import dataclasses
import hashlib
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import sigrl_core
from sigrl_core import storage
from sigrl_core.config import PreprocessConfig
from sigrl_core.corpora import Listing, get_corpus, label_states, told
from sigrl_core.errors import CorpusError, ImageError, StorageError, VocabularyError
from sigrl_core.images import to_jpeg
from sigrl_core.on_ray.parts import read_records, run_parts
from sigrl_core.on_ray.session import connect
from sigrl_core.parts import Part, differing_key, plan_parts
from sigrl_core.records import (
    QUARANTINE_SCHEMA,
    SCHEMA_VERSION,
    SHARD_SCHEMA,
    ShardFolder,
    count_states,
    decode_states,
    encode_states,
    in_validation,
    seal,
    sha256_of,
    to_parquet,
)
from sigrl_core.vocabulary import Vocabulary

MAX_FILE_BYTES = 500_000_000
"""Larger source files are quarantined unread, so that no listing can fill a worker's memory."""

_WORK = "work"  # what only an unfinished folder has: the listing and one commit record per part


def preprocess(config: PreprocessConfig, workers: int | None = None) -> dict[str, Any]:
    """Makes a shard folder, or goes on with one, or finds it finished; returns its manifest.

    The bytes written depend on the corpus and the configuration alone, not on `workers` or on where a run was killed.

    Args:
        workers: parts decoded at a time; None for as many as the cluster has CPUs.

    Raises:
        CorpusError: the corpus cannot be listed, or has no usable picture.
        StorageError: `config.out` cannot be written, or holds another run.
    """
    config = _absolute(config)
    out = config.out
    listing = get_corpus(config.corpus)(config.images, config.annotations)
    vocabulary = listing.vocabulary if config.vocabulary is None else _load_vocabulary(config.vocabulary)
    states_NC = label_states(listing.rows, vocabulary, config.annotated)
    _agree_on_plan(config, vocabulary, _listing_hash(listing, states_NC))
    if storage.exists(storage.join(out, "manifest.json")):
        folder = ShardFolder.open(out)
        folder.verify()
        storage.remove(storage.join(out, _WORK))
        return folder.manifest
    parts = plan_parts(len(listing.rows), config.rows_per_shard)
    _write_listing(listing, states_NC, parts, out)
    connect()
    work = partial(_preprocess_part, config)
    run_parts(parts, work, _commits(out), label="preprocess", workers=workers)
    return _finish(config, vocabulary, parts)


def _absolute(config: PreprocessConfig) -> PreprocessConfig:
    """Paths as any process of the cluster can use them; the same wherever the command is called from."""
    names = ("images", "annotations", "vocabulary", "out")
    paths = {name: value and storage.absolute(value) for name in names for value in [getattr(config, name)]}
    return dataclasses.replace(config, **paths)


def _load_vocabulary(uri: str) -> Vocabulary:
    try:
        return Vocabulary.parse(storage.read_bytes(uri).decode(), uri)
    except UnicodeDecodeError as error:
        raise VocabularyError(f"{uri}: not UTF-8 text ({error}); save it as plain text") from error


def _agree_on_plan(config: PreprocessConfig, vocabulary: Vocabulary, listing_hash: str) -> None:
    """Notes what this folder is made from, or compares with what is noted there."""
    plan = {**_portable(config), "vocabulary_hash": vocabulary.hash, "listing": listing_hash}
    if differing := differing_key(config.out, plan):
        key, noted = differing
        raise StorageError(
            f"{config.out}: was started with {key} = {noted}, now {key} = {plan[key]}; "
            "delete the folder or choose another --out"
        )


def _portable(config: PreprocessConfig) -> dict[str, Any]:
    """The configuration without `out`: a finished folder may be moved."""
    return {key: value for key, value in dataclasses.asdict(config).items() if key != "out"}


def _listing_hash(listing: Listing, states_NC: np.ndarray) -> str:
    digest = hashlib.sha256()
    for row, states_C in zip(listing.rows, states_NC, strict=True):
        digest.update(row.uri.encode(errors="surrogateescape") + b"\0" + encode_states(states_C) + b"\n")
    return digest.hexdigest()


def _write_listing(listing: Listing, states_NC: np.ndarray, parts: list[Part], out: str) -> None:
    """One row group per part, so that a task reads its own rows and no others."""
    sink = pa.BufferOutputStream()
    schema = pa.schema([SHARD_SCHEMA.field("uri"), SHARD_SCHEMA.field("label_states")])
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for part in parts:
            uris = [row.uri for row in listing.rows[part.start : part.stop]]
            states = [encode_states(states_C) for states_C in states_NC[part.start : part.stop]]
            writer.write_table(pa.table([uris, states], schema=schema), row_group_size=part.num_rows)
    storage.write_bytes(_listing_file(out), sink.getvalue().to_pybytes())


def _preprocess_part(config: PreprocessConfig, part: Part) -> dict[str, Any]:
    """Runs in a task: writes the part's shard and returns its hashes and what it could not use."""
    filesystem, path = storage.filesystem_for(_listing_file(config.out))
    with filesystem.open_input_file(path) as file:
        listed = pq.ParquetFile(file).read_row_group(part.index).to_pylist()
    rows, quarantine = [], []
    for row in listed:
        try:
            data = _fetch(storage.locate(config.images, row["uri"]))
            jpeg = to_jpeg(data, config.short_side, config.quality, config.max_pixels)
        except ImageError as error:
            quarantine.append({"uri": row["uri"], "reason": error.reason, "detail": error.detail})
            continue
        sha256 = sha256_of(data)
        if not in_validation(sha256, config.seed, config.validation_fraction):
            states_C = np.frombuffer(row["label_states"], np.int8)
            row["label_states"] = encode_states(told(states_C, config.labels, sha256, config.seed))
        rows.append({**row, "sha256": sha256, "image": jpeg.data, "width": jpeg.width, "height": jpeg.height})
    table = pa.Table.from_pylist(rows, schema=SHARD_SCHEMA)
    storage.write_bytes(_shard_file(config.out, part), to_parquet(table))
    return {"sha256": [row["sha256"] for row in rows], "quarantine": quarantine}


def _fetch(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri, MAX_FILE_BYTES)
    except StorageError as error:
        if storage.is_transient(error):  # a store that is down says nothing about the picture
            raise
        raise ImageError("unreachable", str(error)) from error


def _finish(config: PreprocessConfig, vocabulary: Vocabulary, parts: list[Part]) -> dict[str, Any]:
    out = config.out
    records = read_records(parts, _commits(out))
    quarantine = pa.Table.from_pylist([row for record in records for row in record["quarantine"]], QUARANTINE_SCHEMA)
    quarantine_bytes = to_parquet(quarantine)
    storage.write_bytes(storage.join(out, "quarantine.parquet"), quarantine_bytes)
    rows_in = sum(part.num_rows for part in parts)
    if quarantine.num_rows == rows_in:
        reasons = sorted(set(quarantine["reason"].to_pylist()))
        raise CorpusError(
            f"{config.images}: none of {rows_in} pictures can be used ({', '.join(reasons)}); "
            f"{storage.join(out, 'quarantine.parquet')} says why for each"
        )
    shards, duplicates = [], 0
    label_counts = count_states(np.zeros((0, len(vocabulary)), np.int8), vocabulary)
    known: set[str] = set()
    for part, record in zip(parts, records, strict=True):
        keep = []
        for sha256 in record["sha256"]:
            keep.append(sha256 not in known)
            known.add(sha256)
        duplicates += keep.count(False)
        shard, counts = _finish_shard(_shard_file(out, part), keep, vocabulary)
        if shard is not None:
            shards.append({"name": part.name + ".parquet", **shard})
            label_counts = {
                name: {state: number + counts[name][state] for state, number in states.items()}
                for name, states in label_counts.items()
            }
    storage.write_bytes(storage.join(out, "vocabulary.json"), vocabulary.to_json().encode())
    manifest = seal(
        {
            "kind": "shards",
            "schema_version": SCHEMA_VERSION,
            "code_version": sigrl_core.__version__,
            "config": _portable(config),
            "vocabulary_hash": vocabulary.hash,
            "num_labels": len(vocabulary),
            "rows_in": rows_in,
            "rows_out": rows_in - quarantine.num_rows - duplicates,
            "quarantined": quarantine.num_rows,
            "duplicates": duplicates,
            "validation": {"seed": config.seed, "fraction": config.validation_fraction},
            "quarantine": {"name": "quarantine.parquet", "sha256": sha256_of(quarantine_bytes)},
            "shards": shards,
            "label_counts": label_counts,
        }
    )
    storage.write_json(storage.join(out, "manifest.json"), manifest)
    storage.remove(storage.join(out, _WORK))
    return manifest


def _finish_shard(uri: str, keep: list[bool], vocabulary: Vocabulary) -> tuple[dict[str, Any] | None, dict]:
    """Takes duplicates out of one shard; says its rows and hash, None for a shard that has no rows left."""
    if not any(keep):
        storage.remove(uri)
        return None, {}
    data = storage.read_bytes(uri)
    table = pq.read_table(pa.BufferReader(data))
    if table.num_rows == len(keep) and not all(keep):  # else they were taken out before this was interrupted
        table = table.filter(pa.array(keep))
        data = to_parquet(table)
        storage.write_bytes(uri, data)
    counts = count_states(decode_states(table["label_states"], len(vocabulary)), vocabulary)
    return {"rows": table.num_rows, "sha256": sha256_of(data)}, counts


def _commits(out: str) -> str:
    return storage.join(out, _WORK, "done")


def _listing_file(out: str) -> str:
    return storage.join(out, _WORK, "listing.parquet")


def _shard_file(out: str, part: Part) -> str:
    return storage.join(out, "shards", part.name + ".parquet")
