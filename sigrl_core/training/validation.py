"""Validation between epochs: every metric of `METRICS` on the label sets that select the best epoch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from sigrl_core.data.dataset import Batch
from sigrl_core.model.label_set import LabelSet
from sigrl_core.model.model import SigRLModel, compute_tokens
from sigrl_core.plugins import METRICS
from sigrl_core.training.distributed import all_gather_objects


class ValidationTask(NamedTuple):
    """Labels scored together in validation, and their columns in the states of a batch."""

    label_set: LabelSet
    positions: Sequence[int]


def validate(model: SigRLModel, batches: Iterable[Batch], tasks: Mapping[str, ValidationTask]) -> dict[str, float]:
    """Computes all metrics of each task; each worker scores its rows, and every row counts once.

    Args:
        model: in evaluation mode.
        batches: this worker's validation rows.
        tasks: prefix of the metrics' names -> what is scored.

    Returns:
        `validation/<prefix><metric>` -> value; empty without rows.
    """
    local: list[tuple[np.ndarray, list[np.ndarray]]] = []
    with torch.no_grad():
        for batch in batches:
            keep, tokens_BNW = batch.weight_B.numpy() > 0, compute_tokens(model, batch)
            scores = [model(tokens_BNW, task.label_set).scores.scores_BC for task in tasks.values()]
            local.append((batch.states_BC.numpy()[keep], [each.float().cpu().numpy()[keep] for each in scores]))
    all_ranks = list(itertools.chain.from_iterable(all_gather_objects(local)))
    if not all_ranks:
        return {}
    states_NV = np.concatenate([states_BV for states_BV, _ in all_ranks])
    metrics = {}
    for number, (prefix, task) in enumerate(tasks.items()):
        scores_NC = np.concatenate([scores[number] for _, scores in all_ranks])
        states_NC = states_NV[:, list(task.positions)]
        for name, metric in METRICS.items():
            metrics[f"validation/{prefix}{name}"] = float(metric(scores_NC, states_NC))
    return metrics
