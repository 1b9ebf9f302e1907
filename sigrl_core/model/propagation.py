"""Scores that travel between labels: the label graph where it is heard.

As published the label graph reaches a score only through the queries of reconstruction, and taking it out changes
nothing (docs/RESULTS.md). Here what an image is taken to show raises and lowers its other labels directly, along edges
that training learns from whichever labels occur, or are mistaken for each other, together.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


class ScorePropagation(nn.Module):
    """What each label hears of the others in one image:  sqrt(S) sum_j E_ij p_j,  p = softmax_j(tau logits_j).

    i and j run over labels trained on, i != j. E [S, S] starts at zero and tau at 1: training starts from the scores as
    they come. A label that was not trained on hears nothing and tells nothing.

    Args:
        labels: S, how many labels are trained on.
    """

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.edges = nn.Parameter(torch.zeros(labels, labels))
        self.log_tau = nn.Parameter(torch.tensor(0.0))

    def forward(
        self,
        logits_BR: Float[Tensor, "B R"],
        telling_R: Int64[Tensor, " R"],
        hearing_C: Int64[Tensor, " C"],
    ) -> Float[Tensor, "B C"]:
        """`telling` and `hearing` are places among the labels trained on, -1 for others; logits are of the telling."""
        tells = (telling_R >= 0).nonzero()[:, 0]
        hears = (hearing_C >= 0).nonzero()[:, 0]
        heard_BC = logits_BR.new_zeros(len(logits_BR), len(hearing_C))
        if not len(tells):
            return heard_BC
        edges_HT = self._without_self()[hearing_C[hears]][:, telling_R[tells]]
        shares_BT = (logits_BR[:, tells] * self.log_tau.exp()).softmax(dim=1)
        return heard_BC.index_copy(1, hears, (shares_BT @ edges_HT.t()).to(heard_BC.dtype) * len(self.edges) ** 0.5)

    def between(self, trained_C: Int64[Tensor, " C"]) -> Float[Tensor, "C C"]:
        """The edges between the labels of these places, 0 for labels that were not trained on."""
        inside_CC = (trained_C >= 0)[:, None] & (trained_C >= 0)
        return self._without_self()[trained_C][:, trained_C] * inside_CC

    def _without_self(self) -> Tensor:
        return self.edges * (1 - torch.eye(len(self.edges), device=self.edges.device))
