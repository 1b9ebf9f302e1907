"""Scores the images of an evaluation on Ray workers; `evaluation.evaluator` computes the metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayTaskError
from ray.util import ActorPool

from sigrl_core.config import EvaluateConfig, Resources
from sigrl_core.data.dataset import ShardDataset
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import SigrlError
from sigrl_core.evaluation.evaluator import Evaluator, ScoredBatch
from sigrl_core.evaluation.inputs import BATCH_SIZE
from sigrl_core.io import storage
from sigrl_core.io.checksums import Pinned
from sigrl_core.on_ray.session import connect, device_of

BATCHES_PER_CALL = 4
MAX_RESTARTS = 3


def score_on_workers(
    config: EvaluateConfig, evaluator: Evaluator, dataset: ShardDataset, resources: Resources
) -> Iterator[ScoredBatch]:
    """Yields the scores of every image once, in order, in the same batches for any number of workers.

    Args:
        config: the checkpoints and the images.
        evaluator: the checkpoints as this process loaded them; the workers must find the same ones.
        dataset: `evaluator.open_images`.
        resources: the workers, each of which loads the checkpoints; one if `num_workers` is None. A lost worker is
            replaced.

    Raises:
        SigrlError: an error of a worker.
    """
    resources.refuse("evaluate", "min_workers")
    config = replace(
        config,  # a worker may run in another folder
        checkpoint=storage.absolute(config.checkpoint),
        data=storage.absolute(config.data),
        compare=tuple(f"{name}={storage.absolute(uri)}" for name, uri in config.compared_checkpoints.items()),
    )
    owner, again = "the driver of this evaluation", "run the command again"
    checkpoints = {name: Pinned(sha256, owner, again) for name, sha256 in evaluator.hashes.items()}
    shards = Pinned(dataset.folder.manifest["sha256"], owner, again)
    num_rows, chunk_size = len(dataset), BATCH_SIZE * BATCHES_PER_CALL
    chunks = [np.arange(start, min(start + chunk_size, num_rows)) for start in range(0, num_rows, chunk_size)]
    connect()
    remote: Any = ray.remote(
        num_cpus=resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker,
        max_restarts=MAX_RESTARTS,
        max_task_retries=MAX_RESTARTS,
    )(_Scorer)
    device = device_of(resources.gpus_per_worker)
    pool = ActorPool(
        [
            remote.remote(config, device, checkpoints, shards)
            for _ in range(min(resources.num_workers or 1, len(chunks)))
        ]
    )
    try:
        for batches in pool.map(lambda worker, indices: worker.score.remote(indices), chunks):
            yield from batches
    except RayTaskError as error:
        if isinstance(error.cause, SigrlError):
            raise error.cause from None
        raise


class _Scorer:
    def __init__(self, config: EvaluateConfig, device: str, checkpoints: Mapping[str, Pinned], shards: Pinned) -> None:
        self.config, self.device, self.checkpoints, self.shards = config, device, checkpoints, shards

    @cached_property  # not in the constructor: Ray reports only the text of an error there
    def loaded(self) -> tuple[Evaluator, ShardDataset]:
        evaluator = Evaluator.load(self.config, self.device, self.checkpoints)
        return evaluator, evaluator.open_images(ShardFolder.open(self.config.data, self.shards))

    def score(self, indices: np.ndarray) -> list[ScoredBatch]:
        evaluator, dataset = self.loaded
        return list(evaluator.score(dataset, indices))
