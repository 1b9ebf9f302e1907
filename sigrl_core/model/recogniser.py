"""Backbone and SigRL head together: pictures or held tokens in, scores out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from sigrl_core.config import RunConfig
from sigrl_core.errors import VocabularyError
from sigrl_core.label_edges import LabelEdges
from sigrl_core.model.asked import Asked
from sigrl_core.model.backbone import Backbone, Teacher
from sigrl_core.model.sigrl import Scores, SigRL
from sigrl_core.vocabulary import Vocabulary

RIDGE = 1e-3
"""Of the least squares that a user's own label embeddings start from; their rows have length 1."""


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
        embeddings_VE: a user's own embeddings of all its labels, L2-normalised here; None takes the text tower's.

    Attributes:
        backbone: the CLIP towers; its lower part is frozen.
        head: SigRL, or the MKT-style baseline where reconstruction is off.
        teacher: the original CLIP above the frozen blocks; target of distillation, and the zero-shot baseline.
    """

    embeddings_VE: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        teacher: Teacher,
        config: RunConfig,
        vocabulary: Vocabulary,
        edges: LabelEdges | None = None,
        embeddings_VE: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.teacher = teacher
        self.vocabulary, self.edges = vocabulary, edges
        self.prompt_templates = config.backbone.prompt_templates
        self.register_buffer("embeddings_VE", None if embeddings_VE is None else normalize(embeddings_VE, dim=-1))
        if embeddings_VE is not None:
            self.project = nn.Linear(embeddings_VE.shape[1], backbone.dim, bias=False)
        seen = len(vocabulary.positions("seen"))
        self.head = SigRL(backbone.dim, config.graph, config.reconstruction, config.scoring, seen)

    @classmethod
    def start(
        cls,
        backbone: Backbone,
        config: RunConfig,
        vocabulary: Vocabulary,
        edges: LabelEdges | None = None,
        embeddings_VE: Tensor | None = None,
    ) -> Recogniser:
        """An untrained head on a CLIP, its weights by the seed; the CLIP as it is now becomes the teacher.

        A user's own embeddings start from the projection that brings them closest to CLIP's (least squares).
        """
        torch.manual_seed(config.training.seed)
        recogniser = cls(backbone, backbone.teacher(), config, vocabulary, edges, embeddings_VE)
        if embeddings_VE is not None:
            own_VE, clip_VD = normalize(embeddings_VE, dim=-1).double(), recogniser.ask(vocabulary).labels_CD.double()
            ridge = RIDGE * torch.eye(own_VE.shape[1], dtype=torch.float64)
            weight_ED = torch.linalg.solve(own_VE.t() @ own_VE + ridge, own_VE.t() @ clip_VD)
            recogniser.project.weight.data = weight_ED.t().to(recogniser.project.weight.dtype).contiguous()
        return recogniser

    def ask(self, vocabulary: Vocabulary, embeddings_CE: Tensor | None = None, texts_CD: Tensor | None = None) -> Asked:
        """Any labels, as `forward` takes them; each label is embedded as the mean of its texts, see `Label.texts`.

        Args:
            embeddings_CE: of these labels, where the model was trained with a user's own; it knows those of its own
                labels.
            texts_CD: what the text tower says of these labels, where that is known.

        Raises:
            VocabularyError: a label whose embedding is not known, or embeddings of another width.
        """
        labels_CD = texts_CD
        if labels_CD is None:
            labels_CD = self.backbone.encode_text([label.texts(self.prompt_templates) for label in vocabulary.labels])
        trained = self.vocabulary.subset("seen").index
        trained_C = torch.tensor([trained.get(name, -1) for name in vocabulary.names], dtype=torch.long)
        edges_CC = None if self.edges is None else torch.from_numpy(self.edges.matrix(vocabulary))
        return Asked(labels_CD, edges_CC, trained_C, self._own(vocabulary, embeddings_CE)).to(self.device)

    def _own(self, vocabulary: Vocabulary, embeddings_CE: Tensor | None) -> Tensor | None:
        if self.embeddings_VE is None:
            if embeddings_CE is not None:
                raise VocabularyError(
                    "label embeddings were given, but this model was trained with the text tower's; leave them away"
                )
            return None
        if embeddings_CE is not None:
            if embeddings_CE.shape[1] != self.embeddings_VE.shape[1]:
                raise VocabularyError(
                    f"label embeddings are {embeddings_CE.shape[1]} wide, the model was trained with "
                    f"{self.embeddings_VE.shape[1]}; embed the labels as those of training were"
                )
            return normalize(embeddings_CE, dim=-1).to(self.embeddings_VE)
        index = self.vocabulary.index
        if strange := [name for name in vocabulary.names if name not in index]:
            raise VocabularyError(
                f"label {strange[0]!r}: the model was trained with label embeddings of a file and knows none of this "
                "one; give a .npy for the labels asked (tag.py --label-embeddings)"
            )
        return self.embeddings_VE[[index[name] for name in vocabulary.names]]

    def embedded(self, asked: Asked) -> Asked:
        """With the labels as the head sees them: a user's own embeddings projected, others as they are."""
        if asked.own_CE is None:
            return asked
        return asked._replace(labels_CD=normalize(self.project(asked.own_CE), dim=-1))

    @torch.no_grad()
    def settled(self, asked: Asked) -> Asked:
        """With what the label graph makes of them, for as long as no weight changes: not made again for every batch."""
        return asked._replace(graph_CD=self.head.graph_of(self.embedded(asked)))

    def forward(self, tokens_BNW: Tensor, asked: Asked, reference: Asked | None = None) -> Recognised:
        """tokens at the frozen seam [B,N,W] -> scores of every picture and label asked; see `SigRL.forward`."""
        glob_BD, patches_BPD = self.backbone.finish(tokens_BNW)
        reference = None if reference is None else self.embedded(reference)
        return Recognised(self.head(patches_BPD, glob_BD, self.embedded(asked), reference), glob_BD)

    @property
    def device(self) -> torch.device:
        return self.backbone.clip.logit_scale.device
