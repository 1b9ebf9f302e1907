"""What trains at which rate, and how the rate moves over time."""

from __future__ import annotations

import math
from typing import Any

import torch

from sigrl_core.config import OptimConfig
from sigrl_core.model.recogniser import Recogniser


def learning_rate(epoch: float, *, peak: float, epochs: float, warmup_epochs: float, final: float) -> float:
    """Linear from 0 to `peak` over `warmup_epochs`, then half a cosine down to `final` at `epochs`, where it stays.

    `epoch` counts fractions: step 30 of 100 in the second epoch is 1.3. Source: arXiv 2504.03801, published recipe.
    """
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    if epoch >= epochs:
        return final
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(recogniser: Recogniser, config: OptimConfig) -> list[dict[str, Any]]:
    """What trains, in groups of one rate and one decay: `lr_scale` falls with depth, 1-D parameters do not decay.

    Layer-wise rates: a block n steps below the top trains at layer_decay^n of the peak (arXiv 2504.03801, recipe).
    """
    backbone = recogniser.backbone
    top = backbone.num_blocks + 1
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in recogniser.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = backbone.depth_of(name) if name.startswith("backbone.") else top
        decays = parameter.ndim > 1
        lr_scale = config.layer_decay ** (top - depth)
        if name.startswith("head.") and decays:
            lr_scale *= config.head_rate
        group = groups.setdefault(
            (lr_scale, decays),
            {
                "params": [],
                "names": [],
                "lr_scale": lr_scale,
                "weight_decay": config.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Gives every group its share of `rate`."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["lr_scale"]
