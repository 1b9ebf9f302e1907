"""SigRL, wired from its parts. No arithmetic here but the learned scale.

Paper (arXiv 2504.03801)                            Code
--------------------------------------------------  -------------------------------------------------
patch tokens X, class token g, label texts T        backbone.Backbone, the inputs of SigRL.forward
GMC: label graph, G                                 label_graph.LabelGraph
coefficients A of both modules                      coefficients.Coefficients
semantic decoupling, S                              reconstruction.SemanticDecoupling
channel mixing, O                                   reconstruction.mix_channels
SVFR: fused queries Q, coefficients A', patches R   reconstruction.Reconstruction
local score (top-K mean), global score              scoring.local_scores, scoring.global_scores
(ours) scores that travel between labels            propagation.ScorePropagation
final score                                         scoring.combine
ranking and distillation losses                     losses.ranking, losses.distillation
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sigrl_core.config import GraphConfig, ReconstructionConfig, ScoringConfig
from sigrl_core.model import scoring
from sigrl_core.model.asked import Asked
from sigrl_core.model.label_graph import LabelGraph
from sigrl_core.model.propagation import ScorePropagation
from sigrl_core.model.reconstruction import Reconstruction, SemanticDecoupling, mix_channels


class Scores(NamedTuple):
    """What one forward pass says of every image and label asked."""

    scores_BC: Tensor
    """What ranks labels; no probability. As published in [-1, 1], with propagation beyond."""
    local_BC: Tensor
    """Local score over its norm."""
    global_BC: Tensor
    """Global score over its norm."""
    logits_BC: Tensor
    """What the loss sees: scores times a learned positive scale plus a learned bias, or the scores themselves."""
    patches_BPD: Tensor
    """The patches that local scores are of, rebuilt where the model rebuilds; see `scoring.patch_fits`."""


class SigRL(nn.Module):
    """Scores of C labels for B images, from the backbone's tokens.

    With `reconstruction.enabled` off there is no semantic, graph or reconstruction part, and patches are scored as they
    come (the MKT-style baseline). `log_scale` and `bias` exist only with `scoring.learn_scale`, `propagation` only with
    `graph.propagation`.

    Args:
        dim: D of the joint embedding.
        labels: how many labels are trained on.
    """

    def __init__(
        self,
        dim: int,
        graph: GraphConfig,
        reconstruction: ReconstructionConfig,
        scoring: ScoringConfig,
        labels: int = 0,
    ) -> None:
        super().__init__()
        self.patches_kept, self.local_candidates = scoring.patches_kept, scoring.local_candidates
        self.reconstructs, self.learns_scale = reconstruction.enabled, scoring.learn_scale
        self.propagates, self.has_graph = graph.propagation, reconstruction.enabled and graph.kind != "none"
        if self.reconstructs:
            self.semantic = SemanticDecoupling(dim, reconstruction)
            self.graph = LabelGraph(dim, graph)
            self.reconstruction = Reconstruction(dim, reconstruction)
        if self.learns_scale:
            self.log_scale = nn.Parameter(torch.tensor(math.log(scoring.initial_scale)))
            self.bias = nn.Parameter(torch.tensor(0.0))
        if self.propagates:
            self.propagation = ScorePropagation(labels)

    def forward(
        self,
        patches_BPD: Float[Tensor, "B P D"],
        glob_BD: Float[Tensor, "B D"],
        asked: Asked,
        reference: Asked | None = None,
    ) -> Scores:
        """Patches and class token come as the backbone gives them.

        As published every score depends on all labels asked: reconstruction sums over them, both norms run over them.
        With a `reference` these sums and norms, and what propagates, are those of the reference's labels; a score then
        depends on its own label alone, and equals the published one where the reference itself is asked.
        """
        if reference is None:
            patches_BPD, local_BC, global_BC = self._published(patches_BPD, glob_BD, asked)
            scores_BC = telling_BR = scoring.combine(local_BC, global_BC)
        else:
            if self.reconstructs:
                patches_BPD = self.reconstruct(patches_BPD, reference)
            local_BC, global_BC, telling_BR = self._by_reference(patches_BPD, glob_BD, asked, reference)
            scores_BC = scoring.combine(local_BC, global_BC)
        logits_BC = self._scaled(scores_BC)
        told = asked if reference is None else reference
        if self.propagates and told.trained_C is not None and asked.trained_C is not None:
            heard_BC = self.propagation(self._scaled(telling_BR), told.trained_C, asked.trained_C)
            logits_BC = logits_BC + heard_BC
            scores_BC = scores_BC + (heard_BC / self.log_scale.exp() if self.learns_scale else heard_BC)
        return Scores(scores_BC, local_BC, global_BC, logits_BC, patches_BPD)

    def _published(self, patches_BPD: Tensor, glob_BD: Tensor, asked: Asked) -> tuple[Tensor, Tensor, Tensor]:
        """The patches scored, local and global scores over their norms."""
        labels_CD = asked.labels_CD
        global_BC = scoring.global_scores(glob_BD, labels_CD)
        candidates = None if self.training else self.local_candidates
        if candidates is not None and candidates < len(labels_CD):
            chosen_BK = global_BC.topk(candidates).indices
            if self.reconstructs:
                graph_CD = self.graph_of(asked)
                patches_BPD = self._reconstruct(patches_BPD, labels_CD[chosen_BK], graph_CD[chosen_BK])
            local_BK = scoring.local_scores(patches_BPD, labels_CD[chosen_BK], self.patches_kept)
            local_BK = scoring.over_labels(local_BK)
            # every other label gets the lowest local score of its image's candidates
            local_BC = local_BK.amin(1, keepdim=True).expand_as(global_BC).scatter(1, chosen_BK, local_BK)
        else:
            if self.reconstructs:
                patches_BPD = self.reconstruct(patches_BPD, asked)
            local_BC = scoring.over_labels(scoring.local_scores(patches_BPD, labels_CD, self.patches_kept))
        return patches_BPD, local_BC, scoring.over_labels(global_BC)

    def _by_reference(
        self, rebuilt_BPD: Tensor, glob_BD: Tensor, asked: Asked, reference: Asked
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Local and global scores over the norms of the reference, and the scores of the reference's own labels."""
        of_asked, of_reference = (
            (
                scoring.local_scores(rebuilt_BPD, labels_CD, self.patches_kept),
                scoring.global_scores(glob_BD, labels_CD),
            )
            for labels_CD in (asked.labels_CD, reference.labels_CD)
        )
        local_BC, global_BC = map(scoring.over_norm, of_asked, of_reference)
        return local_BC, global_BC, scoring.combine(*map(scoring.over_labels, of_reference))

    def reconstruct(self, patches_BPD: Float[Tensor, "B P D"], asked: Asked) -> Float[Tensor, "B P D"]:
        """R, the patches as all labels asked rebuild them together."""
        return self._reconstruct(patches_BPD, asked.labels_CD, self.graph_of(asked))

    def graph_of(self, asked: Asked) -> Float[Tensor, "C D"]:
        """G; T where there is no graph."""
        if asked.graph_CD is not None:
            return asked.graph_CD
        return self.graph(asked.labels_CD, asked.edges_CC) if self.reconstructs else asked.labels_CD

    def _reconstruct(self, patches_BPD: Tensor, labels: Tensor, graph: Tensor) -> Tensor:
        """Labels and graph are the same for all images, or each image's own."""
        mixed_BCD = mix_channels(self.semantic(patches_BPD, labels), labels)
        return self.reconstruction(patches_BPD, mixed_BCD, graph)

    def _scaled(self, scores_BC: Tensor) -> Tensor:
        return scores_BC * self.log_scale.exp() + self.bias if self.learns_scale else scores_BC
