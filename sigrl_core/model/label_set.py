"""The labels of one forward pass."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor


class LabelSet(NamedTuple):
    """C labels that are scored together; `SigRLModel.encode_labels` makes one from a vocabulary."""

    labels_CD: Float[Tensor, "C D"]
    """Text embeddings, L2-normalised."""
    edges_CC: Float[Tensor, "C C"] | None = None
    """Label edges from data or a file, see `labels.edges`; a row of zeros for a label without any."""
    trained_C: Int64[Tensor, " C"] | None = None
    """Position of each label among the trained labels, -1 for untrained ones; None without trained labels."""
    own_CE: Float[Tensor, "C E"] | None = None
    """Custom label embeddings before their projection, see `SigRLModel.project_labels`."""
    graph_CD: Float[Tensor, "C D"] | None = None
    """G, the output of the label graph, cached for weights that do not change; see `SigRLModel.with_graph_cache`."""

    def to(self, device: object) -> LabelSet:
        return LabelSet(*(None if part is None else part.to(device) for part in self))  # pyright: ignore

    def subset(self, positions_K: Int64[Tensor, " K"]) -> LabelSet:
        """Returns the labels at these positions; the output of the label graph differs for them, so it is not kept."""
        edges_KK = None if self.edges_CC is None else self.edges_CC[positions_K][:, positions_K]
        trained_K = None if self.trained_C is None else self.trained_C[positions_K]
        own_KE = None if self.own_CE is None else self.own_CE[positions_K]
        return LabelSet(self.labels_CD[positions_K], edges_KK, trained_K, own_KE)
