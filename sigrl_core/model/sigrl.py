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
        self.patches_kept, self.local_candidates = scoring.patches_kept, scoring.local_candidates
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
        global_BC = scoring.global_scores(glob_BD, labels_CD)
        graph_CD = self.graph(labels_CD) if self.reconstructs else labels_CD
        candidates = None if self.training else self.local_candidates
        if candidates is not None and candidates < len(labels_CD):
            chosen_BK = global_BC.topk(candidates).indices
            local_BK = self._local(patches_BPD, labels_CD[chosen_BK], graph_CD[chosen_BK])
            # every other label gets the lowest local score of its image's candidates
            local_BC = local_BK.amin(1, keepdim=True).expand_as(global_BC).scatter(1, chosen_BK, local_BK)
        else:
            local_BC = self._local(patches_BPD, labels_CD, graph_CD)
        global_BC = scoring.over_labels(global_BC)
        scores_BC = scoring.combine(local_BC, global_BC)
        logits_BC = scores_BC * self.log_scale.exp() + self.bias if self.learns_scale else scores_BC
        return Scores(scores_BC, local_BC, global_BC, logits_BC)

    def _local(
        self, patches_BPD: Float[Tensor, "B P D"], labels: Float[Tensor, "*B C D"], graph: Float[Tensor, "*B C D"]
    ) -> Float[Tensor, "B C"]:
        """Local scores over their norm; labels and graph the same for all images, or each image its own."""
        if self.reconstructs:
            patches_BPD = self._reconstruct(patches_BPD, labels, graph)
        return scoring.over_labels(scoring.local_scores(patches_BPD, labels, self.patches_kept))

    def reconstruct(
        self, patches_BPD: Float[Tensor, "B P D"], labels_CD: Float[Tensor, "C D"]
    ) -> Float[Tensor, "B P D"]:
        """R, the patches as all labels together rebuild them."""
        return self._reconstruct(patches_BPD, labels_CD, self.graph(labels_CD))

    def _reconstruct(self, patches_BPD: Tensor, labels: Tensor, graph: Tensor) -> Tensor:
        mixed_BCD = mix_channels(self.semantic(patches_BPD, labels), labels)
        return self.reconstruction(patches_BPD, mixed_BCD, graph)
