"""CLIP towers: images -> class token and patch tokens, texts -> label embeddings. Built on open_clip.

A forward pass is split after the last frozen block (with value-value attention, before the last block if that comes
first)::

    forward_frozen(images) -> tokens [B,N,W]    no gradient; the same during the whole training
    forward_head(tokens) -> g [B,D], X [B,P,D]  remaining blocks, final norm, visual projection; trains

The frozen blocks therefore run once per image: the distillation teacher is a copy of `forward_head` only, and cached
features are `tokens`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from sigrl_core.config import BackboneConfig
from sigrl_core.errors import CheckpointError, ConfigError, WeightsError
from sigrl_core.model.lean_import import lean_import
from sigrl_core.plugins import BACKBONES

with lean_import():
    import open_clip
    from open_clip.transformer import VisionTransformer

RANDOM = "random"
DESCRIPTION_FILE = "backbone.json"
WEIGHTS_FILE = "weights.safetensors"
WEIGHTS_PREFIX = "backbone."


class Backbone(nn.Module):
    """A ViT CLIP of open_clip, with the interface that SigRL needs.

    Args:
        clip: the open_clip model; its visual tower must be a ViT with a class token.
        description: everything that rebuilds the architecture: `name`, `quick_gelu`, `mean`, `std`.
        config: number of frozen blocks (at most all), and the attention of patches.

    Attributes:
        image_size: side of the input images, in pixels.
        mean, std: channel statistics of the images that the weights were trained on, in units of 0..1.
        dim: D, the width of the joint embedding.
        grid: number of patch rows and columns.
        num_blocks: number of transformer blocks of the visual tower.
        split_block: number of blocks below the split.
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
        self.split_block = min(self.frozen_blocks, self.num_blocks - 1) if self.value_value else self.frozen_blocks
        self.tokenizer = open_clip.SimpleTokenizer(context_length=self.clip.context_length)
        self.requires_grad_(False)
        for module in self._trainable_modules():
            module.requires_grad_(True)

    def _trainable_modules(self) -> list[Any]:
        visual = self.clip.visual
        return [*visual.transformer.resblocks[self.frozen_blocks :], visual.ln_post, visual.proj]

    def normalise(self, pixels_BHWC: Tensor) -> Tensor:
        """Normalises uint8 images [B,H,W,3] to floats [B,3,H,W] with the statistics of the weights."""
        mean = torch.tensor(self.mean, device=pixels_BHWC.device) * 255
        std = torch.tensor(self.std, device=pixels_BHWC.device) * 255
        return ((pixels_BHWC.float() - mean) / std).permute(0, 3, 1, 2).contiguous()

    def embed(self, pixels_BHWC: Tensor) -> Tensor:
        """Computes the tokens [B,N,W] before the first block of uint8 images [B,H,W,3], with gradient."""
        return self.clip.visual._embeds(self.normalise(pixels_BHWC))

    @torch.no_grad()
    def forward_frozen(self, pixels_BHWC: Tensor) -> Tensor:
        """Computes the tokens [B,N,W] after the frozen blocks of uint8 images [B,H,W,3]."""
        tokens_BNW = self.embed(pixels_BHWC)
        for block in self.clip.visual.transformer.resblocks[: self.split_block]:
            tokens_BNW = block(tokens_BNW)
        return tokens_BNW

    def frozen_sha256(self) -> str:
        """Returns a hash of everything that `forward_frozen` depends on; equal hashes mean equal tokens."""
        blocks = [f"transformer.resblocks.{number}." for number in range(self.split_block)]
        frozen = ("conv1.", "class_embedding", "positional_embedding", "ln_pre.", *blocks)
        digest = hashlib.sha256(repr((self.image_size, self.mean, self.std, self.split_block)).encode())
        for name, value in sorted(self.clip.visual.state_dict().items()):
            if name.startswith(frozen):
                digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def weights_sha256(self) -> str:
        """Returns a hash of all weights and of the description of the architecture."""
        digest = hashlib.sha256(json.dumps(self.description, sort_keys=True).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def forward_head(self, tokens_BNW: Tensor) -> tuple[Tensor, Tensor]:
        """Computes class token g [B,D] and patch tokens X [B,P,D] from tokens [B,N,W]; projected, not L2-normalised."""
        return forward_head(self.clip.visual, self.split_block, tokens_BNW, self.value_value)

    def forward(self, pixels_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Computes g [B,D] and X [B,P,D] of uint8 images [B,H,W,3]."""
        return self.forward_head(self.forward_frozen(pixels_BHWC))

    def make_teacher(self) -> Teacher:
        """Makes a frozen copy of the current trainable blocks; see `Teacher`."""
        return Teacher(self)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[Sequence[str]]) -> Tensor:
        """Embeds label texts as T [C,D], L2-normalised; the embeddings of a label's texts are averaged.

        Args:
            prompts: one or more texts per label.
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
        """Returns a parameter's depth: 0 embedding, 1..num_blocks the blocks, num_blocks + 1 norm and projection."""
        _, prefix, rest = parameter_name.partition("visual.transformer.resblocks.")
        if prefix:
            return int(rest.split(".")[0]) + 1
        return self.num_blocks + 1 if "visual.ln_post" in parameter_name or "visual.proj" in parameter_name else 0


class Teacher(nn.Module):
    """The original CLIP above the split: target of distillation, and the zero-shot baseline.

    It has its own copy of the blocks above the split, the final norm and the projection; the frozen blocks are shared.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        visual = backbone.clip.visual
        self.value_value = backbone.value_value
        self.transformer = nn.Module()
        self.transformer.resblocks = copy.deepcopy(visual.transformer.resblocks[backbone.split_block :])
        self.ln_post = copy.deepcopy(visual.ln_post)
        self.proj = nn.Parameter(visual.proj.detach().clone())
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, tokens_BNW: Tensor) -> tuple[Tensor, Tensor]:
        """Computes g [B,D] and X [B,P,D] of tokens [B,N,W] as before training."""
        return forward_head(self, 0, tokens_BNW, self.value_value)


def forward_head(visual: Any, first_block: int, tokens_BNW: Tensor, value_value: bool) -> tuple[Tensor, Tensor]:
    """Runs a visual tower from block `first_block` on: tokens -> g [B,D], X [B,P,D]."""
    previous_BNW = tokens_BNW
    for block in visual.transformer.resblocks[first_block:]:
        previous_BNW, tokens_BNW = tokens_BNW, block(tokens_BNW)
    if value_value:
        patches_BPW = attend_by_values(visual.transformer.resblocks[-1], previous_BNW)[:, 1:]
        tokens_BNW = torch.cat([tokens_BNW[:, :1], patches_BPW], dim=1)
    projected_BND = visual.ln_post(tokens_BNW) @ visual.proj
    return projected_BND[:, 0], projected_BND[:, 1:]


def attend_by_values(block: Any, tokens_BNW: Tensor) -> Tensor:
    """Runs a transformer block with values in the place of queries and keys: softmax(V V^T / sqrt(d)) V, per head.

    Trained queries and keys collect features for the class token, often from distant patches; with values a patch
    attends to similar patches (Li et al. 2023, arXiv 2304.05653, there without the MLP).
    """
    attention: nn.MultiheadAttention = block.attn
    B, N, W = tokens_BNW.shape
    weight_WW, bias = attention.in_proj_weight[2 * W :], attention.in_proj_bias
    values_BNW = linear(block.ln_1(tokens_BNW), weight_WW, None if bias is None else bias[2 * W :])
    values_BHNE = values_BNW.view(B, N, attention.num_heads, -1).transpose(1, 2)
    attended_BHNE = scaled_dot_product_attention(values_BHNE, values_BHNE, values_BHNE)
    tokens_BNW = tokens_BNW + block.ls_1(attention.out_proj(attended_BHNE.transpose(1, 2).reshape(B, N, W)))
    return tokens_BNW + block.ls_2(block.mlp(block.ln_2(tokens_BNW)))


# ---- loading ----


def with_absolute_path(config: BackboneConfig) -> BackboneConfig:
    """Returns the configuration with an absolute path to local weights, valid in any process."""
    path = Path(config.pretrained)
    return replace(config, pretrained=str(path.absolute())) if path.exists() else config


def load_backbone(config: BackboneConfig) -> Backbone:
    """Builds the backbone of a configuration, with its weights.

    Raises:
        ConfigError: no such architecture.
        WeightsError: weights are missing and cannot be downloaded; says which file to provide.
        CheckpointError: `pretrained` is a folder, but not a checkpoint.
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
                f"set backbone.pretrained to a checkpoint folder (quickstart.py makes one) or to {RANDOM!r}"
            )
        return Backbone(BACKBONES[config.name](), make_description(config.name, False), config)
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
    """Returns whether an open_clip model is a ViT with a class token and CLIP's own tokenizer."""
    config: dict[str, Any] = open_clip.get_model_config(name) or {}
    vision, text = config["vision_cfg"], config["text_cfg"]
    is_vit = isinstance(vision.get("layers"), int) and vision.get("pool_type", "tok") == "tok"
    unsupported = {"timm_model_name", "attentional_pool", "hf_model_name", "hf_tokenizer_name", "tokenizer_kwargs"}
    return is_vit and "multimodal_cfg" not in config and not unsupported & (set(vision) | set(text))


def load_backbone_folder(folder: Path, config: BackboneConfig) -> Backbone:
    """Loads the backbone of a checkpoint folder, with its weights."""
    try:
        files = {name: (folder / name).read_bytes() for name in (DESCRIPTION_FILE, WEIGHTS_FILE)}
    except OSError as error:
        raise CheckpointError(
            f"{folder}: backbone cannot be loaded ({error}); copy or make the checkpoint again"
        ) from error
    return backbone_from_files(str(folder), files, config)


def backbone_from_files(where: str, files: dict[str, bytes], config: BackboneConfig) -> Backbone:
    """Builds a backbone from the files of a checkpoint at `where`: name -> content."""
    try:
        weights = load(files[WEIGHTS_FILE])
        backbone = backbone_from_description(json.loads(files[DESCRIPTION_FILE]), config)
        backbone.load_state_dict(
            {
                name.removeprefix(WEIGHTS_PREFIX): value
                for name, value in weights.items()
                if name.startswith(WEIGHTS_PREFIX)
            }
        )
    except (ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{where}: backbone cannot be loaded ({error}); copy or make the checkpoint again"
        ) from error
    return backbone


def backbone_from_description(description: dict[str, Any], config: BackboneConfig) -> Backbone:
    """Builds the architecture of a checkpoint's description, without its weights."""
    name = description["name"]
    if name in BACKBONES:
        clip = BACKBONES[name]()
    else:
        clip = open_clip.create_model(name, pretrained=None, force_quick_gelu=description["quick_gelu"])
    return Backbone(clip, description, config)


def make_description(
    name: str, quick_gelu: bool, mean: Sequence[float] = (), std: Sequence[float] = ()
) -> dict[str, Any]:
    """Returns the description that rebuilds an architecture; image statistics default to CLIP's own."""
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
            f"nor a tag of {config.name}; tags are {tags}; {RANDOM!r} makes random weights"
        )
    # OpenAI's weights need QuickGELU, which open_clip takes from the model's name and not from the tag
    quick_gelu = "quickgelu" in config.name or bool(tag and tag.get("quick_gelu"))
    logging.getLogger().addFilter(_is_relevant)
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
        raise WeightsError(_explain_missing_weights(config, tag, is_file, error)) from error
    visual: Any = clip.visual
    return Backbone(clip, make_description(config.name, quick_gelu, visual.image_mean, visual.image_std), config)


def _is_relevant(record: logging.LogRecord) -> bool:
    """Filters the warning of open_clip about random weights, which were requested by name."""
    return "No pretrained weights loaded" not in record.getMessage()


def _explain_missing_weights(config: BackboneConfig, tag: dict[str, Any], is_file: bool, error: Exception) -> str:
    reason = str(error).strip().splitlines()[-1][:200]
    if is_file:
        return f"{config.pretrained}: not weights of {config.name} ({reason}); give a file saved for this architecture"
    hub = tag.get("hf_hub", "").rstrip("/")
    source = f"open_clip_model.safetensors of huggingface.co/{hub}" if hub else tag.get("url")
    # a weights file does not contain whether it needs QuickGELU; the name of the architecture does
    renamed = bool(tag.get("quick_gelu")) and "quickgelu" not in config.name
    name = f"--backbone.name {config.name}-quickgelu " if renamed else ""
    return (
        f"weights {config.pretrained!r} of {config.name} cannot be fetched ({reason}); "
        f"download {source} on a machine with a network and pass its path: "
        f"{name}--backbone.pretrained /path/to/file; or use random weights: --backbone.pretrained {RANDOM}"
    )
