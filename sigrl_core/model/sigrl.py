"""SigRL, wired from its parts. No arithmetic here but the learned scale.

Paper (arXiv 2504.03801)                            Code
--------------------------------------------------  -------------------------------------------------
patch tokens X, class token g, label texts T        backbone.Backbone, the inputs of SigRL.forward
GMC: label graph, G                                 label_graph.LabelGraph
semantic decoupling, S                              reconstruction.SemanticDecoupling
channel mixing, O                                   reconstruction.mix_channels
SVFR: fused queries Q, coefficients A', patches R   reconstruction.Reconstruction
local score (top-K mean), global score              scoring.local_scores, scoring.global_scores
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
from sigrl_core.model.label_graph import LabelGraph
from sigrl_core.model.reconstruction import Reconstruction, SemanticDecoupling, mix_channels


class Scores(NamedTuple):
    """What one forward pass says of every image and label. All of it depends on the whole vocabulary asked."""

    scores_BC: Tensor
    """The published score, in [-1, 1]; ranks, is no probability."""
    local_BC: Tensor
    """Local score over its norm."""
    global_BC: Tensor
    """Global score over its norm."""
    logits_BC: Tensor
    """What the loss sees: scores times a learned positive scale plus a learned bias, or the scores themselves."""


class SigRL(nn.Module):
    """Scores of C labels for B images, from the backbone's tokens.

    With `reconstruction.enabled` off there is no semantic, graph or reconstruction part, and patches are scored as they
    come (the MKT-style baseline). `log_scale` and `bias` exist only with `scoring.learn_scale`.
    """

    def __init__(
        self, dim: int, graph: GraphConfig, reconstruction: ReconstructionConfig, scoring: ScoringConfig
    ) -> None:
        super().__init__()
        self.patches_kept = scoring.patches_kept
        self.reconstructs, self.learns_scale = reconstruction.enabled, scoring.learn_scale
        if self.reconstructs:
            self.semantic = SemanticDecoupling(dim)
            self.graph = LabelGraph(dim, graph)
            self.reconstruction = Reconstruction(dim, reconstruction)
        if self.learns_scale:
            self.log_scale = nn.Parameter(torch.tensor(math.log(scoring.initial_scale)))
            self.bias = nn.Parameter(torch.tensor(0.0))

    def forward(
        self,
        patches_BPD: Float[Tensor, "B P D"],
        glob_BD: Float[Tensor, "B D"],
        labels_CD: Float[Tensor, "C D"],
    ) -> Scores:
        """`labels_CD` are L2-normalised text embeddings; patches and class token come as the backbone gives them."""
        if self.reconstructs:
            patches_BPD = self.reconstruct(patches_BPD, labels_CD)
        local_BC = scoring.local_scores(patches_BPD, labels_CD, self.patches_kept)
        global_BC = scoring.global_scores(glob_BD, labels_CD)
        scores_BC = scoring.combine(local_BC, global_BC)
        logits_BC = scores_BC * self.log_scale.exp() + self.bias if self.learns_scale else scores_BC
        return Scores(scores_BC, scoring.over_labels(local_BC), scoring.over_labels(global_BC), logits_BC)

    def reconstruct(
        self, patches_BPD: Float[Tensor, "B P D"], labels_CD: Float[Tensor, "C D"]
    ) -> Float[Tensor, "B P D"]:
        """R, the patches as all labels together rebuild them."""
        mixed_BCD = mix_channels(self.semantic(patches_BPD, labels_CD), labels_CD)
        return self.reconstruction(patches_BPD, mixed_BCD, self.graph(labels_CD))
