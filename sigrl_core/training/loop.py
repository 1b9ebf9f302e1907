"""The training loop, over plain iterables of Batch, without Ray and without files.

Under an initialised torch.distributed group it is data parallel: DistributedDataParallel averages gradients, and losses
are divided by the global number of rows, so that the number of workers changes only the order of sums.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sigrl_core.config import RunConfig, ScaleConfig
from sigrl_core.data.dataset import Batch
from sigrl_core.errors import ConfigError
from sigrl_core.model.model import SigRLModel, compute_tokens
from sigrl_core.training.distributed import all_gather_objects
from sigrl_core.training.optim import compute_learning_rate, set_learning_rate
from sigrl_core.training.state import MONITOR, Metrics, TrainingState, TrainingTask
from sigrl_core.training.step import Learner, TrainStep

SUMMED = ("seconds", "data_wait_s")
"""Metrics of steps whose sum over an epoch is logged; of the others the mean is."""


class OnCheckpoint(Protocol):
    """Is called on every worker when a checkpoint is due: after an epoch with its metrics, inside one with None."""

    def __call__(self, metrics: Metrics | None, state: TrainingState) -> None: ...


class OnStepEnd(Protocol):
    """Is called on every worker after each optimiser step. True makes all workers save and stop; several workers do so
    after the next step."""

    def __call__(self, step: int, metrics: Metrics) -> bool | None: ...


def fit(
    state: TrainingState,
    task: TrainingTask,
    batches_for_epoch: Callable[[int, int], Iterable[Batch]],
    evaluate: Callable[[SigRLModel], Metrics],
    on_checkpoint: OnCheckpoint,
    config: RunConfig,
    scale: ScaleConfig,
    on_step_end: OnStepEnd = lambda step, metrics: None,
) -> bool:
    """Trains from `state`, also from inside an epoch, to the configured end or until `on_step_end` returns True.

    Args:
        state: changed in place.
        task: the labels that are trained.
        batches_for_epoch: (epoch, number of its first batch to return) -> this worker's batches.
        evaluate: measures the model after each epoch; called on every worker.
        on_checkpoint: gets the state after each epoch, and inside epochs as `scale` says.
        config: the experiment.
        scale: interval of checkpoints inside an epoch, micro-batches, compilation.
        on_step_end: gets the loss and its terms, the gradient norm, the learning rate, and the seconds of the step and
            of waiting for data.

    Returns:
        Whether the configured end was reached.

    Raises:
        ConfigError: there is nothing to train on.
        NotFiniteError: a loss or a gradient is not finite; that step was not made.
    """
    if not task.steps_per_epoch:
        raise ConfigError("training: no image with a seen positive label in --data; check its labels and vocabulary")
    training, model = config.training, state.model
    run_step = _make_step(state, task, config, scale)
    last_step = min(training.max_steps or math.inf, training.epochs * task.steps_per_epoch)
    should_stop = is_stopping = False
    while state.epoch < training.epochs and state.step < last_step and not _is_stale(state, training.patience):
        model.train()
        started = time.monotonic()
        for batch in batches_for_epoch(state.epoch, state.step - state.epoch * task.steps_per_epoch):
            data_wait_s = time.monotonic() - started
            lr = _current_lr(state, task, config)
            set_learning_rate(state.optimiser, lr)
            step_metrics = run_step(batch, should_stop)
            any_worker_stops = step_metrics.pop("stopping") > 0
            state.step += 1
            state.ema.update(model)
            seconds = time.monotonic() - started
            _accumulate(state, batch, step_metrics, seconds, data_wait_s)
            step_metrics |= {"lr": lr, "step_s": seconds, "data_wait_s": data_wait_s}
            should_stop = bool(on_step_end(state.step, step_metrics))
            is_stopping = any_worker_stops or (should_stop and run_step.world_size == 1)
            if state.step >= last_step:
                break
            if is_stopping and state.step % task.steps_per_epoch:  # after its last step, the epoch ends first
                on_checkpoint(None, state)
                return False
            if scale.save_every and state.step % scale.save_every == 0 and state.step % task.steps_per_epoch:
                on_checkpoint(None, state)
            started = time.monotonic()
        _end_epoch(state, task, batches_for_epoch, evaluate, on_checkpoint, config, run_step.world_size)
        if is_stopping and state.step < last_step:
            return False
    return True


def _make_step(state: TrainingState, task: TrainingTask, config: RunConfig, scale: ScaleConfig) -> TrainStep:
    world_size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    learner: nn.Module = Learner(state)
    if scale.compile:
        learner.compile()
    if world_size > 1:  # no buffer changes, and the number of micro-batches may differ between workers
        learner = nn.parallel.DistributedDataParallel(learner, broadcast_buffers=False)
    return TrainStep(learner, state, task, config, scale.micro_batches, world_size, rank)


def _current_lr(state: TrainingState, task: TrainingTask, config: RunConfig) -> float:
    optim = config.optim
    return compute_learning_rate(
        state.step / task.steps_per_epoch,
        peak=optim.lr,
        epochs=config.training.epochs,
        warmup_epochs=optim.warmup_epochs,
        final=optim.final_lr,
    )


def _accumulate(state: TrainingState, batch: Batch, metrics: Metrics, seconds: float, data_wait_s: float) -> None:
    """Adds the metrics of a step to the sums of its epoch."""
    sums = {**metrics, "steps": 1.0, "rows": batch.global_rows, "seconds": seconds, "data_wait_s": data_wait_s}
    state.totals = {key: state.totals.get(key, 0.0) + value for key, value in sums.items()}


def _end_epoch(
    state: TrainingState,
    task: TrainingTask,
    batches_for_epoch: Callable[[int, int], Iterable[Batch]],
    evaluate: Callable[[SigRLModel], Metrics],
    on_checkpoint: OnCheckpoint,
    config: RunConfig,
    world_size: int,
) -> None:
    """Assigns soft labels, measures the model, updates the best epoch and saves."""
    model = state.model
    state.epoch += 1
    model.eval()
    if state.sample_labels.relabels_after(state.epoch, config.training.epochs):
        _relabel(state, task, batches_for_epoch(state.epoch, 0), config)
    metrics = {"epoch": state.epoch, **_summarise(state.totals), "train/memory_mb": _peak_memory_mb(model.device)}
    metrics["workers"] = world_size
    with state.ema.swapped_into(model):
        metrics |= evaluate(model)
    metrics.setdefault(MONITOR, float(state.epoch))
    state.totals, state.best = {}, max(state.best, (metrics[MONITOR], state.epoch), key=lambda best: best[0])
    on_checkpoint(metrics, state)


def _is_stale(state: TrainingState, patience: int | None) -> bool:
    return patience is not None and state.epoch - state.best[1] >= patience


def _summarise(totals: Metrics) -> Metrics:
    """Returns an epoch's means over its steps, its seconds, and its images per second."""
    steps, rows = totals["steps"], totals["rows"]
    means = {key: value / (1 if key in SUMMED else steps) for key, value in totals.items()}
    means["images_per_s"] = rows / totals["seconds"]
    return {f"train/{key}": value for key, value in means.items() if key not in ("steps", "rows")}


def _peak_memory_mb(device: torch.device) -> float:
    """Returns the peak memory so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


@torch.no_grad()
def _relabel(state: TrainingState, task: TrainingTask, batches: Iterable[Batch], config: RunConfig) -> None:
    """Scores every training row, on all workers, and assigns soft labels by these scores."""
    model = state.model
    local: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in batches:
        output = model(compute_tokens(model, batch), task.label_set.to(model.device))
        probabilities_BC = output.scores.logits_BC.float().sigmoid().cpu()
        counts_B = batch.weight_B > 0
        states_BC = batch.states_BC[:, torch.as_tensor(task.positions)]
        local.append((batch.rows_B[counts_B], states_BC[counts_B], probabilities_BC[counts_B]))
    all_ranks = [part for parts in all_gather_objects(local) for part in parts]
    rows_N, states_NC, probabilities_NC = (torch.cat(column) for column in zip(*all_ranks, strict=True))
    order = rows_N.argsort()  # the same on every worker and for every number of workers
    rows_N, states_NC, probabilities_NC = (
        values[order].to(model.device) for values in (rows_N, states_NC, probabilities_NC)
    )
    state.sample_labels.relabel(rows_N, states_NC, probabilities_NC, config.training.epochs)
