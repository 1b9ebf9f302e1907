"""The only inference path: evaluation, batch tagging and serving all score through here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sigrl_core.calibration import Calibration
from sigrl_core.checkpoint import Checkpoint, load_checkpoint
from sigrl_core.decoding import centre_crop
from sigrl_core.errors import CheckpointError, ImageError
from sigrl_core.heat_map import heat_map
from sigrl_core.model.asked import Asked
from sigrl_core.model.recogniser import Recognised
from sigrl_core.model.scoring import patch_fits
from sigrl_core.model.sigrl import Scores
from sigrl_core.vocabulary import Vocabulary

DEFAULT_TOP_K = 5
MAX_ASKED = 256
"""Vocabularies whose embeddings are held."""

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Tags:
    """What is seen in one picture, or why nothing could be.

    Attributes:
        labels: the best labels first.
        scores: of each. They rank labels within the vocabulary asked and are no probabilities, unless a threshold was
            asked for, when they are.
        error: one of images.REASONS, or empty.
        heat_maps: where each label fits, see `heat_map.heat_map`; of the centre square that the model sees. Empty
            unless asked for.
        embedding_D: of the picture, of length 1, in the space where texts are; None unless asked for.
    """

    labels: list[str]
    scores: list[float]
    error: str = ""
    heat_maps: list[np.ndarray] = field(default_factory=list)
    embedding_D: np.ndarray | None = None


class Tagger:
    """A checkpoint ready to tag.

    Published scores depend on the whole vocabulary asked: both norms of a score run over its labels, and SVFR sums over
    them. `logits` and `probabilities` do not: sums and norms are those of the labels that it was trained on.

    Args:
        checkpoint: what `load_checkpoint` gives.
        device: where to compute.
        precision: `bf16` multiplies in bfloat16, which takes half the time or less where the device can, and in the
            head on CPUs with VNNI in 8 bits, which takes less still.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu", precision: Precision = "fp32") -> None:
        self.checkpoint = checkpoint
        self.recogniser = checkpoint.recogniser.to(device).eval()
        self.device, self.precision = torch.device(device), precision
        self._asked = OrderedDict[str, Asked]()

    @classmethod
    def load(
        cls, uri: str, device: str = "cpu", local_candidates: int | None = None, precision: Precision = "fp32"
    ) -> Tagger:
        """From the --out of train.py or a checkpoint folder, local or s3://.

        `local_candidates` takes the place of the checkpoint's own `scoring.local_candidates`.
        """
        tagger = cls(load_checkpoint(uri), device, precision)
        if local_candidates is not None:
            tagger.recogniser.head.local_candidates = local_candidates
        return tagger

    @property
    def vocabulary(self) -> Vocabulary:
        """The labels of the checkpoint, seen and unseen."""
        return self.checkpoint.vocabulary

    def ask(
        self, vocabulary: Vocabulary, embeddings_CE: np.ndarray | None = None, texts_CD: Tensor | None = None
    ) -> Asked:
        """A vocabulary as the model sees it, settled once for the last `MAX_ASKED`; see `Recogniser.ask`."""
        asked = self._asked.get(vocabulary.hash)
        if asked is None or embeddings_CE is not None:
            own_CE = None if embeddings_CE is None else torch.from_numpy(embeddings_CE)
            asked = self.recogniser.settled(self.recogniser.ask(vocabulary, own_CE, texts_CD))
        self._asked[vocabulary.hash] = asked
        self._asked.move_to_end(vocabulary.hash)
        if len(self._asked) > MAX_ASKED:
            self._asked.popitem(last=False)
        return asked

    def knows(self, vocabulary: Vocabulary) -> bool:
        """Whether `ask` would have it at once."""
        return vocabulary.hash in self._asked

    @torch.no_grad()
    def encode(self, pixels_BHWC: Tensor) -> Tensor:
        """uint8 pictures -> tokens at the frozen seam."""
        with self._mixed():
            return self.recogniser.backbone.encode_frozen(pixels_BHWC.to(self.device))

    def recognise(self, tokens_BNW: Tensor, vocabulary: Vocabulary, *, independent: bool = False) -> Scores:
        """All that one forward pass says; `independent` as in `logits`."""
        return self._recognise(tokens_BNW, vocabulary, independent=independent).scores

    @torch.no_grad()
    def _recognise(self, tokens_BNW: Tensor, vocabulary: Vocabulary, *, independent: bool) -> Recognised:
        reference = self._reference if independent else None
        with self._mixed():
            return self.recogniser(tokens_BNW, self.ask(vocabulary), reference)

    def _mixed(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def score(self, tokens_BNW: Tensor, vocabulary: Vocabulary) -> np.ndarray:
        """Scores [B,C] in the order of the vocabulary."""
        return self.recognise(tokens_BNW, vocabulary).scores_BC.float().cpu().numpy()

    def logits(self, tokens_BNW: Tensor, vocabulary: Vocabulary) -> np.ndarray:
        """Scores [B,C] of which each depends on its own label alone, scaled as training scaled them.

        For labels trained on alone they rank as published. What more labels cost is little: reconstruction is over the
        labels trained on, however many are asked.
        """
        return self.recognise(tokens_BNW, vocabulary, independent=True).logits_BC.float().cpu().numpy()

    @property
    def _reference(self) -> Asked:
        """The labels trained on; all where none are seen."""
        seen = self.vocabulary.subset("seen")
        return self.ask(seen if len(seen) else self.vocabulary)

    def probabilities(self, tokens_BNW: Tensor, vocabulary: Vocabulary) -> np.ndarray:
        """Calibrated probabilities [B,C]; labels that calibrate.py did not see share its fallback.

        Raises:
            CheckpointError: the checkpoint is not calibrated.
        """
        return self.calibration.probabilities(self.logits(tokens_BNW, vocabulary), vocabulary.names)

    @property
    def calibration(self) -> Calibration:
        if self.checkpoint.calibration is None:
            raise CheckpointError(
                f"{self.checkpoint.uri}: not calibrated, so it has no probabilities; run calibrate.py --checkpoint "
                f"{self.checkpoint.uri} --data with held-out labelled shards"
            )
        return self.checkpoint.calibration

    def tag(
        self,
        pictures: Sequence[bytes | Image.Image | np.ndarray | ImageError],
        vocabulary: Vocabulary | None = None,
        top_k: int | None = None,
        threshold: float | Literal["calibrated"] | None = None,
        heat_maps: bool = False,
        embeddings: bool = False,
    ) -> list[Tags]:
        """Tags pictures; one that cannot be read gives a reason and does not disturb the others.

        Args:
            pictures: encoded files, Pillow images, or what `centre_crop` made of these.
            vocabulary: labels to ask with; None takes the checkpoint's own.
            top_k: tags for each picture, best first; 5 without a threshold, with one as many as pass it.
            threshold: least probability of a tag, or `calibrated`: each label's own; None takes the best labels.
            heat_maps: adds where each tag fits, from the same forward pass.
            embeddings: adds the picture's, from the same forward pass.

        Raises:
            CheckpointError: a threshold, and the checkpoint is not calibrated.
        """
        crops = [centre_crop(picture, self.recogniser.backbone.image_size) for picture in pictures]
        vocabulary = self.vocabulary if vocabulary is None else vocabulary
        readable = [crop for crop in crops if not isinstance(crop, ImageError)]
        made: list[Tags] = []
        if readable:
            tokens_BNW = self.encode(torch.from_numpy(np.stack(readable)))
            recognised = self._recognise(tokens_BNW, vocabulary, independent=threshold is not None)
            found = recognised.scores
            if threshold is None:
                scores_BC, least = found.scores_BC.float().cpu().numpy(), -np.inf
                top_k = DEFAULT_TOP_K if top_k is None else top_k
            else:
                logits_BC = found.logits_BC.float().cpu().numpy()
                scores_BC = self.calibration.probabilities(logits_BC, vocabulary.names)
                least = self.calibration.thresholds(vocabulary.names) if threshold == "calibrated" else threshold
            made = [top_tags(scores_C, vocabulary, top_k, least) for scores_C in scores_BC]
            if heat_maps:
                made = [
                    replace(tags, heat_maps=self._heat_maps(patches_PD, tags.labels, vocabulary))
                    for tags, patches_PD in zip(made, found.patches_BPD, strict=True)
                ]
            if embeddings:
                embeddings_BD = torch.nn.functional.normalize(recognised.glob_BD.float(), dim=-1).cpu().numpy()
                made = [replace(tags, embedding_D=each) for tags, each in zip(made, embeddings_BD, strict=True)]
        tagged = iter(made)
        return [
            Tags(labels=[], scores=[], error=crop.reason) if isinstance(crop, ImageError) else next(tagged)
            for crop in crops
        ]

    @torch.no_grad()
    def _heat_maps(self, patches_PD: Tensor, labels: Sequence[str], vocabulary: Vocabulary) -> list[np.ndarray]:
        chosen = torch.tensor([vocabulary.index[name] for name in labels], dtype=torch.long, device=self.device)
        labels_CD = self.recogniser.embedded(self.ask(vocabulary)).labels_CD
        fit_CP = patch_fits(patches_PD[None], labels_CD[chosen])[0].float().cpu().numpy()
        return [heat_map(fit_P, self.recogniser.backbone.grid) for fit_P in fit_CP]


def top_tags(
    scores_C: np.ndarray, vocabulary: Vocabulary, top_k: int | None, least: float | np.ndarray = -np.inf
) -> Tags:
    """The `top_k` best labels that score at least `least`, a number or one a label; equal scores keep their order."""
    order, enough = np.argsort(-scores_C, kind="stable"), scores_C >= least
    best = order[enough[order]][:top_k]
    return Tags(labels=[vocabulary.labels[c].name for c in best], scores=[float(scores_C[c]) for c in best])
