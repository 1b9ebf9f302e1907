"""Presets: named, complete configurations of a training run.

`python pipelines/train.py NAME` takes one, and a flag changes any of its fields. The docstring of each preset begins
with its command and names the source of its numbers.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from sigrl_core.config import (
    BackboneConfig,
    GraphConfig,
    LossConfig,
    OptimConfig,
    ReconstructionConfig,
    RunConfig,
    ScoringConfig,
    TrainingConfig,
)
from sigrl_core.config.deprecated import RENAMED_PRESETS
from sigrl_core.errors import ConfigError

# ---- for any corpus ----

PUBLISHED = RunConfig()
"""python pipelines/train.py published --data runs/shards --out runs/published

The zero-shot recipe of the authors on OpenAI's ViT-B/16, exactly as published (arXiv 2504.03801 and the script
OV/train_nus.py of their repository): 20 epochs, batches of 32, the last two blocks train. The defaults of every
configuration field are this preset.
"""

DEFAULT = replace(
    PUBLISHED,
    graph=GraphConfig(residual=True, propagation=True),
    reconstruction=ReconstructionConfig(residual=True, rms_normalise=True),
    scoring=ScoringConfig(learn_scale=True, initial_scale=20.0),
    loss=LossConfig(distillation=0.3),
)
"""python pipelines/train.py default --data runs/shards --out runs/mine

The best measured form of the model on OpenAI's ViT-B/16, for your own images and labels, and for MS COCO with 48 seen
and 17 unseen categories (Bansal et al., ECCV 2018).

The form is the one of `quickstart`: a learned scale, residual connections, queries of unit RMS, and scores that
propagate between labels. On the built-in corpus it is 7.4 points of GZSL mAP above `published` (docs/RESULTS.md).
Optimiser, schedule and augmentation are those of `published`, because no other ones were measured on ViT-B/16.
"""

# ---- zero-shot benchmarks, each in the best measured and in the published form ----

_MKT_PROMPTS = ("There is a {} in the scene",)  # of label_emb.pt, which the authors take from MKT (arXiv 2207.01887)

NUS_WIDE_ZERO_SHOT = replace(DEFAULT, backbone=BackboneConfig(prompt_templates=_MKT_PROMPTS))
"""python pipelines/train.py nus_wide_zero_shot --data runs/nus_wide_925 --out runs/nus_wide_zero_shot

The form of `default`, and the prompts of the published label embeddings.

Images: NUS-WIDE (Chua et al. 2009) as its authors split it, 161,789 to train on and 107,859 to test, except those that
are gone from Flickr; training images without any of the 925 tags are left out. Labels: seen are the 925 user tags of
Tags1k that are none of the 81 concepts (Huynh and Elhamifar, CVPR 2020); unseen are the 81 concepts. Metrics: mAP, and
F1 at 3 and 5, of the 81 (ZSL) and the 1,006 (GZSL).
"""

NUS_WIDE_ZERO_SHOT_PUBLISHED = replace(PUBLISHED, backbone=BackboneConfig(prompt_templates=_MKT_PROMPTS))
"""python pipelines/train.py nus_wide_zero_shot_published --data runs/nus_wide_925 --out runs/nus_wide_published

The recipe of `published` with the prompts of the published label embeddings: what OV/train_nus.py of the authors runs.

Images: as `nus_wide_zero_shot`. Labels: as `nus_wide_zero_shot`. Metrics: as `nus_wide_zero_shot`.
"""

OPEN_IMAGES_ZERO_SHOT = replace(
    DEFAULT,
    graph=replace(DEFAULT.graph, kind="nearest"),
    optim=OptimConfig(warmup_epochs=0.4),
    training=TrainingConfig(epochs=4, label_keep_fraction=0.1),
)
"""python pipelines/train.py open_images_zero_shot --data runs/open_images_7186 --out runs/open_images_zero_shot

The form of `default`, for millions of images and thousands of labels. The authors publish no settings for Open Images;
MKT, which they build on, trains 4 epochs (arXiv 2207.01887). The warm-up keeps its share of the epochs. A step trains
on a tenth of the labels, because its cost grows with them; half of the labels cost 3.0 points of GZSL mAP on the
built-in corpus (docs/RESULTS.md). The label graph is `nearest`, because a complete one of 7,586 labels would become
`nearest` at evaluation alone.

Images: Open Images v4, 9 million to train on, 125,456 to test. Labels: seen are the 7,186 with 100 or more training
images, annotated by machine; unseen are the 400 most frequent of the other test labels (Huynh and Elhamifar, CVPR
2020). A label that nobody verified is unknown. Metrics: mAP, and F1 at 10 and 20, of the 400 (ZSL) and the 7,586
(GZSL).
"""

OPEN_IMAGES_ZERO_SHOT_PUBLISHED = replace(
    PUBLISHED, optim=OptimConfig(warmup_epochs=0.4), training=TrainingConfig(epochs=4)
)
"""python pipelines/train.py open_images_zero_shot_published --data runs/open_images_7186 --out runs/open_published

The recipe of `published` for the 4 epochs of MKT, on all labels in every step.

Images: as `open_images_zero_shot`. Labels: as `open_images_zero_shot`. Metrics: as `open_images_zero_shot`.
"""

# ---- single positive: data by Cole et al. CVPR 2021; constants by Zhou et al. ECCV 2022 and VLPL (CVPR-W 2024) ----


def _single_positive(batch_size: int, lr: float = 1e-5, **loss: Any) -> RunConfig:
    """The form of `default`; Adam at a constant rate for 10 epochs; EM with pseudo-labels of CLIP (VLPL).

    The last two blocks all train at the full rate.
    """
    return replace(
        DEFAULT,
        loss=LossConfig(kind="em_pl", distillation=0.0, **loss),
        optim=_constant_rate(lr),
        training=TrainingConfig(epochs=10, batch_size=batch_size, augment="crop_flip"),
    )


def _single_positive_published(entropy_weight: float) -> RunConfig:
    """The defaults of SPML/main_clip.py in the authors' repository.

    Its loss `EM_APL` never assigns a soft label, which makes it `em`; probabilities are sigmoids of the scores as they
    are; label names are the prompts; all blocks train. Its batch is 1 for each of an unnamed number of GPUs; 8 is that
    of VLPL, whose script it extends. Ours crops at random, theirs only flips.
    """
    return replace(
        PUBLISHED,
        backbone=BackboneConfig(frozen_blocks=0, prompt_templates=("{}",)),
        loss=LossConfig(kind="em", distillation=0.0, entropy_weight=entropy_weight),
        optim=_constant_rate(1e-5),
        training=TrainingConfig(epochs=10, batch_size=8, augment="crop_flip"),
    )


def _constant_rate(lr: float) -> OptimConfig:
    """Adam: no decay of weights, of layers or in time."""
    return OptimConfig(lr=lr, final_lr=lr, weight_decay=0.0, layer_decay=1.0, warmup_epochs=0.0)


VOC_SINGLE_POSITIVE = _single_positive(8, entropy_weight=0.2, soft_weight=0.02, expected_positives=1.5)
"""python pipelines/train.py voc_single_positive --data runs/voc_single --out runs/voc_single_positive

Images: PASCAL VOC 2012, 5,717 to train on, 5,823 to test (its validation set). Labels: 20, of which
`preprocess.py --label-policy single-positive --validation-fraction 0.2` keeps one that is present; the fifth held out
for choosing the epoch keeps all (Cole et al. 2021). Metric: mAP on all labels of the test images.
"""

VOC_SINGLE_POSITIVE_PUBLISHED = _single_positive_published(entropy_weight=0.2)
"""python pipelines/train.py voc_single_positive_published --data runs/voc_single --out runs/voc_published

The authors' defaults for VOC, see `_single_positive_published`.

Images: as `voc_single_positive`. Labels: as `voc_single_positive`. Metric: as `voc_single_positive`.
"""

COCO_SINGLE_POSITIVE = _single_positive(16, entropy_weight=0.1, soft_weight=0.9, expected_positives=2.9)
"""python pipelines/train.py coco_single_positive --data runs/coco_single --out runs/coco_single_positive

Images: MS COCO 2014, 82,081 to train on, 40,137 to test (its validation set), those with a label. Labels: 80, one kept
as for VOC. Metric: mAP on all labels of the test images.
"""

COCO_SINGLE_POSITIVE_PUBLISHED = _single_positive_published(entropy_weight=0.1)
"""python pipelines/train.py coco_single_positive_published --data runs/coco_single --out runs/coco_published

The authors' defaults for COCO, see `_single_positive_published`.

Images: as `coco_single_positive`. Labels: as `coco_single_positive`. Metric: as `coco_single_positive`.
"""

NUS_SINGLE_POSITIVE = _single_positive(
    16, entropy_weight=0.1, soft_weight=0.2, soft_warmup_epochs=4, expected_positives=1.9
)
"""python pipelines/train.py nus_single_positive --data runs/nus_single --out runs/nus_single_positive

The authors publish no settings for NUS-WIDE with single positives, so there is no published form.

Images: NUS-WIDE, 150,000 to train on, 60,260 to test, those with a concept (Cole et al. 2021). Labels: the 81 concepts,
one kept as for VOC. Metric: mAP on all labels of the test images.
"""

CUB_SINGLE_POSITIVE = _single_positive(
    8, 1e-4, entropy_weight=0.01, soft_weight=0.4, soft_warmup_epochs=3, expected_positives=31.4
)
"""python pipelines/train.py cub_single_positive --data runs/cub_single --out runs/cub_single_positive

The authors publish no settings for CUB, so there is no published form.

Images: CUB-200-2011, 5,994 to train on, 5,794 to test. Labels: 312 attributes, one kept as for VOC; they describe parts
of a bird (`has_wing_color::blue`), so a vocabulary with prompts reads better. Metric: mAP on all labels of the test
images.
"""

# ---- the built-in corpus ----

QUICKSTART = RunConfig(
    backbone=BackboneConfig(name="toybox-vit", pretrained="random", frozen_blocks=2, prompt_templates=("a {}",)),
    graph=GraphConfig(hidden=64, heads=4, residual=True, propagation=True),
    reconstruction=ReconstructionConfig(residual=True, rms_normalise=True),
    scoring=ScoringConfig(top_k_patches=8, learn_scale=True, initial_scale=20.0),
    loss=LossConfig(distillation=0.3),
    optim=OptimConfig(lr=3e-3, warmup_epochs=0.5, final_lr=1e-6),
    training=TrainingConfig(epochs=5, batch_size=32, augment="none", cache_features_in_memory=True),
)
"""python pipelines/quickstart.py --out runs/quickstart

SigRL on the built-in corpus and its small CLIP, which quickstart.py makes.

All but the last block are frozen, and the features are held in memory. The settings were chosen on seen labels alone:
by mAP on held-out images, and with every fifth seen pair held out as if it were unseen. Without vocabulary dropout both
this and the baseline came out higher (docs/LOG.md).
"""

QUICKSTART_MKT = replace(
    QUICKSTART,
    graph=GraphConfig(kind="none"),
    reconstruction=ReconstructionConfig(enabled=False),
    training=replace(QUICKSTART.training, epochs=2 * QUICKSTART.training.epochs),
)
"""python pipelines/quickstart.py --out runs/quickstart

The baseline: the same run without label graph and reconstruction (MKT-style). It trains twice as long, which is best
for it.
"""

PRESETS: dict[str, RunConfig] = {
    "default": DEFAULT,
    "published": PUBLISHED,
    "nus_wide_zero_shot": NUS_WIDE_ZERO_SHOT,
    "nus_wide_zero_shot_published": NUS_WIDE_ZERO_SHOT_PUBLISHED,
    "open_images_zero_shot": OPEN_IMAGES_ZERO_SHOT,
    "open_images_zero_shot_published": OPEN_IMAGES_ZERO_SHOT_PUBLISHED,
    "voc_single_positive": VOC_SINGLE_POSITIVE,
    "voc_single_positive_published": VOC_SINGLE_POSITIVE_PUBLISHED,
    "coco_single_positive": COCO_SINGLE_POSITIVE,
    "coco_single_positive_published": COCO_SINGLE_POSITIVE_PUBLISHED,
    "nus_single_positive": NUS_SINGLE_POSITIVE,
    "cub_single_positive": CUB_SINGLE_POSITIVE,
    "quickstart": QUICKSTART,
    "quickstart_mkt": QUICKSTART_MKT,
}


def get_preset(name: str) -> RunConfig:
    """Returns the preset of that name.

    Raises:
        ConfigError: no preset has that name; the message lists all names.
    """
    if name in RENAMED_PRESETS:
        print(f"preset {name!r} is deprecated; use {RENAMED_PRESETS[name]!r}", file=sys.stderr)
        name = RENAMED_PRESETS[name]
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is unknown; known are {', '.join(PRESETS)}")
    return PRESETS[name]
