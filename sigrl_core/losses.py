"""Losses: functions of logits and of what is known of the labels. A new one is a function and a line in `LOSSES`.

Label states are int8: +1 present, -1 absent, 0 unknown. Losses of single positives (SPML) take p = sigmoid(logit),
n(x) = -log(x + 1e-5), and average over labels::

    where +1    n(p)        in every one of them
    where -1    n(1 - p)    an absence that somebody has looked for; SPML data have none
    where 0     what the loss is known for

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

EPSILON = 1e-5


class WholeBatch:
    """Statistics over the images of all workers together. This one is for a single worker."""

    def mean(self, values_B: Float[Tensor, " B"]) -> Float[Tensor, ""]:
        """Mean over the images, for what is only added up: of several workers, each has its own part of it, so that
        nobody waits; the mean of their parts is the mean over all images."""
        return values_B.mean()

    def known_mean(self, values_B: Float[Tensor, " B"]) -> Float[Tensor, ""]:
        """Mean over the images, the same on all workers, with gradient."""
        return values_B.mean()

    def gather(self, values_BC: Float[Tensor, "B C"]) -> Float[Tensor, "N C"]:
        """The rows of all workers, without gradient."""
        return values_BC.detach()


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a batch's labels besides the logits.

    Attributes:
        states_BC: +1 present, -1 absent, 0 unknown.
        pseudo_BC: which unknown labels the original CLIP takes for present, see `pseudo_positives` (`em_pl`).
        soft_BC: in [0, 1], how likely an unknown label is present; nan where nothing was assigned (`em_apl`).
        estimate_BC: logits of the label estimator (`role`).
        epoch: epochs done so far (`ll_r`).
    """

    states_BC: Int8[Tensor, "B C"]
    pseudo_BC: Bool[Tensor, "B C"] | None = None
    soft_BC: Float[Tensor, "B C"] | None = None
    estimate_BC: Float[Tensor, "B C"] | None = None
    epoch: int = 0


Loss = Callable[[Tensor, Known, LossConfig, WholeBatch], Tensor]
"""(logits [B,C], known, constants, batch) -> the loss, a scalar; the whole batch's is the mean of all workers'."""


# ---- ranking ----


def ranking(logits_BC: Tensor, known: Known, config: LossConfig, batch: WholeBatch) -> Tensor:
    """Mean hinge max(0, 1 + s_n - s_p) over the violating pairs of a positive p and a negative n of one image.

    An image without such a pair gives 0; unknown labels take no part. Source: arXiv 2504.03801, ranking loss.
    """
    sums_BC, violated_BC = hinges(logits_BC, known.states_BC > 0, known.states_BC < 0)
    return batch.mean((sums_BC.sum(1) / (violated_BC.sum(1).double() + 1e-8)).to(logits_BC.dtype))


def pairwise(logits_BC: Tensor, known: Known, config: LossConfig, batch: WholeBatch) -> Tensor:
    """Over p and every label not known to be present, max(0, 1 - p + p_n), unknown ones too; divided by C."""
    sums_BC, _ = hinges(logits_BC.sigmoid(), known.states_BC > 0, known.states_BC <= 0)
    return batch.mean(sums_BC.mean(1).to(logits_BC.dtype))


def hinges(
    scores_BC: Float[Tensor, "B C"],
    positive_BC: Bool[Tensor, "B C"],
    negative_BC: Bool[Tensor, "B C"],
    margin: float = 1.0,
) -> tuple[Float[Tensor, "B C"], Tensor]:
    """For each positive the sum of max(0, margin + s_n - s_p) over its image's negatives, and how many are above 0.

    The authors hold every pair, B x C x C; here the negatives are sorted once and a positive finds all it violates as a
    prefix, so time is B C log C and memory B C. Sums run in float64: a hinge is a small difference of large scores.
    """
    s_BC = scores_BC.double().contiguous()
    ordered_BC, order_BC = s_BC.masked_fill(~negative_BC, -torch.inf).sort(dim=1, descending=True)
    largest_BC = s_BC.masked_fill(~negative_BC, 0).gather(1, order_BC)
    sums_BC = F.pad(largest_BC.cumsum(1), (1, 0))  # of the k largest negatives, k = 0..C
    with torch.no_grad():  # how many negatives are above s_p - margin
        violated_BC = torch.searchsorted(-ordered_BC, margin - s_BC).masked_fill(~positive_BC, 0)
    return (margin - s_BC) * violated_BC + sums_BC.gather(1, violated_BC), violated_BC


# ---- every label was looked for ----


def bce(logits_BC: Tensor, known: Known, config: LossConfig, batch: WholeBatch) -> Tensor:
    """n(p) where present, n(1-p) where absent; unknown labels take no part.

    On single positives with all true absences put in it is IUN, the upper bound of Cole et al.
    """
    return _average(logits_BC.sigmoid(), known, batch, unknown=None)


def focal(logits_BC: Tensor, known: Known, config: LossConfig, batch: WholeBatch) -> Tensor:
    """As `bce`, each term times (1 - probability of the truth)^gamma. Source: Lin et al. 2017, eq. 4."""
    p_BC, gamma = logits_BC.sigmoid(), config.focal_gamma
    present_BC, absent_BC = (1 - p_BC) ** gamma * surprise(p_BC), p_BC**gamma * surprise(1 - p_BC)
    return batch.mean(_where(known.states_BC, present_BC, absent_BC, None).mean(1))


def asymmetric(logits_BC: Tensor, known: Known, config: LossConfig, batch: WholeBatch) -> Tensor:
    """n(p) where present; p_m^gamma n(1 - p_m), p_m = max(p - margin, 0), where absent. Source: Ridnik et al. 2021."""
    p_BC = logits_BC.sigmoid()
    shifted_BC = (p_BC - config.asymmetric_margin).clamp(min=0)
    absent_BC = shifted_BC**config.asymmetric_gamma * surprise(1 - shifted_BC)
    return batch.mean(_where(known.states_BC, surprise(p_BC), absent_BC, None).mean(1))


# ---- single positives ----


def assume_negative(logits_BC: Tensor, known: Known, config: LossConfig, batch: WholeBatch) -> Tensor:
    """AN: unknown counts as absent."""
    p_BC = logits_BC.sigmoid()
    return _average(p_BC, known, batch, unknown=surprise(1 - p_BC))


def assume_negative_smoothed(logits_BC: Tensor, known: Known, config: LossConfig, batch: WholeBatch) -> Tensor:
    """AN-LS: AN with a share e = `label_smoothing` of every target given to its opposite."""
    p_BC, e = logits_BC.sigmoid(), config.label_smoothing
    present_BC, absent_BC = _cross_entropy(1 - e, p_BC), _cross_entropy(e, p_BC)
    return batch.mean(_where(known.states_BC, present_BC, absent_BC, absent_BC).mean(1))


def weak_assume_negative(logits_BC: Tensor, known: Known, config: LossConfig, batch: WholeBatch) -> Tensor:
    """WAN: AN with what unknown labels give divided by C - 1."""
    p_BC, others = logits_BC.sigmoid(), max(1, logits_BC.shape[1] - 1)
    return _average(p_BC, known, batch, unknown=surprise(1 - p_BC) / others)


def expected_positives(logits_BC: Tensor, known: Known, config: LossConfig, batch: WholeBatch) -> Tensor:
    """EPR: nothing where unknown, plus ((mean over the batch of sum_c p) - k)^2 / C^2, k = `expected_positives`."""
    p_BC = logits_BC.sigmoid()
    return _average(p_BC, known, batch, unknown=None) + _surplus(p_BC, config, batch)


def role(logits_BC: Tensor, known: Known, config: LossConfig, batch: WholeBatch) -> Tensor:
    """ROLE: classifier p and estimator q teach each other; half of each one's loss, half of each one's EPR term."""
    if known.estimate_BC is None:
        raise ConfigError("loss.kind role: no label estimator was given; train.py makes one")
    p_BC, q_BC = logits_BC.sigmoid(), known.estimate_BC.sigmoid()
    taught = batch.mean((_taught(p_BC, q_BC, known) + _taught(q_BC, p_BC, known)).mean(1))
    return (taught + _surplus(p_BC, config, batch) + _surplus(q_BC, config, batch)) / 2


def _taught(pupil_BC: Tensor, teacher_BC: Tensor, known: Known) -> Tensor:
    """What is observed, and the teacher's opinion of every label."""
    observed_BC = _where(known.states_BC, surprise(pupil_BC), surprise(1 - pupil_BC), None)
    return observed_BC + _cross_entropy(teacher_BC.detach(), pupil_BC)


def _surplus(p_BC: Tensor, config: LossConfig, batch: WholeBatch) -> Tensor:
    return (batch.known_mean(p_BC.sum(1)) - config.expected_positives) ** 2 / p_BC.shape[1] ** 2


def entropy_maximisation(logits_BC: Tensor, known: Known, config: LossConfig, batch: WholeBatch) -> Tensor:
    """EM: unknown labels are kept undecided, -alpha times their entropy."""
    p_BC = logits_BC.sigmoid()
    return _average(p_BC, known, batch, unknown=_undecided(p_BC, config))


def entropy_with_soft_labels(logits_BC: Tensor, known: Known, config: LossConfig, batch: WholeBatch) -> Tensor:
    """EM+APL: EM, and beta [s n(p) + (1-s) n(1-p)] where an unknown label was given a soft label s."""
    if known.soft_BC is None:
        raise ConfigError("loss.kind em_apl: no soft labels were given; train.py makes them between epochs")
    p_BC, assigned_BC = logits_BC.sigmoid(), ~known.soft_BC.isnan()
    soft_BC = config.soft_weight * _cross_entropy(known.soft_BC.nan_to_num(), p_BC)
    return _average(p_BC, known, batch, unknown=torch.where(assigned_BC, soft_BC, _undecided(p_BC, config)))


def entropy_with_pseudo_labels(logits_BC: Tensor, known: Known, config: LossConfig, batch: WholeBatch) -> Tensor:
    """EM+PL (VLPL): EM, and `pseudo_weight` [0.9 n(p) + 0.1 n(1-p)] for unknown labels that CLIP takes for present."""
    if known.pseudo_BC is None:
        raise ConfigError("loss.kind em_pl: no pseudo-labels were given; train.py takes them from the original CLIP")
    p_BC = logits_BC.sigmoid()
    positive_BC = config.pseudo_weight * _cross_entropy(1 - config.label_smoothing, p_BC)
    return _average(p_BC, known, batch, unknown=torch.where(known.pseudo_BC, positive_BC, _undecided(p_BC, config)))


def pseudo_positives(cosine_BC: Float[Tensor, "B C"], config: LossConfig) -> Bool[Tensor, "B C"]:
    """Labels whose share of softmax(cosine / temperature) over the labels is above the threshold. Source: VLPL."""
    return (cosine_BC / config.pseudo_temperature).softmax(1) > config.pseudo_threshold


def large_loss_rejection(logits_BC: Tensor, known: Known, config: LossConfig, batch: WholeBatch) -> Tensor:
    """LL-R: AN, without the unknown labels of the batch that cost most; after each epoch `rejection` more of them."""
    p_BC = logits_BC.sigmoid()
    assumed_BC = surprise(1 - p_BC)
    unknown_BC = known.states_BC == 0
    everyone = batch.gather(assumed_BC.masked_fill(~unknown_BC, -torch.inf)).flatten()
    rejected = int(min(1.0, config.rejection * known.epoch) * int((everyone > -torch.inf).sum()))
    if rejected:
        smallest = everyone.topk(rejected).values[-1]
        assumed_BC = assumed_BC.masked_fill(assumed_BC >= smallest, 0)
    return _average(p_BC, known, batch, unknown=assumed_BC)


# ---- what they share ----


def surprise(probability: Tensor) -> Tensor:
    """n(x) = -log(x + 1e-5)."""
    return -(probability + EPSILON).log()


def _cross_entropy(target: Tensor | float, p_BC: Tensor) -> Tensor:
    """target n(p) + (1 - target) n(1 - p)."""
    return target * surprise(p_BC) + (1 - target) * surprise(1 - p_BC)


def _undecided(p_BC: Tensor, config: LossConfig) -> Tensor:
    return -config.entropy_weight * _cross_entropy(p_BC, p_BC)


def _where(states_BC: Tensor, present_BC: Tensor, absent_BC: Tensor, unknown_BC: Tensor | None) -> Tensor:
    rest_BC = torch.zeros_like(present_BC) if unknown_BC is None else unknown_BC
    return torch.where(states_BC > 0, present_BC, torch.where(states_BC < 0, absent_BC, rest_BC))


def _average(p_BC: Tensor, known: Known, batch: WholeBatch, unknown: Tensor | None) -> Tensor:
    return batch.mean(_where(known.states_BC, surprise(p_BC), surprise(1 - p_BC), unknown).mean(1))


def distillation(glob_BD: Float[Tensor, "B D"], teacher_BD: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """Mean absolute difference to the class token of the original CLIP, which gets no gradient. Source: as ranking."""
    return (glob_BD - teacher_BD.detach()).abs().mean(1)


LOSSES: dict[str, Loss] = {
    "ranking": ranking,
    "pairwise": pairwise,
    "bce": bce,
    "focal": focal,
    "asymmetric": asymmetric,
    "an": assume_negative,
    "an_ls": assume_negative_smoothed,
    "wan": weak_assume_negative,
    "epr": expected_positives,
    "role": role,
    "em": entropy_maximisation,
    "em_apl": entropy_with_soft_labels,
    "em_pl": entropy_with_pseudo_labels,
    "ll_r": large_loss_rejection,
}


def get_loss(name: str) -> Loss:
    """The loss of that name.

    Raises:
        ConfigError: no such loss; lists the known ones.
    """
    if name not in LOSSES:
        raise ConfigError(f"loss.kind is {name!r}; expected one of {', '.join(LOSSES)}")
    return LOSSES[name]
