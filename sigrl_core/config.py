"""What a run is: frozen dataclasses, one per owner, checked when made. Standard library only.

`RunConfig` is the experiment and goes into the checkpoint; `ScaleConfig` is where it runs and does not.
Sources: [S] arXiv 2504.03801 (SigRL); [M] measured here, docs/LOG.md; [C] Cole et al. CVPR 2021; [Z] Zhou et al.
ECCV 2022; [V] Xing et al. CVPR-W 2024 (VLPL); [K] Kim et al. CVPR 2022; [L] Lin et al. ICCV 2017; [R] Ridnik et al.
ICCV 2021; [G] Chen et al. CVPR 2019 (ML-GCN).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from sigrl_core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which CLIP, and how much of it trains."""

    name: str = "ViT-B-16"
    """An open_clip ViT by its open_clip name, or a name of model.backbone.BACKBONES. [S]"""
    pretrained: str = "openai"
    """open_clip tag, weights file, folder of one of our checkpoints, or `random` (weights made on the spot)."""
    frozen_blocks: int = 10
    """Blocks from the input that stay frozen, patch embedding included; what lies above them trains. [S]"""
    prompt_templates: tuple[str, ...] = ("a photo of a {}.",)
    """What the text tower reads for a label that brings no prompts of its own; several embeddings are averaged."""
    label_embeddings: str | None = None
    """A .npy [C, E], local or s3://, to take in the place of the text tower's: a row for each label of --data in its
    order, of any width; a projection to the joint embedding is learned."""
    patch_attention: Literal["query-key", "value-value"] = "query-key"
    """How patches attend in the last block: as trained, or each to those with values like its own, which keeps them to
    what lies where they are (CLIPSurgery, arXiv 2304.05653); the class token always as trained."""

    def __post_init__(self) -> None:
        _require(self.frozen_blocks >= 0, "backbone.frozen_blocks", self.frozen_blocks, "0 or more")
        _require(
            bool(self.prompt_templates) and all("{}" in template for template in self.prompt_templates),
            "backbone.prompt_templates",
            self.prompt_templates,
            "one or more texts with {} in each",
        )


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """GMC, the label graph."""

    kind: Literal["complete", "nearest", "cooccurrence", "listed", "none"] = "complete"
    """`complete`: every label hears every label [S]; `nearest`: those with the nearest text embeddings; `cooccurrence`:
    those that training data shows with it [G]; `listed`: as `edges` says; `none`: labels pass unchanged (ablation).
    Labels without known edges, such as unseen ones, hear as in `nearest`."""
    neighbours: int = 8
    """Labels that a label hears besides itself (nearest, and where no edges are known)."""
    complete_up_to: int = 2048
    """Labels; of more a complete graph, whose cost grows with their square, is as in `nearest`."""
    edges: str | None = None
    """File of edges, local or s3://, see label_edges.LabelEdges (listed)."""
    threshold: float = 0.4
    """Least P(j | i) for label i to hear label j (cooccurrence). [G]"""
    others: float = 0.2
    """What all others together weigh that a label hears, itself weighs the rest (cooccurrence). [G]"""
    layers: int = 2
    """GATv2 layers; the last has one head. [S]"""
    hidden: int = 128
    """Width between GATv2 layers, all heads together. [S]"""
    heads: int = 4
    dropout: float = 0.3
    """On the inputs, on the attention and between the layers. [S]"""
    residual: bool = False
    """Adds the label embeddings to the graph's output."""
    propagation: bool = False
    """Scores too travel between the labels trained on, along edges that are learned. [M]"""

    def __post_init__(self) -> None:
        _require(
            (self.kind == "listed") == (self.edges is not None),
            "graph.edges",
            self.edges,
            "a file with graph.kind = listed, and None with every other",
        )
        for name in ("threshold", "others"):
            _require(0 < getattr(self, name) < 1, f"graph.{name}", getattr(self, name), "in (0, 1)")
        for name in ("neighbours", "complete_up_to", "layers", "heads"):
            _require(getattr(self, name) >= 1, f"graph.{name}", getattr(self, name), "1 or more")
        _require(
            self.hidden % self.heads == 0, "graph.hidden", self.hidden, f"a multiple of graph.heads = {self.heads}"
        )
        _require(0 <= self.dropout < 1, "graph.dropout", self.dropout, "in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """SVFR, semantic visual feature reconstruction."""

    enabled: bool = True
    """Off: patches are scored as the backbone gives them (MKT-style baseline)."""
    residual: bool = False
    """Patches become X + R P/C, not R, and W_r starts at zero: from the patches as they come."""
    unit_rms: bool = False
    """Scales both things that U fuses to a root mean square of one, so that the label graph is heard. [M]"""
    coefficient_rank: int | None = None
    """r of coefficient matrices W = A B, which take 2 r / D of the time; None is the published full matrix."""
    implementation: Literal["auto", "naive", "chunked", "triton"] = "auto"
    """Of the coefficients, see model.coefficients; which one makes no difference but of time and memory."""

    def __post_init__(self) -> None:
        rank = self.coefficient_rank
        _require(rank is None or rank >= 1, "reconstruction.coefficient_rank", rank, "1 or more, or None")
        _require(
            rank is None or self.implementation != "triton", "reconstruction.implementation", "triton",
            "another one with coefficient_rank: the kernels know a full matrix alone",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """From patches and class token to scores."""

    patches_kept: int = 16
    """K, patches averaged for the local score. [S]"""
    learn_scale: bool = False
    """Learns a scale and a bias on the scores before the loss. [M]"""
    initial_scale: float = 1.0
    """What the learned scale starts from."""
    local_candidates: int | None = None
    """Outside training, labels of each image that the local branch is asked for, those with the best global scores;
    None asks for all. Keeps what an image costs from growing with the vocabulary."""

    def __post_init__(self) -> None:
        _require_candidates(self.local_candidates, "scoring.local_candidates")
        _require(self.patches_kept >= 1, "scoring.patches_kept", self.patches_kept, "1 or more")
        _require(self.initial_scale > 0, "scoring.initial_scale", self.initial_scale, "above 0")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised: a loss on the scores plus distillation from the original CLIP."""

    kind: str = "ranking"
    """A name of losses.LOSSES. [S]"""
    distillation: float = 1.0
    """Weight of the mean absolute difference to the frozen CLIP's class token. [S]"""
    expected_positives: float = 2.9
    """k, labels that are true of a picture on average (epr, role); 2.9 is COCO's. [C]"""
    label_smoothing: float = 0.1
    """Share of a target given to its opposite (an_ls, em_pl). [C]"""
    entropy_weight: float = 0.1
    """alpha of em, em_apl, em_pl: 0.2 for VOC, 0.1 for COCO. [Z]"""
    soft_weight: float = 0.02
    """beta, weight of soft labels: 0.02 for VOC, 0.9 for COCO (em_apl). [Z]"""
    soft_share: float = 0.9
    """Share of each label's unknown rows that has a soft label by the end (em_apl). [Z]"""
    soft_warmup_epochs: int = 5
    """Epochs before the first soft labels (em_apl). [Z]"""
    estimator_rate: float = 10.0
    """The label estimator trains at this multiple of the rate (role). [C]"""
    pseudo_weight: float = 0.7
    """Weight of a pseudo-label (em_pl). [V]"""
    pseudo_temperature: float = 0.03
    """Cosines are divided by it before the softmax that finds pseudo-labels (em_pl). [V]"""
    pseudo_threshold: float = 0.3
    """Share of the softmax above which a label counts as present (em_pl). [V]"""
    rejection: float = 0.002
    """Share of the unknown labels rejected after one epoch, twice as many after two (ll_r). [K]"""
    focal_gamma: float = 2.0
    """How much less an easy label counts (focal). [L]"""
    asymmetric_gamma: float = 4.0
    """The same for absent labels (asymmetric). [R]"""
    asymmetric_margin: float = 0.05
    """Probability below which an absent label counts nothing (asymmetric). [R]"""

    def __post_init__(self) -> None:
        def check(expected: str, holds: Callable[[float], bool], *names: str) -> None:
            for name in names:
                _require(holds(getattr(self, name)), f"loss.{name}", getattr(self, name), expected)

        check("0 or more", lambda x: x >= 0, "distillation", "entropy_weight", "soft_weight", "soft_warmup_epochs")
        check("0 or more", lambda x: x >= 0, "pseudo_weight", "rejection", "focal_gamma", "asymmetric_gamma")
        check("in [0, 1)", lambda x: 0 <= x < 1, "label_smoothing", "pseudo_threshold", "asymmetric_margin")
        check("in [0, 1]", lambda x: 0 <= x <= 1, "soft_share")
        check("above 0", lambda x: x > 0, "expected_positives", "estimator_rate", "pseudo_temperature")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with layer-wise rates, linear warm-up and half a cosine."""

    lr: float = 1e-4
    """Peak rate of the newest layers. [S]"""
    weight_decay: float = 0.05
    """On parameters of two or more dimensions. [S]"""
    layer_decay: float = 0.65
    """Each block down the backbone trains at this fraction of the rate above it. [S]"""
    head_rate: float = 1.0
    """SigRL's own matrices train at this fraction of the rate; lower keeps more of what CLIP knows. [M]"""
    warmup_epochs: float = 2.0
    """Epochs of linear rise from 0, step by step. [S]"""
    final_lr: float = 1e-7
    """Where the cosine ends. [S]"""
    clip_norm: float | None = None
    """Largest gradient norm; None leaves gradients alone."""

    def __post_init__(self) -> None:
        _require(self.lr > 0, "optim.lr", self.lr, "above 0")
        _require(0 < self.layer_decay <= 1, "optim.layer_decay", self.layer_decay, "in (0, 1]")
        _require(0 < self.head_rate <= 1, "optim.head_rate", self.head_rate, "in (0, 1]")
        _require(self.warmup_epochs >= 0, "optim.warmup_epochs", self.warmup_epochs, "0 or more")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, in what portions, with which seed."""

    epochs: int = 20
    batch_size: int = 32
    """Images of one optimiser step over all workers together. [S]"""
    max_steps: int | None = None
    """Stops after so many optimiser steps; None runs every epoch to its end."""
    label_fraction: float = 1.0
    """Vocabulary dropout: share of the seen labels that one step trains on, drawn anew each step. [M]"""
    augment: Literal["none", "crop_flip", "randaugment"] = "randaugment"
    """`crop_flip`: random resized crop and flip; `randaugment`: those and RandAugment m9 [S]."""
    hold_features: bool = False
    """Keeps what the frozen blocks give for every image in memory, computed once; wants augment = none."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` runs matrix products under autocast."""
    ema: float | None = None
    """Decay per step of an average of the weights, which is then what is evaluated and published; None keeps none."""
    patience: int | None = None
    """Stops after so many epochs without a better one; None runs all."""
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "training.epochs", self.epochs, "1 or more")
        _require(self.ema is None or 0 < self.ema < 1, "training.ema", self.ema, "in (0, 1), or None")
        _require(self.patience is None or self.patience >= 1, "training.patience", self.patience, "1 or more, or None")
        _require(self.batch_size >= 1, "training.batch_size", self.batch_size, "1 or more")
        _require(
            self.max_steps is None or self.max_steps >= 1, "training.max_steps", self.max_steps, "1 or more, or None"
        )
        _require(0 < self.label_fraction <= 1, "training.label_fraction", self.label_fraction, "in (0, 1]")
        _require(
            not (self.hold_features and self.augment != "none"),
            "training.hold_features",
            self.hold_features,
            f"off while training.augment is {self.augment!r} (held features cannot be augmented)",
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One experiment, whole; the same on a laptop and on 32 GPUs."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """Where a run happens; changes no result beyond summation order."""

    workers: int = 2
    """Data-parallel training workers."""
    gpus: bool = False
    """One GPU per worker (nccl); off trains on CPU (gloo)."""
    cpus_per_worker: float = 1.0
    """With two or more, all but one of them are processes that decode and augment pictures for the worker."""
    min_workers: int | None = None
    """Goes on with as few where machines leave, and takes new ones up to `workers`; None always waits for all."""
    resize_seconds: float = 60.0
    """How often it looks for new ones."""
    save_every: int | None = None
    """Steps between two checkpoints inside an epoch; None saves after each epoch alone."""
    keep: int = 1
    """Best epochs whose states are kept, besides the latest."""
    max_failures: int = 20
    """Times that lost workers are replaced before the run stops; the same command still goes on then."""
    pieces: int = 1
    """Computes each worker's share of a batch in so many pieces, one at a time, for batches that memory does not hold;
    the same step for every loss, at the price of a second forward pass through what trains."""
    compile: bool = False
    """Compiles what trains (torch.compile): minutes before the first step, shorter steps."""
    mlflow: str | None = None
    """Writes the metrics of each epoch to this MLflow server, http://..., as well; needs sigrl-on-ray[mlflow]."""

    def __post_init__(self) -> None:
        _require(self.workers >= 1, "scale.workers", self.workers, "1 or more")
        _require(
            self.min_workers is None or 1 <= self.min_workers <= self.workers,
            "scale.min_workers",
            self.min_workers,
            "from 1 to scale.workers, or None",
        )
        _require(self.resize_seconds > 0, "scale.resize_seconds", self.resize_seconds, "above 0")
        _require(self.save_every is None or self.save_every >= 1, "scale.save_every", self.save_every, "1 or more")
        _require(self.keep >= 1, "scale.keep", self.keep, "1 or more")
        _require(self.pieces >= 1, "scale.pieces", self.pieces, "1 or more")
        _require(self.max_failures >= 0, "scale.max_failures", self.max_failures, "0 or more")
        _require(self.cpus_per_worker > 0, "scale.cpus_per_worker", self.cpus_per_worker, "above 0")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How a search goes on; what it changes is search_space.SearchSpace."""

    trials: int = 24
    objective: Literal["gzsl.map", "zsl.map", "map"] = "gzsl.map"
    """Of validation pictures: mAP of all labels, of those held out, or of those trained on."""
    held_out: float = 0.2
    """Share of the seen labels that trials take for unseen; labels that are unseen are asked for nowhere."""
    sampler: Literal["tpe", "random"] = "tpe"
    """`tpe` tries the run that it starts from first, and then learns from trials; `random` is its control."""
    scheduler: Literal["asha", "none"] = "asha"
    """`asha` stops trials early that others are better than (Li et al. 2020, arXiv 1810.05934)."""
    grace_epochs: int = 2
    """Epochs that every trial has (asha): by its first alone, a configuration that overfits looks like the best."""
    reduction: int = 3
    """One in so many goes on past each rung, and rungs lie that much further apart each time (asha)."""
    warm_start: tuple[str, ...] = ()
    """Folders of earlier searches, for the sampler to learn from."""
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.trials >= 1, "trials", self.trials, "1 or more")
        _require(0 < self.held_out < 1, "held_out", self.held_out, "in (0, 1)")
        _require(self.grace_epochs >= 1, "grace_epochs", self.grace_epochs, "1 or more")
        _require(self.reduction >= 2, "reduction", self.reduction, "2 or more")


LabelStates = Literal["full", "positives-only", "single-positive"]


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """From a corpus to shards: what goes into every row, and so into the plan that a second run must agree with."""

    corpus: str
    """How the labels are written down: a name of corpora.CORPORA."""
    images: str
    """Folder of the pictures, local or s3://; relative names in the annotations are below it."""
    annotations: str | None = None
    """What lists pictures and labels, or names their classes, for the corpora that have it; see docs/corpora.md."""
    vocabulary: str | None = None
    """File of the label list, see vocabulary.Vocabulary.parse; None takes the corpus's own labels in its own order."""
    out: str
    """Folder to write, local or s3://."""
    short_side: int = 256
    """Pixels of the short side of stored pictures, smaller ones are not enlarged; 0 keeps every size."""
    quality: int = 90
    """JPEG quality, 1 to 100. Pictures that already are small RGB JPEGs without EXIF or XMP keep their bytes."""
    rows_per_shard: int = 1000
    """Listed pictures per shard at most, before quarantine and duplicates are taken out."""
    bytes_per_shard: int | None = None
    """Ends a shard before its pictures, as listed, are more bytes; for corpora that list sizes."""
    max_pixels: int = 100_000_000
    """Larger pictures are quarantined undecoded."""
    keep_exif: bool = False
    """Stored pictures keep their EXIF, with the place they were taken at; else all metadata is dropped."""
    near_duplicates: int | None = None
    """Pictures that look like an earlier one count as duplicates too: perceptual hashes of 64 bits that differ in so
    many bits at most; 4 finds other sizes and qualities of a picture. None for equal bytes alone."""
    annotated: Literal["all", "seen"] = "all"
    """Labels looked for in every picture, so that not listed means absent; with `seen`, unseen ones are unknown."""
    labels: LabelStates = "full"
    """What training is told: `full`; `positives-only`, absent becomes unknown; `single-positive`, one label that is
    present, chosen by content hash, all else unknown (Cole et al. 2021). Pictures held out for validation keep all."""
    validation_fraction: float = 0.1
    """Share of pictures that training holds out, chosen by content hash."""
    test_fraction: float = 0.0
    """Share of pictures that are neither trained on nor validated with, chosen by content hash; evaluate.py then
    measures these alone."""
    seed: int = 0
    """Chooses which pictures are held out, and which positive is kept of each."""

    def __post_init__(self) -> None:
        _require(self.short_side >= 0, "short_side", self.short_side, "0 or more pixels")
        _require(1 <= self.quality <= 100, "quality", self.quality, "1 to 100")
        _require(self.rows_per_shard >= 1, "rows_per_shard", self.rows_per_shard, "1 or more")
        _require(1 <= self.max_pixels <= 200_000_000, "max_pixels", self.max_pixels, "1 to 200 million")
        held_out = self.validation_fraction + self.test_fraction
        _require(self.validation_fraction >= 0, "validation_fraction", self.validation_fraction, "0 or more")
        _require(self.test_fraction >= 0, "test_fraction", self.test_fraction, "0 or more")
        _require(held_out < 1, "validation_fraction + test_fraction", held_out, "less than 1")
        size = self.bytes_per_shard
        _require(size is None or size >= 1_000_000, "bytes_per_shard", size, "1,000,000 or more bytes, or none")
        bits = self.near_duplicates
        _require(bits is None or 0 <= bits <= 10, "near_duplicates", bits, "0 to 10 bits, or none")


@dataclass(frozen=True, kw_only=True)
class CacheFeaturesConfig:
    """Whose frozen blocks look at which pictures: what features are, and so what a second run must agree with."""

    data: str
    """Shard folder of the pictures, all of it, whatever its split."""
    out: str
    """Folder to write, local or s3://; train.py, evaluate.py and calibrate.py take it as --data."""
    checkpoint: str | None = None
    """The --out of train.py, or a checkpoint folder, whose backbone to use; None takes `backbone`."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """As train.py takes it; features are the tokens after `frozen_blocks`."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which checkpoint is measured on which pictures, beside what."""

    checkpoint: str
    """The --out of train.py, or a checkpoint folder; local or s3://."""
    data: str
    """Labelled shard folder of the checkpoint's vocabulary."""
    out: str
    """Folder to write metrics.json and report.html to."""
    compare: tuple[str, ...] = ()
    """NAME=URI of further checkpoints, a row of the table each."""
    local_candidates: int | None = None
    """As scoring.local_candidates, for --checkpoint; None is how it was trained."""

    @property
    def others(self) -> dict[str, str]:
        """Name -> URI of what `compare` names."""
        return {name: uri for name, _, uri in (item.partition("=") for item in self.compare)}

    def __post_init__(self) -> None:
        _require_candidates(self.local_candidates, "local_candidates")
        for item in self.compare:
            _require(all(item.partition("=")), "compare", item, "NAME=URI")


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """How scores become probabilities, and probabilities tags, from which held-out pictures."""

    checkpoint: str
    """The --out of train.py, or a checkpoint folder; local or s3://. The calibration is written into it."""
    data: str
    """Labelled shard folder of the checkpoint's vocabulary."""
    part: Literal["validation", "all"] = "validation"
    """Pictures of it: those that its training held out, or all, for shards that nothing was trained on."""
    method: Literal["platt", "isotonic"] = "platt"
    goal: Literal["f1", "precision", "recall"] = "f1"
    """What the threshold of each label is chosen for: the best F1, or `at` least so much precision or recall."""
    at: float = 0.9
    min_examples: int = 10
    """Held-out pictures that must show a label, and as many that must not, for a curve of its own."""
    platt_strength: float = 1.0
    """Inverse strength of scikit-learn's L2 penalty on Platt's slope, for logits of unit variance."""

    def __post_init__(self) -> None:
        _require(0 < self.at <= 1, "at", self.at, "in (0, 1]")
        _require(self.min_examples >= 1, "min_examples", self.min_examples, "1 or more")
        _require(self.platt_strength > 0, "platt_strength", self.platt_strength, "above 0")


@dataclass(frozen=True, kw_only=True)
class TagConfig:
    """From pictures to tags: what goes into every row, and so into the plan that a second run must agree with."""

    checkpoint: str
    """The --out of train.py, or a checkpoint folder; local or s3://."""
    images: str
    """Folder or bucket, read at every depth and never written to, unless --format sidecar says so; local or s3://."""
    out: str
    """Folder to write; local or s3://."""
    corpus: Literal["files", "shards", "webdataset", "hugging_face"] = "files"
    """What --images holds: a file each (all have a row, whatever they are called), a folder of preprocess.py, tars, or
    Parquet files with the pictures in them."""
    vocabulary: str | None = None
    """Label file to ask with, see vocabulary.Vocabulary.parse; None takes the checkpoint's labels, seen and unseen."""
    top_k: int | None = None
    """Tags for each picture, 5 where nothing is said; with a threshold at most so many."""
    threshold: float | Literal["calibrated"] | None = None
    """Tags are the labels whose calibrated probability is so much or more, `calibrated`: as much as calibrate.py chose
    for each label; their scores are probabilities then. None takes the best labels, whatever they score."""
    label_embeddings: str | None = None
    """As backbone.label_embeddings, for the labels of --vocabulary; for checkpoints trained with such."""
    local_candidates: int | None = None
    """As scoring.local_candidates, for a large vocabulary; None is how the checkpoint was trained."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What the model computes in."""
    format: Literal["parquet", "jsonl", "sidecar"] = "parquet"
    """tags/*.parquet is always written; `jsonl` adds jsonl/*.jsonl, `sidecar` a file KEY.json beside every picture."""
    embeddings: bool = False
    """Adds a column with each picture's embedding, of length 1, in the space where texts are."""
    heat_maps: bool = False
    """Adds a column with a small grey PNG for each tag, bright where it fits."""
    max_file_bytes: int = 100_000_000
    """Larger files are not read; their rows say `unreachable`."""
    batch_size: int = 32
    """Pictures that the model sees at a time."""
    rows_per_part: int = 1000
    """Pictures per output file; up to twice as many where they came later."""

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        _require(self.max_file_bytes >= 1, "max_file_bytes", self.max_file_bytes, "1 or more")
        if self.format == "sidecar" and self.corpus != "files":
            raise ConfigError(f"format is sidecar, but --corpus {self.corpus} has no place beside a picture; use jsonl")
        _require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "1 or more, or None")
        if isinstance(self.threshold, float):
            _require(0 <= self.threshold <= 1, "threshold", self.threshold, "in [0, 1], or calibrated")
        _require_candidates(self.local_candidates, "local_candidates")
        _require(self.rows_per_part >= 1, "rows_per_part", self.rows_per_part, "1 or more")


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """How large the built-in corpus is; the rest is the presets quickstart and quickstart_mkt."""

    out: str = "runs/quickstart"
    """Local folder to write."""
    captioned: int = 20000
    """Pictures with captions, for the small CLIP."""
    labelled: int = 3300
    """Pictures with seen labels, a tenth of them for validation."""
    test: int = 1500
    clip_epochs: int = 3
    epochs: int = 5
    """Of SigRL; the baseline, which takes a tenth of the time, has twice as many."""
    structure: Literal["loose", "strong"] = "loose"
    """How strictly the pictures keep to six kinds of scene, and so how much labels tell of each other."""
    seed: int = 0
    """Of the pictures, the small CLIP and the heads."""
    workers: int = 1
    """Data-parallel training workers; on one machine the threads of one are quicker."""


def _require(holds: bool, key: str, found: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"{key} is {found!r}; expected {expected}")


def _require_candidates(count: int | None, key: str) -> None:
    _require(count is None or count >= 1, key, count, "1 or more, or None")
