"""shards -> features: what the frozen blocks of a backbone give for every picture, computed once, in parts.

A part is a run of rows of one shard, small enough that the shards a training shuffles together stay few hundred MB.
parts.py says how a killed run goes on, records.py what is written.
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
from sigrl_core import images, storage
from sigrl_core.checkpoint import load_checkpoint
from sigrl_core.config import BackboneConfig, CacheFeaturesConfig
from sigrl_core.errors import CheckpointError, ShardError
from sigrl_core.model.backbone import Backbone, load_backbone, located
from sigrl_core.on_ray.parts import Work, run_parts
from sigrl_core.on_ray.session import connect
from sigrl_core.parts import Job, Part, plan_parts
from sigrl_core.records import (
    QUARANTINE_SCHEMA,
    SCHEMA_VERSION,
    ShardFolder,
    feature_schema,
    seal,
    sha256_of,
    to_parquet,
)

PART_BYTES = 64_000_000
BATCH_SIZE = 32


def cache_features(
    config: CacheFeaturesConfig, workers: int | None = None, cpus_per_worker: float = 1.0, gpus: bool = False
) -> dict[str, Any]:
    """Makes a folder of features, or goes on with one, or finds it finished; returns its manifest.

    Rows, their order and their split are those of the shards.

    Args:
        workers: processes that each hold the backbone; None for as many as the cluster has CPUs, with `gpus` one.
        cpus_per_worker: what each decodes with, and without `gpus` computes with.
        gpus: a GPU for each.

    Raises:
        CheckpointError, WeightsError: the backbone cannot be loaded.
        ShardError: `config.data` cannot be used, or a feature is too large for 16 bits.
        StorageError: `config.out` cannot be written, holds another run, or another run is at work in it.
    """
    source, job = ShardFolder.open(storage.absolute(config.data)), Job(storage.absolute(config.out))
    if source.kind != "shards":
        raise ShardError(f"{source.uri}: holds features already; give the shards that preprocess.py wrote")
    load = partial(_backbone, config.checkpoint and storage.absolute(config.checkpoint), located(config.backbone))
    backbone = load()
    size = backbone.image_size
    tokens_NW = backbone.encode_frozen(torch.zeros(1, size, size, 3, dtype=torch.uint8))[0]
    rows_per_part = max(1, PART_BYTES // (2 * tokens_NW.numel()))
    plan = {
        "source": source.uri,
        "source_sha256": source.manifest["sha256"],
        "name": backbone.description["name"],
        "blocks": backbone.seam,
        "frozen_sha256": backbone.frozen_sha256(),
        "tokens": tokens_NW.shape[0],
        "width": tokens_NW.shape[1],
        "rows_per_part": rows_per_part,
    }
    if (manifest := job.manifest()) is not None:
        job.agree(plan)
        ShardFolder.open(job.out).verify()
        return manifest
    with job.claimed(plan) as lease:
        job.start(plan)
        parts = _parts(source, rows_per_part)
        connect()
        run_parts(
            job,
            parts,
            partial(_make_work, load, job, source),
            lease,
            label="cache features",
            workers=workers or (1 if gpus else None),
            num_cpus=cpus_per_worker,
            num_gpus=float(gpus),
        )
        return _finish(job, plan, source, parts)


def _backbone(checkpoint: str | None, config: BackboneConfig) -> Backbone:
    if checkpoint is not None:
        return load_checkpoint(checkpoint).recogniser.backbone
    return load_backbone(config).eval()


def _parts(source: ShardFolder, rows_per_part: int) -> list[Part]:
    """Runs of rows, numbered over the whole folder, none of them in two shards."""
    parts: list[Part] = []
    for rows, stop in zip(source.shard_rows, accumulate(source.shard_rows), strict=True):
        for part in plan_parts(rows, rows_per_part):
            parts.append(Part(len(parts), stop - rows + part.start, stop - rows + part.stop))
    return parts


# ---- in a worker ----


def _make_work(load: Callable[[], Backbone], job: Job, source: ShardFolder) -> Work:
    return _Encoder(load(), job, source).encode_part


class _Encoder:
    """One worker's backbone, and the shard that it read last: the next part is most often of the same."""

    def __init__(self, backbone: Backbone, job: Job, source: ShardFolder) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.backbone, self.job, self.source = backbone.to(self.device), job, source
        plan = job.plan()
        if (found := backbone.frozen_sha256()) != (planned := plan["frozen_sha256"]):
            raise CheckpointError(
                f"{job.out}: this worker's backbone is {found[:8]} below its seam, the driver's {planned[:8]}; give "
                "weights that are the same on every machine, not random ones"
            )
        self.schema = feature_schema(plan["tokens"], plan["width"])
        self.stops = list(accumulate(source.shard_rows))
        self.shard, self.table = -1, pa.table({})

    def encode_part(self, part: Part) -> dict[str, Any]:
        """Writes the shard of features of a part."""
        shard = bisect_right(self.stops, part.start)
        if shard != self.shard:
            columns = ["uri", "sha256", "label_states", "image"]
            self.shard, self.table = shard, self.source.read_shard(shard, columns)
        first = part.start - (self.stops[shard] - self.source.shard_rows[shard])
        rows = self.table.slice(first, part.num_rows)
        jpegs = rows["image"].to_pylist()
        features: list[bytes] = []
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            pictures = pool.map(lambda jpeg: images.centre_crop_array(jpeg, self.backbone.image_size), jpegs)
            for start in range(0, part.num_rows, BATCH_SIZE):
                batch = np.stack([next(pictures) for _ in jpegs[start : start + BATCH_SIZE]])
                features += self._encode(torch.from_numpy(batch), rows["uri"][start].as_py())
        told = [rows[name].combine_chunks() for name in self.schema.names[:-1]]
        data = to_parquet(pa.table([*told, pa.array(features, self.schema.types[-1])], self.schema))
        name = part.name + ".parquet"
        storage.write_bytes(self.job.path("shards", name), data)
        described = {"name": name, "rows": part.num_rows, "sha256": sha256_of(data)}
        return {"shard": described, "bytes_in": sum(map(len, jpegs))}

    def _encode(self, pixels_BHWC: torch.Tensor, uri: str) -> list[bytes]:
        tokens_BNW = self.backbone.encode_frozen(pixels_BHWC.to(self.device)).half()
        if not tokens_BNW.isfinite().all():
            raise ShardError(
                f"{self.source.uri}: what the backbone gives for {uri} or a picture soon after it does not fit into 16 "
                "bits; train on the pictures themselves"
            )
        return [tokens_NW.tobytes() for tokens_NW in tokens_BNW.cpu().numpy()]


# ---- on the driver, when all parts are done ----


def _finish(job: Job, plan: dict[str, Any], source: ShardFolder, parts: list[Part]) -> dict[str, Any]:
    quarantine = to_parquet(pa.Table.from_pylist([], QUARANTINE_SCHEMA))
    storage.write_bytes(job.path("quarantine.parquet"), quarantine)
    storage.write_bytes(job.path("vocabulary.json"), source.vocabulary.to_json().encode())
    manifest = seal(
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
