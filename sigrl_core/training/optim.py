"""Parameter groups and their learning rates, the learning-rate schedule, and the average of weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sigrl_core.config import OptimConfig
from sigrl_core.model.model import SigRLModel


def compute_learning_rate(epoch: float, *, peak: float, epochs: float, warmup_epochs: float, final: float) -> float:
    """Rises linearly from 0 to `peak` over `warmup_epochs`, then falls along half a cosine to `final` at `epochs`.

    `epoch` is fractional: step 30 of 100 in the second epoch is 1.3. Source: arXiv 2504.03801, published recipe.
    """
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    if epoch >= epochs:
        return final
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(model: SigRLModel, config: OptimConfig) -> list[dict[str, Any]]:
    """Groups the trainable parameters by learning rate and weight decay; parameters of one dimension do not decay.

    A block n steps below the top has `lr_scale` = layer_decay^n (arXiv 2504.03801, recipe).
    """
    backbone = model.backbone
    top = backbone.num_blocks + 1
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in trainable_parameters(model):
        depth = backbone.depth_of(name) if name.startswith("backbone.") else top
        decays = parameter.ndim > 1
        lr_scale = config.layer_decay ** (top - depth)
        if name.startswith("head.") and decays:
            lr_scale *= config.head_lr_scale
        weight_decay = config.weight_decay if decays else 0.0
        empty = {"params": [], "names": [], "lr_scale": lr_scale, "weight_decay": weight_decay}
        group = groups.setdefault((lr_scale, decays), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]


def describe_parameter_groups(groups: Sequence[dict[str, Any]]) -> list[str]:
    """Returns one line per learning rate, the highest first: the blocks that train at it, and their parameter count."""
    by_scale: dict[float, tuple[list[str], int]] = {}
    for group in groups:
        blocks, count = by_scale.get(group["lr_scale"], ([], 0))
        blocks = [*blocks, *(_block(name) for name in group.get("names", ["label estimator"]))]
        by_scale[group["lr_scale"]] = blocks, count + sum(parameter.numel() for parameter in group["params"])
    return [
        f"lr x {scale:.4g}: {', '.join(dict.fromkeys(blocks))} ({count:,} parameters)"
        for scale, (blocks, count) in sorted(by_scale.items(), reverse=True)
    ]


def _block(name: str) -> str:
    """`backbone.clip.visual.transformer.resblocks.3.attn.out_proj.bias` -> `visual.transformer.resblocks.3`."""
    name = name.removeprefix("backbone.").removeprefix("clip.")
    numbered = re.match(r".*?\.\d+(?=\.)", name)
    return numbered[0] if numbered else ".".join(name.split(".")[:2])


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Gives every group its `lr_scale` times `lr`."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["lr_scale"]


class EMA:
    """Exponential moving average of the trainable parameters of a module.

    After n steps the decay is min(decay, (1 + n) / (10 + n)), as in TensorFlow's moving averages, so that the first
    steps weigh less.

    Args:
        module: the averaged module.
        decay: None disables the average; every method then does nothing.
    """

    def __init__(self, module: nn.Module, decay: float | None) -> None:
        self.decay, self.steps = decay, 0
        self.weights: dict[str, Tensor] = {}
        self.reset(module, 0)

    def reset(self, module: nn.Module, steps: int) -> None:
        """Sets the average to the module's parameters, as after `steps` steps."""
        if self.decay is not None:
            self.steps = steps
            self.weights = {name: value.detach().clone() for name, value in trainable_parameters(module)}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Includes the parameters after one more step."""
        if self.decay is None:
            return
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in trainable_parameters(module):
            self.weights[name].lerp_(value, share)

    @contextmanager
    def swapped_into(self, module: nn.Module) -> Iterator[None]:
        """Gives the module the averaged parameters inside the body, and its own ones after it."""
        parameters = dict(trainable_parameters(module)) if self.decay is not None else {}
        own = {name: value.detach().clone() for name, value in parameters.items()}
        try:
            copy_values(parameters, self.weights)
            yield
        finally:
            copy_values(parameters, own)


def trainable_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields the trainable parameters by name."""
    return ((name, value) for name, value in module.named_parameters() if value.requires_grad)


@torch.no_grad()
def copy_values(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    """Copies values into the parameters of the same names."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
