"""GMC, graph-based multi-label correlation: GATv2 layers over the label graph::

    dropout(T) -> GATv2(D -> hidden, heads concatenated) -> ELU -> dropout -> GATv2(hidden -> D, one head) = G

Source: arXiv 2504.03801, with two layers and the complete graph; GATv2: Brody, Alon, Yahav, arXiv 2105.14491.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sigrl_core.config import GraphConfig

TILE_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Numbers in the largest tensor of a tile of rows, forward or backward."""
NEGATIVE_SLOPE = 0.2

Edges = Tensor
"""Float [C, C]: how much label i hears label j, 0 for not at all; an attention weight is multiplied by it."""


def complete(labels_CD: Float[Tensor, "C D"], known_CC: Edges | None, config: GraphConfig) -> Edges | None:
    """Every label hears every label, itself too: the published graph, for which no edges need be held."""
    return None


def nearest(labels_CD: Float[Tensor, "C D"], known_CC: Edges | None, config: GraphConfig) -> Edges:
    """A label hears itself and the `neighbours` labels asked whose embeddings are nearest by cosine."""
    with torch.no_grad():
        unit_CD = F.normalize(labels_CD, dim=-1)
        cosine_CC = (unit_CD @ unit_CD.t()).fill_diagonal_(torch.inf)
        heard_CK = cosine_CC.topk(min(config.neighbours + 1, len(labels_CD)), dim=1).indices
        return torch.zeros_like(cosine_CC).scatter_(1, heard_CK, 1.0)


def known(labels_CD: Float[Tensor, "C D"], known_CC: Edges | None, config: GraphConfig) -> Edges:
    """The edges known beforehand; a label of which none are known hears as in `nearest`."""
    nearest_CC = nearest(labels_CD, None, config)
    if known_CC is None:
        return nearest_CC
    return torch.where((known_CC > 0).any(1, keepdim=True), known_CC.to(nearest_CC.dtype), nearest_CC)


GRAPHS: dict[str, Callable[[Tensor, Edges | None, GraphConfig], Edges | None]] = {
    "complete": complete,
    "nearest": nearest,
    "cooccurrence": known,
    "listed": known,
}


class Heard(NamedTuple):
    """The edges of a sparse graph: for each label the K at most that it hears, by place, and how much. Where a label
    hears fewer, the rest are 0."""

    index_CK: Int64[Tensor, "C K"]
    weight_CK: Float[Tensor, "C K"]

    @classmethod
    def of(cls, edges_CC: Edges) -> Heard:
        most = int((edges_CC > 0).sum(1).max())
        weight_CK, index_CK = edges_CC.topk(most, dim=1)
        return cls(index_CK, weight_CK)


class GATv2Layer(nn.Module):
    """One graph attention layer; no residual, no bias.

    Per head: u = W h, e_ij = a . LeakyReLU(u_i + u_j), alpha_i = softmax_j(e_ij) over neighbours,
    out_i = sum_j alpha_ij u_j. One W serves sources and targets, one `a` all heads. Rows are attended tile by tile and
    made again for the backward pass, so that no C x C numbers are kept. No tensor has a vector for every pair of the
    complete graph, see `_logits`; with edges a label costs as many vectors as it hears.
    """

    def __init__(self, in_dim: int, out_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.linear = nn.Linear(in_dim, out_dim, bias=False)
        self.attn = nn.Linear(out_dim // heads, 1, bias=False)

    def forward(self, nodes_CD: Float[Tensor, "C in"], heard: Heard | None = None) -> Float[Tensor, "C out"]:
        """`heard`: whom every label hears; None: all alike, itself too."""
        u_CD = self.linear(nodes_CD).to(nodes_CD.dtype)
        C, D = u_CD.shape
        u_CHE = u_CD.view(C, self.heads, D // self.heads)
        numbers = C * self.heads if heard is None else heard.index_CK.shape[1] * D
        rows = max(1, TILE_ELEMENTS.get(u_CD.device.type, TILE_ELEMENTS["cuda"]) // numbers)
        tiles = []
        for start in range(0, C, rows):
            tile = slice(start, start + rows)
            if heard is None:
                tiles.append(checkpoint(self._attend_all, u_CHE[tile], u_CHE, use_reentrant=False))
            else:
                heard_TK = Heard(*(part[tile] for part in heard))
                tiles.append(checkpoint(self._attend, u_CHE[tile], u_CHE, heard_TK, use_reentrant=False))
        return torch.cat(tiles).reshape(C, D)

    def _attend(self, targets_THE: Tensor, sources_CHE: Tensor, heard_TK: Heard) -> Tensor:
        sources_TKHE = sources_CHE[heard_TK.index_CK]
        pairs_TKHE = F.leaky_relu(targets_THE[:, None] + sources_TKHE, NEGATIVE_SLOPE)
        logits_TKH = (pairs_TKHE @ self.attn.weight[0]).to(targets_THE.dtype)
        logits_TKH = logits_TKH + heard_TK.weight_CK.to(logits_TKH.dtype).log()[..., None]
        return torch.einsum("tkh,tkhe->the", self._attention(logits_TKH, dim=1), sources_TKHE)

    def _attend_all(self, targets_THE: Tensor, sources_CHE: Tensor) -> Tensor:
        targets_HTE, sources_HCE = targets_THE.transpose(0, 1), sources_CHE.transpose(0, 1)
        attention_HTC = self._attention(self._logits(targets_HTE, sources_HCE), dim=2)
        return (attention_HTC @ sources_HCE).to(targets_THE.dtype).transpose(0, 1)

    def _logits(self, targets_HTE: Tensor, sources_HCE: Tensor) -> Tensor:
        """e_ij of all pairs, up to what is the same for all j, which the softmax over them cancels.

        With s the slope, LeakyReLU(x) = (1 + s)/2 x + (1 - s)/2 |x|. The first part is a . u_j; sum_d a_d |x_d| over
        the positive a is the L1 distance of a u_i and -a u_j, and so for the negative ones: no pair's vector is held.
        """
        a_E = self.attn.weight[0].to(targets_HTE.dtype)
        above_HTC, below_HTC = (
            torch.cdist(part_E * targets_HTE, -part_E * sources_HCE, p=1) for part_E in (F.relu(a_E), F.relu(-a_E))
        )
        straight_HC, bent_HTC = (sources_HCE * a_E).sum(-1), above_HTC - below_HTC
        return (1 + NEGATIVE_SLOPE) / 2 * straight_HC[:, None] + (1 - NEGATIVE_SLOPE) / 2 * bent_HTC

    def _attention(self, logits: Tensor, dim: int) -> Tensor:
        return F.dropout(logits.softmax(dim), self.dropout, self.training)


class LabelGraph(nn.Module):
    """G [C, D], every label's embedding told by its neighbours. `kind="none"` has no parameters and gives T back.

    Args:
        dim: D of the label embeddings.
        config: which graph, widths, heads, layers, dropout; `residual` adds T to the output.
    """

    def __init__(self, dim: int, config: GraphConfig) -> None:
        super().__init__()
        self.config = config
        if config.kind != "none":
            widths = [dim, *[config.hidden] * (config.layers - 1), dim]
            heads = [*[config.heads] * (config.layers - 1), 1]
            self.layers = nn.ModuleList(
                GATv2Layer(inputs, outputs, count, config.dropout)
                for inputs, outputs, count in zip(widths[:-1], widths[1:], heads, strict=True)
            )

    def forward(
        self, labels_CD: Float[Tensor, "C D"], known_CC: Float[Tensor, "C C"] | None = None
    ) -> Float[Tensor, "C D"]:
        """`known_CC`: the edges known beforehand between the labels asked, for the kinds that use them."""
        if self.config.kind == "none":
            return labels_CD
        edges_CC = self.edges(labels_CD, known_CC)
        heard = None if edges_CC is None else Heard.of(edges_CC)
        graph_CD = labels_CD
        for number, layer in enumerate(self.layers):
            graph_CD = F.elu(graph_CD) if number else graph_CD
            graph_CD = layer(F.dropout(graph_CD, self.config.dropout, self.training), heard)
        return labels_CD + graph_CD if self.config.residual else graph_CD

    def edges(self, labels_CD: Float[Tensor, "C D"], known_CC: Edges | None = None) -> Edges | None:
        """Who hears whom; None where every label hears every label."""
        too_many = self.config.kind == "complete" and len(labels_CD) > self.config.complete_up_to
        return GRAPHS["nearest" if too_many else self.config.kind](labels_CD, known_CC, self.config)
