"""GMC, graph-based multi-label correlation: GATv2 layers over the label graph::

    dropout(T) -> GATv2(D -> hidden, heads concatenated) -> ELU -> dropout -> GATv2(hidden -> D, one head) = G

T [C, D] are the embeddings of the label texts, G [C, D] those that the other modules use. In names of tensors, H counts
heads, E the channels of a head, and T the labels of a tile.

Source: arXiv 2504.03801, with two layers and the complete graph; GATv2: Brody, Alon, Yahav, arXiv 2105.14491.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sigrl_core.config import GraphConfig
from sigrl_core.plugins import GRAPHS

TILE_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Maximum number of elements in the largest tensor of a tile of rows, forward or backward."""
NEGATIVE_SLOPE = 0.2


def _recompute_in_backward(function: Callable[..., Tensor], *values: Any) -> Tensor:
    """Calls a function whose activations are recomputed in the backward pass.

    Without gradients it is called directly: torch.utils.checkpoint imports torch._dynamo, which takes seconds.
    """
    return checkpoint(function, *values, use_reentrant=False) if torch.is_grad_enabled() else function(*values)


Edges = Tensor
"""Float [C, C]: factor of the attention weight with which label i, the target, attends to label j, the source; 0 means
no edge. `known_CC` are the edges that were counted in data or read from a file."""


def complete_edges(labels_CD: Float[Tensor, "C D"], known_CC: Edges | None, config: GraphConfig) -> Edges | None:
    """Returns None: every label attends to every label, itself included, as published; no edges are stored."""
    return None


def nearest_edges(labels_CD: Float[Tensor, "C D"], known_CC: Edges | None, config: GraphConfig) -> Edges:
    """Connects a label to itself and to the `neighbours` labels with the nearest embeddings by cosine."""
    with torch.no_grad():
        unit_CD = F.normalize(labels_CD, dim=-1)
        cosine_CC = (unit_CD @ unit_CD.t()).fill_diagonal_(torch.inf)
        neighbours_CK = cosine_CC.topk(min(config.neighbours + 1, len(labels_CD)), dim=1).indices
        return torch.zeros_like(cosine_CC).scatter_(1, neighbours_CK, 1.0)


def known_edges(labels_CD: Float[Tensor, "C D"], known_CC: Edges | None, config: GraphConfig) -> Edges:
    """Returns the edges counted from data or read from a file; a label without such edges gets its nearest labels."""
    nearest_CC = nearest_edges(labels_CD, None, config)
    if known_CC is None:
        return nearest_CC
    return torch.where((known_CC > 0).any(1, keepdim=True), known_CC.to(nearest_CC.dtype), nearest_CC)


class Neighbours(NamedTuple):
    """The edges of a sparse graph: positions and weights of the labels that each label attends to.

    K is the largest number of neighbours of a label; labels with fewer have weights of 0.
    """

    index_CK: Int64[Tensor, "C K"]
    weight_CK: Float[Tensor, "C K"]

    @classmethod
    def from_edges(cls, edges_CC: Edges) -> Neighbours:
        """Keeps the edges above 0."""
        num_neighbours = int((edges_CC > 0).sum(1).max())
        weight_CK, index_CK = edges_CC.topk(num_neighbours, dim=1)
        return cls(index_CK, weight_CK)


class GATv2Layer(nn.Module):
    """One graph attention layer; no residual, no bias.

    Per head: u = W h, e_ij = a . LeakyReLU(u_i + u_j), alpha_i = softmax_j(e_ij) over neighbours,
    out_i = sum_j alpha_ij u_j. Sources and targets share W, all heads share `a`. Rows are computed tile by tile and
    recomputed in the backward pass, so that no C x C numbers are stored. No tensor has a vector for every pair of the
    complete graph, see `_logits`; in a sparse graph a label needs one vector per neighbour.
    """

    def __init__(self, in_dim: int, out_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.linear = nn.Linear(in_dim, out_dim, bias=False)
        self.attn = nn.Linear(out_dim // heads, 1, bias=False)

    def forward(self, nodes_CD: Float[Tensor, "C in"], neighbours: Neighbours | None = None) -> Float[Tensor, "C out"]:
        """Runs the layer; without `neighbours` every label attends to every label, itself included."""
        u_CD = self.linear(nodes_CD).to(nodes_CD.dtype)
        C, D = u_CD.shape
        u_CHE = u_CD.view(C, self.heads, D // self.heads)
        elements = C * self.heads if neighbours is None else neighbours.index_CK.shape[1] * D
        rows = max(1, TILE_ELEMENTS.get(u_CD.device.type, TILE_ELEMENTS["cuda"]) // elements)
        tiles = []
        for start in range(0, C, rows):
            tile = slice(start, start + rows)
            if neighbours is None:
                tiles.append(_recompute_in_backward(self._attend_all, u_CHE[tile], u_CHE))
            else:
                neighbours_TK = Neighbours(*(part[tile] for part in neighbours))
                tiles.append(_recompute_in_backward(self._attend, u_CHE[tile], u_CHE, neighbours_TK))
        return torch.cat(tiles).reshape(C, D)

    def _attend(self, targets_THE: Tensor, sources_CHE: Tensor, neighbours_TK: Neighbours) -> Tensor:
        sources_TKHE = sources_CHE[neighbours_TK.index_CK]
        pairs_TKHE = F.leaky_relu(targets_THE[:, None] + sources_TKHE, NEGATIVE_SLOPE)
        logits_TKH = (pairs_TKHE @ self.attn.weight[0]).to(targets_THE.dtype)
        logits_TKH = logits_TKH + neighbours_TK.weight_CK.to(logits_TKH.dtype).log()[..., None]
        return torch.einsum("tkh,tkhe->the", self._attention(logits_TKH, dim=1), sources_TKHE)

    def _attend_all(self, targets_THE: Tensor, sources_CHE: Tensor) -> Tensor:
        targets_HTE, sources_HCE = targets_THE.transpose(0, 1), sources_CHE.transpose(0, 1)
        attention_HTC = self._attention(self._logits(targets_HTE, sources_HCE), dim=2)
        return (attention_HTC @ sources_HCE).to(targets_THE.dtype).transpose(0, 1)

    def _logits(self, targets_HTE: Tensor, sources_HCE: Tensor) -> Tensor:
        """Computes e_ij of all pairs, without terms that are equal for all j, which the softmax over j cancels.

        With slope s, LeakyReLU(x) = (1 + s)/2 x + (1 - s)/2 |x|. The first term gives a . u_j. In the second one,
        sum_d a_d |x_d| over the positive a is the L1 distance of a u_i and -a u_j, and the same holds for the negative
        a, so that no vector of a pair is stored.
        """
        a_E = self.attn.weight[0].to(targets_HTE.dtype)
        positive_HTC, negative_HTC = (
            torch.cdist(part_E * targets_HTE, -part_E * sources_HCE, p=1) for part_E in (F.relu(a_E), F.relu(-a_E))
        )
        linear_HC, absolute_HTC = (sources_HCE * a_E).sum(-1), positive_HTC - negative_HTC
        return (1 + NEGATIVE_SLOPE) / 2 * linear_HC[:, None] + (1 - NEGATIVE_SLOPE) / 2 * absolute_HTC

    def _attention(self, logits: Tensor, dim: int) -> Tensor:
        return F.dropout(logits.softmax(dim), self.dropout, self.training)


class LabelGraph(nn.Module):
    """Computes G [C, D], label embeddings that include those of the neighbours. `kind="none"` returns T unchanged.

    Args:
        dim: D of the label embeddings.
        config: kind of graph, widths, heads, layers, dropout; `residual` adds T to the output.
    """

    def __init__(self, dim: int, config: GraphConfig) -> None:
        super().__init__()
        self.config = config
        if config.kind != "none":
            self._make_edges: Callable[..., Edges | None] = GRAPHS[config.kind]
            widths = [dim, *[config.hidden] * (config.layers - 1), dim]
            heads = [*[config.heads] * (config.layers - 1), 1]
            self.layers = nn.ModuleList(
                GATv2Layer(inputs, outputs, count, config.dropout)
                for inputs, outputs, count in zip(widths[:-1], widths[1:], heads, strict=True)
            )

    def forward(
        self, labels_CD: Float[Tensor, "C D"], known_CC: Float[Tensor, "C C"] | None = None
    ) -> Float[Tensor, "C D"]:
        """Computes G; `known_CC` are the edges from data or a file, for the kinds that use them."""
        if self.config.kind == "none":
            return labels_CD
        edges_CC = self.compute_edges(labels_CD, known_CC)
        neighbours = None if edges_CC is None else Neighbours.from_edges(edges_CC)
        graph_CD = labels_CD
        for number, layer in enumerate(self.layers):
            graph_CD = F.elu(graph_CD) if number else graph_CD
            graph_CD = layer(F.dropout(graph_CD, self.config.dropout, self.training), neighbours)
        return labels_CD + graph_CD if self.config.residual else graph_CD

    def compute_edges(self, labels_CD: Float[Tensor, "C D"], known_CC: Edges | None = None) -> Edges | None:
        """Returns the edges between these labels; None for the complete graph."""
        is_too_large = self.config.kind == "complete" and len(labels_CD) > self.config.max_complete_labels
        make_edges = nearest_edges if is_too_large else self._make_edges
        return make_edges(labels_CD, known_CC, self.config)
