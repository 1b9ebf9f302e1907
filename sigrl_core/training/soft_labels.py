"""Labels of the training images that are estimated during training, per image.

Two losses of single positives use such labels: ROLE has an estimator, one logit per image and label that trains with
the model (Cole et al. CVPR 2021); EM+APL assigns soft labels between epochs (Zhou et al. ECCV 2022).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from sigrl_core.config import LossConfig


class PerSampleLabels(nn.Module):
    """Label estimates of every training row. Has no parameters and no buffers for any other loss.

    Args:
        config: its `kind` decides which estimates are kept.
        rows: number of training rows, N.
        labels: number of trained labels, C.
        seed: seed of the estimator's initial logits, which are close to 0.
    """

    estimator_NC: nn.Parameter
    soft_NC: Tensor  # nan where no soft label was assigned

    def __init__(self, config: LossConfig, rows: int, labels: int, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        if config.kind == "role":
            initial_NC = 0.01 * torch.randn(rows, labels, generator=torch.Generator().manual_seed(seed))
            self.estimator_NC = nn.Parameter(initial_NC)
        if config.kind == "em_apl":
            self.register_buffer("soft_NC", torch.full((rows, labels), torch.nan))

    def estimate(self, rows_B: Int64[Tensor, " B"]) -> Float[Tensor, "B C"] | None:
        """Returns the estimator's logits, with gradient."""
        return self.estimator_NC[rows_B] if self.config.kind == "role" else None

    def soft(self, rows_B: Int64[Tensor, " B"]) -> Float[Tensor, "B C"] | None:
        """Returns the soft labels, nan where none was assigned."""
        return self.soft_NC[rows_B] if self.config.kind == "em_apl" else None

    def relabels_after(self, epoch: int, epochs: int) -> bool:
        """Returns whether soft labels are assigned after `epoch` of `epochs`."""
        return self.config.kind == "em_apl" and self.config.soft_warmup_epochs <= epoch < epochs

    def relabel(
        self,
        rows_N: Int64[Tensor, " N"],
        states_NC: Int8[Tensor, "N C"],
        probabilities_NC: Float[Tensor, "N C"],
        epochs: int,
    ) -> None:
        """Assigns the model's probabilities to the unknown labels with the lowest ones; never changes them again.

        Each call assigns `soft_share` / (epochs - warm-up) of each label's unknown rows, so that by the last epoch
        `soft_share` of these rows have a soft label, the clearest absences first.
        """
        unknown_NC = states_NC == 0
        rounds = max(1, epochs - self.config.soft_warmup_epochs)
        quota_C = (self.config.soft_share * unknown_NC.sum(0) / rounds).long()
        open_NC = unknown_NC & self.soft_NC[rows_N].isnan()
        order_NC = probabilities_NC.masked_fill(~open_NC, torch.inf).argsort(dim=0, stable=True)
        rank_NC = order_NC.argsort(dim=0)
        selected_NC = open_NC & (rank_NC < quota_C)
        self.soft_NC[rows_N] = torch.where(selected_NC, probabilities_NC, self.soft_NC[rows_N])
