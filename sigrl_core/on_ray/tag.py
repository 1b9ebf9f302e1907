"""Folder of pictures -> tags: one row for every picture listed, in the listing's order.

OUT/tags/00000.parquet   rows of TAGS_SCHEMA, one file a part
OUT/tags.jsonl           the same rows, as lines
OUT/manifest.json        written last: counts, errors by reason, hashes of model, vocabulary and files
OUT/plan.json, parts/    what the folder was started with, and which parts are done; see parts.py
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

import sigrl_core
from sigrl_core import storage
from sigrl_core.checkpoint import Checkpoint, load_checkpoint
from sigrl_core.config import TagConfig
from sigrl_core.corpora.folder import list_corpus
from sigrl_core.errors import StorageError
from sigrl_core.label_embeddings import load_embeddings
from sigrl_core.on_ray.parts import Work, run_parts
from sigrl_core.on_ray.session import connect
from sigrl_core.parts import Job, Part, plan_parts
from sigrl_core.records import from_parquet, seal, sha256_of, to_parquet
from sigrl_core.tagger import Tagger, Tags
from sigrl_core.vocabulary import Vocabulary

TAGS_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),  # below `config.images`
        pa.field("labels", pa.list_(pa.string()), nullable=False),  # best first
        # rank within the vocabulary asked; with a threshold they are probabilities
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
        pa.field("error", pa.string(), nullable=False),  # one of images.REASONS, or empty
    ]
)
BATCH_SIZE = 32


def tag(config: TagConfig, workers: int = 1) -> dict[str, Any]:
    """Tags every picture under a folder, or goes on with it, or finds it done; returns the manifest.

    Args:
        workers: processes that each hold the model.

    Raises:
        CheckpointError, VocabularyError, CorpusError: an input that cannot be used.
        StorageError: `config.out` cannot be written, or holds another run.
    """
    checkpoint = load_checkpoint(config.checkpoint)
    asked = _question(config, checkpoint)
    images, out = storage.absolute(config.images), storage.absolute(config.out)
    uris = [row.uri for row in list_corpus(images).rows]
    job = Job(out)
    parts = plan_parts(len(uris), config.rows_per_part)
    plan = {
        "images": images,
        "listing": sha256_of("\n".join(uris).encode(errors="surrogateescape")),
        "model": sha256_of(storage.read_bytes(storage.join(checkpoint.uri, "manifest.json"))),
        "vocabulary": asked.vocabulary.hash,
        "top_k": config.top_k,
        "threshold": config.threshold,
        "label_embeddings": None if asked.embeddings_CE is None else sha256_of(asked.embeddings_CE.tobytes()),
        "local_candidates": config.local_candidates,
        "rows_per_part": config.rows_per_part,
    }
    if (manifest := job.manifest()) is not None:
        job.agree(plan)
        return manifest
    with job.claimed(plan) as lease:
        job.start(plan)
        connect()
        load = partial(Tagger.load, storage.absolute(config.checkpoint), local_candidates=config.local_candidates)
        make_work = partial(_worker, load, asked, images, out, uris)
        run_parts(job, parts, make_work, lease, label="tag", workers=min(workers, len(parts)))
        return _finish(job, plan, parts)


class _Question(NamedTuple):
    """What is asked of every picture; see `Tagger.tag`."""

    vocabulary: Vocabulary
    embeddings_CE: np.ndarray | None
    top_k: int | None
    threshold: float | Literal["calibrated"] | None


def _question(config: TagConfig, checkpoint: Checkpoint) -> _Question:
    """Refuses what the checkpoint cannot answer, before anything is written."""
    vocabulary = checkpoint.vocabulary if config.vocabulary is None else Vocabulary.load(config.vocabulary)
    embeddings_CE = load_embeddings(config.label_embeddings, vocabulary) if config.label_embeddings else None
    tagger = Tagger(checkpoint)
    if config.threshold is not None:
        _ = tagger.calibration
    if embeddings_CE is not None or checkpoint.recogniser.embeddings_VE is not None:
        tagger.ask(vocabulary, embeddings_CE)
    return _Question(vocabulary, embeddings_CE, config.top_k, config.threshold)


def _worker(load: Callable[[], Tagger], asked: _Question, images: str, out: str, uris: list[str]) -> Work:
    tagger = load()
    tagger.ask(asked.vocabulary, asked.embeddings_CE)
    return partial(_tag_part, tagger, asked, images, out, uris)


def _tag_part(tagger: Tagger, asked: _Question, images: str, out: str, uris: list[str], part: Part) -> dict[str, Any]:
    mine = uris[part.start : part.stop]
    results: list[Tags] = []
    for start in range(0, len(mine), BATCH_SIZE):
        results += _tag_batch(tagger, asked, images, mine[start : start + BATCH_SIZE])
    table = pa.table(
        {
            "uri": mine,
            "labels": [tags.labels for tags in results],
            "scores": [tags.scores for tags in results],
            "error": [tags.error for tags in results],
        },
        schema=TAGS_SCHEMA,
    )
    name = f"tags/{part.name}.parquet"
    data = to_parquet(table)
    storage.write_bytes(storage.join(out, name), data)
    errors = Counter(tags.error for tags in results if tags.error)
    return {"name": name, "rows": len(mine), "sha256": sha256_of(data), "errors": dict(sorted(errors.items()))}


def _tag_batch(tagger: Tagger, asked: _Question, images: str, uris: list[str]) -> list[Tags]:
    pictures: list[bytes] = []
    unreachable: set[int] = set()
    for number, uri in enumerate(uris):
        try:
            pictures.append(storage.read_bytes(storage.locate(images, uri)))
        except StorageError as error:
            if storage.is_transient(error):
                raise
            unreachable.add(number)
    tagged = iter(tagger.tag(pictures, asked.vocabulary, asked.top_k, asked.threshold))
    missing = Tags(labels=[], scores=[], error="unreachable")
    return [missing if number in unreachable else next(tagged) for number in range(len(uris))]


def _finish(job: Job, plan: dict[str, Any], parts: list[Part]) -> dict[str, Any]:
    records = list(job.records(parts))
    lines: list[str] = []
    errors: Counter[str] = Counter()
    for record in records:
        table = from_parquet(storage.read_bytes(job.path(record["name"]))).read(use_threads=False)
        lines += [_line(row) for row in table.to_pylist()]
        errors.update(record["errors"])
    storage.write_bytes(job.path("tags.jsonl"), "".join(lines).encode())
    manifest = seal(
        {
            "schema_version": 1,
            "kind": "tags",
            "code_version": sigrl_core.__version__,
            "rows": sum(record["rows"] for record in records),
            "tagged": sum(record["rows"] for record in records) - errors.total(),
            "errors": dict(sorted(errors.items())),
            "parts": [{key: record[key] for key in ("name", "rows", "sha256")} for record in records],
            **plan,
        }
    )
    job.finish(manifest, parts)
    return manifest


def _line(row: dict[str, Any]) -> str:
    tags = [
        {"label": label, "score": round(score, 6)} for label, score in zip(row["labels"], row["scores"], strict=True)
    ]
    line = {"uri": row["uri"], "tags": tags, **({"error": row["error"]} if row["error"] else {})}
    return json.dumps(line, ensure_ascii=False) + "\n"
