"""GMC, graph-based multi-label correlation: two GATv2 layers over the label graph.

    dropout(T) -> GATv2(D -> hidden, heads concatenated) -> ELU -> dropout -> GATv2(hidden -> D, one head) = G

Source: arXiv 2504.03801; GATv2: Brody, Alon, Yahav, arXiv 2105.14491.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sigrl_core.config import GraphConfig

TILE_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Numbers in one tile of rows x C x D, the largest tensor a layer holds, forward or backward."""
NEGATIVE_SLOPE = 0.2


class GATv2Layer(nn.Module):
    """One graph attention layer; no residual, no bias.

    Per head: u = W h, e_ij = a . LeakyReLU(u_i + u_j), alpha_i = softmax_j(e_ij) over neighbours,
    out_i = sum_j alpha_ij u_j. One W serves sources and targets, one `a` all heads. Rows are attended tile by tile and
    made again for the backward pass, so that neither C x C x D nor C x C numbers are kept.
    """

    def __init__(self, in_dim: int, out_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.linear = nn.Linear(in_dim, out_dim, bias=False)
        self.attn = nn.Linear(out_dim // heads, 1, bias=False)

    def forward(
        self, nodes_CD: Float[Tensor, "C in"], adjacency_CC: Bool[Tensor, "C C"] | None = None
    ) -> Float[Tensor, "C out"]:
        """`adjacency_CC[i, j]`: i hears j; every row needs a True. None is the complete graph with self-loops."""
        u_CD = self.linear(nodes_CD).to(nodes_CD.dtype)
        C, D = u_CD.shape
        u_CHE = u_CD.view(C, self.heads, D // self.heads)
        rows = max(1, TILE_ELEMENTS.get(u_CD.device.type, TILE_ELEMENTS["cuda"]) // (C * D))
        tiles = []
        for start in range(0, C, rows):
            tile = slice(start, start + rows)
            neighbours = None if adjacency_CC is None else adjacency_CC[tile]
            tiles.append(checkpoint(self._attend, u_CHE[tile], u_CHE, neighbours, use_reentrant=False))
        return torch.cat(tiles).reshape(C, D)

    def _attend(self, targets_THE: Tensor, sources_CHE: Tensor, neighbours_TC: Tensor | None) -> Tensor:
        pairs_TCHE = F.leaky_relu(targets_THE[:, None] + sources_CHE, NEGATIVE_SLOPE)
        logits_TCH = (pairs_TCHE @ self.attn.weight[0]).to(targets_THE.dtype)
        if neighbours_TC is not None:
            logits_TCH = logits_TCH.masked_fill(~neighbours_TC[..., None], -torch.inf)
        attention_TCH = F.dropout(logits_TCH.softmax(dim=1), self.dropout, self.training)
        return torch.einsum("tch,che->the", attention_TCH, sources_CHE)


class LabelGraph(nn.Module):
    """G [C, D], every label's embedding told by its neighbours. `kind="none"` has no parameters and gives T back.

    Args:
        dim: D of the label embeddings.
        config: widths, heads, dropout; `residual` adds T to the output.
    """

    def __init__(self, dim: int, config: GraphConfig) -> None:
        super().__init__()
        self.config = config
        if config.kind != "none":
            self.gat1 = GATv2Layer(dim, config.hidden, config.heads, config.dropout)
            self.gat2 = GATv2Layer(config.hidden, dim, 1, config.dropout)

    def forward(
        self, labels_CD: Float[Tensor, "C D"], adjacency_CC: Bool[Tensor, "C C"] | None = None
    ) -> Float[Tensor, "C D"]:
        if self.config.kind == "none":
            return labels_CD
        nodes_CD = F.dropout(labels_CD, self.config.dropout, self.training)
        hidden_CD = F.dropout(F.elu(self.gat1(nodes_CD, adjacency_CC)), self.config.dropout, self.training)
        graph_CD = self.gat2(hidden_CD, adjacency_CC)
        return labels_CD + graph_CD if self.config.residual else graph_CD
