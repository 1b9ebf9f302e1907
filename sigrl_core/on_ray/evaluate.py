"""Scores the pictures of an evaluation on many workers; what is measured of the scores is evaluation.py's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayTaskError
from ray.util import ActorPool

from sigrl_core import storage
from sigrl_core.batches import Rows
from sigrl_core.config import EvaluateConfig
from sigrl_core.errors import SigrlError
from sigrl_core.evaluation import BATCH_SIZE, Comparison, Scored
from sigrl_core.on_ray.session import connect, device_of
from sigrl_core.records import ShardFolder

BATCHES_AT_A_TIME = 4
MAX_RESTARTS = 3


def scored_by_workers(
    config: EvaluateConfig, num_rows: int, workers: int, cpus_per_worker: float = 1.0, gpus: bool = False
) -> Iterator[Scored]:
    """Every picture once, in order, in the batches of a single process, whatever the number of workers.

    Args:
        config: what scores which pictures.
        num_rows: how many these are, those of `Comparison.measured_rows`.
        workers: processes that hold the checkpoints; a lost one is replaced.
        cpus_per_worker: what each computes with.
        gpus: a GPU for each.

    Raises:
        SigrlError: what a worker raised.
    """
    config = replace(
        config,  # as a worker finds them, whatever folder it runs in
        checkpoint=storage.absolute(config.checkpoint),
        data=storage.absolute(config.data),
        compare=tuple(f"{name}={storage.absolute(uri)}" for name, uri in config.others.items()),
    )
    order = np.arange(num_rows)
    stretch = BATCH_SIZE * BATCHES_AT_A_TIME
    stretches = [order[first : first + stretch] for first in range(0, len(order), stretch)]
    connect()
    remote: Any = ray.remote(
        num_cpus=cpus_per_worker, num_gpus=float(gpus), max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS
    )(_Scorer)
    pool = ActorPool([remote.remote(config, gpus) for _ in range(min(workers, len(stretches)))])
    try:
        for scored in pool.map(lambda worker, numbers: worker.score.remote(numbers), stretches):
            yield from scored
    except RayTaskError as error:
        if isinstance(error.cause, SigrlError):
            raise error.cause from None
        raise


class _Scorer:
    def __init__(self, config: EvaluateConfig, gpus: bool) -> None:
        self.config, self.device = config, device_of(gpus)

    @cached_property  # not in the constructor: of an error there Ray keeps only its text
    def loaded(self) -> tuple[Comparison, Rows]:
        comparison = Comparison.load(self.config, self.device)
        return comparison, comparison.measured_rows(ShardFolder.open(self.config.data))

    def score(self, numbers: np.ndarray) -> list[Scored]:
        comparison, rows = self.loaded
        return list(comparison.score(rows, numbers))
