"""Score propagation: scores of an image raise and lower the scores of other labels, along learned edges.

In the published model the label graph affects scores only through the queries of reconstruction, and removing it
changes nothing (docs/RESULTS.md). Propagation changes the scores directly; training learns the edges from labels that
occur together or are confused with each other.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


class ScorePropagation(nn.Module):
    """Adds to each label  sqrt(S) sum_j E_ij p_j,  p = softmax_j(tau logits_j),  of the same image.

    i and j are trained labels, i != j. E [S, S] starts at zero and tau at 1, so that training starts from unchanged
    scores. Labels that were not trained are neither sources nor targets.

    Args:
        labels: S, the number of trained labels.
    """

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.edges = nn.Parameter(torch.zeros(labels, labels))
        self.log_tau = nn.Parameter(torch.tensor(0.0))

    def forward(
        self,
        logits_BR: Float[Tensor, "B R"],
        sources_R: Int64[Tensor, " R"],
        targets_C: Int64[Tensor, " C"],
    ) -> Float[Tensor, "B C"]:
        """Computes the propagated scores.

        Args:
            logits_BR: logits of the source labels.
            sources_R: positions of the source labels among the trained labels, -1 for untrained ones.
            targets_C: the same of the target labels.
        """
        sources = (sources_R >= 0).nonzero()[:, 0]
        targets = (targets_C >= 0).nonzero()[:, 0]
        propagated_BC = logits_BR.new_zeros(len(logits_BR), len(targets_C))
        if not len(sources):
            return propagated_BC
        edges_TS = self._off_diagonal_edges()[targets_C[targets]][:, sources_R[sources]]
        shares_BS = (logits_BR[:, sources] * self.log_tau.exp()).softmax(dim=1)
        values_BT = (shares_BS @ edges_TS.t()).to(propagated_BC.dtype) * len(self.edges) ** 0.5
        return propagated_BC.index_copy(1, targets, values_BT)

    def edges_between(self, trained_C: Int64[Tensor, " C"]) -> Float[Tensor, "C C"]:
        """Returns the edges between labels at these positions; 0 for untrained labels (-1)."""
        is_trained_CC = (trained_C >= 0)[:, None] & (trained_C >= 0)
        return self._off_diagonal_edges()[trained_C][:, trained_C] * is_trained_CC

    def _off_diagonal_edges(self) -> Tensor:
        return self.edges * (1 - torch.eye(len(self.edges), device=self.edges.device))
