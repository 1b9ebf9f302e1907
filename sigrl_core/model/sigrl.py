"""SigRL, assembled from its parts. The only arithmetic here is the learned scale.

Paper (arXiv 2504.03801)                            Code
--------------------------------------------------  -------------------------------------------------
patch tokens X, class token g, label texts T        backbone.Backbone, the inputs of SigRL.forward
GMC: label graph, G                                 label_graph.LabelGraph
coefficients A of both modules                      coefficients.Coefficients
semantic decoupling, S                              reconstruction.SemanticDecoupling
channel mixing, O                                   reconstruction.mix_channels
SVFR: fused queries Q, coefficients A', patches R   reconstruction.Reconstruction
local score (top-K mean), global score              scoring.local_scores, scoring.global_scores
(ours) score propagation                            propagation.ScorePropagation
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
from sigrl_core.model.label_set import LabelSet
from sigrl_core.model.propagation import ScorePropagation
from sigrl_core.model.reconstruction import Reconstruction, SemanticDecoupling, mix_channels


class Scores(NamedTuple):
    """The results of one forward pass for every image and label."""

    scores_BC: Tensor
    """Scores that rank labels, not probabilities. In [-1, 1] without propagation."""
    local_BC: Tensor
    """Normalised local score."""
    global_BC: Tensor
    """Normalised global score."""
    logits_BC: Tensor
    """Input of the loss: scores times a learned positive scale plus a learned bias, or the scores themselves."""
    patches_BPD: Tensor
    """The patches of the local scores, reconstructed if the model reconstructs; see `scoring.patch_fits`."""


class SigRL(nn.Module):
    """Scores C labels on B images from the backbone's tokens.

    Without `reconstruction.enabled` there is no semantic, graph or reconstruction part, and unchanged patches are
    scored (the MKT-style baseline). `log_scale` and `bias` exist only with `scoring.learn_scale`, `propagation` only
    with `graph.propagation`.

    Args:
        dim: D of the joint embedding.
        labels: number of trained labels.
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
        self.top_k_patches, self.local_candidates = scoring.top_k_patches, scoring.local_candidates
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
        cls_BD: Float[Tensor, "B D"],
        label_set: LabelSet,
        reference_labels: LabelSet | None = None,
    ) -> Scores:
        """Computes the scores of a label set.

        In the published model every score depends on all labels of the set: reconstruction sums over them, and both
        norms run over them. With `reference_labels` these sums and norms, and the sources of propagation, are the
        reference labels; a score then depends on its own label only, and equals the published one if the set is the
        reference.
        """
        if reference_labels is None:
            patches_BPD, local_BC, global_BC = self._score_published(patches_BPD, cls_BD, label_set)
            scores_BC = source_scores_BR = scoring.combine(local_BC, global_BC)
        else:
            if self.reconstructs:
                patches_BPD = self.reconstruct(patches_BPD, reference_labels)
            local_BC, global_BC, source_scores_BR = self._score_by_reference(
                patches_BPD, cls_BD, label_set, reference_labels
            )
            scores_BC = scoring.combine(local_BC, global_BC)
        logits_BC = self._scale(scores_BC)
        sources = label_set if reference_labels is None else reference_labels
        if self.propagates and sources.trained_C is not None and label_set.trained_C is not None:
            added_BC = self.propagation(self._scale(source_scores_BR), sources.trained_C, label_set.trained_C)
            logits_BC = logits_BC + added_BC
            scores_BC = scores_BC + (added_BC / self.log_scale.exp() if self.learns_scale else added_BC)
        return Scores(scores_BC, local_BC, global_BC, logits_BC, patches_BPD)

    def _score_published(
        self, patches_BPD: Tensor, cls_BD: Tensor, label_set: LabelSet
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the scored patches and the normalised local and global scores."""
        labels_CD = label_set.labels_CD
        global_BC = scoring.global_scores(cls_BD, labels_CD)
        num_candidates = None if self.training else self.local_candidates
        if num_candidates is not None and num_candidates < len(labels_CD):
            candidates_BK = global_BC.topk(num_candidates).indices
            if self.reconstructs:
                graph_CD = self.compute_graph(label_set)
                patches_BPD = self._reconstruct(patches_BPD, labels_CD[candidates_BK], graph_CD[candidates_BK])
            local_BK = scoring.local_scores(patches_BPD, labels_CD[candidates_BK], self.top_k_patches)
            local_BK = scoring.normalise_over_labels(local_BK)
            # all other labels get the lowest local score of the image's candidates
            local_BC = local_BK.amin(1, keepdim=True).expand_as(global_BC).scatter(1, candidates_BK, local_BK)
        else:
            if self.reconstructs:
                patches_BPD = self.reconstruct(patches_BPD, label_set)
            local_BC = scoring.normalise_over_labels(scoring.local_scores(patches_BPD, labels_CD, self.top_k_patches))
        return patches_BPD, local_BC, scoring.normalise_over_labels(global_BC)

    def _score_by_reference(
        self, patches_BPD: Tensor, cls_BD: Tensor, label_set: LabelSet, reference_labels: LabelSet
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns local and global scores, normalised over the reference labels, and the reference labels' scores."""
        raw_scores, raw_reference_scores = (
            (
                scoring.local_scores(patches_BPD, labels_CD, self.top_k_patches),
                scoring.global_scores(cls_BD, labels_CD),
            )
            for labels_CD in (label_set.labels_CD, reference_labels.labels_CD)
        )
        local_BC, global_BC = map(scoring.normalise_by, raw_scores, raw_reference_scores)
        return local_BC, global_BC, scoring.combine(*map(scoring.normalise_over_labels, raw_reference_scores))

    def reconstruct(self, patches_BPD: Float[Tensor, "B P D"], label_set: LabelSet) -> Float[Tensor, "B P D"]:
        """Computes R, the patches reconstructed from all labels of the set."""
        return self._reconstruct(patches_BPD, label_set.labels_CD, self.compute_graph(label_set))

    def compute_graph(self, label_set: LabelSet) -> Float[Tensor, "C D"]:
        """Returns G, from the cache if it is there; T without a graph."""
        if label_set.graph_CD is not None:
            return label_set.graph_CD
        return self.graph(label_set.labels_CD, label_set.edges_CC) if self.reconstructs else label_set.labels_CD

    def _reconstruct(self, patches_BPD: Tensor, labels: Tensor, graph: Tensor) -> Tensor:
        """Reconstructs patches; `labels` and `graph` are [C, D] for all images or [B, C, D]."""
        mixed_BCD = mix_channels(self.semantic(patches_BPD, labels), labels)
        return self.reconstruction(patches_BPD, mixed_BCD, graph)

    def _scale(self, scores_BC: Tensor) -> Tensor:
        return scores_BC * self.log_scale.exp() + self.bias if self.learns_scale else scores_BC
