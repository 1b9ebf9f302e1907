"""Tags a folder or bucket and writes exactly one row per key; a second run tags only new and changed images.

The output folder::

    OUT/tags/*.parquet       rows of tag_files.tags_schema, one file per key range, named by the range's first key
    OUT/jsonl/*.jsonl        the same rows as JSON lines, with --format jsonl
    OUT/tagging.html         page with duration, errors, and frequent labels
    OUT/manifest.json        counts, errors by reason, hashes of model, vocabulary and files
    OUT/_SUCCESS             written last; deleted when a run starts
    OUT/plan.json            model, labels and options; a run with others in the same folder is refused
    OUT/ranges.json          first key of each range, and of the range that holds its rows
    OUT/parts/               commit records, see io.resumable_job
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError

import sigrl_core
from sigrl_core.config import Resources, TagConfig
from sigrl_core.config.deprecated import upgrade_plan
from sigrl_core.corpora.listing import ListedImage, Listing
from sigrl_core.corpora.listing_file import write_listing
from sigrl_core.corpora.locations import check_locations
from sigrl_core.inference.batch import LISTING, STAGING, DecodedBatch, PartitionTagger, TaggingTask, load_images
from sigrl_core.inference.ranges import KeyRange, list_keys, plan_ranges, staged_ranges
from sigrl_core.inference.tagger import Tagger
from sigrl_core.io import storage
from sigrl_core.io.checksums import Pinned, with_checksum
from sigrl_core.io.resumable_job import ResumableJob
from sigrl_core.io.retry import with_retries
from sigrl_core.labels.embeddings import embeddings_sha256, load_embeddings
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.model.checkpoint import Checkpoint, load_checkpoint
from sigrl_core.model.coefficients import resolve_implementation
from sigrl_core.on_ray.partitions import run_partitions
from sigrl_core.on_ray.session import connect, device_of
from sigrl_core.report.tagging import Run, Summary, write_tagging_page

RANGES, SUCCESS = "ranges.json", "_SUCCESS"
NUM_SAMPLE = 64
"""Number of images that a dry run tags."""


def tag(
    config: TagConfig,
    resources: Resources | None = None,
    *,
    decode_tasks: int = 0,
    retry_failed: bool = False,
    price_per_hour: float | None = None,
    vocabulary: Vocabulary | None = None,
    expected: Pinned | None = None,
) -> dict[str, Any]:
    """Tags every key under a folder, resumes an interrupted run, or tags what is new since; returns the manifest.

    Args:
        config: images, checkpoint, labels, and output.
        resources: the workers, each of which holds the model; one by default.
        decode_tasks: number of batches that are read and decoded ahead for each worker, by Ray tasks with one CPU
            each; 0 reads and decodes in the worker.
        retry_failed: tags images again that were unreachable.
        price_per_hour: price of all machines together, for the page.
        vocabulary: replaces the labels of `config.vocabulary`.
        expected: hash that the checkpoint must have; None takes any.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, is not the one that was planned, or cannot be used with these
            options.
        VocabularyError: the label list cannot be used.
        CorpusError: the images cannot be listed.
        StorageError: `config.out` cannot be written, or contains another run.
    """
    config, resources = _absolute(config), resources or Resources()
    num_workers = resources.num_workers or 1
    device = device_of(resources.gpus_per_worker)
    task, job, plan = _open(config, device, vocabulary, expected)
    started = time.monotonic()
    with job.locked(plan) as lease:
        parts = _plan_parts(config, job, job.path(LISTING), list_keys(config))
        job.start(plan)
        undone, changed = _remaining(job, parts, retry_failed)
        if not changed and storage.exists(job.path(SUCCESS)) and (manifest := job.manifest()) is not None:
            return manifest
        storage.remove(job.path(SUCCESS))
        job.reopen(changed)
        storage.write_json(job.path(RANGES), [[part.key, part.previous_range] for part in parts])
        _connect(num_workers, resources.cpus_per_worker, decode_tasks)
        make_work = partial(
            _worker,
            config,
            device,
            task=task,
            staged=staged_ranges(parts),
            retry_failed=retry_failed,
            decode_tasks=decode_tasks,
        )
        run_partitions(
            job,
            parts,
            make_work,
            lease,
            label="tag",
            resources=replace(resources, num_workers=num_workers),
        )
        manifest = _finish(job, plan, parts)
        run = Run(time.monotonic() - started, num_workers, price_per_hour)
        summary = Summary.from_records(job.records(parts), parts, {part.name for part in [*undone, *changed]})
        write_tagging_page(config, manifest, summary, run)
        print(f"tag: {summary.describe(run)}", file=sys.stderr)
        storage.write_bytes(job.path(SUCCESS), b"")
        return manifest


def dry_run(config: TagConfig, resources: Resources | None = None, price_per_hour: float | None = None) -> str:
    """Returns the number of images that `tag` would tag and an estimate of the time; writes nothing.

    Args:
        config: images, checkpoint, labels, and output.
        resources: the workers that the estimate assumes; one by default. This process tags a sample, on a GPU if the
            workers have some and this machine has one.
        price_per_hour: price of all machines together, for the cost.

    Raises:
        SigrlError: as `tag`.
    """
    config, resources = _absolute(config), resources or Resources()
    device = device_of(resources.gpus_per_worker) if torch.cuda.is_available() else "cpu"
    task, job, _ = _open(config, device)
    sample: list[ListedImage] = []
    listing = list_keys(config)
    listing = replace(listing, images=_copy_first(listing.images, sample, NUM_SAMPLE))
    parts = _plan_parts(config, job, None, listing)
    remaining = [each for ranges in _remaining(job, parts, retry_failed=False) for each in ranges]
    num_rows = sum(part.num_rows for part in remaining)
    lines = [f"{sum(part.num_rows for part in parts):,} keys in {len(parts):,} ranges; {len(remaining):,} to work on"]
    if num_rows:
        tagger = _worker(config, device, task=task, staged=set())
        started = time.monotonic()
        tagger.tag_rows(sample)
        seconds = (time.monotonic() - started) / len(sample)
        num_workers, name = resources.num_workers or 1, "CPU" if device == "cpu" else "GPU"
        hours = seconds * num_rows / num_workers / 3600
        lines.append(
            f"at most {num_rows:,} images to tag: about {60 * hours:,.0f} min with "
            f"{num_workers} workers as fast as this process on its {name}, which took {1000 * seconds:.0f} ms an image"
        )
        if resources.gpus_per_worker and device == "cpu":
            lines.append("this process has no GPU; workers with GPUs are faster, so time and cost are upper bounds")
        if price_per_hour is not None:
            lines.append(f"cost at {price_per_hour:g} an hour: about {price_per_hour * hours:,.2f}")
    return "\n".join(lines)


def _copy_first(rows: Iterable[ListedImage], copy: list[ListedImage], max_rows: int) -> Iterator[ListedImage]:
    """Yields all rows and adds the first ones to `copy`."""
    for row in rows:
        if len(copy) < max_rows:
            copy.append(row)
        yield row


def _open(
    config: TagConfig, device: str, vocabulary: Vocabulary | None = None, expected: Pinned | None = None
) -> tuple[TaggingTask, ResumableJob, dict[str, Any]]:
    """Returns the task, the job of the output folder, and its plan; refuses a folder with another plan."""
    checkpoint = load_checkpoint(config.checkpoint, expected)
    task = _task(config, checkpoint, vocabulary)
    if checkpoint.config.reconstruction.enabled:
        section, bf16 = checkpoint.config.reconstruction, config.precision == "bf16"
        name = resolve_implementation(section.implementation, section.coefficient_rank, device, bf16, trains=False)
        print(f"tag: coefficients = {name}", file=sys.stderr)
    job = ResumableJob(config.out, old_manifest_name="_manifest.json", upgrade_plan=upgrade_plan("tag"))
    plan = _plan(config, task)
    job.check_plan(plan)
    return task, job, plan


def _absolute(config: TagConfig) -> TagConfig:
    """Makes the paths absolute and checks them, see `check_locations`."""
    images, out = storage.absolute(config.images), storage.absolute(config.out)
    check_locations(config.corpus, images, out)
    return replace(config, checkpoint=storage.absolute(config.checkpoint), images=images, out=out)


def _plan(config: TagConfig, task: TaggingTask) -> dict[str, Any]:
    """Returns the settings that a later run in the same folder must have too."""
    embeddings_CE = task.embeddings_CE
    names = ("images", "corpus", "top_k", "threshold", "local_candidates", "precision", "format", "embeddings")
    names += ("heat_maps", "max_file_bytes", "batch_size", "rows_per_shard")
    return {
        **{name: getattr(config, name) for name in names},
        "model": task.model_hash,
        "vocabulary": task.vocabulary.hash,
        "label_embeddings": None if embeddings_CE is None else embeddings_sha256(embeddings_CE),
    }


def _task(config: TagConfig, checkpoint: Checkpoint, vocabulary: Vocabulary | None) -> TaggingTask:
    """Returns the task; checks that the checkpoint supports it before anything is written."""
    if vocabulary is None:
        vocabulary = checkpoint.vocabulary if config.vocabulary is None else Vocabulary.load(config.vocabulary)
    embeddings_CE = load_embeddings(config.label_embeddings, vocabulary) if config.label_embeddings else None
    tagger = Tagger(checkpoint)
    if config.threshold is not None:
        _ = tagger.calibration
    if embeddings_CE is not None or checkpoint.model.embeddings_VE is not None:
        tagger.encode_labels(vocabulary, embeddings_CE)
    return TaggingTask(vocabulary, embeddings_CE, checkpoint.sha256, checkpoint.model.backbone.dim)


def _plan_parts(config: TagConfig, job: ResumableJob, where: str | None, listing: Listing) -> list[KeyRange]:
    """Lists the images and cuts them into ranges, which start with the same keys as in the previous run.

    Args:
        where: file that the listing is written to; None writes none.
    """
    previous_ranges: dict[str, str] = {}
    if storage.exists(job.path(RANGES)):
        finished = job.manifest() is not None
        previous_ranges = {
            start: start if finished or before is None else before
            for start, before in storage.read_json(job.path(RANGES))
        }
    parts: list[KeyRange] = []
    cut = partial(plan_ranges, config, previous_ranges=previous_ranges, on_range=parts.append)
    write_listing(listing, where, partition=cut)
    return parts


def _remaining(
    job: ResumableJob, parts: Sequence[KeyRange], retry_failed: bool
) -> tuple[list[KeyRange], list[KeyRange]]:
    """Returns the ranges that are not tagged yet, and the tagged ones that must be tagged again.

    These are the ranges whose keys or images have changed and, with `retry_failed`, those with unreachable images.
    """
    undone = job.pending(parts)
    done = sorted(set(parts) - set(undone), key=lambda part: part.index)
    changed = [
        part
        for part, record in zip(done, job.records(done), strict=True)
        if record["listing"] != part.listing or (retry_failed and "unreachable" in record["errors"])
    ]
    return undone, changed


def _connect(num_workers: int, cpus_per_worker: float, decode_tasks: int) -> None:
    """Connects to Ray; prints a warning if the workers would leave no CPU for the tasks that decode."""
    reserved = num_workers * cpus_per_worker
    connect(num_cpus=math.ceil(reserved) + num_workers * decode_tasks)
    available = ray.cluster_resources().get("CPU", 0)
    if decode_tasks and available < reserved + 1:
        print(
            f"tag: the cluster has {available:g} CPUs and {num_workers} workers hold {reserved:g} of them, so no image "
            "is decoded until it has more; give fewer --num-workers, or --decode-tasks 0",
            file=sys.stderr,
        )


def _worker(
    config: TagConfig, device: str, task: TaggingTask, decode_tasks: int = 0, **arguments: Any
) -> PartitionTagger:
    """Loads the planned model in a worker; `arguments` are those of `PartitionTagger`."""
    planned = Pinned(task.model_hash, f"the plan of {config.out}")
    tagger = Tagger.load(config.checkpoint, device, config.local_candidates, config.precision, planned)
    size = tagger.model.backbone.image_size
    load = partial(_load_by_tasks, config, size, decode_tasks) if decode_tasks else None
    return PartitionTagger(tagger, task, config, load_images=load, **arguments)


def _load_by_tasks(config: TagConfig, size: int, in_flight: int, rows: Sequence[ListedImage]) -> Iterator[DecodedBatch]:
    """Yields the decoded batches of rows in order; Ray tasks load up to `in_flight` of them ahead."""
    batches = (rows[start : start + config.batch_size] for start in range(0, len(rows), config.batch_size))
    in_flight_refs = deque(_load_batch.remote(config, size, batch) for batch in islice(batches, in_flight))
    while in_flight_refs:
        try:
            decoded = ray.get(in_flight_refs.popleft())
        except RayTaskError as error:
            raise error.cause from None  # the original error, without the task's traceback
        in_flight_refs.extend(_load_batch.remote(config, size, batch) for batch in islice(batches, 1))
        yield decoded


@ray.remote(num_cpus=1)
def _load_batch(config: TagConfig, size: int, batch: Sequence[ListedImage]) -> DecodedBatch:
    (decoded,) = with_retries(lambda: list(load_images(config, size, batch)))()
    return decoded


def _finish(job: ResumableJob, plan: dict[str, Any], parts: Sequence[KeyRange]) -> dict[str, Any]:
    """Moves staged files, removes the files of ranges that no longer exist, and writes the manifest; returns it."""
    staged, errors, files, rows = staged_ranges(parts), Counter[str](), [], 0
    for part, record in zip(parts, job.records(parts), strict=True):
        for path, sha256 in record["files"].items():
            if part.name in staged and storage.exists(job.path(STAGING, path)):
                storage.move(job.path(STAGING, path), job.path(path))
            files.append({"name": path, "rows": record["rows"], "sha256": sha256})
        errors.update(record["errors"])
        rows += record["rows"]
    storage.write_json(job.path(RANGES), [[part.key, part.key] for part in parts])
    expected = {file["name"] for file in files} | {f"parts/{part.name}.json" for part in parts}
    for folder in ("tags", "jsonl", "parts"):
        if storage.is_folder(job.path(folder)):
            for file in storage.walk(job.path(folder)):
                if f"{folder}/{file.path}" not in expected:
                    storage.remove(job.path(folder, file.path))
    manifest = with_checksum(
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
