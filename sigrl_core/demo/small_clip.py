"""The small CLIP of the built-in corpus: contrastive training on captioned images.

The loss is the image-text contrastive loss of Radford et al. 2021. Equal captions in a batch count as matches, because
short captions repeat, and each distinct caption of a batch is encoded once.

Half of the loss compares a text with the class token. The other half compares it with the few patches that fit it best,
similar to FILIP (Yao et al. 2022, arXiv 2111.07783); without it, patch tokens of this small tower would not be aligned
with words.
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
from sigrl_core.training.optim import compute_learning_rate


@dataclass(frozen=True, kw_only=True)
class SmallClipConfig:
    """Settings of the training; they were chosen on validation images, captioned ones and ones with seen labels."""

    epochs: int = 3
    batch_size: int = 64
    lr: float = 5e-4
    weight_decay: float = 0.05
    logit_scale_speedup: float = 20.0
    """The learning rate of the logit scale is `lr` times this."""
    top_k_patches: int = 8
    """Number of patches that are compared with a text."""
    seed: int = 0

    def num_steps(self, num_images: int) -> int:
        """Returns the number of optimiser steps; an incomplete last batch of an epoch is left out."""
        return self.epochs * (num_images // self.batch_size)


def train_small_clip(
    pixels_NHWC: np.ndarray, captions: Sequence[str], config: SmallClipConfig, on_step_end: Callable[[float], None]
) -> Backbone:
    """Trains the small CLIP from scratch.

    Args:
        pixels_NHWC: uint8 images of the tower's size.
        captions: one per image.
        config: settings of the training.
        on_step_end: called with the loss after each step.

    Returns:
        The trained backbone, frozen and in evaluation mode.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    backbone = load_backbone(BackboneConfig(name="toybox-vit", pretrained=RANDOM, frozen_blocks=0))
    clip = backbone.clip
    clip.requires_grad_(True)
    clip.train()
    distinct, caption_of = np.unique(np.asarray(captions), return_inverse=True)
    texts = backbone.tokenizer(distinct.tolist())
    # captions have a few dozen of 49,408 tokens: a dense gradient of the table would cost more than the text tower
    clip.token_embedding.sparse = True
    dense, sparse = _optimisers(clip, config)

    steps_per_epoch = len(captions) // config.batch_size
    num_steps = config.num_steps(len(captions))
    orders = (rng.permutation(len(captions)) for _ in range(config.epochs))
    batches = (order[i * config.batch_size :][: config.batch_size] for order in orders for i in range(steps_per_epoch))
    for step, rows in enumerate(batches):
        scale = compute_learning_rate(step / num_steps, peak=1.0, epochs=1.0, warmup_epochs=0.05, final=0.01)
        for group in (*dense.param_groups, *sparse.param_groups):
            group["lr"] = scale * group["peak"]
        pixels = torch.from_numpy(pixels_NHWC[rows])
        used, text_of = np.unique(caption_of[rows], return_inverse=True)
        loss = _contrastive(backbone, pixels, texts[used], torch.from_numpy(text_of), config.top_k_patches)
        for optimiser in (dense, sparse):
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        dense.step()
        sparse.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=np.log(100))
        on_step_end(loss.item())
    clip.token_embedding.sparse = False
    clip.requires_grad_(False)
    return backbone.eval()


def _contrastive(
    backbone: Backbone, pixels_BHWC: Tensor, texts: Tensor, text_of_B: Tensor, top_k_patches: int
) -> Tensor:
    """Returns the mean of two image-text losses over the batch's distinct captions: class token, and best patches."""
    cls_BD, patches_BPD = backbone.forward_head(backbone.embed(pixels_BHWC))
    labels_CD = backbone.clip.encode_text(texts, normalize=True)
    fits = (
        global_scores(normalize(cls_BD, dim=-1), labels_CD),
        local_scores(normalize(patches_BPD, dim=-1), labels_CD, top_k_patches),
    )
    scale = backbone.clip.logit_scale.exp()
    return (_image_text_loss(scale * fits[0], text_of_B) + _image_text_loss(scale * fits[1], text_of_B)) / 2


def _image_text_loss(logits_BC: Tensor, text_of_B: Tensor) -> Tensor:
    """Returns the mean of image -> text and text -> its images, where the images of a text have equal weights."""
    matches_CB = one_hot(text_of_B, logits_BC.shape[1]).float().t()
    return (cross_entropy(logits_BC, text_of_B) + cross_entropy(logits_BC.t(), normalize(matches_CB, p=1, dim=1))) / 2


def _optimisers(clip: nn.Module, config: SmallClipConfig) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Returns one optimiser for the token table, whose gradients are sparse, after one for all other parameters."""
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
