"""Semantic decoupling and SVFR: what the patches say of each label, and the patches rebuilt from what the labels say.

Both weigh every patch for every label and channel, see `coefficients` (arXiv 2504.03801).
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sigrl_core.config import ReconstructionConfig
from sigrl_core.model.coefficients import Coefficients


class SemanticDecoupling(nn.Module):
    """S, one feature per label and image, drawn from the patches."""

    def __init__(self, dim: int, config: ReconstructionConfig) -> None:
        super().__init__()
        self.coef = Coefficients(dim, config.coefficient_rank, config.implementation)

    def forward(self, patches_BPD: Float[Tensor, "B P D"], labels: Float[Tensor, "*B C D"]) -> Float[Tensor, "B C D"]:
        """`labels` are [C, D], the same for every image, or [B, C, D]."""
        return self.coef.pooled(patches_BPD, labels)


def mix_channels(semantic_BCD: Float[Tensor, "B C D"], labels: Float[Tensor, "*B C D"]) -> Float[Tensor, "B C D"]:
    """O = S M with M = row_normalise(ReLU(S^T T)), the channels of an image that its labels tie together.

    The authors also divide by two norms before the ReLU; the normalisation of the rows cancels them.
    """
    mixing_BDD = F.normalize(F.relu(semantic_BCD.transpose(1, 2) @ labels), dim=-1)
    return semantic_BCD @ mixing_BDD


class Reconstruction(nn.Module):
    """SVFR: patches rebuilt from what semantics and label graph say of every label together.

    Published: R = X * sum_c A', queries Q = U [O ; G]. `config.residual` gives X + R P / C with W_r
    starting at zero, that is from the patches as they come; `config.unit_rms` brings O and G to the same size before U.
    """

    def __init__(self, dim: int, config: ReconstructionConfig) -> None:
        super().__init__()
        self.config = config
        self.fuse = nn.Linear(2 * dim, dim, bias=False)
        self.coef = Coefficients(dim, config.coefficient_rank, config.implementation)
        if config.residual:
            self.coef.start_uniform()  # training starts from the patches as they come

    def forward(
        self,
        patches_BPD: Float[Tensor, "B P D"],
        mixed_BCD: Float[Tensor, "B C D"],
        graph: Float[Tensor, "*B C D"],
    ) -> Float[Tensor, "B P D"]:
        if self.config.unit_rms:
            mixed_BCD, graph = (F.normalize(x, dim=-1) * x.shape[-1] ** 0.5 for x in (mixed_BCD, graph))
        # The graph is the same for every image: each half of U by itself, nothing concatenated.
        for_mixed_DD, for_graph_DD = self.fuse.weight.chunk(2, dim=1)
        queries_BCD = F.linear(mixed_BCD, for_mixed_DD) + F.linear(graph, for_graph_DD)
        weight_BPD = self.coef.summed(patches_BPD, queries_BCD)
        if self.config.residual:
            return patches_BPD + patches_BPD * weight_BPD * (patches_BPD.shape[1] / graph.shape[-2])
        return patches_BPD * weight_BPD
