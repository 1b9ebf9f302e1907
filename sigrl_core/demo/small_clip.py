"""The small CLIP of the built-in corpus: contrastive training from captioned pictures, on the spot.

An image-text contrastive loss (Radford et al. 2021) in which equal captions of one batch count as matches, since
short captions repeat. Text is encoded once per distinct caption of a batch.

Half of the loss matches a text with the class token, half with the few patches that fit it best, much as FILIP matches
tokens (Yao et al. 2022, arXiv 2111.07783). Without that half nothing in this small tower ties patch tokens to words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, one_hot

from sigrl_core.config import BackboneConfig
from sigrl_core.model.backbone import RANDOM, Backbone, load_backbone
from sigrl_core.model.scoring import global_scores, local_scores
from sigrl_core.optim import learning_rate


@dataclass(frozen=True, kw_only=True)
class SmallClipConfig:
    """How the small CLIP is made; its numbers were found on captioned and seen-label validation pictures."""

    epochs: int = 3
    batch_size: int = 64
    lr: float = 5e-4
    weight_decay: float = 0.05
    logit_scale_speedup: float = 20.0
    """The logit scale learns at this multiple of the rate."""
    patches_kept: int = 8
    """Patches matched with a text."""
    seed: int = 0

    def steps(self, pictures: int) -> int:
        """Optimiser steps in all; what does not fill a batch waits for the next epoch's order."""
        return self.epochs * (pictures // self.batch_size)


def train_small_clip(
    pixels_NHWC: np.ndarray, captions: Sequence[str], config: SmallClipConfig, on_step: Callable[[float], None]
) -> Backbone:
    """Trains the small CLIP from scratch.

    Args:
        pixels_NHWC: uint8 pictures of the tower's size.
        captions: one for each picture.
        config: how long, how fast.
        on_step: called with the loss after each step.

    Returns:
        The trained backbone, frozen, in evaluation mode.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    backbone = load_backbone(BackboneConfig(name="toybox-vit", pretrained=RANDOM, frozen_blocks=0))
    clip = backbone.clip
    clip.requires_grad_(True)
    clip.train()
    distinct, caption_of = np.unique(np.asarray(captions), return_inverse=True)
    texts = backbone.tokenizer(distinct.tolist())
    # of 49,408 words the captions hold a few dozen: a dense gradient of that table would cost more than the text tower
    clip.token_embedding.sparse = True
    dense, sparse = _optimisers(clip, config)

    steps_per_epoch = len(captions) // config.batch_size
    steps = config.steps(len(captions))
    orders = (rng.permutation(len(captions)) for _ in range(config.epochs))
    batches = (order[i * config.batch_size :][: config.batch_size] for order in orders for i in range(steps_per_epoch))
    for step, rows in enumerate(batches):
        rate = learning_rate(step / steps, peak=1.0, epochs=1.0, warmup_epochs=0.05, final=0.01)
        for group in (*dense.param_groups, *sparse.param_groups):
            group["lr"] = rate * group["peak"]
        pixels = torch.from_numpy(pixels_NHWC[rows])
        used, text_of = np.unique(caption_of[rows], return_inverse=True)
        loss = _contrastive(backbone, pixels, texts[used], torch.from_numpy(text_of), config.patches_kept)
        for optimiser in (dense, sparse):
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        dense.step()
        sparse.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=np.log(100))
        on_step(loss.item())
    clip.token_embedding.sparse = False
    clip.requires_grad_(False)
    return backbone.eval()


def _contrastive(
    backbone: Backbone, pixels_BHWC: Tensor, texts: Tensor, text_of_B: Tensor, patches_kept: int
) -> Tensor:
    """Mean of two image-text losses over the batch's distinct captions: by the class token, and by the best patches."""
    glob_BD, patches_BPD = backbone.finish(backbone.embed(pixels_BHWC))
    labels_CD = backbone.clip.encode_text(texts, normalize=True)
    fits = (
        global_scores(normalize(glob_BD, dim=-1), labels_CD),
        local_scores(normalize(patches_BPD, dim=-1), labels_CD, patches_kept),
    )
    scale = backbone.clip.logit_scale.exp()
    return (_matching(scale * fits[0], text_of_B) + _matching(scale * fits[1], text_of_B)) / 2


def _matching(logits_BC: Tensor, text_of_B: Tensor) -> Tensor:
    """Half image -> text, half text -> its images, each with equal weight."""
    matches_CB = one_hot(text_of_B, logits_BC.shape[1]).float().t()
    return (cross_entropy(logits_BC, text_of_B) + cross_entropy(logits_BC.t(), normalize(matches_CB, p=1, dim=1))) / 2


def _optimisers(clip: nn.Module, config: SmallClipConfig) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    scale: Tensor = clip.logit_scale  # type: ignore[assignment]
    table: Tensor = clip.token_embedding.weight  # type: ignore[union-attr,assignment]
    rest = [parameter for parameter in clip.parameters() if parameter is not scale and parameter is not table]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": config.weight_decay, "peak": config.lr},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0, "peak": config.lr},
        {"params": [scale], "weight_decay": 0.0, "peak": config.lr * config.logit_scale_speedup},
    ]
    dense = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))
    sparse = torch.optim.SparseAdam([{"params": [table], "peak": config.lr}], lr=config.lr, betas=(0.9, 0.98))
    return dense, sparse
