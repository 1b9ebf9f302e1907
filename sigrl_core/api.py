"""The public API: a few functions for notebooks and scripts, and the tagger that they return.

`sigrl_core` exports these names. Every function takes checkpoints, shard folders and images as str, Path or s3:// URI,
and labelled images as a shard folder, a folder with a sub-folder per label, a label file, or a DataFrame with the
columns `uri` and `labels`. The functions call the same code as the commands.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np

from sigrl_core.config import CalibrateConfig, PreprocessConfig, Resources, RunConfig, ScaleConfig, TagConfig
from sigrl_core.config.overrides import apply_overrides, config_from, take_fields
from sigrl_core.config.presets import get_preset
from sigrl_core.config.scale import Replicas
from sigrl_core.config.stages import ServeConfig
from sigrl_core.corpora.listing import Listing
from sigrl_core.corpora.table import list_table
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import CheckpointError, ConfigError
from sigrl_core.evaluation.calibrate import calibrate as fit_and_write_calibration
from sigrl_core.evaluation.evaluator import Evaluation, Evaluator
from sigrl_core.evaluation.evaluator import evaluate as measure
from sigrl_core.inference import tagger as inference
from sigrl_core.inference.inputs import (
    OneImage,
    check_tag_options,
    describe,
    parse_images,
    parse_labels,
    parse_location,
    read_batches,
    resolve_device,
)
from sigrl_core.inference.tagger import Precision, Tags
from sigrl_core.io import storage
from sigrl_core.io.resumable_job import MANIFEST
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.model.checkpoint import checkpoint_version, load_checkpoint

if TYPE_CHECKING:
    import pandas as pd

Location = str | os.PathLike[str]
Labels = Sequence[str] | Location | Vocabulary
LabelledImages: TypeAlias = "Location | ShardFolder | pd.DataFrame"

DATA_FORMS = (
    "a shard folder, a folder with a sub-folder of images per label, a label file (.jsonl, .csv, .parquet, COCO's "
    ".json, ...), or a DataFrame with the columns uri and labels"
)
LABEL_FILES = (
    *(".jsonl", ".csv", ".tsv", ".parquet", ".json", ".xml", ".yaml", ".yml", ".npy", ".manifest", ".txt", ".gz"),
)
"""Endings of annotation files, whose format `corpora.detect` recognises."""


class Tagger(inference.Tagger):
    """A checkpoint that tags images given in any form; `load` and `train` return one."""

    @overload
    def tag(
        self,
        images: OneImage,
        labels: Labels | None = None,
        top_k: int | None = None,
        threshold: float | Literal["calibrated"] | None = None,
        heat_maps: bool = False,
        embeddings: bool = False,
    ) -> Tags: ...
    @overload
    def tag(
        self,
        images: Sequence[Any],
        labels: Labels | None = None,
        top_k: int | None = None,
        threshold: float | Literal["calibrated"] | None = None,
        heat_maps: bool = False,
        embeddings: bool = False,
    ) -> list[Tags]: ...
    def tag(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Any,
        labels: Labels | None = None,
        top_k: int | None = None,
        threshold: float | Literal["calibrated"] | None = None,
        heat_maps: bool = False,
        embeddings: bool = False,
    ) -> Tags | list[Tags]:
        """Tags one image or several; one image gives one result, several give a list.

        Args:
            images: paths or URIs (str, Path), bytes, PIL images or uint8 arrays of shape (height, width, 3).
            labels: names, a label file or a Vocabulary; None uses the checkpoint's labels.
            top_k: maximum number of tags per image; None means 5 without a threshold.
            threshold: minimum probability of a tag, or `calibrated` for each label's own; None returns the best labels.
            heat_maps: adds a heat map per tag.
            embeddings: adds the image embedding.

        Raises:
            SigrlError: an argument has a wrong form, a file is missing, or there is a threshold without a calibration.
        """
        check_tag_options(top_k, threshold)
        vocabulary = parse_labels(labels, self.vocabulary)
        parsed = parse_images(images)
        tags: list[Tags] = []
        for batch in read_batches(parsed.images):
            tags += super().tag(batch, vocabulary, top_k, threshold, heat_maps, embeddings)
        return tags[0] if parsed.is_single else tags

    def probabilities(self, images: Any, labels: Labels | None = None) -> pd.DataFrame:
        """Computes calibrated probabilities: one row per image, one column per label.

        The index is the path or URI of an image, or its position where it has none. The row of an unreadable image is
        nan. Arguments are as for `tag`.

        Raises:
            SigrlError: as `tag`; the checkpoint is not calibrated.
        """
        import pandas as pd

        _ = self.calibration
        vocabulary = parse_labels(labels, self.vocabulary)
        parsed = parse_images(images)
        rows = []
        for batch in read_batches(parsed.images):
            for tags in super().tag(batch, vocabulary, len(vocabulary), 0.0):
                by_label = dict(zip(tags.labels, tags.scores, strict=True))
                rows.append([by_label.get(name, np.nan) for name in vocabulary.names])
        return pd.DataFrame(rows, index=pd.Index(parsed.names, name="image"), columns=pd.Index(vocabulary.names))

    def calibrate(self, data: LabelledImages | None = None, images: Location | None = None, **options: Any) -> Tagger:
        """Fits probabilities and thresholds and writes them into the checkpoint; see `sigrl_core.calibrate`."""
        with _shards_for(self, data, images) as (folder, is_new):
            defaults = {"split": "all"} if is_new else {}
            config = config_from(
                CalibrateConfig, {**defaults, **options}, checkpoint=self.checkpoint.uri, data=folder.uri
            )
            fit_and_write_calibration(config, self)
        return self

    def evaluate(self, data: LabelledImages, images: Location | None = None, out: Location | None = None) -> Evaluation:
        """Measures the checkpoint beside zero-shot CLIP; see `sigrl_core.evaluate`."""
        with _shards_for(self, data, images) as (folder, _):
            folder.check_image_size(self.model.backbone.image_size)
            evaluation = measure(Evaluator(self, {}), folder)
            if out is not None:
                from sigrl_core.report.evaluation import write_report

                where = storage.absolute(parse_location(out, "out", "a folder to write"))
                storage.make_folder(where)
                write_report(evaluation, folder, self, self.checkpoint.metrics["history"], where)
                storage.write_json(storage.join(where, "metrics.json"), evaluation.metrics)
        return evaluation


def load(path: Location, device: str = "auto", precision: Precision = "fp32") -> Tagger:
    """Loads a checkpoint: the --out of a training or a checkpoint folder, local or s3://.

    Args:
        path: the folder.
        device: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.
        precision: `bf16` is faster on devices that support it.

    Raises:
        SigrlError: there is no checkpoint, or no such device.
    """
    return Tagger(
        load_checkpoint(parse_location(path, "path", "a checkpoint folder")), resolve_device(device), precision
    )


def preprocess(
    data: LabelledImages,
    images: Location | None = None,
    *,
    out: Location,
    labels: Labels | None = None,
    **options: Any,
) -> ShardFolder:
    """Decodes, checks and stores labelled images as a shard folder; finds a finished folder finished.

    Args:
        data: see the module; `corpus=` names the format where several fit.
        images: folder that relative image paths of a label file or DataFrame are below; None is the current folder.
        out: folder to write.
        labels: names, a label file or a Vocabulary with seen and unseen labels; None uses the labels that occur.
        options: fields of PreprocessConfig or of Resources.

    Raises:
        SigrlError: an argument has a wrong form, or the images cannot be used.
    """
    from sigrl_core.on_ray.preprocess import preprocess as run

    out = storage.absolute(parse_location(out, "out", "a folder to write"))
    source, listing = _source(data, images, options)
    vocabulary = None if labels is None else parse_labels(labels, Vocabulary(()))
    resources = config_from(Resources, take_fields(Resources, options))
    config = config_from(PreprocessConfig, options, **source, out=out)
    run(config, resources, listing=listing, vocabulary=vocabulary)
    return ShardFolder.open(out)


def train(
    data: LabelledImages,
    images: Location | None = None,
    *,
    out: Location,
    preset: str | RunConfig = "default",
    validation: Location | ShardFolder | None = None,
    labels: Labels | None = None,
    **overrides: Any,
) -> Tagger:
    """Trains on labelled images, resumes a training, or finds it finished; returns its tagger.

    Args:
        data: see the module. What is not a shard folder is preprocessed into `out`/shards.
        images: as for `preprocess`.
        out: folder of the run.
        preset: name of a preset, or a whole configuration.
        validation: shard folder that selects the best epoch; None holds out a part of `data`.
        labels: as for `preprocess`.
        overrides: fields of RunConfig, ScaleConfig or Resources: `epochs=3`, `loss={"kind": "bce"}`, or, as the flags,
            `**{"loss.kind": "bce"}`.

    Raises:
        SigrlError: an argument has a wrong form, or the training cannot run.
    """
    from sigrl_core.on_ray.train import TRAIN_RESOURCES
    from sigrl_core.on_ray.train import train as run

    out = storage.absolute(parse_location(out, "out", "a folder to write"))
    base = get_preset(preset) if isinstance(preset, str) else preset
    if not isinstance(base, RunConfig):
        raise ConfigError(f"preset: found {describe(preset)}; expected the name of a preset or a RunConfig")
    config, scale, resources = apply_overrides(base, ScaleConfig(), TRAIN_RESOURCES, overrides)
    folder = _open_shards(data, images, labels)
    if folder is None:
        folder = preprocess(data, images, out=storage.join(out, "shards"), labels=labels)
    where = None
    if validation is not None:
        where = validation.uri if isinstance(validation, ShardFolder) else storage.absolute(os.fspath(validation))
    return load(run(config, folder.uri, out, validation=where, resources=resources, scale=scale))


def evaluate(
    checkpoint: Location | Tagger, data: LabelledImages, images: Location | None = None, *, out: Location | None = None
) -> Evaluation:
    """Measures a checkpoint beside zero-shot CLIP; `.metrics` of the result is the content of metrics.json.

    Args:
        checkpoint: its folder, or a loaded one.
        data: see the module; labels are those of the checkpoint. A shard folder with a test split is measured on that
            split, other data as a whole.
        images: as for `preprocess`.
        out: folder for report.html and metrics.json; None writes none.

    Raises:
        SigrlError: an argument has a wrong form, or the labels differ from the checkpoint's.
    """
    return _tagger(checkpoint).evaluate(data, images, out)


def calibrate(
    checkpoint: Location | Tagger, data: LabelledImages | None = None, images: Location | None = None, **options: Any
) -> Tagger:
    """Fits probabilities and thresholds on held-out images and writes them into the checkpoint.

    Args:
        checkpoint: its folder, or a loaded one.
        data: see the module; None uses the images that its training held out.
        images: as for `preprocess`.
        options: fields of CalibrateConfig.

    Raises:
        SigrlError: an argument has a wrong form, or there are too few images.
    """
    return _tagger(checkpoint).calibrate(data, images, **options)


def tag(
    checkpoint: Location | Tagger,
    images: Location | None = None,
    *,
    out: Location | None = None,
    labels: Labels | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Tags every image below a folder into Parquet files, with Ray workers; returns the manifest.

    Args:
        checkpoint: its folder, or a loaded one.
        images: folder or bucket.
        out: folder to write; `pandas.read_parquet(out + "/tags")` reads the tags.
        labels: names, a label file or a Vocabulary; None uses the checkpoint's labels.
        options: fields of TagConfig or of Resources.

    Raises:
        SigrlError: an argument has a wrong form, or the folder cannot be tagged.
    """
    from sigrl_core.on_ray.tag import tag as run

    resources = config_from(Resources, take_fields(Resources, options))
    config = config_from(
        TagConfig,
        options,
        checkpoint=_checkpoint_uri(checkpoint),
        images=parse_location(images, "images", "a folder of images; Tagger.tag takes single images"),
        out=parse_location(out, "out", "a folder to write"),
    )
    vocabulary = None if labels is None else parse_labels(labels, Vocabulary(()))
    expected = checkpoint.pinned if isinstance(checkpoint, inference.Tagger) else None
    return run(config, resources, vocabulary=vocabulary, expected=expected)


def serve(checkpoint: Location | Tagger, host: str = "127.0.0.1", port: int = 8000, **options: Any) -> None:
    """Serves a checkpoint over HTTP until the process is interrupted; options are fields of ServeConfig or of Replicas.

    Raises:
        SigrlError: an argument has a wrong form, the port is taken, or keys are missing.
    """
    from sigrl_core.on_ray.serve import serve_until_stopped

    replicas = config_from(Replicas, take_fields(Replicas, options))
    config = config_from(ServeConfig, options, checkpoint=_checkpoint_uri(checkpoint))
    if isinstance(checkpoint, inference.Tagger):
        checkpoint.pinned.check(config.checkpoint, "model", checkpoint_version(config.checkpoint), CheckpointError)
    serve_until_stopped(config, replicas, host, port, None)


# ---- forms of arguments ----


_CHECKPOINT_FORMS = "a checkpoint folder or a Tagger, whose method tag takes single images"


def _checkpoint_uri(checkpoint: Location | Tagger) -> str:
    if isinstance(checkpoint, inference.Tagger):
        return checkpoint.checkpoint.uri
    return storage.absolute(parse_location(checkpoint, "checkpoint", _CHECKPOINT_FORMS))


def _tagger(checkpoint: Location | Tagger) -> Tagger:
    return checkpoint if isinstance(checkpoint, Tagger) else load(_checkpoint_uri(checkpoint))


def _open_shards(data: Any, images: Location | None, labels: Labels | None) -> ShardFolder | None:
    """Returns the shard folder that `data` is; None for data to be preprocessed."""
    if not isinstance(data, ShardFolder):
        if not isinstance(data, str | os.PathLike):
            return None
        uri = storage.absolute(os.fspath(data))
        if not storage.exists(storage.join(uri, MANIFEST)):
            return None
        data = ShardFolder.open(uri)
    for name, value in (("images", images), ("labels", labels)):
        if value is not None:
            raise ConfigError(f"{name}: found {describe(value)}, but {data.uri} is a shard folder; leave {name} out")
    return data


def _source(data: Any, images: Location | None, options: dict[str, Any]) -> tuple[dict[str, Any], Listing | None]:
    """Returns the fields of PreprocessConfig that name the data, and the listing of a DataFrame."""
    below = "." if images is None else parse_location(images, "images", "a folder of images")
    if type(data).__name__ == "DataFrame" and hasattr(data, "columns"):
        return {"corpus": "dataframe", "images": below}, Listing(list_table(data))
    if not isinstance(data, str | os.PathLike) or not os.fspath(data):
        raise ConfigError(f"data: found {describe(data)}; expected {DATA_FORMS}")
    uri = storage.absolute(os.fspath(data))
    if "corpus" in options:
        corpus = {"corpus": options.pop("corpus")}
        return (corpus | {"images": uri} if images is None else corpus | {"images": below, "annotations": uri}), None
    if uri.lower().endswith(LABEL_FILES):
        return {"images": below, "annotations": uri}, None
    if not storage.is_folder(uri):
        raise ConfigError(f"data: {uri} is {'a file' if storage.exists(uri) else 'missing'}; expected {DATA_FORMS}")
    if images is not None:
        raise ConfigError(f"images: found {describe(images)}, but {uri} is a folder of images itself; leave images out")
    return {"images": uri}, None


@contextmanager
def _shards_for(tagger: Tagger, data: Any, images: Location | None) -> Iterator[tuple[ShardFolder, bool]]:
    """Yields shards of the checkpoint's vocabulary, and whether they are temporary."""
    if data is None:
        from sigrl_core.training.folder import training_data

        yield ShardFolder.open(training_data(tagger.checkpoint.uri)), False
    elif (folder := _open_shards(data, images, None)) is not None:
        yield folder, False
    else:
        with tempfile.TemporaryDirectory(prefix="sigrl-") as scratch:
            out = storage.join(scratch, "shards")
            yield preprocess(data, images, out=out, labels=tagger.vocabulary, validation_fraction=0.0), True
