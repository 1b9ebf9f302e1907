"""Caches features: computes the output of a backbone's frozen blocks once for every image of a shard folder.

A partition is a range of rows of one shard. It is small, so that the shards which a training shuffles together need a
few hundred MB. `io.resumable_job` explains how a run is resumed, `data.shards` the format of the files.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import sigrl_core
from sigrl_core.config import BackboneConfig, CacheFeaturesConfig, Resources
from sigrl_core.config.deprecated import upgrade_plan
from sigrl_core.data import images
from sigrl_core.data.shards import QUARANTINE_SCHEMA, SCHEMA_VERSION, ShardFolder, feature_schema
from sigrl_core.errors import CheckpointError, ShardError
from sigrl_core.io import storage
from sigrl_core.io.checksums import Pinned, sha256_of, with_checksum
from sigrl_core.io.parquet import to_parquet
from sigrl_core.io.resumable_job import Partition, ResumableJob, plan_partitions
from sigrl_core.model.backbone import Backbone, load_backbone, with_absolute_path
from sigrl_core.model.checkpoint import load_checkpoint
from sigrl_core.on_ray.partitions import Work, run_partitions
from sigrl_core.on_ray.session import connect, device_of

PARTITION_BYTES = 64_000_000
"""Maximum size of the features of a partition."""
BATCH_SIZE = 32


def cache_features(config: CacheFeaturesConfig, resources: Resources | None = None) -> dict[str, Any]:
    """Writes a folder of features or resumes it; returns its manifest. Does nothing if the folder is finished.

    Rows, their order and their split are those of the shards.

    Args:
        config: backbone, shards, and output.
        resources: the workers, each of which holds the backbone.

    Raises:
        CheckpointError: the checkpoint that contains the backbone cannot be loaded.
        WeightsError: the backbone's weights are missing.
        ShardError: `config.data` cannot be used, or a feature is too large for 16 bits.
        StorageError: `config.out` cannot be written, contains another run, or is used by another run.
    """
    resources = resources or Resources()
    source = ShardFolder.open(storage.absolute(config.data))
    job = ResumableJob(storage.absolute(config.out), upgrade_plan=upgrade_plan("cache_features"))
    if source.kind != "shards":
        raise ShardError(f"{source.uri}: holds features already; give the shards that preprocess.py wrote")
    checkpoint = config.checkpoint and storage.absolute(config.checkpoint)
    backbone_config = with_absolute_path(config.backbone)
    load, where = partial(_backbone, checkpoint, backbone_config), checkpoint or backbone_config.pretrained
    backbone = load()
    size = backbone.image_size
    source.check_image_size(size, "--allow-enlarged", config.allow_enlarged)
    tokens_NW = backbone.forward_frozen(torch.zeros(1, size, size, 3, dtype=torch.uint8))[0]
    rows_per_shard = max(1, PARTITION_BYTES // (2 * tokens_NW.numel()))
    plan = {
        "source": source.uri,
        "source_sha256": source.manifest["sha256"],
        "name": backbone.description["name"],
        "blocks": backbone.split_block,
        "frozen_sha256": backbone.frozen_sha256(),
        "tokens": tokens_NW.shape[0],
        "width": tokens_NW.shape[1],
        "rows_per_shard": rows_per_shard,
    }
    if (manifest := job.manifest()) is not None:
        job.check_plan(plan)
        ShardFolder.open(job.out).verify()
        return manifest
    with job.locked(plan) as lease:
        job.start(plan)
        parts = _plan_shards(source, rows_per_shard)
        connect()
        run_partitions(
            job,
            parts,
            partial(_make_work, load, where, job, source, device_of(resources.gpus_per_worker)),
            lease,
            label="cache features",
            resources=resources,
        )
        return _finish(job, plan, source, parts)


def _backbone(checkpoint: str | None, config: BackboneConfig) -> Backbone:
    if checkpoint is not None:
        return load_checkpoint(checkpoint).model.backbone
    return load_backbone(config).eval()


def _plan_shards(source: ShardFolder, rows_per_shard: int) -> list[Partition]:
    """Cuts the rows of a folder into partitions, none of which contains rows of two shards."""
    parts: list[Partition] = []
    for rows, stop in zip(source.shard_rows, accumulate(source.shard_rows), strict=True):
        for part in plan_partitions(rows, rows_per_shard):
            parts.append(Partition(len(parts), stop - rows + part.start, stop - rows + part.stop))
    return parts


# ---- in a worker ----


def _make_work(load: Callable[[], Backbone], where: str, job: ResumableJob, source: ShardFolder, device: str) -> Work:
    return _Encoder(load(), where, job, source, device).encode_partition


class _Encoder:
    """One worker's backbone. It keeps the latest shard, because the next partition is usually of the same shard."""

    def __init__(self, backbone: Backbone, where: str, job: ResumableJob, source: ShardFolder, device: str) -> None:
        self.device = torch.device(device)
        self.backbone, self.job, self.source = backbone.to(self.device), job, source
        plan = job.plan()
        other_step = "choose another --out; weights must be the same on every machine, so not random ones"
        planned = Pinned(plan["frozen_sha256"], f"the plan of {job.out}", other_step)
        planned.check(where, "frozen blocks", backbone.frozen_sha256(), CheckpointError)
        self.schema = feature_schema(plan["tokens"], plan["width"])
        self.stops = list(accumulate(source.shard_rows))
        self.shard, self.table = -1, pa.table({})

    def encode_partition(self, part: Partition) -> dict[str, Any]:
        """Writes the features of a partition as one shard; returns its commit record."""
        shard = bisect_right(self.stops, part.start)
        if shard != self.shard:
            columns = ["uri", "sha256", "label_states", "image"]
            self.shard, self.table = shard, self.source.read_shard(shard, columns)
        first = part.start - (self.stops[shard] - self.source.shard_rows[shard])
        rows = self.table.slice(first, part.num_rows)
        jpegs = rows["image"].to_pylist()
        features: list[bytes] = []
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            crops = pool.map(lambda jpeg: images.centre_crop_array(jpeg, self.backbone.image_size), jpegs)
            for start in range(0, part.num_rows, BATCH_SIZE):
                batch = np.stack([next(crops) for _ in jpegs[start : start + BATCH_SIZE]])
                features += self._encode(torch.from_numpy(batch), rows["uri"][start].as_py())
        copied = [rows[name].combine_chunks() for name in self.schema.names[:-1]]
        data = to_parquet(pa.table([*copied, pa.array(features, self.schema.types[-1])], self.schema))
        name = part.name + ".parquet"
        storage.write_bytes(self.job.path("shards", name), data)
        shard_entry = {"name": name, "rows": part.num_rows, "sha256": sha256_of(data)}
        return {"shard": shard_entry, "bytes_in": sum(map(len, jpegs))}

    def _encode(self, pixels_BHWC: torch.Tensor, uri: str) -> list[bytes]:
        tokens_BNW = self.backbone.forward_frozen(pixels_BHWC.to(self.device)).half()
        if not tokens_BNW.isfinite().all():
            raise ShardError(
                f"{self.source.uri}: the features of {uri}, or of an image of its batch, do not fit into 16 bits; "
                "train on the images themselves"
            )
        return [tokens_NW.tobytes() for tokens_NW in tokens_BNW.cpu().numpy()]


# ---- on the driver, when all partitions are finished ----


def _finish(job: ResumableJob, plan: dict[str, Any], source: ShardFolder, parts: list[Partition]) -> dict[str, Any]:
    """Writes the files about the whole folder, the manifest last; returns the manifest."""
    quarantine = to_parquet(pa.Table.from_pylist([], QUARANTINE_SCHEMA))
    storage.write_bytes(job.path("quarantine.parquet"), quarantine)
    storage.write_bytes(job.path("vocabulary.json"), source.vocabulary.to_json().encode())
    manifest = with_checksum(
        {
            "kind": "features",
            "schema_version": SCHEMA_VERSION,
            "code_version": sigrl_core.__version__,
            "features": plan,
            "vocabulary_hash": source.vocabulary.hash,
            "num_labels": len(source.vocabulary),
            "rows_in": source.num_rows,
            "rows_out": source.num_rows,
            "quarantined": 0,
            "duplicates": 0,
            "split": source.manifest["split"],
            "quarantine": {"name": "quarantine.parquet", "sha256": sha256_of(quarantine)},
            "shards": [record["shard"] for record in job.records(parts)],
            "label_counts": source.manifest["label_counts"],
        }
    )
    job.finish(manifest, parts)
    return manifest
