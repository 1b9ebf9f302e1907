"""Semantic decoupling and semantic visual feature reconstruction (SVFR) of arXiv 2504.03801.

Decoupling computes one feature per label from the patches, reconstruction computes the patches from these features.
Both weight every patch per label and channel, see `coefficients`. The formulas use the letters of the paper::

    X [P, D]  patches                      S [C, D]  label features of an image      T [C, D]  label texts
    O [C, D]  S with mixed channels        G [C, D]  output of the label graph       R [P, D]  reconstructed patches
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sigrl_core.config import ReconstructionConfig
from sigrl_core.model.coefficients import Coefficients


class SemanticDecoupling(nn.Module):
    """Computes S, one feature per label and image, from the patches."""

    def __init__(self, dim: int, config: ReconstructionConfig) -> None:
        super().__init__()
        self.coef = Coefficients(dim, config.coefficient_rank, config.implementation)

    def forward(self, patches_BPD: Float[Tensor, "B P D"], labels: Float[Tensor, "*B C D"]) -> Float[Tensor, "B C D"]:
        """Pools the patches; `labels` are [C, D], the same for every image, or [B, C, D]."""
        return self.coef.pool_patches(patches_BPD, labels)


def mix_channels(semantic_BCD: Float[Tensor, "B C D"], labels: Float[Tensor, "*B C D"]) -> Float[Tensor, "B C D"]:
    """Computes O = S M with M = row_normalise(ReLU(S^T T)), which mixes channels that occur in the same labels.

    The authors also divide by two norms before the ReLU; the row normalisation cancels them.
    """
    mixing_BDD = F.normalize(F.relu(semantic_BCD.transpose(1, 2) @ labels), dim=-1)
    return semantic_BCD @ mixing_BDD


class Reconstruction(nn.Module):
    """Reconstructs patches from the semantic features and graph embeddings of all labels (SVFR).

    The published form is R = X * sum_c A', with the coefficients A' of the queries Q = U [O ; G]; U is `fuse`.
    `config.residual` computes X + R P / C with coefficients that start at 1/P, so that training starts from 2 X, which
    scores like X. `config.rms_normalise` scales O and G to a root mean square of one before U.
    """

    def __init__(self, dim: int, config: ReconstructionConfig) -> None:
        super().__init__()
        self.config = config
        self.fuse = nn.Linear(2 * dim, dim, bias=False)
        self.coef = Coefficients(dim, config.coefficient_rank, config.implementation)
        if config.residual:
            self.coef.start_uniform()

    def forward(
        self,
        patches_BPD: Float[Tensor, "B P D"],
        mixed_BCD: Float[Tensor, "B C D"],
        graph: Float[Tensor, "*B C D"],
    ) -> Float[Tensor, "B P D"]:
        if self.config.rms_normalise:
            mixed_BCD, graph = (F.normalize(x, dim=-1) * x.shape[-1] ** 0.5 for x in (mixed_BCD, graph))
        # The graph is the same for every image, so each half of U is applied alone and nothing is concatenated.
        mixed_weight_DD, graph_weight_DD = self.fuse.weight.chunk(2, dim=1)
        queries_BCD = F.linear(mixed_BCD, mixed_weight_DD) + F.linear(graph, graph_weight_DD)
        weight_BPD = self.coef.sum_labels(patches_BPD, queries_BCD)
        if self.config.residual:
            return patches_BPD + patches_BPD * weight_BPD * (patches_BPD.shape[1] / graph.shape[-2])
        return patches_BPD * weight_BPD
