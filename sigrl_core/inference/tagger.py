"""The single inference path: evaluation, batch tagging and serving all compute scores with `Tagger`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sigrl_core.data.transforms import centre_crop
from sigrl_core.errors import CheckpointError, ImageError
from sigrl_core.inference.heat_map import heat_map
from sigrl_core.io.checksums import Pinned
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.model.calibration import Calibration
from sigrl_core.model.checkpoint import Checkpoint, load_checkpoint
from sigrl_core.model.label_set import LabelSet
from sigrl_core.model.model import ModelOutput
from sigrl_core.model.scoring import patch_fits
from sigrl_core.model.sigrl import Scores

DEFAULT_TOP_K = 5
MAX_CACHED_VOCABULARIES = 256
"""Label sets that a tagger keeps in memory; the least recently used one is dropped."""

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Tags:
    """The tags of one image, or the reason why it could not be read.

    Attributes:
        labels: tags, best first.
        scores: one per tag. They rank the labels of one vocabulary and are not probabilities, unless `Tagger.tag` was
            called with a threshold.
        error: one of images.REASONS; empty for a readable image.
        detail: what the decoder found, for an unreadable image.
        heat_maps: one per tag, see `heat_map.heat_map`; they cover the centre square that the model receives. Empty
            unless requested.
        embedding_D: the image's unit-length embedding in CLIP's joint space; None unless requested.
    """

    labels: list[str]
    scores: list[float]
    error: str = ""
    detail: str = ""
    heat_maps: list[np.ndarray] = field(default_factory=list)
    embedding_D: np.ndarray | None = None


class Tagger:
    """A checkpoint in inference mode.

    The published scores depend on the whole vocabulary: the norms of local and global scores, and the sums of the
    reconstruction, run over its labels. `logits` and calibrated probabilities do not: their sums and norms run over the
    labels that the model was trained on.

    Args:
        checkpoint: the result of `load_checkpoint`.
        device: torch device that computes.
        precision: `bf16` multiplies in bfloat16, which takes at most half the time on devices that support it; the head
            multiplies in 8 bits on CPUs with VNNI, which is faster still.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu", precision: Precision = "fp32") -> None:
        self.checkpoint = checkpoint
        self.model = checkpoint.model.to(device).eval()
        self.device, self.precision = torch.device(device), precision
        self._label_sets = OrderedDict[str, LabelSet]()

    @classmethod
    def load(
        cls,
        uri: str,
        device: str = "cpu",
        local_candidates: int | None = None,
        precision: Precision = "fp32",
        expected: Pinned | None = None,
    ) -> Tagger:
        """Loads a checkpoint.

        Args:
            uri: the --out folder of train.py or a checkpoint folder, local or s3://.
            device: torch device that computes.
            local_candidates: replaces the checkpoint's own `scoring.local_candidates`.
            precision: see the class.
            expected: hash that a plan recorded for this checkpoint.

        Raises:
            CheckpointError: it cannot be loaded, or is another one than `expected`.
        """
        tagger = cls(load_checkpoint(uri, expected), device, precision)
        if local_candidates is not None:
            tagger.model.head.local_candidates = local_candidates
        return tagger

    @property
    def pinned(self) -> Pinned:
        """The hash of the loaded checkpoint, for processes that load it again."""
        return Pinned(self.checkpoint.sha256, "the Tagger", "load it again")

    @property
    def vocabulary(self) -> Vocabulary:
        """The labels of the checkpoint, seen and unseen."""
        return self.checkpoint.vocabulary

    def encode_labels(
        self, vocabulary: Vocabulary, embeddings_CE: np.ndarray | None = None, texts_CD: Tensor | None = None
    ) -> LabelSet:
        """Returns the label set of a vocabulary, from the cache if it is there; see `SigRLModel.encode_labels`.

        Args:
            embeddings_CE: the user's own label embeddings, for checkpoints that were trained with such.
            texts_CD: text embeddings that are already computed.
        """
        label_set = self._label_sets.get(vocabulary.hash)
        if label_set is None or embeddings_CE is not None:
            own_CE = None if embeddings_CE is None else torch.from_numpy(embeddings_CE)
            label_set = self.model.with_graph_cache(self.model.encode_labels(vocabulary, own_CE, texts_CD))
        self._label_sets[vocabulary.hash] = label_set
        self._label_sets.move_to_end(vocabulary.hash)
        if len(self._label_sets) > MAX_CACHED_VOCABULARIES:
            self._label_sets.popitem(last=False)
        return label_set

    def is_encoded(self, vocabulary: Vocabulary) -> bool:
        """Returns whether the label set of a vocabulary is in the cache."""
        return vocabulary.hash in self._label_sets

    @torch.no_grad()
    def encode_images(self, pixels_BHWC: Tensor) -> Tensor:
        """Computes the tokens [B,N,W] that the frozen blocks give for uint8 images."""
        with self._autocast():
            return self.model.backbone.forward_frozen(pixels_BHWC.to(self.device))

    def predict(self, tokens_BNW: Tensor, vocabulary: Vocabulary, *, vocabulary_independent: bool = False) -> Scores:
        """Returns all results of one forward pass; for `vocabulary_independent` see `logits`."""
        return self._forward(tokens_BNW, vocabulary, vocabulary_independent).scores

    @torch.no_grad()
    def _forward(self, tokens_BNW: Tensor, vocabulary: Vocabulary, vocabulary_independent: bool) -> ModelOutput:
        reference_labels = self._reference_labels if vocabulary_independent else None
        with self._autocast():
            return self.model(tokens_BNW, self.encode_labels(vocabulary), reference_labels)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def score(self, tokens_BNW: Tensor, vocabulary: Vocabulary) -> np.ndarray:
        """Returns scores [B,C] in the order of the vocabulary."""
        return self.predict(tokens_BNW, vocabulary).scores_BC.float().cpu().numpy()

    def logits(self, tokens_BNW: Tensor, vocabulary: Vocabulary) -> np.ndarray:
        """Returns vocabulary-independent logits [B,C]: each depends on its own label only, and has training's scale.

        For a vocabulary of exactly the trained labels they rank like the published scores. Additional labels are cheap,
        because the reconstruction always runs over the trained labels.
        """
        return self.predict(tokens_BNW, vocabulary, vocabulary_independent=True).logits_BC.float().cpu().numpy()

    @property
    def _reference_labels(self) -> LabelSet:
        """The trained labels; all labels of a checkpoint that has no seen ones."""
        seen = self.vocabulary.subset("seen")
        return self.encode_labels(seen if len(seen) else self.vocabulary)

    @property
    def calibration(self) -> Calibration:
        """The checkpoint's calibration; raises CheckpointError if it has none."""
        if self.checkpoint.calibration is None:
            raise CheckpointError(
                f"{self.checkpoint.uri}: not calibrated, so it has no probabilities; run calibrate.py --checkpoint "
                f"{self.checkpoint.uri} --data HELD_OUT_SHARDS"
            )
        return self.checkpoint.calibration

    def tag(
        self,
        images: Sequence[bytes | Image.Image | np.ndarray | ImageError],
        vocabulary: Vocabulary | None = None,
        top_k: int | None = None,
        threshold: float | Literal["calibrated"] | None = None,
        heat_maps: bool = False,
        embeddings: bool = False,
    ) -> list[Tags]:
        """Tags images. An unreadable image gives `Tags.error` and does not affect the others.

        Args:
            images: encoded files, Pillow images, or results of `centre_crop`.
            vocabulary: labels to score; None uses the checkpoint's own.
            top_k: maximum number of tags per image, best first; None means 5 without a threshold, and every label that
                reaches the threshold with one.
            threshold: minimum probability of a tag, or `calibrated` for each label's own; None returns the best labels.
            heat_maps: adds a heat map per tag, from the same forward pass.
            embeddings: adds the image embedding, from the same forward pass.

        Raises:
            CheckpointError: a threshold is given, and the checkpoint is not calibrated.
        """
        crops = [centre_crop(image, self.model.backbone.image_size) for image in images]
        vocabulary = self.vocabulary if vocabulary is None else vocabulary
        readable = [crop for crop in crops if not isinstance(crop, ImageError)]
        readable_tags = iter(
            self._tag_crops(np.stack(readable), vocabulary, top_k, threshold, heat_maps, embeddings) if readable else []
        )
        return [
            Tags(labels=[], scores=[], error=crop.reason, detail=crop.detail)
            if isinstance(crop, ImageError)
            else next(readable_tags)
            for crop in crops
        ]

    def _tag_crops(
        self,
        crops_BHWC: np.ndarray,
        vocabulary: Vocabulary,
        top_k: int | None,
        threshold: float | Literal["calibrated"] | None,
        heat_maps: bool,
        embeddings: bool,
    ) -> list[Tags]:
        tokens_BNW = self.encode_images(torch.from_numpy(crops_BHWC))
        output = self._forward(tokens_BNW, vocabulary, vocabulary_independent=threshold is not None)
        if threshold is None:
            scores_BC, min_score = output.scores.scores_BC.float().cpu().numpy(), -np.inf
            top_k = DEFAULT_TOP_K if top_k is None else top_k
        else:
            logits_BC = output.scores.logits_BC.float().cpu().numpy()
            scores_BC = self.calibration.probabilities(logits_BC, vocabulary.names)
            min_score = self.calibration.thresholds(vocabulary.names) if threshold == "calibrated" else threshold
        tags = [top_tags(scores_C, vocabulary, top_k, min_score) for scores_C in scores_BC]
        if heat_maps:
            tags = [
                replace(each, heat_maps=self._heat_maps(patches_PD, each.labels, vocabulary))
                for each, patches_PD in zip(tags, output.scores.patches_BPD, strict=True)
            ]
        if embeddings:
            embeddings_BD = torch.nn.functional.normalize(output.cls_BD.float(), dim=-1).cpu().numpy()
            tags = [replace(each, embedding_D=row_D) for each, row_D in zip(tags, embeddings_BD, strict=True)]
        return tags

    @torch.no_grad()
    def _heat_maps(self, patches_PD: Tensor, labels: Sequence[str], vocabulary: Vocabulary) -> list[np.ndarray]:
        positions = torch.tensor([vocabulary.index[name] for name in labels], dtype=torch.long, device=self.device)
        labels_CD = self.model.project_labels(self.encode_labels(vocabulary)).labels_CD
        fit_CP = patch_fits(patches_PD[None], labels_CD[positions])[0].float().cpu().numpy()
        return [heat_map(fit_P, self.model.backbone.grid) for fit_P in fit_CP]


def top_tags(
    scores_C: np.ndarray, vocabulary: Vocabulary, top_k: int | None, min_score: float | np.ndarray = -np.inf
) -> Tags:
    """Returns the `top_k` best labels that score at least `min_score`, which is one number or one per label.

    Labels with equal scores keep the order of the vocabulary.
    """
    order, is_tag_C = np.argsort(-scores_C, kind="stable"), scores_C >= min_score
    best = order[is_tag_C[order]][:top_k]
    return Tags(labels=[vocabulary.labels[c].name for c in best], scores=[float(scores_C[c]) for c in best])
