"""Losses: pure functions of scores and label states, one number per image.

Per image and not averaged, because a distributed step divides by the number of images of all workers together.
Label states are int8: +1 present, -1 absent, 0 unknown. A new loss is one function and one line in `LOSSES`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor

from sigrl_core.errors import ConfigError

Loss = Callable[[Tensor, Tensor], Tensor]


def ranking(
    scores_BC: Float[Tensor, "B C"], states_BC: Int8[Tensor, "B C"], margin: float = 1.0
) -> Float[Tensor, " B"]:
    """Mean hinge max(0, margin + s_n - s_p) over the violating pairs of a positive p and a negative n of one image.

    An image without such a pair gives 0; unknown labels take no part. Source: arXiv 2504.03801, ranking loss. The
    authors hold every pair, B x C x C; here the negatives are sorted once and a positive finds all it violates as a
    prefix, so time is B C log C and memory B C. Sums run in float64: a hinge is a small difference of large scores.
    """
    s_BC = scores_BC.double().contiguous()
    positive_BC, negative_BC = states_BC > 0, states_BC < 0
    ordered_BC, order_BC = s_BC.masked_fill(~negative_BC, -torch.inf).sort(dim=1, descending=True)
    largest_BC = s_BC.masked_fill(~negative_BC, 0).gather(1, order_BC)
    sums_BC = F.pad(largest_BC.cumsum(1), (1, 0))  # of the k largest negatives, k = 0..C
    with torch.no_grad():  # how many negatives are above s_p - margin
        violated_BC = torch.searchsorted(-ordered_BC, margin - s_BC).masked_fill(~positive_BC, 0)
    hinges_BC = (margin - s_BC) * violated_BC + sums_BC.gather(1, violated_BC)
    return (hinges_BC.sum(1) / (violated_BC.sum(1).double() + 1e-8)).to(scores_BC.dtype)


def distillation(glob_BD: Float[Tensor, "B D"], teacher_BD: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """Mean absolute difference to the class token of the original CLIP, which gets no gradient. Source: as above."""
    return (glob_BD - teacher_BD.detach()).abs().mean(1)


LOSSES: dict[str, Loss] = {"ranking": ranking}


def get_loss(name: str) -> Loss:
    """The loss of that name.

    Raises:
        ConfigError: no such loss; lists the known ones.
    """
    if name not in LOSSES:
        raise ConfigError(f"loss.kind is {name!r}; expected one of {', '.join(LOSSES)}")
    return LOSSES[name]
