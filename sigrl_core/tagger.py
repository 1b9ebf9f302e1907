"""The only inference path: evaluation, batch tagging and serving all score through here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sigrl_core import images
from sigrl_core.checkpoint import Checkpoint, load_checkpoint
from sigrl_core.errors import ImageError
from sigrl_core.model.asked import Asked
from sigrl_core.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Tags:
    """What is seen in one picture, or why nothing could be.

    Attributes:
        labels: the best labels first.
        scores: of each. They rank labels within the vocabulary asked and are no probabilities.
        error: one of images.REASONS, or empty.
    """

    labels: list[str]
    scores: list[float]
    error: str = ""


class Tagger:
    """A checkpoint ready to tag.

    Scores depend on the whole vocabulary asked: both norms of a score run over its labels, and SVFR sums over them.

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

    def ask(self, vocabulary: Vocabulary) -> Asked:
        """A vocabulary as the model sees it, embedded once."""
        if vocabulary.hash not in self._asked:
            self._asked[vocabulary.hash] = self.recogniser.ask(vocabulary)
        return self._asked[vocabulary.hash]

    @torch.no_grad()
    def encode(self, pixels_BHWC: Tensor) -> Tensor:
        """uint8 pictures -> tokens at the frozen seam."""
        return self.recogniser.backbone.encode_frozen(pixels_BHWC.to(self.device))

    @torch.no_grad()
    def score(self, tokens_BNW: Tensor, vocabulary: Vocabulary) -> np.ndarray:
        """Scores [B,C] in the order of the vocabulary."""
        return self.recogniser(tokens_BNW, self.ask(vocabulary)).scores.scores_BC.float().cpu().numpy()

    def tag(
        self, pictures: Sequence[bytes | Image.Image], vocabulary: Vocabulary | None = None, top_k: int = 5
    ) -> list[Tags]:
        """Tags pictures; one that cannot be read gives a reason and does not disturb the others.

        Args:
            pictures: encoded files or Pillow images.
            vocabulary: labels to ask with; None takes the checkpoint's own.
            top_k: tags for each picture, best first; all labels where there are fewer.
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
            scores_BC = self.score(self.encode(torch.from_numpy(np.stack(readable))), vocabulary)
            tagged = iter([top_tags(scores_C, vocabulary, top_k) for scores_C in scores_BC])
            results = [result or next(tagged) for result in results]
        return [result for result in results if result is not None]


def top_tags(scores_C: np.ndarray, vocabulary: Vocabulary, top_k: int) -> Tags:
    """The `top_k` best labels; equal scores keep the vocabulary's order."""
    best = np.argsort(-scores_C, kind="stable")[:top_k]
    return Tags(labels=[vocabulary.labels[c].name for c in best], scores=[float(scores_C[c]) for c in best])
