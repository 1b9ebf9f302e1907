"""The configuration of each command except train and tune: input, output, and everything that changes the result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sigrl_core.config.checks import require, require_candidates
from sigrl_core.config.run import BackboneConfig
from sigrl_core.errors import ConfigError
from sigrl_core.plugins import CORPORA

TAGGED_CORPORA = ("files", "shards", "webdataset", "hugging_face")
"""Built-in corpora that list images without annotations, as tagging needs them."""

AUTO_CORPUS = "auto"
"""Value of `PreprocessConfig.corpus` that stands for the format that `corpora.detect` recognises."""

LabelPolicy = Literal["full", "positives-only", "single-positive"]


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """The conversion of a corpus to shards. A run that resumes must have the same values."""

    corpus: str = AUTO_CORPUS
    """Format of the corpus: a name of plugins.CORPORA; `auto` recognises it by the first names of the folder of images
    and the first bytes of the annotations, and stops where several formats fit."""
    images: str
    """Folder of the images, local or s3://; names in the annotations are relative to it."""
    annotations: str | None = None
    """File or folder with the annotations, for corpora that have one; see docs/corpora.md."""
    label_separator: str | None = None
    """Text between the labels of one cell, for corpora csv and parquet; None is `|`. A space is any white space."""
    label_field: str | None = None
    """Column, key or ending of the labels, for corpora csv, jsonl, parquet, hugging_face and webdataset; None looks for
    the usual names. With `txt` or `caption`, captions are labels."""
    label_numbers: Literal["classes", "multi-hot"] | None = None
    """Meaning of lists of numbers, for corpora hugging_face and webdataset: `classes`, the numbers of classes that are
    present; `multi-hot`, one value (1 or 0) per class. None decides by the lists and refuses those that may be both."""
    vocabulary: str | None = None
    """File of the label list, see labels.vocabulary.Vocabulary.parse; None uses the corpus's labels in their order."""
    out: str
    """Folder to write, local or s3://."""
    short_side: int = 320
    """Length of the short side of stored images in pixels; smaller images are not enlarged. 0 keeps every size. It is
    at least the `image_size` of the models that use the shards."""
    quality: int = 90
    """JPEG quality, 1 to 100. RGB JPEGs that are small enough and have no EXIF or XMP are stored unchanged."""
    chroma: Literal["4:4:4", "4:2:0"] = "4:4:4"
    """Resolution of colour in stored JPEGs, full or half; half the resolution takes a fifth fewer bytes."""
    long_side: Literal["aligned", "nearest"] = "aligned"
    """Rounding of the long side of stored images: `aligned`, so that models of 224 and 336 pixels crop the same square
    as from the original image; `nearest`, as version 0.1.0."""
    rows_per_shard: int = 1000
    """Maximum number of listed images per shard, before unusable images and duplicates are removed."""
    bytes_per_shard: int | None = None
    """Maximum total size of the listed images of a shard, for corpora that list sizes; a single image may be larger.
    None has no limit."""
    max_pixels: int = 100_000_000
    """Maximum number of pixels; larger images are quarantined without decoding."""
    keep_exif: bool = False
    """Keeps the EXIF data of images, which may include the location; otherwise all metadata is removed."""
    near_duplicates: int | None = None
    """Removes images that look like an earlier one, too: maximum number of bits in which two perceptual hashes of 64
    bits differ. 4 detects other sizes and qualities of an image. None removes only images with equal bytes."""
    annotation_scope: Literal["all", "seen"] = "all"
    """Labels that were annotated in every image, so that a label that is not listed is absent. With `seen`, the other
    labels are unknown."""
    no_labels: bool = False
    """Accepts a corpus in which no image has a label, for tagging or features; without it, this is an error."""
    label_policy: LabelPolicy = "full"
    """Annotations that training uses: `full`, all; `positives-only`, absent labels become unknown; `single-positive`,
    one present label, chosen by content hash, and all others unknown (Cole et al. 2021). Validation images keep all."""
    validation_fraction: float = 0.1
    """Share of the images, chosen by content hash, that are used for validation and not for training."""
    test_fraction: float = 0.0
    """Share of the images, chosen by content hash, that are used neither for training nor for validation; evaluate.py
    then measures only these."""
    seed: int = 0
    """Seed of the splits and of the choice of single positives."""

    def __post_init__(self) -> None:
        require(self.short_side >= 0, "short_side", self.short_side, "0 or more pixels")
        require(1 <= self.quality <= 100, "quality", self.quality, "1 to 100")
        require(self.chroma in ("4:4:4", "4:2:0"), "chroma", self.chroma, "4:4:4 or 4:2:0")
        require(self.long_side in ("aligned", "nearest"), "long_side", self.long_side, "aligned or nearest")
        require(self.rows_per_shard >= 1, "rows_per_shard", self.rows_per_shard, "1 or more")
        require(1 <= self.max_pixels <= 200_000_000, "max_pixels", self.max_pixels, "1 to 200 million")
        held_out = self.validation_fraction + self.test_fraction
        require(self.validation_fraction >= 0, "validation_fraction", self.validation_fraction, "0 or more")
        require(self.test_fraction >= 0, "test_fraction", self.test_fraction, "0 or more")
        require(held_out < 1, "validation_fraction + test_fraction", held_out, "less than 1")
        size = self.bytes_per_shard
        require(size is None or size >= 1_000_000, "bytes_per_shard", size, "1,000,000 or more bytes, or none")
        bits = self.near_duplicates
        require(bits is None or 0 <= bits <= 10, "near_duplicates", bits, "0 to 10 bits, or none")


@dataclass(frozen=True, kw_only=True)
class CacheFeaturesConfig:
    """The computation of features by frozen blocks. A run that resumes must have the same values."""

    data: str
    """Shard folder of the images; all splits are used."""
    out: str
    """Folder to write, local or s3://; train.py, evaluate.py and calibrate.py take it as --data."""
    checkpoint: str | None = None
    """The --out of train.py, or a checkpoint folder, whose backbone is used; None uses `backbone`."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """Backbone as in train.py; features are the tokens after `frozen_blocks`."""
    allow_enlarged: bool = False
    """Accepts shards whose short side is below the model's `image_size`; their images are enlarged."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The evaluation of a checkpoint, with further ones for comparison."""

    checkpoint: str
    """The --out of train.py, or a checkpoint folder; local or s3://."""
    data: str
    """Shard folder with labels; it has the checkpoint's vocabulary."""
    out: str
    """Folder that metrics.json and report.html are written to."""
    compare: tuple[str, ...] = ()
    """NAME=URI of further checkpoints; each gets a row of the table."""
    local_candidates: int | None = None
    """Replaces scoring.local_candidates of --checkpoint; None keeps it."""
    allow_enlarged: bool = False
    """Accepts shards whose short side is below the model's `image_size`; their images are enlarged."""

    @property
    def compared_checkpoints(self) -> dict[str, str]:
        """The checkpoints of `compare`: name -> URI."""
        return {name: uri for name, _, uri in (item.partition("=") for item in self.compare)}

    def __post_init__(self) -> None:
        require_candidates(self.local_candidates, "local_candidates")
        for item in self.compare:
            require(all(item.partition("=")), "compare", item, "NAME=URI")


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """The calibration of probabilities and the choice of thresholds on held-out images."""

    checkpoint: str
    """The --out of train.py, or a checkpoint folder; local or s3://. The calibration is written into it."""
    data: str
    """Shard folder with labels; it has the checkpoint's vocabulary."""
    split: Literal["validation", "all"] = "validation"
    """Images to use: the validation split, or all images of shards that were not used for training."""
    method: Literal["platt", "isotonic"] = "platt"
    """Curve from score to probability: Platt scaling or isotonic regression."""
    criterion: Literal["f1", "precision", "recall"] = "f1"
    """Criterion of each label's threshold: the best F1, or a precision or recall of at least `target`."""
    target: float = 0.9
    """Minimum precision or recall, see `criterion`."""
    min_examples: int = 10
    """Minimum number of images with a label, and of images without it, for a curve of the label's own."""
    platt_strength: float = 1.0
    """Inverse strength (C) of scikit-learn's L2 penalty on the slope of Platt scaling, for logits of unit variance."""
    allow_enlarged: bool = False
    """Accepts shards whose short side is below the model's `image_size`; their images are enlarged."""

    def __post_init__(self) -> None:
        require(0 < self.target <= 1, "target", self.target, "in (0, 1]")
        require(self.min_examples >= 1, "min_examples", self.min_examples, "1 or more")
        require(self.platt_strength > 0, "platt_strength", self.platt_strength, "above 0")


@dataclass(frozen=True, kw_only=True)
class TagConfig:
    """The tagging of a folder of images. A later run in the same folder must have the same values."""

    checkpoint: str
    """The --out of train.py, or a checkpoint folder; local or s3://."""
    images: str
    """Folder or bucket with images, at any depth, local or s3://. Nothing is written to it, except with --format
    sidecar."""
    out: str
    """Folder to write; local or s3://."""
    corpus: str = "files"
    """Format of --images: `files` (one row per file, whatever its name), `shards` (a folder of preprocess.py),
    `webdataset` (tars), `hugging_face` (Parquet files that contain the images), or a corpus of a plug-in."""
    vocabulary: str | None = None
    """File of the label list, see labels.vocabulary.Vocabulary.parse; None uses the checkpoint's labels, seen and
    unseen."""
    top_k: int | None = None
    """Number of tags per image, 5 by default; with a threshold the maximum number, which then has no default."""
    threshold: float | Literal["calibrated"] | None = None
    """Minimum calibrated probability of a tag; `calibrated` uses the threshold that calibrate.py chose for each label.
    The scores of tags are then probabilities. None returns the best labels with any score."""
    label_embeddings: str | None = None
    """Embeddings of the labels of --vocabulary, for checkpoints trained with backbone.label_embeddings."""
    local_candidates: int | None = None
    """Replaces scoring.local_candidates of the checkpoint, for a large vocabulary; None keeps it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the model's computation."""
    format: Literal["parquet", "jsonl", "sidecar"] = "parquet"
    """Output besides `tags/*.parquet`: `jsonl` adds `jsonl/*.jsonl`, `sidecar` a file KEY.json beside every image."""
    embeddings: bool = False
    """Adds a column with each image's embedding, a unit vector in the joint space of images and texts."""
    heat_maps: bool = False
    """Adds a column with a small grey PNG for each tag, which is bright where the tag fits the image."""
    max_file_bytes: int = 100_000_000
    """Maximum file size; larger files are not read, and their rows have the error `unreachable`."""
    batch_size: int = 32
    """Number of images in a batch of the model."""
    rows_per_shard: int = 1000
    """Number of images per output file; a file grows to twice this number when images are added."""

    def __post_init__(self) -> None:
        if self.corpus not in (names := (*TAGGED_CORPORA, *CORPORA.registered())):
            raise ConfigError(f"corpus is {self.corpus!r}; expected one of {', '.join(names)}")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        require(self.max_file_bytes >= 1, "max_file_bytes", self.max_file_bytes, "1 or more")
        if self.format == "sidecar" and self.corpus != "files":
            raise ConfigError(f"format is sidecar, but images of --corpus {self.corpus} are not files; use jsonl")
        require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "1 or more, or None")
        if isinstance(self.threshold, float):
            require(0 <= self.threshold <= 1, "threshold", self.threshold, "in [0, 1], or calibrated")
        require_candidates(self.local_candidates, "local_candidates")
        require(self.rows_per_shard >= 1, "rows_per_shard", self.rows_per_shard, "1 or more")


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """The size of the built-in corpus; everything else is in the presets quickstart and quickstart_mkt."""

    out: str = "runs/quickstart"
    """Local folder to write."""
    captioned: int = 20000
    """Number of images with captions, which train the small CLIP."""
    labelled: int = 3300
    """Number of images with seen labels; a tenth of them is for validation."""
    test: int = 1500
    """Number of test images."""
    clip_epochs: int = 3
    """Number of epochs of the small CLIP."""
    epochs: int = 5
    """Number of epochs of SigRL; the baseline has twice as many, and takes a tenth of the time."""
    structure: Literal["loose", "strong"] = "loose"
    """How closely the images follow six kinds of scene; `strong` makes labels more predictable from each other."""
    seed: int = 0
    """Seed of the images, the small CLIP and the heads."""


DEFAULT_MODEL = "default"
AT_LEAST_ONE = (
    *("max_loaded_models", "requests_per_minute", "batch_size", "max_queued"),
    *("max_body_bytes", "max_images", "max_pixels", "max_labels"),
)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The server's models and limits: flags of serve.py, or `args` of the application in a Serve file."""

    checkpoint: str
    """The --out of train.py, or a checkpoint folder; local or s3://. Requests that name no model use it."""
    models: dict[str, str] = field(default_factory=dict)
    """Further checkpoints by name; requests select them by name, and the first such request loads them."""
    max_loaded_models: int = 4
    """Maximum number of named models in a replica's memory; the least recently used one is unloaded."""
    vocabularies: str | None = None
    """Folder, local or s3://, of the label lists that clients store; None stores them beside the checkpoint."""
    api_keys: str | None = None
    """File of API keys, see serving.keys.ApiKeys; None accepts requests without a key."""
    allow_anonymous: bool = False
    """Confirms that a server without API keys is intended."""
    requests_per_minute: int = 600
    """Rate limit of each key that has no own limit; without keys, of all clients together."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the model's computation."""
    batch_size: int = 32
    """Maximum number of images in a batch of the model; a batch contains images of several requests."""
    reload_interval_s: float = 10.0
    """Seconds between two checks for a new version of the checkpoint, which then replaces the old one between two
    batches."""
    max_body_bytes: int = 64_000_000
    """Maximum size of a request's body, with all its images."""
    max_inflight_bytes: int = 1_000_000_000
    """Maximum total size of the requests in progress in a replica; further requests are rejected with 503."""
    max_images: int = 64
    """Maximum number of images in a request."""
    max_pixels: int = 100_000_000
    """Maximum number of pixels of an image, by its header."""
    max_labels: int = 2000
    """Maximum number of labels in a label list."""
    max_vocabularies: int = 1000
    """Maximum number of label lists that clients store."""
    max_pending_images: int = 256
    """Maximum number of images that wait or are being tagged in a replica; further requests are rejected with 503."""
    max_queued: int = 128
    """Maximum number of requests that wait in a proxy for a replica; further requests are rejected, which costs least
    there."""

    def __post_init__(self) -> None:
        if DEFAULT_MODEL in self.models:
            raise ConfigError(f"models: {DEFAULT_MODEL!r} is the name of --checkpoint; choose another one")
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected 1 or more")
        if self.max_pending_images < self.max_images:
            raise ConfigError(
                f"max_pending_images is {self.max_pending_images}; expected max_images = {self.max_images} or more, so "
                "that a request of the maximum size fits"
            )
        if self.max_inflight_bytes < self.max_body_bytes:
            raise ConfigError(
                f"max_inflight_bytes is {self.max_inflight_bytes}; expected max_body_bytes = {self.max_body_bytes} "
                "or more"
            )
        if self.reload_interval_s <= 0:
            raise ConfigError(f"reload_interval_s is {self.reload_interval_s!r}; expected above 0")

    @property
    def checkpoints(self) -> dict[str, str]:
        """All checkpoints: name -> URI; the default model is included."""
        return {DEFAULT_MODEL: self.checkpoint, **self.models}
