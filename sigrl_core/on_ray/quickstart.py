"""Runs all stages on the built-in corpus; each stage is called as its own command calls it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray

from sigrl_core.config import (
    CalibrateConfig,
    EvaluateConfig,
    PreprocessConfig,
    QuickstartConfig,
    Resources,
    RunConfig,
    TagConfig,
)
from sigrl_core.config.json import to_json
from sigrl_core.config.presets import get_preset
from sigrl_core.data.shards import ShardFolder
from sigrl_core.demo import toybox
from sigrl_core.demo.corpus import IMAGE_SIZE, IMAGES, make_small_clip, write_corpus
from sigrl_core.errors import ConfigError, ShardError
from sigrl_core.evaluation.calibrate import calibrate
from sigrl_core.io import storage
from sigrl_core.io.resumable_job import is_occupied
from sigrl_core.model.checkpoint import load_checkpoint
from sigrl_core.on_ray.preprocess import preprocess
from sigrl_core.on_ray.session import connect
from sigrl_core.on_ray.tag import tag
from sigrl_core.on_ray.train import train
from sigrl_core.report.dataset import dataset_page
from sigrl_core.report.evaluation import evaluate_to_report

IMAGES_PER_TASK = 250


def quickstart(config: QuickstartConfig, resources: Resources | None = None) -> dict[str, Any]:
    """Runs every stage that is not finished; returns the metrics.

    Args:
        config: size of the corpus, and output.
        resources: the workers of both trainings; one by default. On one machine, the threads of one worker are faster
            than several workers.

    Raises:
        ConfigError: `config.out` contains a quickstart of another size or seed.
    """
    out = make_data(config)
    with _timed("dataset page"):
        dataset_page(ShardFolder.open(str(out / "shards" / "labelled")))
    for preset, name in (("quickstart", "sigrl"), ("quickstart_mkt", "mkt_style")):
        with _timed(f"train {name}"):
            train(
                run_config(preset, config),
                str(out / "shards" / "labelled"),
                str(out / name),
                resources=resources or Resources(),
            )
    with _timed("calibrate"):
        _calibrate(str(out / "sigrl" / "checkpoint"), str(out / "shards" / "labelled"))
    with _timed("evaluate"):
        metrics = evaluate_to_report(
            EvaluateConfig(
                checkpoint=str(out / "sigrl"),
                compare=(f"mkt_style={out / 'mkt_style'}",),
                data=str(out / "shards" / "test"),
                out=str(out),
            )
        )
    with _timed("tag"):
        images = str(out / "corpus" / "test" / IMAGES)
        tag(TagConfig(checkpoint=str(out / "sigrl"), images=images, out=str(out / "tags")))
    return metrics


def _calibrate(checkpoint: str, data: str) -> None:
    """Calibrates on the validation images; prints the reason if there are too few of them."""
    if load_checkpoint(checkpoint).calibration is None:
        try:
            calibrate(CalibrateConfig(checkpoint=checkpoint, data=data))
        except ShardError as error:
            print(f"not calibrated: {error}")


def make_data(config: QuickstartConfig) -> Path:
    """Runs the stages before training: draws images, trains the small CLIP, and writes shards.

    Returns:
        The quickstart's folder.

    Raises:
        ConfigError: as `quickstart`.
    """
    out = Path(storage.absolute(config.out))
    _start_folder(out, config)
    connect()
    draw = partial(_draw, config.seed, config.structure)
    with _timed("draw images"):
        write_corpus("labelled", config.labelled, out / "corpus" / "labelled", draw)
        write_corpus("test", config.test, out / "corpus" / "test", draw)
    with _timed("small CLIP"):
        make_small_clip(out / "clip", config, draw)
    with _timed("shards"):
        preprocess(preprocess_config(out, "labelled", "seen"))
        preprocess(preprocess_config(out, "test", "all"))
    return out


def _draw(seed: int, structure: toybox.Structure, subset: toybox.Subset, count: int) -> Iterator[toybox.Scene]:
    """Yields the images of a subset in order; Ray tasks draw them."""
    task: Any = ray.remote(toybox.scenes)  # toybox imports no torch, which would take each worker seconds
    starts = range(0, count, IMAGES_PER_TASK)
    drawn = [
        task.remote(subset, range(start, min(start + IMAGES_PER_TASK, count)), IMAGE_SIZE, seed, structure)
        for start in starts
    ]
    for images in drawn:
        yield from ray.get(images)


def run_config(preset: str, config: QuickstartConfig) -> RunConfig:
    """Returns the preset with the small CLIP of this quickstart as its backbone."""
    run = get_preset(preset)
    clip = str(Path(storage.absolute(config.out)) / "clip")
    epochs = config.epochs * run.training.epochs // get_preset("quickstart").training.epochs
    return dataclasses.replace(
        run,
        backbone=dataclasses.replace(run.backbone, pretrained=clip),
        training=dataclasses.replace(run.training, epochs=epochs, seed=config.seed),
    )


def preprocess_config(out: Path, subset: str, annotation_scope: Any) -> PreprocessConfig:
    """Returns the configuration that turns a subset of the corpus into shards."""
    corpus = out / "corpus" / subset
    return PreprocessConfig(
        corpus="jsonl",
        images=str(corpus / IMAGES),
        annotations=str(corpus / "labels.jsonl"),
        vocabulary=str(corpus / "vocabulary.json"),
        out=str(out / "shards" / subset),
        short_side=IMAGE_SIZE,
        annotation_scope=annotation_scope,
    )


def _start_folder(out: Path, config: QuickstartConfig) -> None:
    """Writes the configuration into a new folder; checks that an existing one has the same."""
    where = str(out / "quickstart.json")
    settings = {key: value for key, value in json.loads(to_json(config)).items() if key != "out"}
    if storage.exists(where):
        existing = storage.read_json(where)
        if differing := [key for key in settings if existing.get(key) != settings[key]]:
            key = differing[0]
            raise ConfigError(
                f"{out}: holds a quickstart with {key} = {existing.get(key)}, now {key} = {settings[key]}; "
                "choose another --out or delete the folder"
            )
        return
    if is_occupied(str(out)):
        raise ConfigError(f"{out}: holds files of something else (no quickstart.json); choose another --out")
    storage.write_json(where, settings)


@contextmanager
def _timed(stage: str) -> Iterator[None]:
    """Prints the duration of a stage."""
    started = time.monotonic()
    yield
    print(f"{stage}: {time.monotonic() - started:.0f} s", flush=True)
