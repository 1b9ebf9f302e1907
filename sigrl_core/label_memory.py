"""What training comes to know of the labels of its own pictures, row by row, beyond what was annotated.

Two losses of single positives have such a memory: ROLE an estimator, one logit per row and label that trains with the
model (Cole et al. CVPR 2021), EM+APL soft labels that are handed out between epochs (Zhou et al. ECCV 2022).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from sigrl_core.config import LossConfig


class LabelMemory(nn.Module):
    """Empty, without parameters and buffers, for every other loss.

    Args:
        config: whose `kind` says what is remembered.
        rows: training rows, N.
        labels: labels trained on, C.
        seed: of the estimator's first logits, which are near 0.
    """

    estimator_NC: nn.Parameter
    soft_NC: Tensor  # nan where no soft label was given

    def __init__(self, config: LossConfig, rows: int, labels: int, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        if config.kind == "role":
            first = 0.01 * torch.randn(rows, labels, generator=torch.Generator().manual_seed(seed))
            self.estimator_NC = nn.Parameter(first)
        if config.kind == "em_apl":
            self.register_buffer("soft_NC", torch.full((rows, labels), torch.nan))

    def estimate(self, rows_B: Int64[Tensor, " B"]) -> Float[Tensor, "B C"] | None:
        """The estimator's logits, with gradient."""
        return self.estimator_NC[rows_B] if self.config.kind == "role" else None

    def soft(self, rows_B: Int64[Tensor, " B"]) -> Float[Tensor, "B C"] | None:
        return self.soft_NC[rows_B] if self.config.kind == "em_apl" else None

    def relabels_after(self, epoch: int, epochs: int) -> bool:
        """Whether soft labels are handed out when `epoch` of `epochs` is done."""
        return self.config.kind == "em_apl" and self.config.soft_warmup_epochs <= epoch < epochs

    def relabel(
        self,
        rows_N: Int64[Tensor, " N"],
        states_NC: Int8[Tensor, "N C"],
        probabilities_NC: Float[Tensor, "N C"],
        epochs: int,
    ) -> None:
        """Gives the unknown labels that look least likely what the model says of them, and never changes it again.

        Of each label's unknown rows the share `soft_share` / (epochs - warm-up), so that by the last epoch `soft_share`
        of them has a soft label, the clearest absences first.
        """
        unknown_NC = states_NC == 0
        rounds = max(1, epochs - self.config.soft_warmup_epochs)
        quota_C = (self.config.soft_share * unknown_NC.sum(0) / rounds).long()
        open_NC = unknown_NC & self.soft_NC[rows_N].isnan()
        order_NC = probabilities_NC.masked_fill(~open_NC, torch.inf).argsort(dim=0, stable=True)
        rank_NC = order_NC.argsort(dim=0)
        chosen_NC = open_NC & (rank_NC < quota_C)
        self.soft_NC[rows_N] = torch.where(chosen_NC, probabilities_NC, self.soft_NC[rows_N])
