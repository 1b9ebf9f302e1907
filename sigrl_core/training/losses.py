"""Losses: functions of logits and of training targets. `plugins.LOSSES` names them; `register_loss` adds one.

Label states are int8: +1 present, -1 absent, 0 unknown. Losses for single-positive labels (SPML) use p = sigmoid(logit)
and n(x) = -log(x + 1e-5), and average over labels::

    state +1    n(p)        the same in all of them
    state -1    n(1 - p)    an annotated absence; SPML data have none
    state 0     the term in which the losses differ

Sources: Cole et al. CVPR 2021 (AN, AN-LS, WAN, EPR, ROLE); Zhou et al. ECCV 2022 (EM, APL); Xing et al. CVPR-W 2024
(VLPL); Kim et al. CVPR 2022 (LL-R); Lin et al. ICCV 2017 (focal); Ridnik et al. ICCV 2021 (ASL).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from sigrl_core.config import LossConfig
from sigrl_core.errors import ConfigError
from sigrl_core.plugins import LOSSES

EPSILON = 1e-5


class BatchReducer:
    """Reduces over the images of the global batch. This class is for a single worker."""

    def local_mean(self, values_B: Float[Tensor, " B"]) -> Float[Tensor, ""]:
        """Returns this worker's contribution to the mean over the global batch; no communication.

        The mean of the contributions of all workers is the mean over the global batch.
        """
        return values_B.mean()

    def all_reduce_mean(self, values_B: Float[Tensor, " B"]) -> Float[Tensor, ""]:
        """Returns the mean over the global batch, the same on all workers, with gradient."""
        return values_B.mean()

    def all_gather(self, values_BC: Float[Tensor, "B C"]) -> Float[Tensor, "N C"]:
        """Returns the rows of all workers, without gradient."""
        return values_BC.detach()


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Training targets of one batch.

    Attributes:
        states_BC: +1 present, -1 absent, 0 unknown.
        pseudo_BC: unknown labels that the original CLIP rates as present, see `pseudo_positives` (`em_pl`).
        soft_BC: soft labels in [0, 1] of unknown labels; nan where none was assigned (`em_apl`).
        estimate_BC: logits of the label estimator (`role`).
        epoch: number of finished epochs (`ll_r`).
    """

    states_BC: Int8[Tensor, "B C"]
    pseudo_BC: Bool[Tensor, "B C"] | None = None
    soft_BC: Float[Tensor, "B C"] | None = None
    estimate_BC: Float[Tensor, "B C"] | None = None
    epoch: int = 0


Loss = Callable[[Tensor, Targets, LossConfig, BatchReducer], Tensor]
"""(logits [B,C], targets, constants, reducer) -> a scalar; the loss of the global batch is the mean over workers."""


# ---- ranking ----


def ranking(logits_BC: Tensor, targets: Targets, config: LossConfig, batch: BatchReducer) -> Tensor:
    """Computes the mean hinge max(0, 1 + s_n - s_p) over the violating pairs (positive p, negative n) of each image.

    An image without such a pair contributes 0; unknown labels are ignored. Source: arXiv 2504.03801, ranking loss.
    """
    sums_BC, violated_BC = hinges(logits_BC, targets.states_BC > 0, targets.states_BC < 0)
    return batch.local_mean((sums_BC.sum(1) / (violated_BC.sum(1).double() + 1e-8)).to(logits_BC.dtype))


def pairwise(logits_BC: Tensor, targets: Targets, config: LossConfig, batch: BatchReducer) -> Tensor:
    """Sums max(0, 1 - p + p_n) over pairs of a present label and an absent or unknown one, divided by C."""
    sums_BC, _ = hinges(logits_BC.sigmoid(), targets.states_BC > 0, targets.states_BC <= 0)
    return batch.local_mean(sums_BC.mean(1).to(logits_BC.dtype))


def hinges(
    scores_BC: Float[Tensor, "B C"],
    positive_BC: Bool[Tensor, "B C"],
    negative_BC: Bool[Tensor, "B C"],
    margin: float = 1.0,
) -> tuple[Float[Tensor, "B C"], Tensor]:
    """Returns for each positive the sum of max(0, margin + s_n - s_p) over its image's negatives, and their number.

    The authors' code stores every pair, B x C x C. Here the negatives are sorted once, and the violating ones of each
    positive are a prefix, so that time is B C log C and memory B C. Sums are float64, because a hinge is a small
    difference of large scores.
    """
    s_BC = scores_BC.double().contiguous()
    ordered_BC, order_BC = s_BC.masked_fill(~negative_BC, -torch.inf).sort(dim=1, descending=True)
    largest_BC = s_BC.masked_fill(~negative_BC, 0).gather(1, order_BC)
    sums_BC = F.pad(largest_BC.cumsum(1), (1, 0))  # sums of the k largest negatives, k = 0..C
    with torch.no_grad():  # number of negatives above s_p - margin
        violated_BC = torch.searchsorted(-ordered_BC, margin - s_BC).masked_fill(~positive_BC, 0)
    return (margin - s_BC) * violated_BC + sums_BC.gather(1, violated_BC), violated_BC


# ---- losses for fully annotated labels ----


def bce(logits_BC: Tensor, targets: Targets, config: LossConfig, batch: BatchReducer) -> Tensor:
    """Averages n(p) of present and n(1-p) of absent labels; unknown labels are ignored.

    On single positives to which all true absences are added it is IUN, the upper bound of Cole et al.
    """
    return _average(logits_BC.sigmoid(), targets, batch, unknown=None)


def focal(logits_BC: Tensor, targets: Targets, config: LossConfig, batch: BatchReducer) -> Tensor:
    """Multiplies each term of `bce` by (1 - probability of the true state)^gamma. Source: Lin et al. 2017, eq. 4."""
    p_BC, gamma = logits_BC.sigmoid(), config.focal_gamma
    present_BC, absent_BC = (1 - p_BC) ** gamma * negative_log(p_BC), p_BC**gamma * negative_log(1 - p_BC)
    return batch.local_mean(_where(targets.states_BC, present_BC, absent_BC, None).mean(1))


def asymmetric(logits_BC: Tensor, targets: Targets, config: LossConfig, batch: BatchReducer) -> Tensor:
    """Averages n(p) of present and p_m^gamma n(1 - p_m) of absent labels, p_m = max(p - margin, 0) (Ridnik et al.)."""
    p_BC = logits_BC.sigmoid()
    shifted_BC = (p_BC - config.asymmetric_margin).clamp(min=0)
    absent_BC = shifted_BC**config.asymmetric_gamma * negative_log(1 - shifted_BC)
    return batch.local_mean(_where(targets.states_BC, negative_log(p_BC), absent_BC, None).mean(1))


# ---- losses for single positives ----


def assume_negative(logits_BC: Tensor, targets: Targets, config: LossConfig, batch: BatchReducer) -> Tensor:
    """Computes AN: unknown labels count as absent."""
    p_BC = logits_BC.sigmoid()
    return _average(p_BC, targets, batch, unknown=negative_log(1 - p_BC))


def assume_negative_smoothed(logits_BC: Tensor, targets: Targets, config: LossConfig, batch: BatchReducer) -> Tensor:
    """Computes AN-LS: AN with every target moved by e = `label_smoothing` towards its opposite."""
    p_BC, e = logits_BC.sigmoid(), config.label_smoothing
    present_BC, absent_BC = _cross_entropy(1 - e, p_BC), _cross_entropy(e, p_BC)
    return batch.local_mean(_where(targets.states_BC, present_BC, absent_BC, absent_BC).mean(1))


def weak_assume_negative(logits_BC: Tensor, targets: Targets, config: LossConfig, batch: BatchReducer) -> Tensor:
    """Computes WAN: AN with the terms of unknown labels divided by C - 1."""
    p_BC, divisor = logits_BC.sigmoid(), max(1, logits_BC.shape[1] - 1)
    return _average(p_BC, targets, batch, unknown=negative_log(1 - p_BC) / divisor)


def expected_positives(logits_BC: Tensor, targets: Targets, config: LossConfig, batch: BatchReducer) -> Tensor:
    """Computes EPR: `bce` plus ((mean over the batch of sum_c p) - k)^2 / C^2 with k = `expected_positives`."""
    p_BC = logits_BC.sigmoid()
    return _average(p_BC, targets, batch, unknown=None) + _squared_surplus(p_BC, config, batch)


def role(logits_BC: Tensor, targets: Targets, config: LossConfig, batch: BatchReducer) -> Tensor:
    """Computes ROLE: classifier p and estimator q are each trained on the other; half of both losses and EPR terms."""
    if targets.estimate_BC is None:
        raise ConfigError("loss.kind role: no label estimator was given; train.py makes one")
    p_BC, q_BC = logits_BC.sigmoid(), targets.estimate_BC.sigmoid()
    mutual_BC = _role_terms(p_BC, q_BC, targets) + _role_terms(q_BC, p_BC, targets)
    return (
        batch.local_mean(mutual_BC.mean(1))
        + _squared_surplus(p_BC, config, batch)
        + _squared_surplus(q_BC, config, batch)
    ) / 2


def _role_terms(p_BC: Tensor, target_BC: Tensor, targets: Targets) -> Tensor:
    """Returns the terms of the annotated labels plus the cross entropy to the other model's probabilities."""
    annotated_BC = _where(targets.states_BC, negative_log(p_BC), negative_log(1 - p_BC), None)
    return annotated_BC + _cross_entropy(target_BC.detach(), p_BC)


def _squared_surplus(p_BC: Tensor, config: LossConfig, batch: BatchReducer) -> Tensor:
    return (batch.all_reduce_mean(p_BC.sum(1)) - config.expected_positives) ** 2 / p_BC.shape[1] ** 2


def entropy_maximisation(logits_BC: Tensor, targets: Targets, config: LossConfig, batch: BatchReducer) -> Tensor:
    """Computes EM: -alpha times the entropy of unknown labels, which keeps them near 0.5."""
    p_BC = logits_BC.sigmoid()
    return _average(p_BC, targets, batch, unknown=_negative_entropy(p_BC, config))


def entropy_with_soft_labels(logits_BC: Tensor, targets: Targets, config: LossConfig, batch: BatchReducer) -> Tensor:
    """Computes EM+APL: EM, with beta [s n(p) + (1-s) n(1-p)] for unknown labels that have a soft label s."""
    if targets.soft_BC is None:
        raise ConfigError("loss.kind em_apl: no soft labels were given; train.py makes them between epochs")
    p_BC, assigned_BC = logits_BC.sigmoid(), ~targets.soft_BC.isnan()
    soft_BC = config.soft_weight * _cross_entropy(targets.soft_BC.nan_to_num(), p_BC)
    return _average(p_BC, targets, batch, unknown=torch.where(assigned_BC, soft_BC, _negative_entropy(p_BC, config)))


def entropy_with_pseudo_labels(logits_BC: Tensor, targets: Targets, config: LossConfig, batch: BatchReducer) -> Tensor:
    """Computes EM+PL (VLPL): EM, with `pseudo_weight` [0.9 n(p) + 0.1 n(1-p)] for pseudo-labels."""
    if targets.pseudo_BC is None:
        raise ConfigError("loss.kind em_pl: no pseudo-labels were given; train.py takes them from the original CLIP")
    p_BC = logits_BC.sigmoid()
    positive_BC = config.pseudo_weight * _cross_entropy(1 - config.label_smoothing, p_BC)
    return _average(
        p_BC, targets, batch, unknown=torch.where(targets.pseudo_BC, positive_BC, _negative_entropy(p_BC, config))
    )


def pseudo_positives(cosine_BC: Float[Tensor, "B C"], config: LossConfig) -> Bool[Tensor, "B C"]:
    """Selects the labels whose softmax(cosine / temperature) is above the threshold. Source: VLPL."""
    return (cosine_BC / config.pseudo_temperature).softmax(1) > config.pseudo_threshold


def large_loss_rejection(logits_BC: Tensor, targets: Targets, config: LossConfig, batch: BatchReducer) -> Tensor:
    """Computes LL-R: AN without the unknown labels of largest loss; each epoch rejects another share `rejection`."""
    p_BC = logits_BC.sigmoid()
    assumed_BC = negative_log(1 - p_BC)
    unknown_BC = targets.states_BC == 0
    all_BC = batch.all_gather(assumed_BC.masked_fill(~unknown_BC, -torch.inf)).flatten()
    rejected = int(min(1.0, config.rejection * targets.epoch) * int((all_BC > -torch.inf).sum()))
    if rejected:
        smallest = all_BC.topk(rejected).values[-1]
        assumed_BC = assumed_BC.masked_fill(assumed_BC >= smallest, 0)
    return _average(p_BC, targets, batch, unknown=assumed_BC)


# ---- shared terms ----


def negative_log(probability: Tensor) -> Tensor:
    """Computes n(x) = -log(x + 1e-5)."""
    return -(probability + EPSILON).log()


def _cross_entropy(target: Tensor | float, p_BC: Tensor) -> Tensor:
    """Computes target n(p) + (1 - target) n(1 - p)."""
    return target * negative_log(p_BC) + (1 - target) * negative_log(1 - p_BC)


def _negative_entropy(p_BC: Tensor, config: LossConfig) -> Tensor:
    return -config.entropy_weight * _cross_entropy(p_BC, p_BC)


def _where(states_BC: Tensor, present_BC: Tensor, absent_BC: Tensor, unknown_BC: Tensor | None) -> Tensor:
    rest_BC = torch.zeros_like(present_BC) if unknown_BC is None else unknown_BC
    return torch.where(states_BC > 0, present_BC, torch.where(states_BC < 0, absent_BC, rest_BC))


def _average(p_BC: Tensor, targets: Targets, batch: BatchReducer, unknown: Tensor | None) -> Tensor:
    return batch.local_mean(_where(targets.states_BC, negative_log(p_BC), negative_log(1 - p_BC), unknown).mean(1))


def distillation(cls_BD: Float[Tensor, "B D"], teacher_BD: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """Computes the mean absolute difference to the original CLIP's class token, which gets no gradient (as ranking)."""
    return (cls_BD - teacher_BD.detach()).abs().mean(1)


def get_loss(name: str) -> Loss:
    """Returns the loss of that name.

    Raises:
        ConfigError: no such loss; lists the known ones.
    """
    return LOSSES[name]
