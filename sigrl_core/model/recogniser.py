"""Backbone and SigRL head together: pictures or held tokens in, scores out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sigrl_core.config import RunConfig
from sigrl_core.model.backbone import Backbone, Teacher
from sigrl_core.model.sigrl import Scores, SigRL


class Recognised(NamedTuple):
    """One forward pass: the scores, and the class token that distillation holds in place."""

    scores: Scores
    glob_BD: Tensor


class Recogniser(nn.Module):
    """What trains and what tags.

    Attributes:
        backbone: the CLIP towers; its lower part is frozen.
        head: SigRL, or the MKT-style baseline where reconstruction is off.
        teacher: the original CLIP above the frozen blocks; target of distillation, and the zero-shot baseline.
    """

    def __init__(self, backbone: Backbone, teacher: Teacher, config: RunConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.teacher = teacher
        self.head = SigRL(backbone.dim, config.graph, config.reconstruction, config.scoring)

    @classmethod
    def start(cls, backbone: Backbone, config: RunConfig) -> Recogniser:
        """An untrained head on a CLIP, its weights by the seed; the CLIP as it is now becomes the teacher."""
        torch.manual_seed(config.training.seed)
        return cls(backbone, backbone.teacher(), config)

    def forward(self, tokens_BNW: Tensor, labels_CD: Tensor) -> Recognised:
        """tokens at the frozen seam [B,N,W], label embeddings [C,D] -> scores of every picture and label asked."""
        glob_BD, patches_BPD = self.backbone.finish(tokens_BNW)
        return Recognised(self.head(patches_BPD, glob_BD, labels_CD), glob_BD)

    @property
    def device(self) -> torch.device:
        return self.backbone.clip.logit_scale.device
