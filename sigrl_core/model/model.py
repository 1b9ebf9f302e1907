"""Backbone and SigRL head in one module: images or cached tokens in, scores out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from sigrl_core.config import RunConfig
from sigrl_core.data.dataset import Batch
from sigrl_core.errors import VocabularyError
from sigrl_core.labels.edges import LabelEdges
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.model.backbone import Backbone, Teacher
from sigrl_core.model.label_set import LabelSet
from sigrl_core.model.sigrl import Scores, SigRL

RIDGE = 1e-3
"""Regularisation of the least-squares start of the projection of custom label embeddings (rows of length 1)."""


class ModelOutput(NamedTuple):
    """Scores and class tokens of one forward pass; distillation compares the latter with the original CLIP's."""

    scores: Scores
    cls_BD: Tensor


class SigRLModel(nn.Module):
    """The whole model, for training and for tagging.

    Args:
        teacher: see the attribute.
        config: the experiment.
        vocabulary: the labels of the training data; the seen ones are trained.
        edges: label edges, for label graphs that use edges from data or a file.
        embeddings_VE: custom embeddings of all these labels, L2-normalised here; None uses the text tower.

    Attributes:
        backbone: the CLIP towers; their lower part is frozen.
        head: SigRL, or the MKT-style baseline without reconstruction.
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
    ) -> SigRLModel:
        """Makes an untrained head with seeded weights on a CLIP; the CLIP's current weights become the teacher.

        The projection of custom embeddings starts from the least-squares fit to CLIP's text embeddings.
        """
        torch.manual_seed(config.training.seed)
        model = cls(backbone, backbone.make_teacher(), config, vocabulary, edges, embeddings_VE)
        if embeddings_VE is not None:
            custom_VE, clip_VD = (
                normalize(embeddings_VE, dim=-1).double(),
                model.encode_labels(vocabulary).labels_CD.double(),
            )
            ridge = RIDGE * torch.eye(custom_VE.shape[1], dtype=torch.float64)
            weight_ED = torch.linalg.solve(custom_VE.t() @ custom_VE + ridge, custom_VE.t() @ clip_VD)
            model.project.weight.data = weight_ED.t().to(model.project.weight.dtype).contiguous()
        return model

    def encode_labels(
        self, vocabulary: Vocabulary, embeddings_CE: Tensor | None = None, texts_CD: Tensor | None = None
    ) -> LabelSet:
        """Makes a label set from a vocabulary; a label's embedding is the mean of its texts', see `Label.texts`.

        Args:
            vocabulary: any labels, trained or not.
            embeddings_CE: custom embeddings of these labels, for a model trained with such; those of the training
                labels are stored in the model.
            texts_CD: text-tower embeddings of these labels, if they were computed before.

        Raises:
            VocabularyError: a label without a custom embedding, or embeddings of another width.
        """
        labels_CD = texts_CD
        if labels_CD is None:
            labels_CD = self.backbone.encode_text([label.texts(self.prompt_templates) for label in vocabulary.labels])
        trained = self.vocabulary.subset("seen").index
        trained_C = torch.tensor([trained.get(name, -1) for name in vocabulary.names], dtype=torch.long)
        edges_CC = None if self.edges is None else torch.from_numpy(self.edges.matrix(vocabulary))
        return LabelSet(labels_CD, edges_CC, trained_C, self._custom_embeddings(vocabulary, embeddings_CE)).to(
            self.device
        )

    def _custom_embeddings(self, vocabulary: Vocabulary, embeddings_CE: Tensor | None) -> Tensor | None:
        if self.embeddings_VE is None:
            if embeddings_CE is not None:
                raise VocabularyError(
                    "label embeddings were given, but this model was trained with the text tower's; leave them out"
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
        if unknown := [name for name in vocabulary.names if name not in index]:
            raise VocabularyError(
                f"label {unknown[0]!r}: the model was trained with label embeddings of a file that has none for it; "
                "give a .npy for the labels to score (tag.py --label-embeddings)"
            )
        return self.embeddings_VE[[index[name] for name in vocabulary.names]]

    def project_labels(self, label_set: LabelSet) -> LabelSet:
        """Returns the label set with custom embeddings projected to the joint space; others stay as they are."""
        if label_set.own_CE is None:
            return label_set
        return label_set._replace(labels_CD=normalize(self.project(label_set.own_CE), dim=-1))

    @torch.no_grad()
    def with_graph_cache(self, label_set: LabelSet) -> LabelSet:
        """Returns the label set with the output of the label graph, which is then not recomputed for every batch.

        Valid as long as no weight changes.
        """
        return label_set._replace(graph_CD=self.head.compute_graph(self.project_labels(label_set)))

    def forward(self, tokens_BNW: Tensor, label_set: LabelSet, reference_labels: LabelSet | None = None) -> ModelOutput:
        """Scores a label set from the tokens [B,N,W] after the frozen blocks; see `SigRL.forward`."""
        cls_BD, patches_BPD = self.backbone.forward_head(tokens_BNW)
        if reference_labels is not None:
            reference_labels = self.project_labels(reference_labels)
        return ModelOutput(self.head(patches_BPD, cls_BD, self.project_labels(label_set), reference_labels), cls_BD)

    @property
    def device(self) -> torch.device:
        return self.backbone.clip.logit_scale.device


def compute_tokens(model: SigRLModel, batch: Batch) -> Tensor:
    """Returns the tokens after the frozen blocks: the cached ones, or computed from the images."""
    if batch.tokens_BNW is not None:
        return batch.tokens_BNW.to(model.device).float()  # float16 in a folder of features
    assert batch.pixels_BHWC is not None
    return model.backbone.forward_frozen(batch.pixels_BHWC.to(model.device))
