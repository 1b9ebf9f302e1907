"""What trains at which rate, and how the rate moves over time."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

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


def what_trains(groups: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each rate, the highest first: which blocks train at it, and how many numbers that is."""
    at_rate: dict[float, tuple[list[str], int]] = {}
    for group in groups:
        blocks, count = at_rate.get(group["lr_scale"], ([], 0))
        blocks = [*blocks, *(_block(name) for name in group.get("names", ["label estimator"]))]
        at_rate[group["lr_scale"]] = blocks, count + sum(parameter.numel() for parameter in group["params"])
    return [
        f"rate x {rate:.4g}: {', '.join(dict.fromkeys(blocks))} ({count:,} numbers)"
        for rate, (blocks, count) in sorted(at_rate.items(), reverse=True)
    ]


def _block(name: str) -> str:
    """`backbone.clip.visual.transformer.resblocks.3.attn.out_proj.bias` -> `visual.transformer.resblocks.3`."""
    name = name.removeprefix("backbone.").removeprefix("clip.")
    numbered = re.match(r".*?\.\d+(?=\.)", name)
    return numbered[0] if numbered else ".".join(name.split(".")[:2])


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Gives every group its share of `rate`."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["lr_scale"]


class WeightAverage:
    """Exponential moving average of what trains in a module, its first steps weighted as if it had started later.

    After n steps the old average counts min(decay, (1 + n) / (10 + n)), as Polyak averages of TensorFlow do.

    Args:
        decay: None keeps none, and every method does nothing.
    """

    def __init__(self, module: nn.Module, decay: float | None) -> None:
        self.decay, self.steps = decay, 0
        self.weights: dict[str, Tensor] = {}
        self.restart(module, 0)

    def restart(self, module: nn.Module, steps: int) -> None:
        """Takes the module's weights for the average after so many steps."""
        if self.decay is not None:
            self.steps = steps
            self.weights = {name: value.detach().clone() for name, value in trained_of(module)}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Takes the weights after one more step in."""
        if self.decay is None:
            return
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in trained_of(module):
            self.weights[name].lerp_(value, share)

    @contextmanager
    def in_place_of(self, module: nn.Module) -> Iterator[None]:
        """The module has the average's weights in the body, and its own afterwards."""
        parameters = dict(trained_of(module)) if self.decay is not None else {}
        own = {name: value.detach().clone() for name, value in parameters.items()}
        try:
            fill(parameters, self.weights)
            yield
        finally:
            fill(parameters, own)


def trained_of(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What trains in a module, by name."""
    return ((name, value) for name, value in module.named_parameters() if value.requires_grad)


@torch.no_grad()
def fill(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    """Gives parameters other values, by name."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
