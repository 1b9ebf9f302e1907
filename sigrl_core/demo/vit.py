"""The architecture of the small CLIP of the built-in corpus; `--backbone.name toybox-vit`."""

from __future__ import annotations

from typing import Any

from torch import nn


class ConvolutionalStem(nn.Sequential):
    """Embeds images as [B,width,H/8,W/8], in the place of a ViT's patch embedding.

    From a few thousand small images a ViT learns hardly more than colours; convolutions detect edges from the first
    step (Xiao et al. 2021, arXiv 2106.14881).
    """

    def __init__(self, width: int) -> None:
        def step(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
            return [
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                nn.GroupNorm(8, outputs),
                nn.GELU(),
            ]

        super().__init__(
            *step(3, 32, 2),
            *step(32, 48, 2),
            *step(48, 96, 1),
            *step(96, 128, 2),
            *step(128, 128, 1),
            nn.Conv2d(128, width, 1),
        )


def toybox_vit() -> nn.Module:
    """Makes the small CLIP of the built-in corpus: 48 px, 36 patches, D 128; random weights, trained by the demo."""
    from sigrl_core.model.lean_import import lean_import

    with lean_import():
        import open_clip

    width = 128
    clip: Any = open_clip.CLIP(
        embed_dim=128,
        vision_cfg={"image_size": 48, "patch_size": 8, "width": width, "layers": 2, "head_width": 32, "mlp_ratio": 2.0},  # type: ignore[arg-type]
        text_cfg={"context_length": 16, "width": 128, "heads": 4, "layers": 2, "mlp_ratio": 2.0},  # type: ignore[arg-type]
    )
    clip.visual.conv1 = ConvolutionalStem(width)
    return clip
