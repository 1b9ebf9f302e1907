"""CLIP towers: images -> class token and patch tokens, texts -> label embeddings. The only importer of open_clip.

A forward pass is cut in two at the last frozen block (with value-value attention at the one before the last block, if
that is lower)::

    encode_frozen(images) -> tokens [B,N,W]      no gradient, the same all through training
    finish(tokens)        -> g [B,D], X [B,P,D]  remaining blocks, final norm, visual projection; trains

so that whatever is frozen is computed once: the distillation teacher is a copy of `finish`, held features are `tokens`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import VisionTransformer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from sigrl_core.config import BackboneConfig
from sigrl_core.errors import CheckpointError, ConfigError, WeightsError

RANDOM = "random"
DESCRIPTION_FILE = "backbone.json"
WEIGHTS_FILE = "weights.safetensors"
WEIGHTS_PREFIX = "backbone."


class Backbone(nn.Module):
    """A ViT CLIP of open_clip, seen the way SigRL needs it.

    Args:
        clip: the open_clip model; its visual tower must be a ViT with a class token.
        description: what rebuilds the architecture: `name`, `quick_gelu`, `mean`, `std`.
        config: how many blocks from the input stay frozen, more than there are means all, and how patches attend.

    Attributes:
        image_size: pixels on a side that the tower takes.
        mean, std: image statistics the weights were trained with, per channel in units of 0..1.
        dim: D, width of the joint embedding.
        grid: patches down and across.
        num_blocks: transformer blocks of the visual tower.
        seam: blocks below the cut.
    """

    def __init__(self, clip: nn.Module, description: dict[str, Any], config: BackboneConfig) -> None:
        super().__init__()
        visual: Any = clip.visual
        if not isinstance(visual, VisionTransformer) or visual.pool_type != "tok" or visual.attn_pool:
            raise ConfigError(
                f"backbone.name {description['name']!r} is not a ViT with a class token; "
                "choose one such as ViT-B-16 or ViT-L-14"
            )
        self.clip: Any = clip
        self.description = description
        self.image_size: int = self.clip.visual.image_size[0]
        self.mean: tuple[float, ...] = tuple(description["mean"])
        self.std: tuple[float, ...] = tuple(description["std"])
        self.dim: int = visual.output_dim
        self.grid: tuple[int, int] = (visual.grid_size[0], visual.grid_size[1])
        self.num_blocks: int = len(visual.transformer.resblocks)
        self.frozen_blocks = min(config.frozen_blocks, self.num_blocks)
        self.value_value = config.patch_attention == "value-value"
        self.seam = min(self.frozen_blocks, self.num_blocks - 1) if self.value_value else self.frozen_blocks
        self.tokenizer = open_clip.SimpleTokenizer(context_length=self.clip.context_length)
        self.requires_grad_(False)
        for part in self._trainable_parts():
            part.requires_grad_(True)

    def _trainable_parts(self) -> list[Any]:
        visual = self.clip.visual
        return [*visual.transformer.resblocks[self.frozen_blocks :], visual.ln_post, visual.proj]

    def normalise(self, pixels_BHWC: Tensor) -> Tensor:
        """uint8 pictures [B,H,W,3] as the tower wants them: [B,3,H,W] floats by the weights' own statistics."""
        mean = torch.tensor(self.mean, device=pixels_BHWC.device) * 255
        std = torch.tensor(self.std, device=pixels_BHWC.device) * 255
        return ((pixels_BHWC.float() - mean) / std).permute(0, 3, 1, 2).contiguous()

    def embed(self, pixels_BHWC: Tensor) -> Tensor:
        """uint8 pictures [B,H,W,3] -> tokens [B,N,W] before the first block, with gradient."""
        return self.clip.visual._embeds(self.normalise(pixels_BHWC))

    @torch.no_grad()
    def encode_frozen(self, pixels_BHWC: Tensor) -> Tensor:
        """uint8 pictures [B,H,W,3] -> tokens [B,N,W] after the last frozen block."""
        tokens_BNW = self.embed(pixels_BHWC)
        for block in self.clip.visual.transformer.resblocks[: self.seam]:
            tokens_BNW = block(tokens_BNW)
        return tokens_BNW

    def frozen_sha256(self) -> str:
        """Hash of all that `encode_frozen` depends on: two backbones with the same one give the same tokens."""
        blocks = [f"transformer.resblocks.{number}." for number in range(self.seam)]
        below = ("conv1.", "class_embedding", "positional_embedding", "ln_pre.", *blocks)
        told = hashlib.sha256(repr((self.image_size, self.mean, self.std, self.seam)).encode())
        for name, value in sorted(self.clip.visual.state_dict().items()):
            if name.startswith(below):
                told.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return told.hexdigest()

    def finish(self, tokens_BNW: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [B,N,W] -> class token g [B,D] and patch tokens X [B,P,D], normed and projected, not L2-normalised."""
        return finish(self.clip.visual, self.seam, tokens_BNW, self.value_value)

    def forward(self, pixels_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 pictures [B,H,W,3] -> g [B,D], X [B,P,D]."""
        return self.finish(self.encode_frozen(pixels_BHWC))

    def teacher(self) -> Teacher:
        """A frozen copy, as of now, of what trains; see `Teacher`."""
        return Teacher(self)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[Sequence[str]]) -> Tensor:
        """Label texts -> T [C,D], L2-normalised; several prompts of one label are averaged.

        Args:
            prompts: for each label one or more texts.
        """
        device = self.clip.token_embedding.weight.device
        flat = [text for texts in prompts for text in texts]
        embedded = torch.cat(
            [
                self.clip.encode_text(self.tokenizer(flat[start : start + 256]).to(device), normalize=True)
                for start in range(0, len(flat), 256)
            ]
            or [torch.zeros(0, self.dim, device=device)]
        )
        groups = embedded.split([len(texts) for texts in prompts])
        means = [group.mean(0) for group in groups]
        return nn.functional.normalize(torch.stack(means), dim=-1) if means else embedded

    def depth_of(self, parameter_name: str) -> int:
        """Depth of one of our parameters: 0 embedding, 1..num_blocks the blocks, num_blocks + 1 norm and projection."""
        _, found, rest = parameter_name.partition("visual.transformer.resblocks.")
        if found:
            return int(rest.split(".")[0]) + 1
        return self.num_blocks + 1 if "visual.ln_post" in parameter_name or "visual.proj" in parameter_name else 0


class Teacher(nn.Module):
    """The original CLIP above the frozen seam: target of distillation, and the zero-shot baseline.

    Holds a copy of the blocks above the seam, final norm and projection; what lies below is shared and never changes.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        visual = backbone.clip.visual
        self.value_value = backbone.value_value
        self.transformer = nn.Module()
        self.transformer.resblocks = copy.deepcopy(visual.transformer.resblocks[backbone.seam :])
        self.ln_post = copy.deepcopy(visual.ln_post)
        self.proj = nn.Parameter(visual.proj.detach().clone())
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, tokens_BNW: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [B,N,W] -> g [B,D], X [B,P,D] as before any training."""
        return finish(self, 0, tokens_BNW, self.value_value)


def finish(visual: Any, first_block: int, tokens_BNW: Tensor, value_value: bool) -> tuple[Tensor, Tensor]:
    """The upper half of a visual tower, from block `first_block` on: tokens -> g [B,D], X [B,P,D]."""
    below_BNW = tokens_BNW
    for block in visual.transformer.resblocks[first_block:]:
        below_BNW, tokens_BNW = tokens_BNW, block(tokens_BNW)
    if value_value:
        patches_BPW = attended_by_values(visual.transformer.resblocks[-1], below_BNW)[:, 1:]
        tokens_BNW = torch.cat([tokens_BNW[:, :1], patches_BPW], dim=1)
    projected_BND = visual.ln_post(tokens_BNW) @ visual.proj
    return projected_BND[:, 0], projected_BND[:, 1:]


def attended_by_values(block: Any, tokens_BNW: Tensor) -> Tensor:
    """A transformer block in which values take the place of queries and keys: softmax(V V^T / sqrt(d)) V, per head.

    Trained queries and keys gather what the class token needs, often from the other end of the picture; with values of
    its own a patch stays with what looks like it (Li et al. 2023, arXiv 2304.05653, there without the MLP).
    """
    attention: nn.MultiheadAttention = block.attn
    B, N, W = tokens_BNW.shape
    weight_WW, bias = attention.in_proj_weight[2 * W :], attention.in_proj_bias
    values_BNW = linear(block.ln_1(tokens_BNW), weight_WW, None if bias is None else bias[2 * W :])
    values_BHNE = values_BNW.view(B, N, attention.num_heads, -1).transpose(1, 2)
    heard_BHNE = scaled_dot_product_attention(values_BHNE, values_BHNE, values_BHNE)
    tokens_BNW = tokens_BNW + block.ls_1(attention.out_proj(heard_BHNE.transpose(1, 2).reshape(B, N, W)))
    return tokens_BNW + block.ls_2(block.mlp(block.ln_2(tokens_BNW)))


# ---- making one ----


class ConvolutionalStem(nn.Sequential):
    """Pictures -> [B,width,H/8,W/8], in the place of a ViT's patch embedding.

    A ViT learns little but colours from a few thousand small pictures; convolutions see edges from the first step
    (Xiao et al. 2021, arXiv 2106.14881).
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
    """The small CLIP of the built-in corpus: 48 px, 36 patches, D 128; random weights, trained by sigrl_core.demo."""
    width = 128
    clip: Any = open_clip.CLIP(
        embed_dim=128,
        vision_cfg={"image_size": 48, "patch_size": 8, "width": width, "layers": 2, "head_width": 32, "mlp_ratio": 2.0},  # type: ignore[arg-type]
        text_cfg={"context_length": 16, "width": 128, "heads": 4, "layers": 2, "mlp_ratio": 2.0},  # type: ignore[arg-type]
    )
    clip.visual.conv1 = ConvolutionalStem(width)
    return clip


BACKBONES: dict[str, Callable[[], nn.Module]] = {"toybox-vit": toybox_vit}


def located(config: BackboneConfig) -> BackboneConfig:
    """The same, its weights named as any process finds them, whatever folder it runs in."""
    here = Path(config.pretrained)
    return replace(config, pretrained=str(here.absolute())) if here.exists() else config


def load_backbone(config: BackboneConfig) -> Backbone:
    """Builds the backbone a configuration names, with its weights.

    Raises:
        ConfigError: no such architecture.
        WeightsError: weights are neither here nor to be fetched; says which file to put where.
        CheckpointError: `pretrained` is a folder, but not one of our checkpoints.
    """
    folder = Path(config.pretrained)
    if (folder / DESCRIPTION_FILE).is_file():
        return load_backbone_folder(folder, config)
    if folder.is_dir():
        raise CheckpointError(
            f"{folder}: no {DESCRIPTION_FILE} in it; expected a checkpoint folder made by train.py or quickstart.py"
        )
    if config.name in BACKBONES:
        if config.pretrained != RANDOM:
            raise WeightsError(
                f"backbone {config.name!r} has no published weights {config.pretrained!r}; "
                f"set backbone.pretrained to a checkpoint folder of ours (quickstart.py makes one) or to {RANDOM!r}"
            )
        return Backbone(BACKBONES[config.name](), describe(config.name, False), config)
    if config.name not in open_clip.list_models():
        known = [*BACKBONES, *(name for name in open_clip.list_models() if name.startswith("ViT") and _is_plain(name))]
        raise ConfigError(f"backbone.name {config.name!r} is unknown; known are {', '.join(known)}")
    if not _is_plain(config.name):
        raise ConfigError(
            f"backbone.name {config.name!r} is not a ViT with a class token and CLIP's own text tower; "
            "choose one such as ViT-B-16 or ViT-L-14"
        )
    return _load_open_clip(config)


def _is_plain(name: str) -> bool:
    """Whether an open_clip model is a ViT with a class token whose texts CLIP's own tokenizer reads."""
    config: dict[str, Any] = open_clip.get_model_config(name) or {}
    vision, text = config["vision_cfg"], config["text_cfg"]
    is_vit = isinstance(vision.get("layers"), int) and vision.get("pool_type", "tok") == "tok"
    others = {"timm_model_name", "attentional_pool", "hf_model_name", "hf_tokenizer_name", "tokenizer_kwargs"}
    return is_vit and "multimodal_cfg" not in config and not others & (set(vision) | set(text))


def load_backbone_folder(folder: Path, config: BackboneConfig) -> Backbone:
    """The backbone inside one of our checkpoint folders, with its weights."""
    try:
        description = json.loads((folder / DESCRIPTION_FILE).read_text())
        weights = load_file(folder / WEIGHTS_FILE)
        backbone = backbone_from_description(description, config)
        backbone.load_state_dict(
            {
                name.removeprefix(WEIGHTS_PREFIX): value
                for name, value in weights.items()
                if name.startswith(WEIGHTS_PREFIX)
            }
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: backbone cannot be loaded ({error}); copy or make the checkpoint again"
        ) from error
    return backbone


def backbone_from_description(description: dict[str, Any], config: BackboneConfig) -> Backbone:
    """The architecture a checkpoint's description names, with weights still to be loaded."""
    name = description["name"]
    if name in BACKBONES:
        clip = BACKBONES[name]()
    else:
        clip = open_clip.create_model(name, pretrained=None, force_quick_gelu=description["quick_gelu"])
    return Backbone(clip, description, config)


def describe(name: str, quick_gelu: bool, mean: Sequence[float] = (), std: Sequence[float] = ()) -> dict[str, Any]:
    """What a checkpoint must know to build an architecture again; statistics default to CLIP's own."""
    return {
        "name": name,
        "quick_gelu": quick_gelu,
        "mean": list(mean or open_clip.OPENAI_DATASET_MEAN),
        "std": list(std or open_clip.OPENAI_DATASET_STD),
    }


def _load_open_clip(config: BackboneConfig) -> Backbone:
    tag = open_clip.pretrained.get_pretrained_cfg(config.name, config.pretrained)
    is_file = Path(config.pretrained).is_file()
    if config.pretrained != RANDOM and not tag and not is_file:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(config.name)) or "none"
        raise WeightsError(
            f"backbone.pretrained {config.pretrained!r} is neither a file, nor a checkpoint folder, "
            f"nor a tag of {config.name}; tags are {tags}; {RANDOM!r} asks for random weights"
        )
    # OpenAI's weights need QuickGELU, which open_clip takes from the model's name and not from the tag
    quick_gelu = bool(tag.get("quick_gelu")) or "quickgelu" in config.name if tag else "quickgelu" in config.name
    logging.getLogger().addFilter(_worth_saying)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")
            clip = open_clip.create_model(
                config.name,
                pretrained=None if config.pretrained == RANDOM else config.pretrained,
                force_quick_gelu=quick_gelu,
            )
    except Exception as error:  # a hub that cannot be reached raises whatever its client raises
        if config.pretrained == RANDOM:
            raise
        raise WeightsError(_how_to_get(config, tag, is_file, error)) from error
    visual: Any = clip.visual
    return Backbone(clip, describe(config.name, quick_gelu, visual.image_mean, visual.image_std), config)


def _worth_saying(record: logging.LogRecord) -> bool:
    """Not what open_clip warns of when random weights were asked for by name."""
    return "No pretrained weights loaded" not in record.getMessage()


def _how_to_get(config: BackboneConfig, tag: dict[str, Any], is_file: bool, error: Exception) -> str:
    reason = str(error).strip().splitlines()[-1][:200]
    if is_file:
        return f"{config.pretrained}: not weights of {config.name} ({reason}); give a file saved for this architecture"
    hub = tag.get("hf_hub", "").rstrip("/")
    source = f"open_clip_model.safetensors of huggingface.co/{hub}" if hub else tag.get("url")
    # a file does not say that it needs QuickGELU, the architecture's name does
    renamed = bool(tag.get("quick_gelu")) and "quickgelu" not in config.name
    name = f"--backbone.name {config.name}-quickgelu " if renamed else ""
    return (
        f"weights {config.pretrained!r} of {config.name} cannot be fetched ({reason}); "
        f"download {source} on a machine with a network and pass its path: "
        f"{name}--backbone.pretrained /path/to/file; or ask for {RANDOM!r} weights by name"
    )
