"""The model that made the scores is the one that the plan names: every stage checks what it has loaded.

Each test replaces an input by another one at the moment after the stage has planned and before its workers load.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from ray.train import UserCallback

from sigrl_core import api
from sigrl_core.config import BackboneConfig, CacheFeaturesConfig, CalibrateConfig, Resources, RunConfig, TagConfig
from sigrl_core.config.presets import get_preset
from sigrl_core.config.stages import ServeConfig
from sigrl_core.data.shards import ShardFolder
from sigrl_core.demo import toybox
from sigrl_core.errors import CheckpointError, SigrlError
from sigrl_core.evaluation import calibrate as calibrate_module
from sigrl_core.evaluation.calibrate import calibrate
from sigrl_core.io import storage
from sigrl_core.io.checksums import Pinned, sha256_of
from sigrl_core.labels.edges import LabelEdges
from sigrl_core.labels.embeddings import embeddings_sha256
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.model.backbone import load_backbone
from sigrl_core.model.checkpoint import checkpoint_version, load_checkpoint, save_clip
from sigrl_core.on_ray import cache_features as cache_features_module
from sigrl_core.on_ray import tag as tag_module
from sigrl_core.on_ray import train as train_module
from sigrl_core.on_ray import tune_trial
from sigrl_core.on_ray.cache_features import cache_features
from sigrl_core.on_ray.tag import dry_run, tag
from sigrl_core.on_ray.train import train
from sigrl_core.on_ray.tune_trial import TrialSetup, read_failure, run_trial
from sigrl_core.search.study import Trial
from sigrl_core.serving.messages import TagOptions
from sigrl_core.serving.service import Service
from sigrl_core.training.inputs import pinned_inputs
from sigrl_core.training.trainer import Trainer
from tests.conftest import random_states, tagged_rows, untrained_checkpoint, write_shards
from tests.in_process import partitions_here, training_here

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkpoints of different weights."""
    return [untrained_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", seed) for seed in range(2)]


@pytest.fixture
def checkpoint(models: list[Path], tmp_path: Path) -> Path:
    """A copy of the first one, which a test may replace."""
    return shutil.copytree(models[0], tmp_path / "run" / "checkpoint")


def put(source: Path | str, place: Path | str) -> None:
    """Replaces the file or folder `place` by a copy of `source`, as a deployment does it."""
    new, old = f"{place}.new", f"{place}.old"
    (shutil.copytree if os.path.isdir(source) else shutil.copy)(source, new)
    os.rename(place, old)
    os.rename(new, place)
    shutil.rmtree(old) if os.path.isdir(old) else os.remove(old)


def at(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, action: Callable[[], object], calls: bool = True
) -> None:
    """Runs `action` once, when `name` of a module is called, and then what was there before if it `calls` it."""
    original, pending = getattr(module, name), [action]

    def hooked(*arguments: Any, **options: Any) -> Any:
        if pending:
            pending.pop()()
        return original(*arguments, **options) if calls else None

    monkeypatch.setattr(module, name, hooked)


def line(call: Callable[[], object], *expected: str) -> str:
    """The error of a call, one line which holds all that is expected."""
    with pytest.raises(SigrlError) as caught:
        call()
    text = str(caught.value)
    assert all(each in text for each in expected), text
    assert "\n" not in text
    return text


def short(*folders: Path | str) -> list[str]:
    return [checkpoint_version(str(folder))[:12] for folder in folders]


# ---- tag ----


@pytest.fixture
def tag_config(checkpoint: Path, images: Path, tmp_path: Path) -> TagConfig:
    return TagConfig(checkpoint=str(checkpoint.parent), images=str(images), out=str(tmp_path / "tags"), top_k=1)


def test_tag_stops_at_another_model_and_goes_on_with_the_planned_one(
    models: list[Path], checkpoint: Path, tag_config: TagConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = short(*models)
    with monkeypatch.context() as patch, partitions_here():
        at(patch, tag_module, "_connect", lambda: put(models[1], checkpoint), calls=False)
        text = line(lambda: tag(tag_config))
        assert text == (
            f"{checkpoint}: holds model {new}, the plan of {tag_config.out} has {old}; restore the planned model, "
            "or choose another --out"
        )
    assert list(Path(tag_config.out).glob("tags/*")) == []
    monkeypatch.setattr(tag_module, "_connect", lambda *_: None)
    with partitions_here():
        line(lambda: tag(tag_config), f"was started with model = {checkpoint_version(str(models[0]))}")
        put(models[0], checkpoint)
        manifest = tag(tag_config)
    assert manifest["model"] == checkpoint_version(str(models[0]))
    rows = [row for file in manifest["files"] for row in pq.read_table(f"{tag_config.out}/{file['name']}").to_pylist()]
    assert {row["model"] for row in rows} == {manifest["model"]}
    tagger = api.load(models[0])
    for row in tagged_rows(Path(tag_config.out)):
        assert tagger.tag(f"{tag_config.images}/{row['uri']}", top_k=1).labels == [row["tags"][0]["label"]]


def test_the_hash_in_the_plan_is_that_of_the_model_that_was_loaded(
    models: list[Path], checkpoint: Path, tag_config: TagConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replaced between the load and the plan: the driver has the old one, and so has the plan."""
    at(monkeypatch, tag_module, "Tagger", lambda: put(models[1], checkpoint))
    monkeypatch.setattr(tag_module, "_connect", lambda *_: None)
    _, _, plan = tag_module._open(tag_config, "cpu")
    assert plan["model"] == checkpoint_version(str(models[0]))


def test_a_dry_run_stops_too(
    models: list[Path], checkpoint: Path, tag_config: TagConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, tag_module, "list_keys", lambda: put(models[1], checkpoint))
    line(lambda: dry_run(tag_config), *short(*models))


def test_a_loaded_tagger_names_its_own_model(
    models: list[Path], checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    tagger = api.load(checkpoint)
    put(models[1], checkpoint)
    for call in (lambda: api.tag(tagger, images, out=tmp_path / "tags"), lambda: api.serve(tagger, port=1)):
        line(call, *short(*models), "the Tagger has", "load it again")
    assert not (tmp_path / "tags").exists()


def test_a_vocabulary_file_that_changes_after_the_plan_does_not_matter(
    tag_config: TagConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels travel to the workers by value."""
    labels = tmp_path / "labels.txt"
    labels.write_text("okapi\nred star\n")
    at(monkeypatch, tag_module, "_connect", lambda: labels.write_text("nothing\n"), calls=False)
    with partitions_here():
        manifest = tag(replace(tag_config, vocabulary=str(labels)))
    assert manifest["vocabulary"] == Vocabulary.from_names(["okapi", "red star"]).hash
    assert {row["tags"][0]["label"] for row in tagged_rows(Path(tag_config.out))} <= {"okapi", "red star"}


# ---- calibrate ----


def test_calibrate_writes_no_curves_of_one_model_into_another(
    models: list[Path], checkpoint: Path, toybox_shards: ShardFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CalibrateConfig(checkpoint=str(checkpoint), data=toybox_shards.uri, split="all")
    at(monkeypatch, calibrate_module, "fit_calibration", lambda: put(models[1], checkpoint))
    line(lambda: calibrate(config), *short(*models), "the model that was calibrated has")
    assert sorted(path.name for path in checkpoint.iterdir()) == sorted(path.name for path in models[1].iterdir())
    tagger = api.load(checkpoint)
    tagger.calibrate(toybox_shards.uri, split="all")
    assert tagger.checkpoint.sha256 == checkpoint_version(str(checkpoint))
    assert load_checkpoint(str(checkpoint), Pinned(tagger.checkpoint.sha256, "the test")).calibration is not None


# ---- cache_features ----


def test_cache_features_stops_at_another_backbone(
    models: list[Path], checkpoint: Path, toybox_shards: ShardFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "features"
    config = CacheFeaturesConfig(data=toybox_shards.uri, out=str(out), checkpoint=str(checkpoint))
    old, new = (load_checkpoint(str(model)).model.backbone.frozen_sha256()[:12] for model in models)
    with monkeypatch.context() as patch, partitions_here():
        at(patch, cache_features_module, "connect", lambda: put(models[1], checkpoint), calls=False)
        line(
            lambda: cache_features(config, Resources(num_workers=1)),
            f"{checkpoint}: holds frozen blocks {new}, the plan of {out} has {old}; restore the planned frozen blocks",
        )
    put(models[0], checkpoint)
    monkeypatch.setattr(cache_features_module, "connect", lambda: None)
    with partitions_here():
        assert cache_features(config, Resources(num_workers=1))["features"]["frozen_sha256"][:12] == old


# ---- train and search ----


@pytest.fixture
def data(toybox_shards: ShardFolder, tmp_path: Path) -> Path:
    return shutil.copytree(toybox_shards.uri, tmp_path / "data")


@pytest.fixture
def other_data(tmp_path: Path) -> Path:
    """Other shards with the same labels."""
    vocabulary = toybox.vocabulary()
    folder = write_shards(tmp_path / "other", vocabulary, random_states(70, len(vocabulary)), validation_fraction=0.25)
    return Path(folder.uri)


def run_config(**backbone: Any) -> RunConfig:
    preset = get_preset("quickstart")
    return replace(
        preset,
        backbone=replace(preset.backbone, **{"pretrained": "random", **backbone}),
        training=replace(preset.training, epochs=1, batch_size=16, max_steps=1),
    )


@pytest.mark.parametrize("validates", [False, True])
def test_training_stops_at_other_shards(
    data: Path, other_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validates: bool
) -> None:
    out, validation = tmp_path / "out", str(shutil.copytree(data, tmp_path / "validation")) if validates else None
    replaced = Path(validation or data)
    hashes = [ShardFolder.open(str(folder)).manifest["sha256"][:12] for folder in (other_data, replaced)]
    with monkeypatch.context() as patch, training_here():
        patch.setattr(train_module, "connect", lambda: None)
        at(patch, train_module, "_make_trainer", lambda: put(other_data, replaced))
        text = line(lambda: train(run_config(), str(data), str(out), validation=validation, resources=Resources()))
        assert text.startswith(f"{replaced}: holds shards {hashes[0]}, the plan of {out} has {hashes[1]}; restore")
    assert not (out / "checkpoint").exists()


def test_training_stops_at_other_weights_also_when_it_is_resumed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [tmp_path / "clip 0", tmp_path / "clip 1"]
    for seed, clip in enumerate(clips):
        torch.manual_seed(seed)
        save_clip(clip, load_backbone(BackboneConfig(name="toybox-vit", pretrained="random")))
    place, out, config = shutil.copytree(clips[0], tmp_path / "clip"), tmp_path / "out", run_config()
    config = run_config(pretrained=str(place))
    old, new = (load_backbone(replace(config.backbone, pretrained=str(clip))).weights_sha256()[:12] for clip in clips)

    def run() -> str:
        return train(config, str(data), str(out), resources=Resources())

    at(monkeypatch, train_module, "connect", lambda: put(clips[1], place), calls=False)
    with training_here():
        for _ in range(2):
            line(run, f"{place}: holds weights {new}, the plan of {out} has {old}; restore the planned weights")
        put(clips[0], place)
        assert run() == str(out / "checkpoint")
        shutil.rmtree(place)  # a finished training needs them no more
        assert run() == str(out / "checkpoint")


def test_training_reads_label_files_by_hash(data: Path, tmp_path: Path) -> None:
    names = toybox.vocabulary().names
    edges, embeddings = tmp_path / "edges.jsonl", tmp_path / "embeddings.npy"
    edges.write_text(f'{{"source": "{names[0]}", "target": "{names[1]}"}}\n')
    array = np.random.default_rng(0).normal(size=(len(names), 16)).astype(np.float32)
    np.save(embeddings, array)
    plan = {
        "label_edges_sha256": LabelEdges.load(str(edges), toybox.vocabulary()).hash,
        "label_embeddings_sha256": embeddings_sha256(array),
    }
    expected = pinned_inputs(plan, "runs/mine")
    config = run_config(label_embeddings=str(embeddings))
    config = replace(config, graph=replace(config.graph, kind="listed", edges=str(edges)))
    edges.write_text(f'{{"source": "{names[2]}", "target": "{names[1]}"}}\n')
    line(
        lambda: Trainer(config, str(data), expected=expected),
        "edges.jsonl: holds label edges",
        "the plan of runs/mine has",
    )
    config = replace(config, graph=replace(config.graph, edges=None, kind="nearest"))
    np.save(embeddings, -array)
    line(
        lambda: Trainer(config, str(data), expected=expected),
        f"embeddings.npy: holds label embeddings {embeddings_sha256(-array)[:12]}, the plan of runs/mine has",
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_trial_stops_at_other_shards(
    data: Path, other_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    out, planned = tmp_path / "search", ShardFolder.open(str(data)).manifest["sha256"]
    setup = TrialSetup(
        out=str(out),
        data=str(data),
        validation=None,
        held_out=[],
        objective="map",
        resources=Resources(num_workers=workers),
        expected=pinned_inputs({"data_sha256": planned}, str(out)),
    )
    monkeypatch.setattr(tune_trial, "TuneReportCallback", UserCallback)  # Ray Tune's needs a running search
    monkeypatch.setattr(train_module, "connect", lambda: None)
    put(other_data, data)
    with training_here():
        run_trial(setup, {"trial": Trial(number=0, parameters={}, config=run_config()).to_record()})
    failure = read_failure(str(out / "trials" / "00000"), is_lost=False)
    assert failure is not None
    assert failure.stops_search
    found = ShardFolder.open(str(data)).manifest["sha256"]
    assert f"{data}: holds shards {found[:12]}, the plan of {out} has {planned[:12]}" in failure.reason


# ---- serve ----


def serve_config(checkpoint: Path, tmp_path: Path) -> ServeConfig:
    return ServeConfig(checkpoint=str(checkpoint), vocabularies=str(tmp_path / "vocabularies"))


def test_answers_name_the_model_that_was_loaded(
    models: list[Path], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toybox_shards: ShardFolder
) -> None:
    """Replaced between a replica's look at the version and its load: it serves, and names, the new one."""
    from sigrl_core.serving import service as service_module

    def version_then_replace(uri: str) -> str:
        version = checkpoint_version(uri)
        put(models[1], checkpoint)
        return version

    with monkeypatch.context() as patch:
        patch.setattr(service_module, "checkpoint_version", version_then_replace)
        service = Service(serve_config(checkpoint, tmp_path))
    assert service.model(None).version == checkpoint_version(str(models[1]))
    jpeg = toybox_shards.read_shard(0)["image"][0].as_py()
    query = service.create_query(TagOptions())
    ((answer,),) = service.tag([replace(query, images=[service.decode(jpeg, query.model)])])
    assert [tag.label for tag in answer.tags] == api.load(models[1]).tag(jpeg).labels
    put(models[0], checkpoint)
    assert service.refresh() == ["default"]
    assert service.model(None).version == checkpoint_version(str(models[0]))


def test_a_replica_never_serves_a_mixture_of_two_models(
    models: list[Path], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replaced while a replica reads: a new replica stops, and names both; a running one keeps what it has."""
    config, read = serve_config(checkpoint, tmp_path), storage.read_bytes
    running = Service(config)
    weights = [sha256_of((model / "weights.safetensors").read_bytes())[:12] for model in models]

    def read_then_replace(uri: str, *arguments: Any) -> bytes:
        data = read(uri, *arguments)
        if uri == f"{checkpoint}/manifest.json":
            put(models[1 if sha256_of(data) == checkpoint_version(str(models[0])) else 0], checkpoint)
        return data

    with monkeypatch.context() as patch:
        patch.setattr(
            "sigrl_core.model.checkpoint.checkpoint_version", lambda uri: sha256_of(read(f"{uri}/manifest.json"))
        )
        patch.setattr(storage, "read_bytes", read_then_replace)
        line(lambda: Service(config), f"{checkpoint}/weights.safetensors: sha256 is", *weights, "copy the folder again")
        assert running.refresh() == []
    assert running.model(None).version == checkpoint_version(str(models[0]))


# ---- cost ----


def test_each_file_is_read_once(models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash is that of the bytes that are loaded, so checking it reads nothing more."""
    total, read = [0], storage.read_bytes

    def counting(uri: str, *arguments: Any) -> bytes:
        data = read(uri, *arguments)
        total[0] += len(data)
        return data

    monkeypatch.setattr(storage, "read_bytes", counting)
    before = psutil.Process().io_counters().read_chars
    loaded = load_checkpoint(str(models[0]), Pinned(checkpoint_version(str(models[0])), "the test"))
    size = sum(path.stat().st_size for path in models[0].iterdir())
    manifest = (models[0] / "manifest.json").stat().st_size
    assert total[0] == size + manifest  # the test itself reads the manifest
    assert psutil.Process().io_counters().read_chars - before < 1.1 * size
    assert loaded.sha256 == checkpoint_version(str(models[0]))
    with pytest.raises(CheckpointError, match=r"holds model .{12}, the test has 000000000000"):
        load_checkpoint(str(models[0]), Pinned("0" * 64, "the test"))
    assert total[0] < 1.1 * size  # a wrong hash is found before the weights are read
