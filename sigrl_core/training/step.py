"""One optimiser step, in one or several micro-batches (gradient caching, Gao et al. 2021, arXiv 2101.06983)."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sigrl_core.config import RunConfig
from sigrl_core.data.dataset import Batch
from sigrl_core.errors import NotFiniteError
from sigrl_core.model.label_set import LabelSet
from sigrl_core.model.model import ModelOutput, compute_tokens
from sigrl_core.training import losses
from sigrl_core.training.distributed import DistributedReducer, all_gather_objects
from sigrl_core.training.state import Metrics, TrainingState, TrainingTask

PSEUDO_LABEL_LOSS = "em_pl"
"""The loss whose targets contain pseudo-labels of the original CLIP."""


class Learner(nn.Module):
    """Everything that trains, in one module, so that DistributedDataParallel averages every gradient."""

    def __init__(self, state: TrainingState) -> None:
        super().__init__()
        self.model, self.sample_labels = state.model, state.sample_labels

    def forward(self, tokens_BNW: Tensor, label_set: LabelSet, rows_B: Tensor) -> tuple[ModelOutput, Tensor | None]:
        return self.model(tokens_BNW, label_set), self.sample_labels.estimate(rows_B)


class TrainStep:
    """Runs optimiser steps.

    Args:
        learner: a `Learner`, as it is or in DistributedDataParallel.
        state: changed by every step; the caller counts the steps.
        task: the labels that are trained.
        config: the experiment.
        micro_batches: maximum number of parts in which a worker's share of a batch is computed.
        world_size: number of workers.
        rank: number of this worker.
    """

    def __init__(
        self,
        learner: nn.Module,
        state: TrainingState,
        task: TrainingTask,
        config: RunConfig,
        micro_batches: int,
        world_size: int,
        rank: int,
    ) -> None:
        self.learner, self.state, self.task, self.config = learner, state, task, config
        self.micro_batches, self.world_size, self.rank = micro_batches, world_size, rank
        self.loss = losses.get_loss(config.loss.kind)

    def __call__(self, batch: Batch, should_stop: bool) -> Metrics:
        """Makes one step; returns the loss, its parts and the share of workers with `should_stop` as `stopping`.

        The loss is that of the global batch for any number of micro-batches. Its gradient at the logits and class
        tokens of all micro-batches is computed first, and is then propagated through one micro-batch at a time. All
        but the first run forward a second time for that, with the dropout masks of the first time.

        Raises:
            NotFiniteError: the loss or the gradient is not finite; no parameter has changed.
        """
        forward = _Forward(self, batch)
        with forward.synchronised_if_last(0):
            first = forward(0)
        with torch.no_grad():
            outputs = [first, *(forward(part) for part in range(1, len(forward.sizes)))]
        leaves = [torch.cat(parts).detach().requires_grad_() for parts in zip(*outputs, strict=True)]
        loss, main, distillation = self._compute_loss(batch, forward, leaves)
        self.state.optimiser.zero_grad(set_to_none=True)
        gradients = zip(*(values.split(forward.sizes) for values in torch.autograd.grad(loss, leaves)), strict=True)
        for part, gradient in enumerate(gradients):
            with forward.synchronised_if_last(part):
                torch.autograd.backward(first if part == 0 else forward(part), gradient)
        norm = self._clip_gradients()
        stats = torch.stack([loss, main, distillation, norm, norm.new_tensor(float(should_stop))]).detach()
        if self.world_size > 1:  # besides the gradients, the only synchronisation of workers in a step
            dist.all_reduce(stats)
        values = (stats / self.world_size).tolist()
        if not all(map(math.isfinite, values)):  # the same on all workers, so all of them stop here
            uris = [uri for uris in all_gather_objects(batch.uris) for uri in uris]
            raise NotFiniteError(self.state.step, values[0], values[3], uris)
        self.state.optimiser.step()
        names = ("loss", self.config.loss.kind, "distillation", "gradient_norm", "stopping")
        return dict(zip(names, values, strict=True))

    def _compute_loss(self, batch: Batch, forward: _Forward, leaves: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns this worker's part of the loss, and the two terms of it, the second one unweighted."""
        logits_BC, cls_BD, estimate_BC = [*leaves, None][:3]
        assert logits_BC is not None
        assert cls_BD is not None
        config, device = self.config, logits_BC.device
        teacher_BD = torch.cat(forward.teachers) if forward.teachers else cls_BD.detach()
        columns = torch.as_tensor(self.task.positions)[forward.positions]
        targets = losses.Targets(
            states_BC=batch.states_BC[:, columns].to(device),
            pseudo_BC=forward.select(_pseudo_labels(teacher_BD.float(), forward.all_labels.labels_CD, config)),
            soft_BC=forward.select(self.state.sample_labels.soft(forward.rows_B)),
            estimate_BC=forward.select(estimate_BC),
            epoch=self.state.epoch,
        )
        reducer = DistributedReducer(batch, device, self.world_size)
        main = self.loss(logits_BC.float(), targets, config.loss, reducer)
        distillation = reducer.local_mean(losses.distillation(cls_BD.float(), teacher_BD.float()))
        return main + config.loss.distillation * distillation, main, distillation

    def _clip_gradients(self) -> Tensor:
        """Returns the gradient's norm before it is clipped."""
        parameters = [parameter for parameter in self.learner.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if self.config.optim.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.config.optim.clip_norm, norm)
        return norm


class _Forward:
    """Forward passes of one batch, one micro-batch at a time."""

    def __init__(self, step: TrainStep, batch: Batch) -> None:
        model, config, state = step.state.model, step.config, step.state
        training, device = config.training, model.device
        self.learner = step.learner
        self.positions = draw_label_subset(
            len(step.task.positions), training.label_keep_fraction, training.seed, state.step
        )
        self.rows_B, self.positions_C = batch.rows_B.to(device), self.positions.to(device)
        self.all_labels = step.task.label_set.to(device)
        self.label_set = self.all_labels.subset(self.positions_C)
        self.sizes = [len(part) for part in np.array_split(batch.rows_B, min(step.micro_batches, len(batch.rows_B)))]
        self.rows = self.rows_B.split(self.sizes)
        self.autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=training.precision == "bf16")
        with self.autocast:
            self.tokens = [compute_tokens(model, part) for part in batch.split(self.sizes)]
            needs_teacher = config.loss.distillation or config.loss.kind == PSEUDO_LABEL_LOSS
            self.teachers = [model.teacher(tokens_BNW)[0] for tokens_BNW in self.tokens] if needs_teacher else None
        # a function of the step, so that a resumed epoch draws the same dropout masks
        self.seed = int(np.random.default_rng([training.seed, state.step, step.rank, 2]).integers(2**31))

    def __call__(self, part: int) -> list[Tensor]:
        """Returns logits, class tokens and, if there is an estimator, the label estimates of a micro-batch."""
        torch.manual_seed(self.seed + part)
        with self.autocast:
            output, estimate_BC = self.learner(self.tokens[part], self.label_set, self.rows[part])
        outputs = [output.scores.logits_BC, output.cls_BD]
        return outputs if estimate_BC is None else [*outputs, estimate_BC]

    def synchronised_if_last(self, part: int) -> contextlib.AbstractContextManager[None]:
        """Workers average their gradients in the last micro-batch only."""
        if isinstance(self.learner, nn.parallel.DistributedDataParallel) and part < len(self.sizes) - 1:
            return self.learner.no_sync()
        return contextlib.nullcontext()

    def select(self, values_BC: Tensor | None) -> Tensor | None:
        """Returns the columns of the labels of this step."""
        return None if values_BC is None else values_BC[:, self.positions_C]


def _pseudo_labels(teacher_BD: Tensor, labels_CD: Tensor, config: RunConfig) -> Tensor | None:
    """Returns the labels that the original CLIP rates as present, for the loss that uses them."""
    if config.loss.kind != PSEUDO_LABEL_LOSS:
        return None
    return losses.pseudo_positives(nn.functional.normalize(teacher_BD, dim=-1) @ labels_CD.t(), config.loss)


def draw_label_subset(num_labels: int, fraction: float, seed: int, step: int) -> Tensor:
    """Draws the labels that one step trains (vocabulary dropout), in order; the same on every worker."""
    if fraction >= 1:
        return torch.arange(num_labels)
    count = max(1, round(num_labels * fraction))
    return torch.from_numpy(np.sort(np.random.default_rng([seed, step, 1]).permutation(num_labels)[:count]))
