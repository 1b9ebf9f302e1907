"""The configuration of an experiment: one frozen dataclass per component, validated on construction.

`RunConfig` is stored in the checkpoint. `ScaleConfig`, which describes how a training runs, is not. This module needs
the standard library only.

Sources of defaults: [S] arXiv 2504.03801 (SigRL); [M] measured here, docs/LOG.md; [C] Cole et al. CVPR 2021; [Z] Zhou
et al. ECCV 2022; [V] Xing et al. CVPR-W 2024 (VLPL); [K] Kim et al. CVPR 2022; [L] Lin et al. ICCV 2017; [R] Ridnik et
al. ICCV 2021; [G] Chen et al. CVPR 2019 (ML-GCN).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from sigrl_core.config.checks import require, require_candidates, require_registered
from sigrl_core.plugins import GRAPHS


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The CLIP backbone, and the part of it that is trained."""

    name: str = "ViT-B-16"
    """Name of an open_clip ViT or of an entry of plugins.BACKBONES. [S]"""
    pretrained: str = "openai"
    """open_clip tag, weights file, folder of a checkpoint of this project, or `random` for new random weights."""
    frozen_blocks: int = 10
    """Number of blocks, from the input, that are frozen, with the patch embedding; the blocks above are trained. [S]"""
    prompt_templates: tuple[str, ...] = ("a photo of a {}.",)
    """Input of the text tower for labels without own prompts; the embeddings of several templates are averaged."""
    label_embeddings: str | None = None
    """.npy file [C, E], local or s3://, whose rows replace the text tower's embeddings: one row per label of --data, in
    its order, of any width. A projection to the joint embedding is learned."""
    patch_attention: Literal["query-key", "value-value"] = "query-key"
    """Attention of the patches in the last block: `query-key` as trained; `value-value` attends to patches with similar
    values, so that a patch describes its own place (CLIPSurgery, arXiv 2304.05653). The class token is not affected."""

    def __post_init__(self) -> None:
        require(self.frozen_blocks >= 0, "backbone.frozen_blocks", self.frozen_blocks, "0 or more")
        require(
            bool(self.prompt_templates) and all("{}" in template for template in self.prompt_templates),
            "backbone.prompt_templates",
            self.prompt_templates,
            "one or more texts with {} in each",
        )


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """GMC, the label graph."""

    kind: str = "complete"
    """A name of plugins.GRAPHS, or `none`. `complete`: every label attends to every label [S]; `nearest`: to the labels
    with the nearest text embeddings; `cooccurrence`: to those that occur with it in the training data [G]; `listed`:
    along the edges of the file `edges`; `none`: label embeddings are not changed (ablation). Labels without known
    edges, such as unseen ones, attend as in `nearest`."""
    neighbours: int = 8
    """Number of labels that a label attends to besides itself (nearest, and labels without known edges)."""
    max_complete_labels: int = 2048
    """Maximum number of labels of a complete graph, whose cost is quadratic; with more labels, it is as `nearest`."""
    edges: str | None = None
    """File of edges, local or s3://, see labels.edges.LabelEdges (listed)."""
    threshold: float = 0.4
    """Minimum P(j | i) for an edge by which label i attends to label j (cooccurrence). [G]"""
    neighbour_weight: float = 0.2
    """Total attention weight of a label's neighbours; the label itself has the rest (cooccurrence). [G]"""
    layers: int = 2
    """Number of GATv2 layers; the last one has a single head. [S]"""
    hidden: int = 128
    """Width between GATv2 layers, summed over the heads. [S]"""
    heads: int = 4
    dropout: float = 0.3
    """Dropout on the inputs, on the attention and between the layers. [S]"""
    residual: bool = False
    """Adds the label embeddings to the graph's output."""
    propagation: bool = False
    """Propagates scores between the trained labels, too, along learned edges; see model.propagation. [M]"""

    def __post_init__(self) -> None:
        require_registered(GRAPHS, self.kind, "none")
        require(
            (self.kind == "listed") == (self.edges is not None),
            "graph.edges",
            self.edges,
            "a file with graph.kind = listed, and None with every other",
        )
        for name in ("threshold", "neighbour_weight"):
            require(0 < getattr(self, name) < 1, f"graph.{name}", getattr(self, name), "in (0, 1)")
        for name in ("neighbours", "max_complete_labels", "layers", "heads"):
            require(getattr(self, name) >= 1, f"graph.{name}", getattr(self, name), "1 or more")
        require(self.hidden % self.heads == 0, "graph.hidden", self.hidden, f"a multiple of graph.heads = {self.heads}")
        require(0 <= self.dropout < 1, "graph.dropout", self.dropout, "in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """SVFR, semantic visual feature reconstruction."""

    enabled: bool = True
    """If false, the backbone's patches are scored without reconstruction (MKT-style baseline)."""
    residual: bool = False
    """Patches become X + R P/C instead of R, and W_r starts at zero, so that training starts from unchanged patches."""
    rms_normalise: bool = False
    """Scales both inputs of U to a root mean square of one, so that the label graph has an effect. [M]"""
    coefficient_rank: int | None = None
    """Rank r of the coefficient matrices W = A B, which need 2 r / D of the time; None is the published full matrix."""
    implementation: Literal["auto", "naive", "chunked", "triton"] = "auto"
    """Implementation of the coefficients, see model.coefficients; it changes only time and memory."""

    def __post_init__(self) -> None:
        rank = self.coefficient_rank
        require(rank is None or rank >= 1, "reconstruction.coefficient_rank", rank, "1 or more, or None")
        require(
            rank is None or self.implementation != "triton", "reconstruction.implementation", "triton",
            "another one with coefficient_rank: the kernels support only a full matrix",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """The computation of scores from patches and class token."""

    top_k_patches: int = 16
    """K, the number of patches that are averaged for the local score. [S]"""
    learn_scale: bool = False
    """Learns a scale and a bias on the scores before the loss. [M]"""
    initial_scale: float = 1.0
    """Initial value of the learned scale."""
    local_candidates: int | None = None
    """Outside training, number of labels per image for which the local score is computed: those with the best global
    scores. None computes it for all labels; then the cost of an image grows with the vocabulary."""

    def __post_init__(self) -> None:
        require_candidates(self.local_candidates, "scoring.local_candidates")
        require(self.top_k_patches >= 1, "scoring.top_k_patches", self.top_k_patches, "1 or more")
        require(self.initial_scale > 0, "scoring.initial_scale", self.initial_scale, "above 0")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The objective of training: a loss on the scores plus distillation from the original CLIP."""

    kind: str = "ranking"
    """A name of plugins.LOSSES. [S]"""
    distillation: float = 1.0
    """Weight of the mean absolute difference from the class token of the original CLIP. [S]"""
    expected_positives: float = 2.9
    """k, the mean number of labels that are present in an image (epr, role); 2.9 is that of COCO. [C]"""
    label_smoothing: float = 0.1
    """Share of a target given to its opposite (an_ls, em_pl). [C]"""
    entropy_weight: float = 0.1
    """alpha of em, em_apl, em_pl: 0.2 for VOC, 0.1 for COCO. [Z]"""
    soft_weight: float = 0.02
    """beta, the weight of soft labels: 0.02 for VOC, 0.9 for COCO (em_apl). [Z]"""
    soft_share: float = 0.9
    """Share of each label's unknown rows that have a soft label at the end of training (em_apl). [Z]"""
    soft_warmup_epochs: int = 5
    """Number of epochs before the first soft labels (em_apl). [Z]"""
    estimator_lr_scale: float = 10.0
    """Learning rate of the label estimator as a multiple of `optim.lr` (role). [C]"""
    pseudo_weight: float = 0.7
    """Weight of a pseudo-label (em_pl). [V]"""
    pseudo_temperature: float = 0.03
    """Temperature of the softmax over cosines that gives pseudo-labels (em_pl). [V]"""
    pseudo_threshold: float = 0.3
    """Softmax value above which a label counts as present (em_pl). [V]"""
    rejection: float = 0.002
    """Share of the unknown labels that are rejected after one epoch; twice this after two, and so on (ll_r). [K]"""
    focal_gamma: float = 2.0
    """Exponent that reduces the weight of easy labels (focal). [L]"""
    asymmetric_gamma: float = 4.0
    """Exponent that reduces the weight of easy absent labels (asymmetric). [R]"""
    asymmetric_margin: float = 0.05
    """Probability below which an absent label has no loss (asymmetric). [R]"""

    def __post_init__(self) -> None:
        def check(expected: str, holds: Callable[[float], bool], *names: str) -> None:
            for name in names:
                require(holds(getattr(self, name)), f"loss.{name}", getattr(self, name), expected)

        check("0 or more", lambda x: x >= 0, "distillation", "entropy_weight", "soft_weight", "soft_warmup_epochs")
        check("0 or more", lambda x: x >= 0, "pseudo_weight", "rejection", "focal_gamma", "asymmetric_gamma")
        check("in [0, 1)", lambda x: 0 <= x < 1, "label_smoothing", "pseudo_threshold", "asymmetric_margin")
        check("in [0, 1]", lambda x: 0 <= x <= 1, "soft_share")
        check("above 0", lambda x: x > 0, "expected_positives", "estimator_lr_scale", "pseudo_temperature")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with layer-wise learning rates, linear warm-up and a half-cosine schedule."""

    lr: float = 1e-4
    """Peak learning rate of the top layers. [S]"""
    weight_decay: float = 0.05
    """Weight decay of parameters with two or more dimensions. [S]"""
    layer_decay: float = 0.65
    """Learning rate of each backbone block as a fraction of that of the block above it. [S]"""
    head_lr_scale: float = 1.0
    """Learning rate of SigRL's own matrices as a fraction of `lr`; a low one changes CLIP's representation less. [M]"""
    warmup_epochs: float = 2.0
    """Number of epochs in which the learning rate rises linearly from 0, step by step. [S]"""
    final_lr: float = 1e-7
    """Learning rate at the end of the cosine. [S]"""
    clip_norm: float | None = None
    """Maximum gradient norm; None does not clip gradients."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", self.lr, "above 0")
        require(0 < self.layer_decay <= 1, "optim.layer_decay", self.layer_decay, "in (0, 1]")
        require(0 < self.head_lr_scale <= 1, "optim.head_lr_scale", self.head_lr_scale, "in (0, 1]")
        require(self.warmup_epochs >= 0, "optim.warmup_epochs", self.warmup_epochs, "0 or more")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length, batches, augmentation, precision and seed of a training."""

    epochs: int = 20
    batch_size: int = 32
    """Number of images in one optimiser step, over all workers. [S]"""
    max_steps: int | None = None
    """Maximum number of optimiser steps; None has no limit."""
    label_keep_fraction: float = 1.0
    """Vocabulary dropout: share of the seen labels, sampled in each step, that the step trains. [M]"""
    augment: Literal["none", "crop_flip", "randaugment"] = "randaugment"
    """`crop_flip`: random resized crop and flip; `randaugment`: those and RandAugment m9 [S]."""
    cache_features_in_memory: bool = False
    """Computes the output of the frozen blocks once per image and keeps it in memory; requires augment = none."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` computes matrix products in bfloat16 (autocast)."""
    ema: float | None = None
    """Decay per step of an exponential moving average of the weights, which is then evaluated and published; None uses
    the weights themselves."""
    patience: int | None = None
    """Number of epochs without improvement after which training stops; None runs all epochs."""
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "training.epochs", self.epochs, "1 or more")
        require(self.ema is None or 0 < self.ema < 1, "training.ema", self.ema, "in (0, 1), or None")
        require(self.patience is None or self.patience >= 1, "training.patience", self.patience, "1 or more, or None")
        require(self.batch_size >= 1, "training.batch_size", self.batch_size, "1 or more")
        require(
            self.max_steps is None or self.max_steps >= 1, "training.max_steps", self.max_steps, "1 or more, or None"
        )
        require(
            0 < self.label_keep_fraction <= 1, "training.label_keep_fraction", self.label_keep_fraction, "in (0, 1]"
        )
        require(
            not (self.cache_features_in_memory and self.augment != "none"),
            "training.cache_features_in_memory",
            self.cache_features_in_memory,
            f"off while training.augment is {self.augment!r} (cached features cannot be augmented)",
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The configuration of one experiment; it is the same on a laptop and on 32 GPUs."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
