"""The only inference path: evaluation, batch tagging and serving all score through here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sigrl_core import images
from sigrl_core.calibration import Calibration
from sigrl_core.checkpoint import Checkpoint, load_checkpoint
from sigrl_core.errors import CheckpointError, ImageError
from sigrl_core.heat_map import heat_map
from sigrl_core.model.asked import Asked
from sigrl_core.model.scoring import patch_fits
from sigrl_core.model.sigrl import Scores
from sigrl_core.vocabulary import Vocabulary

DEFAULT_TOP_K = 5


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
    """

    labels: list[str]
    scores: list[float]
    error: str = ""
    heat_maps: list[np.ndarray] = field(default_factory=list)


class Tagger:
    """A checkpoint ready to tag.

    Published scores depend on the whole vocabulary asked: both norms of a score run over its labels, and SVFR sums over
    them. `logits` and `probabilities` do not: sums and norms are those of the labels that it was trained on.

    Args:
        checkpoint: what `load_checkpoint` gives.
        device: where to compute.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        self.checkpoint = checkpoint
        self.recogniser = checkpoint.recogniser.to(device).eval()
        self.device = torch.device(device)
        self._asked: dict[str, Asked] = {}

    @classmethod
    def load(cls, uri: str, device: str = "cpu", local_candidates: int | None = None) -> Tagger:
        """From the --out of train.py or a checkpoint folder, local or s3://.

        `local_candidates` takes the place of the checkpoint's own `scoring.local_candidates`.
        """
        tagger = cls(load_checkpoint(uri), device)
        if local_candidates is not None:
            tagger.recogniser.head.local_candidates = local_candidates
        return tagger

    @property
    def vocabulary(self) -> Vocabulary:
        """The labels of the checkpoint, seen and unseen."""
        return self.checkpoint.vocabulary

    def ask(self, vocabulary: Vocabulary, embeddings_CE: np.ndarray | None = None) -> Asked:
        """A vocabulary as the model sees it, embedded once; see `Recogniser.ask`."""
        if vocabulary.hash not in self._asked or embeddings_CE is not None:
            own_CE = None if embeddings_CE is None else torch.from_numpy(embeddings_CE)
            self._asked[vocabulary.hash] = self.recogniser.ask(vocabulary, own_CE)
        return self._asked[vocabulary.hash]

    @torch.no_grad()
    def encode(self, pixels_BHWC: Tensor) -> Tensor:
        """uint8 pictures -> tokens at the frozen seam."""
        return self.recogniser.backbone.encode_frozen(pixels_BHWC.to(self.device))

    @torch.no_grad()
    def recognise(self, tokens_BNW: Tensor, vocabulary: Vocabulary, *, independent: bool = False) -> Scores:
        """All that one forward pass says; `independent` as in `logits`."""
        reference = self._reference if independent else None
        return self.recogniser(tokens_BNW, self.ask(vocabulary), reference).scores

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
        pictures: Sequence[bytes | Image.Image],
        vocabulary: Vocabulary | None = None,
        top_k: int | None = None,
        threshold: float | Literal["calibrated"] | None = None,
        heat_maps: bool = False,
    ) -> list[Tags]:
        """Tags pictures; one that cannot be read gives a reason and does not disturb the others.

        Args:
            pictures: encoded files or Pillow images.
            vocabulary: labels to ask with; None takes the checkpoint's own.
            top_k: tags for each picture, best first; 5 without a threshold, with one as many as pass it.
            threshold: least probability of a tag, or `calibrated`: each label's own; None takes the best labels.
            heat_maps: adds where each tag fits, from the same forward pass.

        Raises:
            CheckpointError: a threshold, and the checkpoint is not calibrated.
        """
        vocabulary = self.vocabulary if vocabulary is None else vocabulary
        size = self.recogniser.backbone.image_size
        readable: list[np.ndarray] = []
        results: list[Tags | None] = []
        for picture in pictures:
            try:
                readable.append(images.centre_crop_array(picture, size))
                results.append(None)
            except ImageError as error:
                results.append(Tags(labels=[], scores=[], error=error.reason))
        if readable:
            tokens_BNW = self.encode(torch.from_numpy(np.stack(readable)))
            found = self.recognise(tokens_BNW, vocabulary, independent=threshold is not None)
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
            tagged = iter(made)
            results = [result or next(tagged) for result in results]
        return [result for result in results if result is not None]

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
