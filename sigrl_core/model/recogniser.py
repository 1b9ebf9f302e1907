"""Backbone and SigRL head together: pictures or held tokens in, scores out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sigrl_core.config import RunConfig
from sigrl_core.label_edges import LabelEdges
from sigrl_core.model.asked import Asked
from sigrl_core.model.backbone import Backbone, Teacher
from sigrl_core.model.sigrl import Scores, SigRL
from sigrl_core.vocabulary import Vocabulary


class Recognised(NamedTuple):
    """One forward pass: the scores, and the class token that distillation holds in place."""

    scores: Scores
    glob_BD: Tensor


class Recogniser(nn.Module):
    """What trains and what tags.

    Args:
        teacher: see the attribute.
        config: the experiment.
        vocabulary: the labels of the data it is made for; the seen ones are trained on.
        edges: between them, for the label graphs that use such.

    Attributes:
        backbone: the CLIP towers; its lower part is frozen.
        head: SigRL, or the MKT-style baseline where reconstruction is off.
        teacher: the original CLIP above the frozen blocks; target of distillation, and the zero-shot baseline.
    """

    def __init__(
        self,
        backbone: Backbone,
        teacher: Teacher,
        config: RunConfig,
        vocabulary: Vocabulary,
        edges: LabelEdges | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.teacher = teacher
        self.vocabulary, self.edges = vocabulary, edges
        self.prompt_templates = config.backbone.prompt_templates
        seen = len(vocabulary.positions("seen"))
        self.head = SigRL(backbone.dim, config.graph, config.reconstruction, config.scoring, seen)

    @classmethod
    def start(
        cls, backbone: Backbone, config: RunConfig, vocabulary: Vocabulary, edges: LabelEdges | None = None
    ) -> Recogniser:
        """An untrained head on a CLIP, its weights by the seed; the CLIP as it is now becomes the teacher."""
        torch.manual_seed(config.training.seed)
        return cls(backbone, backbone.teacher(), config, vocabulary, edges)

    def ask(self, vocabulary: Vocabulary) -> Asked:
        """Any labels, as `forward` takes them; each label is embedded as the mean of its texts, see `Label.texts`."""
        labels_CD = self.backbone.encode_text([label.texts(self.prompt_templates) for label in vocabulary.labels])
        trained = self.vocabulary.subset("seen").index
        trained_C = torch.tensor([trained.get(name, -1) for name in vocabulary.names], dtype=torch.long)
        edges_CC = None if self.edges is None else torch.from_numpy(self.edges.matrix(vocabulary))
        return Asked(labels_CD, edges_CC, trained_C).to(self.device)

    def forward(self, tokens_BNW: Tensor, asked: Asked, reference: Asked | None = None) -> Recognised:
        """tokens at the frozen seam [B,N,W] -> scores of every picture and label asked; see `SigRL.forward`."""
        glob_BD, patches_BPD = self.backbone.finish(tokens_BNW)
        return Recognised(self.head(patches_BPD, glob_BD, asked, reference), glob_BD)

    @property
    def device(self) -> torch.device:
        return self.backbone.clip.logit_scale.device
