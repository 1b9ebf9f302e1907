"""Named complete runs. `python pipelines/train.py NAME` takes one; every field is a flag on top of it."""

from __future__ import annotations

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
from sigrl_core.errors import ConfigError

# ---- zero-shot: arXiv 2504.03801, the published recipe, which is the default of every field ----

CLIP_ZERO_SHOT = RunConfig()
"""python pipelines/train.py clip_zero_shot --data runs/shards --out runs/mine

The authors' zero-shot recipe on OpenAI's ViT-B/16, exactly as published, for any corpus with seen and unseen labels.
"""

NUS_WIDE_ZERO_SHOT = CLIP_ZERO_SHOT
"""python pipelines/train.py nus_wide_zero_shot --data runs/nus_wide_925 --out runs/nus_wide_zero_shot

Images: NUS-WIDE (Chua et al. 2009) as its authors split it, 161,789 to train on and 107,859 to test, less those gone
from Flickr; training images without one of the 925 tags drop out. Labels: seen are the 925 user tags of Tags1k that are
none of the 81 concepts (Huynh and Elhamifar, CVPR 2020); unseen are the 81 concepts. Metrics: mAP, and F1 at 3 and 5,
of the 81 (ZSL) and the 1,006 (GZSL).
"""

OPEN_IMAGES_ZERO_SHOT = CLIP_ZERO_SHOT
"""python pipelines/train.py open_images_zero_shot --data runs/open_images_7186 --out runs/open_images_zero_shot

Images: Open Images v4, 9 million to train on, 125,456 to test. Labels: seen are the 7,186 with 100 or more training
images, machine-made; unseen the 400 most frequent of the test labels outside them (Huynh and Elhamifar, CVPR 2020). A
label nobody verified is unknown. Metrics: mAP, and F1 at 10 and 20, of the 400 (ZSL) and the 7,586 (GZSL). What a step
costs grows with its labels: `--training.label-fraction 0.1` draws a tenth of them for each.
"""

COCO_ZERO_SHOT = CLIP_ZERO_SHOT
"""python pipelines/train.py coco_zero_shot --data runs/coco_48 --out runs/coco_zero_shot

Images: MS COCO 2014; train on training images without an unseen label, test on validation images with any of the 65.
Labels: 48 seen, 17 unseen categories (Bansal et al., ECCV 2018). Metrics: mAP and F1 at 3, of the 17 (ZSL) and the 65
(GZSL).
"""

# ---- single positive: Cole et al. CVPR 2021 for the data, Zhou et al. ECCV 2022 and VLPL for the constants ----


def _single_positive(batch_size: int, lr: float = 1e-5, **loss: Any) -> RunConfig:
    """Adam at a constant rate for 10 epochs, all of the last two blocks at that rate; EM with CLIP's pseudo-labels."""
    return RunConfig(
        scoring=ScoringConfig(learn_scale=True, initial_scale=20.0),
        loss=LossConfig(kind="em_pl", distillation=0.0, **loss),
        optim=OptimConfig(lr=lr, final_lr=lr, weight_decay=0.0, layer_decay=1.0, warmup_epochs=0.0),
        training=TrainingConfig(epochs=10, batch_size=batch_size, augment="crop_flip"),
    )


VOC_SINGLE_POSITIVE = _single_positive(8, entropy_weight=0.2, soft_weight=0.02, expected_positives=1.5)
"""python pipelines/train.py voc_single_positive --data runs/voc_single --out runs/voc_single_positive

Images: PASCAL VOC 2012, 5,717 to train on, 5,823 to test (its validation set). Labels: 20, of which
`preprocess.py --labels single-positive --validation-fraction 0.2` keeps one that is present; the fifth held out for
choosing the epoch keeps all (Cole et al. 2021). Metric: mAP on all labels of the test images.
"""

COCO_SINGLE_POSITIVE = _single_positive(16, entropy_weight=0.1, soft_weight=0.9, expected_positives=2.9)
"""python pipelines/train.py coco_single_positive --data runs/coco_single --out runs/coco_single_positive

Images: MS COCO 2014, 82,081 to train on, 40,137 to test (its validation set), those with a label. Labels: 80, one kept
as for VOC. Metric: mAP on all labels of the test images.
"""

NUS_SINGLE_POSITIVE = _single_positive(
    16, entropy_weight=0.1, soft_weight=0.2, soft_warmup_epochs=4, expected_positives=1.9
)
"""python pipelines/train.py nus_single_positive --data runs/nus_single --out runs/nus_single_positive

Images: NUS-WIDE, 150,000 to train on, 60,260 to test, those with a concept (Cole et al. 2021). Labels: the 81 concepts,
one kept as for VOC. Metric: mAP on all labels of the test images.
"""

CUB_SINGLE_POSITIVE = _single_positive(
    8, 1e-4, entropy_weight=0.01, soft_weight=0.4, soft_warmup_epochs=3, expected_positives=31.4
)
"""python pipelines/train.py cub_single_positive --data runs/cub_single --out runs/cub_single_positive

Images: CUB-200-2011, 5,994 to train on, 5,794 to test. Labels: 312 attributes, one kept as for VOC; they describe parts
of a bird (`has_wing_color::blue`), so a vocabulary with prompts reads better. Metric: mAP on all labels of the test
images.
"""

# ---- the built-in corpus ----

QUICKSTART = RunConfig(
    backbone=BackboneConfig(name="toybox-vit", pretrained="random", frozen_blocks=2, prompt_templates=("a {}",)),
    graph=GraphConfig(hidden=64, heads=4, residual=True, propagation=True),
    reconstruction=ReconstructionConfig(residual=True, unit_rms=True),
    scoring=ScoringConfig(patches_kept=8, learn_scale=True, initial_scale=20.0),
    loss=LossConfig(distillation=0.3),
    optim=OptimConfig(lr=3e-3, warmup_epochs=0.5, final_lr=1e-6),
    training=TrainingConfig(epochs=5, batch_size=32, augment="none", hold_features=True),
)
"""python pipelines/quickstart.py --out runs/quickstart

SigRL on the built-in corpus and its small CLIP; quickstart.py says where that CLIP lies.

The trunk is frozen and its tokens are held in memory. Chosen on seen labels alone: mAP on held-out pictures, and with
every fifth seen pair held out as if it were unseen. Without vocabulary dropout both this and the baseline came out
higher (docs/LOG.md).
"""

QUICKSTART_MKT = replace(
    QUICKSTART,
    graph=GraphConfig(kind="none"),
    reconstruction=ReconstructionConfig(enabled=False),
    training=replace(QUICKSTART.training, epochs=2 * QUICKSTART.training.epochs),
)
"""python pipelines/quickstart.py --out runs/quickstart

The baseline: the same run without label graph and reconstruction (MKT-style), twice as long, which is its best."""

PRESETS: dict[str, RunConfig] = {
    "clip_zero_shot": CLIP_ZERO_SHOT,
    "nus_wide_zero_shot": NUS_WIDE_ZERO_SHOT,
    "open_images_zero_shot": OPEN_IMAGES_ZERO_SHOT,
    "coco_zero_shot": COCO_ZERO_SHOT,
    "voc_single_positive": VOC_SINGLE_POSITIVE,
    "coco_single_positive": COCO_SINGLE_POSITIVE,
    "nus_single_positive": NUS_SINGLE_POSITIVE,
    "cub_single_positive": CUB_SINGLE_POSITIVE,
    "quickstart": QUICKSTART,
    "quickstart_mkt": QUICKSTART_MKT,
}


def get_preset(name: str) -> RunConfig:
    """The run of that name; ConfigError lists the known ones."""
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is unknown; known are {', '.join(PRESETS)}")
    return PRESETS[name]
