"""A vocabulary as the model sees it."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor


class Asked(NamedTuple):
    """The C labels of one question; made of a vocabulary by `Recogniser.ask`."""

    labels_CD: Float[Tensor, "C D"]
    """Text embeddings, L2-normalised."""
    edges_CC: Float[Tensor, "C C"] | None = None
    """What is known beforehand of who hears whom, see `label_edges`; a row of zeros where nothing is."""
    trained_C: Int64[Tensor, " C"] | None = None
    """Each label's place among those trained on, -1 for the others; None where nothing was."""
    own_CE: Float[Tensor, "C E"] | None = None
    """A user's own embeddings, to be projected, see `Recogniser.embedded`."""
    graph_CD: Float[Tensor, "C D"] | None = None
    """G, what the label graph makes of all these labels, where the weights are settled, see `Recogniser.settled`."""

    def to(self, device: object) -> Asked:
        return Asked(*(None if part is None else part.to(device) for part in self))  # pyright: ignore

    def take(self, chosen_K: Int64[Tensor, " K"]) -> Asked:
        """The question with these labels alone, of which the label graph makes something else."""
        edges_KK = None if self.edges_CC is None else self.edges_CC[chosen_K][:, chosen_K]
        trained_K = None if self.trained_C is None else self.trained_C[chosen_K]
        own_KE = None if self.own_CE is None else self.own_CE[chosen_K]
        return Asked(self.labels_CD[chosen_K], edges_KK, trained_K, own_KE)
