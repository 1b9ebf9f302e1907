"""Folder or bucket -> tags, exactly one row for every key; again on the same folder, what is new or changed.

OUT/tags/*.parquet       rows of tagging.tags_schema, a file for each range of keys, named by where it starts
OUT/jsonl/*.jsonl        the same as lines, where asked for
OUT/tagging.html         how it went and what was found
OUT/_manifest.json       counts, errors by reason, hashes of model, vocabulary and files
OUT/_SUCCESS             written last, taken away first
OUT/plan.json            what is asked: another question in the same folder is refused
OUT/ranges.json          where the ranges start, now and from now on
OUT/parts/               what was done, see parts.py
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import ray
from ray.exceptions import RayTaskError

import sigrl_core
from sigrl_core import storage
from sigrl_core.checkpoint import Checkpoint, checkpoint_version, load_checkpoint
from sigrl_core.config import TagConfig
from sigrl_core.corpora.listing import Listing, Row
from sigrl_core.corpora.listing_file import write_listing
from sigrl_core.errors import ConfigError
from sigrl_core.label_embeddings import load_embeddings
from sigrl_core.model.coefficients import chosen
from sigrl_core.on_ray.parts import run_parts
from sigrl_core.on_ray.session import connect, device_of
from sigrl_core.parts import Job
from sigrl_core.records import load_vocabulary, seal, sha256_of
from sigrl_core.report.tagging import Run, Summary, write_tagging_page
from sigrl_core.tagger import Tagger
from sigrl_core.tagging import (
    LISTING,
    WAITING,
    Crops,
    PartTagger,
    Question,
    RangePart,
    crops_of,
    listing_of,
    plan_ranges,
    waiting,
)

RANGES, SUCCESS = "ranges.json", "_SUCCESS"
NUM_SAMPLE = 64
"""Pictures that a dry run tags."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where it runs; changes nothing that is written."""

    most: int = 1
    """Processes that each hold the model."""
    least: int | None = None
    """Starts with so many of them; None starts all."""
    cpus: float = 1.0
    """Of each, which it computes with."""
    gpus: float = 0.0
    """Of each; 0.5 puts two on a GPU, 0 computes on CPU."""
    decode_tasks: int = 0
    """Batches that are read and decoded ahead for each, by tasks on a CPU anywhere in the cluster; 0 does that in the
    worker."""


def tag(
    config: TagConfig,
    workers: Workers | None = None,
    retry_failed: bool = False,
    price_per_hour: float | None = None,
) -> dict[str, Any]:
    """Tags every key under a folder, or goes on with it, or tags what has come since; returns the manifest.

    Args:
        workers: where it runs.
        retry_failed: tags pictures again that could not be reached.
        price_per_hour: of all machines together, for the page.

    Raises:
        CheckpointError, VocabularyError, CorpusError: an input that cannot be used.
        StorageError: `config.out` cannot be written, or holds another run.
    """
    config, workers = _absolute(config), workers or Workers()
    device = device_of(workers.gpus)
    question, job, plan = _opened(config, device)
    started = time.monotonic()
    with job.claimed(plan) as lease:
        parts = _plan_parts(config, job, job.path(LISTING), listing_of(config))
        job.start(plan)
        undone, changed = _to_do(job, parts, retry_failed)
        if not changed and storage.exists(job.path(SUCCESS)) and (manifest := job.manifest()) is not None:
            return manifest
        storage.remove(job.path(SUCCESS))
        job.take_back(changed)
        storage.write_json(job.path(RANGES), [[part.key, part.held_by] for part in parts])
        _connect(workers)
        make_work = partial(
            _worker,
            config,
            device,
            question=question,
            waits=waiting(parts),
            retry_failed=retry_failed,
            decode_tasks=workers.decode_tasks,
        )
        run_parts(
            job,
            parts,
            make_work,
            lease,
            label="tag",
            workers=workers.most,
            min_workers=workers.least,
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
        )
        manifest = _finish(job, plan, parts)
        run = Run(time.monotonic() - started, workers.most, price_per_hour)
        summary = Summary.of(job.records(parts), parts, {part.name for part in [*undone, *changed]})
        write_tagging_page(config, manifest, summary, run)
        print(f"tag: {summary.told(run)}", file=sys.stderr)
        storage.write_bytes(job.path(SUCCESS), b"")
        return manifest


def dry_run(config: TagConfig, workers: Workers) -> str:
    """What `tag` would do, in lines; a few pictures are tagged to tell how long it takes. Raises as `tag`."""
    config = _absolute(config)
    question, job, _ = _opened(config, "cpu")
    first: list[Row] = []
    listing = listing_of(config)
    listing = replace(listing, rows=_noting(listing.rows, first, NUM_SAMPLE))
    parts = _plan_parts(config, job, None, listing)
    undone, changed = _to_do(job, parts, retry_failed=False)
    ahead = [*undone, *changed]
    rows = sum(part.num_rows for part in ahead)
    lines = [f"{sum(part.num_rows for part in parts):,} keys in {len(parts):,} ranges; {len(ahead):,} to work on"]
    if rows:
        tagger = _worker(config, "cpu", question=question, waits=set())
        started = time.monotonic()
        tagger.tag_rows(first)
        each = (time.monotonic() - started) / len(first)
        lines.append(
            f"at most {rows:,} pictures to tag: about {each * rows / workers.most / 60:,.0f} min with "
            f"{workers.most} workers as fast as this process on its CPU, which took {1000 * each:.0f} ms a picture"
        )
    return "\n".join(lines)


def _noting(rows: Iterable[Row], noted: list[Row], most: int) -> Iterator[Row]:
    for row in rows:
        if len(noted) < most:
            noted.append(row)
        yield row


def _opened(config: TagConfig, device: str) -> tuple[Question, Job, dict[str, Any]]:
    """What is asked, in which folder, by which plan; refuses a folder of another plan."""
    checkpoint = load_checkpoint(config.checkpoint)
    question = _question(config, checkpoint)
    if checkpoint.config.reconstruction.enabled:
        how, bf16 = checkpoint.config.reconstruction, config.precision == "bf16"
        told = chosen(how.implementation, how.coefficient_rank, device, bf16, trains=False)
        print(f"tag: coefficients = {told}", file=sys.stderr)
    job, plan = Job(config.out, "_manifest.json"), _plan(config, question)
    job.agree(plan)
    return question, job, plan


def _absolute(config: TagConfig) -> TagConfig:
    """Paths as any process of the cluster can use them; raises ConfigError where tags would be among the pictures."""
    images, out = storage.absolute(config.images), storage.absolute(config.out)
    if storage.join(out, "").startswith(storage.join(images, "")):
        raise ConfigError(f"out is {out}, below images, where the next run would tag it; choose another folder")
    return replace(config, checkpoint=storage.absolute(config.checkpoint), images=images, out=out)


def _plan(config: TagConfig, question: Question) -> dict[str, Any]:
    embeddings_CE = question.embeddings_CE
    same = ("images", "corpus", "top_k", "threshold", "local_candidates", "precision", "format", "embeddings")
    same += ("heat_maps", "max_file_bytes", "batch_size", "rows_per_part")
    return {
        **{name: getattr(config, name) for name in same},
        "model": question.model,
        "vocabulary": question.vocabulary.hash,
        "label_embeddings": None if embeddings_CE is None else sha256_of(embeddings_CE.tobytes()),
    }


def _question(config: TagConfig, checkpoint: Checkpoint) -> Question:
    """Refuses what the checkpoint cannot answer, before anything is written."""
    vocabulary = checkpoint.vocabulary if config.vocabulary is None else load_vocabulary(config.vocabulary)
    embeddings_CE = load_embeddings(config.label_embeddings, vocabulary) if config.label_embeddings else None
    tagger = Tagger(checkpoint)
    if config.threshold is not None:
        _ = tagger.calibration
    if embeddings_CE is not None or checkpoint.recogniser.embeddings_VE is not None:
        tagger.ask(vocabulary, embeddings_CE)
    model = checkpoint_version(checkpoint.uri)
    return Question(vocabulary, embeddings_CE, model, checkpoint.recogniser.backbone.dim)


def _plan_parts(config: TagConfig, job: Job, where: str | None, listing: Listing) -> list[RangePart]:
    """Lists the source and cuts it where it was cut the last time; writes the listing, or only looks."""
    held_by: dict[str, str] = {}
    if storage.exists(job.path(RANGES)):
        finished = job.manifest() is not None
        held_by = {
            start: start if finished or before is None else before
            for start, before in storage.read_json(job.path(RANGES))
        }
    parts: list[RangePart] = []
    cut = partial(plan_ranges, config, held_by=held_by, note=parts.append)
    write_listing(listing, where, cut=cut)
    return parts


def _to_do(job: Job, parts: Sequence[RangePart], retry_failed: bool) -> tuple[list[RangePart], list[RangePart]]:
    """The ranges never done, and those whose keys, or versions of them, are others now; with `retry_failed` also those
    that lack pictures that could not be reached."""
    undone = job.pending(parts)
    done = sorted(set(parts) - set(undone), key=lambda part: part.index)
    changed = [
        part
        for part, record in zip(done, job.records(done), strict=True)
        if record["listing"] != part.listing or (retry_failed and "unreachable" in record["errors"])
    ]
    return undone, changed


def _connect(workers: Workers) -> None:
    """Says so where tasks that decode would wait for ever, unless the cluster grows."""
    held = workers.most * workers.cpus
    connect(num_cpus=math.ceil(held) + workers.most * workers.decode_tasks)
    there = ray.cluster_resources().get("CPU", 0)
    if workers.decode_tasks and there < held + 1:
        print(
            f"tag: the cluster has {there:g} CPUs and {workers.most} workers hold {held:g} of them, so no picture is "
            "decoded until it has more; give fewer --workers, or --decode-tasks 0",
            file=sys.stderr,
        )


def _worker(config: TagConfig, device: str, decode_tasks: int = 0, **what: Any) -> PartTagger:
    tagger = Tagger.load(config.checkpoint, device, config.local_candidates, config.precision)
    size = tagger.recogniser.backbone.image_size
    crops = partial(_crops_by_tasks, config, size, decode_tasks) if decode_tasks else None
    return PartTagger(tagger, config=config, crops=crops, **what)


def _crops_by_tasks(config: TagConfig, size: int, in_flight: int, rows: Sequence[Row]) -> Iterator[Crops]:
    batches = (rows[start : start + config.batch_size] for start in range(0, len(rows), config.batch_size))
    asked = deque(_crops.remote(config, size, batch) for batch in islice(batches, in_flight))
    while asked:
        try:
            crops = ray.get(asked.popleft())
        except RayTaskError as error:
            raise error.cause from None  # our own, without the task's traceback
        asked.extend(_crops.remote(config, size, batch) for batch in islice(batches, 1))
        yield crops


@ray.remote(num_cpus=1)
def _crops(config: TagConfig, size: int, batch: Sequence[Row]) -> Crops:
    (crops,) = storage.patient(lambda: list(crops_of(config, size, batch)))()
    return crops


def _finish(job: Job, plan: dict[str, Any], parts: Sequence[RangePart]) -> dict[str, Any]:
    """Puts every file in its place, takes away what has no keys any more, writes the manifest; returns it."""
    waits, errors, files, rows = waiting(parts), Counter[str](), [], 0
    for part, record in zip(parts, job.records(parts), strict=True):
        for path, sha256 in record["files"].items():
            if part.name in waits and storage.exists(job.path(WAITING, path)):
                storage.move(job.path(WAITING, path), job.path(path))
            files.append({"name": path, "rows": record["rows"], "sha256": sha256})
        errors.update(record["errors"])
        rows += record["rows"]
    storage.write_json(job.path(RANGES), [[part.key, part.key] for part in parts])
    here = {file["name"] for file in files} | {f"parts/{part.name}.json" for part in parts}
    for folder in ("tags", "jsonl", "parts"):
        if storage.is_folder(job.path(folder)):
            for file in storage.walk(job.path(folder)):
                if f"{folder}/{file.path}" not in here:
                    storage.remove(job.path(folder, file.path))
    manifest = seal(
        {
            "schema_version": 2,
            "kind": "tags",
            "code_version": sigrl_core.__version__,
            "rows": rows,
            "tagged": rows - errors.total(),
            "errors": dict(sorted(errors.items())),
            "files": files,
            **plan,
        }
    )
    job.finish(manifest, parts)
    return manifest
