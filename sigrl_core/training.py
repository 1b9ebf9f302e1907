"""The training loop, over plain iterables of Batch. Knows neither Ray nor files.

Under an initialised torch.distributed group it is data parallel: gradients are averaged by DistributedDataParallel,
losses divided by the global number of rows, so that the number of workers changes nothing but the order of sums.
"""

from __future__ import annotations

import contextlib
import math
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sigrl_core import losses
from sigrl_core.batches import Batch
from sigrl_core.config import RunConfig, ScaleConfig
from sigrl_core.errors import ConfigError, NotFiniteError
from sigrl_core.label_memory import LabelMemory
from sigrl_core.model.asked import Asked
from sigrl_core.model.recogniser import Recognised, Recogniser
from sigrl_core.optim import WeightAverage, learning_rate, parameter_groups, set_learning_rate

Metrics = dict[str, float]

SELECTION = "selection"
"""The metric that chooses the best epoch, as `evaluate` gives it; the epoch's number where it gives none."""


class Report(Protocol):
    """Called on every worker when there is something to save: after an epoch with its metrics, inside one with None."""

    def __call__(self, metrics: Metrics | None, state: TrainingState) -> None: ...


class OnStep(Protocol):
    """Called on every worker after each optimiser step; True asks all workers to save and leave, several of them after
    the next step."""

    def __call__(self, step: int, metrics: Metrics) -> bool | None: ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """What there is to learn.

    Attributes:
        asked: the labels trained on.
        positions: where those labels stand among the states of a batch.
        steps_per_epoch: optimiser steps of one epoch.
    """

    asked: Asked
    positions: Sequence[int]
    steps_per_epoch: int


@dataclass
class TrainingState:
    """Where training stands: after `epoch` whole epochs and `step` steps, all that it goes on from.

    Attributes:
        average: of the weights over the steps, where `training.ema` asks for it; what is evaluated and published.
        totals: sums over the steps of the epoch under way.
        best: the highest `SELECTION` so far and its epoch.
    """

    recogniser: Recogniser
    memory: LabelMemory
    optimiser: torch.optim.Optimizer
    average: WeightAverage
    epoch: int = 0
    step: int = 0
    totals: Metrics = field(default_factory=dict)
    best: tuple[float, int] = (-math.inf, 0)

    @classmethod
    def start(cls, recogniser: Recogniser, config: RunConfig, rows: int, labels: int) -> TrainingState:
        """Before the first step, to train on so many rows and labels."""
        memory = LabelMemory(config.loss, rows, labels, config.training.seed).to(recogniser.device)
        groups = parameter_groups(recogniser, config.optim)
        if estimator := list(memory.parameters()):
            groups.append({"params": estimator, "lr_scale": config.loss.estimator_rate, "weight_decay": 0.0})
        average = WeightAverage(recogniser, config.training.ema)
        return cls(recogniser, memory, torch.optim.AdamW(groups, lr=config.optim.lr), average)


class _Learner(nn.Module):
    """All that trains, in one module, for DistributedDataParallel to find every gradient."""

    def __init__(self, state: TrainingState) -> None:
        super().__init__()
        self.recogniser, self.memory = state.recogniser, state.memory

    def forward(self, tokens_BNW: Tensor, asked: Asked, rows_B: Tensor) -> tuple[Recognised, Tensor | None]:
        return self.recogniser(tokens_BNW, asked), self.memory.estimate(rows_B)


class _AllWorkers(losses.WholeBatch):
    """The images of one step on all workers, those with a weight of 0 left out."""

    def __init__(self, batch: Batch, device: torch.device, workers: int) -> None:
        self.workers, self.counts_B = workers, batch.weight_B > 0
        # DDP averages gradients over workers, so each gives its rows' sum over the mean share of rows
        self.share_B = batch.weight_B.to(device) * workers / batch.global_rows

    def mean(self, values_B: Tensor) -> Tensor:
        return (values_B * self.share_B).sum()

    def known_mean(self, values_B: Tensor) -> Tensor:
        mine = self.mean(values_B)
        if self.workers == 1:
            return mine
        total = mine.detach() / self.workers
        dist.all_reduce(total)
        return mine + (total - mine.detach())  # the value is everyone's, the gradient of these rows alone

    def gather(self, values_BC: Tensor) -> Tensor:
        mine = values_BC.detach()[self.counts_B.to(values_BC.device)]
        return torch.cat([rows.to(mine.device) for rows in gather_rows(mine.cpu())])


def fit(
    state: TrainingState,
    task: Task,
    batches_for_epoch: Callable[[int, int], Iterable[Batch]],
    evaluate: Callable[[Recogniser], Metrics],
    report: Report,
    config: RunConfig,
    scale: ScaleConfig,
    on_step: OnStep = lambda step, metrics: None,
) -> bool:
    """Trains from `state`, also from inside an epoch, to the configured end or until `on_step` wants to leave.

    Args:
        batches_for_epoch: epoch and number of its first batch wanted -> this worker's batches from there on.
        evaluate: measures the model after each epoch; called on every worker.
        report: the only way out of this function.
        scale: when to report inside an epoch, in how many pieces to compute, whether compiled.
        on_step: is given the loss, its parts, the gradient's norm, the rate, and seconds spent in all and waiting.

    Returns:
        Whether the end was reached.

    Raises:
        ConfigError: nothing to train on.
        NotFiniteError: a loss or a gradient is not finite; the step was not taken.
    """
    if not task.steps_per_epoch:
        raise ConfigError("training: no picture with a seen positive label in --data; check its labels and vocabulary")
    recogniser = state.recogniser
    workers, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    learner: nn.Module = _Learner(state)
    if scale.compile:
        learner.compile()
    if workers > 1:  # no buffer changes, and workers may compute in different numbers of pieces
        learner = nn.parallel.DistributedDataParallel(learner, broadcast_buffers=False)
    training = config.training
    leave = False
    last_step = min(training.max_steps or math.inf, training.epochs * task.steps_per_epoch)
    while state.epoch < training.epochs and state.step < last_step and not _no_better(state, training.patience):
        recogniser.train()
        started = time.monotonic()
        for batch in batches_for_epoch(state.epoch, state.step - state.epoch * task.steps_per_epoch):
            waited = time.monotonic() - started
            rate = learning_rate(
                state.step / task.steps_per_epoch,
                peak=config.optim.lr,
                epochs=training.epochs,
                warmup_epochs=config.optim.warmup_epochs,
                final=config.optim.final_lr,
            )
            set_learning_rate(state.optimiser, rate)
            parts = _step(learner, state, batch, task, config, workers, rank, scale.pieces, leave)
            leaving = parts.pop("leaving") > 0
            state.step += 1
            state.average.update(recogniser)
            seconds = time.monotonic() - started
            sums = {**parts, "steps": 1.0, "rows": batch.global_rows, "seconds": seconds, "data_wait_s": waited}
            state.totals = {key: state.totals.get(key, 0.0) + value for key, value in sums.items()}
            leave = bool(on_step(state.step, {**parts, "lr": rate, "step_s": seconds, "data_wait_s": waited}))
            if state.step >= last_step:
                break
            if leaving or (leave and workers == 1):
                report(None, state)
                return False
            if scale.save_every and state.step % scale.save_every == 0 and state.step % task.steps_per_epoch:
                report(None, state)
            started = time.monotonic()
        state.epoch += 1
        recogniser.eval()
        if state.memory.relabels_after(state.epoch, training.epochs):
            _relabel(state, task, batches_for_epoch(state.epoch, 0), config)
        metrics = {"epoch": state.epoch, **_means(state.totals), "train/memory_mb": _memory_mb(recogniser.device)}
        metrics["workers"] = workers
        with state.average.in_place_of(recogniser):
            metrics |= evaluate(recogniser)
        metrics.setdefault(SELECTION, float(state.epoch))
        state.totals, state.best = {}, max(state.best, (metrics[SELECTION], state.epoch), key=lambda best: best[0])
        report(metrics, state)
    return True


def _no_better(state: TrainingState, patience: int | None) -> bool:
    return patience is not None and state.epoch - state.best[1] >= patience


def _means(totals: Metrics) -> Metrics:
    """Of an epoch: means over its steps, seconds in all, pictures a second."""
    steps, rows = totals["steps"], totals["rows"]
    means = {key: value / (1 if key in ("seconds", "data_wait_s") else steps) for key, value in totals.items()}
    means["images_per_s"] = rows / totals["seconds"]
    return {f"train/{key}": value for key, value in means.items() if key not in ("steps", "rows")}


def _memory_mb(device: torch.device) -> float:
    """The most memory so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _step(
    learner: nn.Module,
    state: TrainingState,
    batch: Batch,
    task: Task,
    config: RunConfig,
    workers: int,
    rank: int,
    pieces: int,
    leave: bool,
) -> Metrics:
    """One optimiser step; returns the loss and its parts, of the global batch, and the share of workers that `leave`.

    The loss is of the whole batch, as its statistics are, whatever the number of pieces: its gradient at the logits and
    class tokens of all pieces is found first, then travels back through one piece at a time. All but the first run
    forward a second time for that, with the masks of the first time (Gao et al. 2021, arXiv 2101.06983).
    """
    recogniser, device = state.recogniser, state.recogniser.device
    chosen = label_subset(len(task.positions), config.training.label_fraction, config.training.seed, state.step)
    rows_B, chosen_C = batch.rows_B.to(device), chosen.to(device)
    every_label = task.asked.to(device)
    asked = every_label.take(chosen_C)
    mixed = torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.training.precision == "bf16")
    sizes = [len(part) for part in np.array_split(rows_B.cpu(), min(pieces, len(rows_B)))]
    with mixed:
        tokens = [tokens_of(recogniser, piece) for piece in batch.split(sizes)]
        wants_teacher = config.loss.distillation or config.loss.kind == "em_pl"
        teachers = [recogniser.teacher(tokens_BNW)[0] for tokens_BNW in tokens] if wants_teacher else None
    rows = rows_B.split(sizes)
    # of the step, so that one who goes on inside an epoch draws the same masks
    seed = int(np.random.default_rng([config.training.seed, state.step, rank, 2]).integers(2**31))

    def answer(piece: int) -> list[Tensor]:
        """Logits, class tokens and, where there is one, the estimate of the labels."""
        torch.manual_seed(seed + piece)
        with mixed:
            recognised, estimate_BC = learner(tokens[piece], asked, rows[piece])
        answered = [recognised.scores.logits_BC, recognised.glob_BD]
        return answered if estimate_BC is None else [*answered, estimate_BC]

    def alone(piece: int) -> contextlib.AbstractContextManager[None]:
        """Workers add their gradients together in the last piece alone."""
        if isinstance(learner, nn.parallel.DistributedDataParallel) and piece < len(sizes) - 1:
            return learner.no_sync()
        return contextlib.nullcontext()

    with alone(0):
        first = answer(0)
    with torch.no_grad():
        others = [answer(piece) for piece in range(1, len(sizes))]
    answered = [torch.cat(pieces).detach().requires_grad_() for pieces in zip(first, *others, strict=True)]
    logits_BC, glob_BD, estimate_BC = [*answered, None][:3]
    teacher_BD = torch.cat(teachers) if teachers else glob_BD.detach()
    known = losses.Known(
        states_BC=batch.states_BC[:, torch.as_tensor(task.positions)[chosen]].to(device),
        pseudo_BC=_chosen(_pseudo_labels(teacher_BD.float(), every_label.labels_CD, config), chosen_C),
        soft_BC=_chosen(state.memory.soft(rows_B), chosen_C),
        estimate_BC=_chosen(estimate_BC, chosen_C),
        epoch=state.epoch,
    )
    everyone = _AllWorkers(batch, device, workers)
    main = losses.get_loss(config.loss.kind)(logits_BC.float(), known, config.loss, everyone)
    kept = everyone.mean(losses.distillation(glob_BD.float(), teacher_BD.float()))
    loss = main + config.loss.distillation * kept
    state.optimiser.zero_grad(set_to_none=True)
    of_pieces = zip(*(values.split(sizes) for values in torch.autograd.grad(loss, answered)), strict=True)
    for piece, gradient in enumerate(of_pieces):
        with alone(piece):
            torch.autograd.backward(first if piece == 0 else answer(piece), gradient)
    trained = [parameter for parameter in learner.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
    if config.optim.clip_norm is not None:
        nn.utils.clip_grads_with_norm_(trained, config.optim.clip_norm, norm)
    told = torch.stack([loss, main, kept, norm, norm.new_tensor(float(leave))]).detach()
    if workers > 1:  # beside the gradients, the one thing in a step that workers wait for each other for
        dist.all_reduce(told)
    values = (told / workers).tolist()
    if not all(map(math.isfinite, values)):  # the same on all workers, which all stop here
        uris = [uri for worker in gather_rows(batch.uris) for uri in worker]
        raise NotFiniteError(state.step, values[0], values[3], uris)
    state.optimiser.step()
    return dict(zip(("loss", config.loss.kind, "distillation", "gradient_norm", "leaving"), values, strict=True))


def _pseudo_labels(teacher_BD: Tensor, labels_CD: Tensor, config: RunConfig) -> Tensor | None:
    """What the original CLIP takes for present, where the loss asks for it."""
    if config.loss.kind != "em_pl":
        return None
    return losses.pseudo_positives(nn.functional.normalize(teacher_BD, dim=-1) @ labels_CD.t(), config.loss)


def _chosen(values_BC: Tensor | None, chosen_C: Tensor) -> Tensor | None:
    return None if values_BC is None else values_BC[:, chosen_C]


@torch.no_grad()
def _relabel(state: TrainingState, task: Task, batches: Iterable[Batch], config: RunConfig) -> None:
    """Asks the model for every training row, on all workers, and remembers what follows."""
    recogniser = state.recogniser
    asked: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in batches:
        recognised = recogniser(tokens_of(recogniser, batch), task.asked.to(recogniser.device))
        probabilities_BC = recognised.scores.logits_BC.float().sigmoid().cpu()
        counts_B = batch.weight_B > 0
        states_BC = batch.states_BC[:, torch.as_tensor(task.positions)]
        asked.append((batch.rows_B[counts_B], states_BC[counts_B], probabilities_BC[counts_B]))
    everyone = [part for worker in gather_rows(asked) for part in worker]
    rows_N, states_NC, probabilities_NC = (torch.cat(column) for column in zip(*everyone, strict=True))
    order = rows_N.argsort()  # the same on every worker and for every number of them
    rows_N, states_NC, probabilities_NC = (
        values[order].to(recogniser.device) for values in (rows_N, states_NC, probabilities_NC)
    )
    state.memory.relabel(rows_N, states_NC, probabilities_NC, config.training.epochs)


def label_subset(num_labels: int, fraction: float, seed: int, step: int) -> Tensor:
    """Vocabulary dropout: the labels one step trains on, in order; the same on every worker."""
    if fraction >= 1:
        return torch.arange(num_labels)
    count = max(1, round(num_labels * fraction))
    return torch.from_numpy(np.sort(np.random.default_rng([seed, step, 1]).permutation(num_labels)[:count]))


def tokens_of(recogniser: Recogniser, batch: Batch) -> Tensor:
    """The tokens at the frozen seam: those held, or computed from the pictures."""
    if batch.tokens_BNW is not None:
        return batch.tokens_BNW.to(recogniser.device).float()  # 16 bits each where they come from a folder of features
    assert batch.pixels_BHWC is not None
    return recogniser.backbone.encode_frozen(batch.pixels_BHWC.to(recogniser.device))


def gather_rows(mine: Any) -> list[Any]:
    """One object of every worker, in the order of ranks; a list of one without a process group."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone
