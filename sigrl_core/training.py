"""The training loop, over plain iterables of Batch. Knows neither Ray nor files.

Under an initialised torch.distributed group it is data parallel: gradients are averaged by DistributedDataParallel,
losses divided by the global number of rows, so that the number of workers changes nothing but the order of sums.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sigrl_core import losses
from sigrl_core.batches import Batch
from sigrl_core.config import RunConfig
from sigrl_core.errors import ConfigError
from sigrl_core.model.recogniser import Recogniser
from sigrl_core.optim import learning_rate, parameter_groups, set_learning_rate

Metrics = dict[str, float]


class Report(Protocol):
    """Called once an epoch on every worker, with what may be saved."""

    def __call__(self, metrics: Metrics, state: TrainingState) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """What there is to learn.

    Attributes:
        labels_CD: text embeddings of the labels trained on, L2-normalised.
        positions: where those labels stand among the states of a batch.
        steps_per_epoch: optimiser steps of one epoch.
    """

    labels_CD: Tensor
    positions: Sequence[int]
    steps_per_epoch: int


@dataclass
class TrainingState:
    """Where training stands: after `epoch` whole epochs and `step` steps."""

    recogniser: Recogniser
    optimiser: torch.optim.Optimizer
    epoch: int = 0
    step: int = 0

    @classmethod
    def start(cls, recogniser: Recogniser, config: RunConfig) -> TrainingState:
        groups = parameter_groups(recogniser, config.optim)
        return cls(recogniser, torch.optim.AdamW(groups, lr=config.optim.lr))


def fit(
    state: TrainingState,
    task: Task,
    batches_for_epoch: Callable[[int], Iterable[Batch]],
    evaluate: Callable[[Recogniser], Metrics],
    report: Report,
    config: RunConfig,
    on_step: Callable[[int, Metrics], None] = lambda step, metrics: None,
) -> None:
    """Trains from `state` to the configured end.

    Args:
        batches_for_epoch: epoch -> this worker's batches.
        evaluate: measures the model after each epoch; called on every worker.
        report: takes each epoch's metrics; the only way out of this function.
        on_step: called after each optimiser step with loss, its parts, rate and seconds spent waiting for data.

    Raises:
        ConfigError: nothing to train on, or the loss is not finite.
    """
    if not task.steps_per_epoch:
        raise ConfigError("training: no picture with a seen positive label in --data; check its labels and vocabulary")
    recogniser, optimiser = state.recogniser, state.optimiser
    workers, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    model: nn.Module = nn.parallel.DistributedDataParallel(recogniser) if workers > 1 else recogniser
    last_step = min(config.training.max_steps or math.inf, config.training.epochs * task.steps_per_epoch)
    while state.epoch < config.training.epochs and state.step < last_step:
        recogniser.train()
        torch.manual_seed(int(np.random.default_rng([config.training.seed, state.epoch, rank]).integers(2**31)))
        totals: Metrics = {}
        started = waited_from = time.monotonic()
        steps = 0
        for batch in batches_for_epoch(state.epoch):
            waited = time.monotonic() - waited_from
            rate = learning_rate(
                state.step / task.steps_per_epoch,
                peak=config.optim.lr,
                epochs=config.training.epochs,
                warmup_epochs=config.optim.warmup_epochs,
                final=config.optim.final_lr,
            )
            set_learning_rate(optimiser, rate)
            parts = _step(model, recogniser, optimiser, batch, task, state.step, config, workers)
            state.step += 1
            steps += 1
            on_step(state.step, {**parts, "lr": rate, "data_wait_s": waited})
            for key, value in {**parts, "data_wait_s": waited}.items():
                totals[key] = totals.get(key, 0.0) + value
            if state.step >= last_step:
                break
            waited_from = time.monotonic()
        state.epoch += 1
        seconds = time.monotonic() - started
        means = {f"train/{key}": value / (1 if key.endswith("_s") else steps) for key, value in totals.items()}
        recogniser.eval()
        report({"epoch": state.epoch, **means, "train/seconds": seconds, **evaluate(recogniser)}, state)


def _step(
    model: nn.Module,
    recogniser: Recogniser,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    task: Task,
    step: int,
    config: RunConfig,
    workers: int,
) -> Metrics:
    """One optimiser step; returns the loss and its parts as means over the global batch."""
    device = recogniser.device
    chosen = label_subset(len(task.positions), config.training.label_fraction, config.training.seed, step)
    states_BC = batch.states_BC[:, torch.as_tensor(task.positions)[chosen]].to(device)
    labels_CD = task.labels_CD.to(device)[chosen.to(device)]
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.training.precision == "bf16"):
        tokens_BNW = tokens_of(recogniser, batch)
        recognised = model(tokens_BNW, labels_CD)
        teacher_BD = recogniser.teacher(tokens_BNW)[0] if config.loss.distillation else recognised.glob_BD.detach()
    # rows of all workers count alike: DDP averages over workers, so each gives its rows' sum over the mean share
    share_B = batch.weight_B.to(device) * workers / batch.global_rows
    main = (losses.get_loss(config.loss.kind)(recognised.scores.logits_BC.float(), states_BC) * share_B).sum()
    kept = (losses.distillation(recognised.glob_BD.float(), teacher_BD.float()) * share_B).sum()
    loss = main + config.loss.distillation * kept
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if config.optim.clip_norm is not None:
        nn.utils.clip_grad_norm_((p for p in recogniser.parameters() if p.requires_grad), config.optim.clip_norm)
    values = torch.stack([loss, main, kept]).detach() / workers
    if workers > 1:
        dist.all_reduce(values)
    if not torch.isfinite(values[0]):
        raise ConfigError(
            f"training: the loss of step {step} is {values[0].item()}; pictures {batch.uris[:5]}; lower optim.lr"
        )
    optimiser.step()
    return dict(zip(("loss", config.loss.kind, "distillation"), values.tolist(), strict=True))


def label_subset(num_labels: int, fraction: float, seed: int, step: int) -> Tensor:
    """Vocabulary dropout: the labels one step trains on, in order; the same on every worker."""
    if fraction >= 1:
        return torch.arange(num_labels)
    count = max(1, round(num_labels * fraction))
    return torch.from_numpy(np.sort(np.random.default_rng([seed, step, 1]).permutation(num_labels)[:count]))


def tokens_of(recogniser: Recogniser, batch: Batch) -> Tensor:
    """The tokens at the frozen seam: those held, or computed from the pictures."""
    if batch.tokens_BNW is not None:
        return batch.tokens_BNW.to(recogniser.device)
    assert batch.pixels_BHWC is not None
    return recogniser.backbone.encode_frozen(batch.pixels_BHWC.to(recogniser.device))


def gather_rows(mine: Any) -> list[Any]:
    """One object of every worker, in the order of ranks; a list of one without a process group."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone
