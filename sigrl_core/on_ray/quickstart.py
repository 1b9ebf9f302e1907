"""The chain of all stages on the built-in corpus, each by the call that its own command makes."""

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

from sigrl_core import storage
from sigrl_core.checkpoint import load_checkpoint
from sigrl_core.config import (
    CalibrateConfig,
    EvaluateConfig,
    PreprocessConfig,
    QuickstartConfig,
    RunConfig,
    ScaleConfig,
    TagConfig,
)
from sigrl_core.config_json import to_json
from sigrl_core.demo import toybox
from sigrl_core.demo.corpus import PICTURE_SIZE, make_small_clip, write_corpus
from sigrl_core.errors import ConfigError, ShardError
from sigrl_core.evaluation import calibrate
from sigrl_core.on_ray.ingest import preprocess
from sigrl_core.on_ray.session import connect
from sigrl_core.on_ray.tag import tag
from sigrl_core.on_ray.train import train
from sigrl_core.presets import get_preset
from sigrl_core.report.evaluation import evaluate_to_report

PICTURES_PER_TASK = 250


def quickstart(config: QuickstartConfig) -> dict[str, Any]:
    """Runs every stage that is not done yet; returns the metrics.

    Raises:
        ConfigError: `config.out` holds a quickstart of another size or seed.
    """
    out = make_data(config)
    for preset, name in (("quickstart", "sigrl"), ("quickstart_mkt", "mkt_style")):
        with _timed(f"train {name}"):
            train(run_config(preset, config), _scale(config), str(out / "shards" / "labelled"), None, str(out / name))
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
        pictures = str(out / "corpus" / "test" / "pictures")
        tag(TagConfig(checkpoint=str(out / "sigrl"), images=pictures, out=str(out / "tags")))
    return metrics


def _calibrate(checkpoint: str, data: str) -> None:
    """On the pictures that training held out; a corpus too small for that goes on without."""
    if load_checkpoint(checkpoint).calibration is None:
        try:
            calibrate(CalibrateConfig(checkpoint=checkpoint, data=data))
        except ShardError as error:
            print(f"not calibrated: {error}")


def make_data(config: QuickstartConfig) -> Path:
    """The stages before training: pictures, small CLIP and shards; returns the quickstart's folder.

    Raises:
        ConfigError: as `quickstart`.
    """
    out = Path(storage.absolute(config.out))
    _claim(out, config)
    connect()
    draw = partial(_draw, config.seed, config.structure)
    with _timed("draw pictures"):
        write_corpus("labelled", config.labelled, out / "corpus" / "labelled", draw)
        write_corpus("test", config.test, out / "corpus" / "test", draw)
    with _timed("small CLIP"):
        make_small_clip(out / "clip", config, draw)
    with _timed("shards"):
        preprocess(preprocess_config(out, "labelled", "seen"))
        preprocess(preprocess_config(out, "test", "all"))
    return out


def _draw(seed: int, structure: toybox.Structure, part: toybox.Part, count: int) -> Iterator[toybox.Picture]:
    """Pictures of a part in order, drawn by Ray tasks."""
    task: Any = ray.remote(toybox.pictures)  # of a module without torch, which costs a worker seconds to import
    starts = range(0, count, PICTURES_PER_TASK)
    drawn = [
        task.remote(part, range(start, min(start + PICTURES_PER_TASK, count)), PICTURE_SIZE, seed, structure)
        for start in starts
    ]
    for pictures in drawn:
        yield from ray.get(pictures)


def run_config(preset: str, config: QuickstartConfig) -> RunConfig:
    """The preset on the small CLIP that this quickstart makes."""
    run = get_preset(preset)
    clip = str(Path(storage.absolute(config.out)) / "clip")
    epochs = config.epochs * run.training.epochs // get_preset("quickstart").training.epochs
    return dataclasses.replace(
        run,
        backbone=dataclasses.replace(run.backbone, pretrained=clip),
        training=dataclasses.replace(run.training, epochs=epochs, seed=config.seed),
    )


def _scale(config: QuickstartConfig) -> ScaleConfig:
    return ScaleConfig(workers=config.workers)


def preprocess_config(out: Path, part: str, annotated: Any) -> PreprocessConfig:
    corpus = out / "corpus" / part
    return PreprocessConfig(
        corpus="jsonl",
        images=str(corpus / "pictures"),
        annotations=str(corpus / "labels.jsonl"),
        vocabulary=str(corpus / "vocabulary.json"),
        out=str(out / "shards" / part),
        short_side=PICTURE_SIZE,
        annotated=annotated,
    )


def _claim(out: Path, config: QuickstartConfig) -> None:
    """Notes what this folder is a quickstart of, or checks that it is the same."""
    where = str(out / "quickstart.json")
    wanted = {key: value for key, value in json.loads(to_json(config)).items() if key not in ("out", "workers")}
    if storage.exists(where):
        found = storage.read_json(where)
        if differing := [key for key in wanted if found.get(key) != wanted[key]]:
            key = differing[0]
            raise ConfigError(
                f"{out}: holds a quickstart with {key} = {found.get(key)}, now {key} = {wanted[key]}; "
                "choose another --out or delete the folder"
            )
        return
    storage.write_json(where, wanted)


@contextmanager
def _timed(stage: str) -> Iterator[None]:
    """Says what a stage took."""
    started = time.monotonic()
    yield
    print(f"{stage}: {time.monotonic() - started:.0f} s", flush=True)
