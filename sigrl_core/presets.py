"""Named complete runs. `python pipelines/train.py NAME` takes one; every field is a flag on top of it."""

from __future__ import annotations

from dataclasses import replace

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

CLIP_ZERO_SHOT = RunConfig()
"""The authors' zero-shot recipe on OpenAI's ViT-B/16, exactly as published (arXiv 2504.03801)."""

QUICKSTART = RunConfig(
    backbone=BackboneConfig(name="toybox-vit", pretrained="random", frozen_blocks=2, prompt_templates=("a {}",)),
    graph=GraphConfig(hidden=64, heads=4, residual=True),
    reconstruction=ReconstructionConfig(residual=True, unit_rms=True),
    scoring=ScoringConfig(patches_kept=8, learn_scale=True, initial_scale=20.0),
    loss=LossConfig(distillation=0.3),
    optim=OptimConfig(lr=3e-3, warmup_epochs=0.5, final_lr=1e-6),
    training=TrainingConfig(epochs=6, batch_size=32, augment="none", hold_features=True),
)
"""SigRL on the built-in corpus and its small CLIP; quickstart.py says where that CLIP lies.

The trunk is frozen and its tokens are held in memory. Chosen on seen labels alone: mAP on held-out pictures, and with
every fifth seen pair held out as if it were unseen. Without vocabulary dropout both this and the baseline came out
higher (docs/LOG.md).
"""

QUICKSTART_MKT = replace(
    QUICKSTART,
    reconstruction=ReconstructionConfig(enabled=False),
    training=replace(QUICKSTART.training, epochs=2 * QUICKSTART.training.epochs),
)
"""The baseline: the same run without label graph and reconstruction (MKT-style), twice as long, which is its best."""

PRESETS: dict[str, RunConfig] = {
    "clip_zero_shot": CLIP_ZERO_SHOT,
    "quickstart": QUICKSTART,
    "quickstart_mkt": QUICKSTART_MKT,
}


def get_preset(name: str) -> RunConfig:
    """The run of that name; ConfigError lists the known ones."""
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is unknown; known are {', '.join(PRESETS)}")
    return PRESETS[name]
