"""Features of a frozen backbone: those that it gives, once each, and as good as images to all that follows."""

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sigrl_core.config import (
    BackboneConfig,
    CacheFeaturesConfig,
    CalibrateConfig,
    EvaluateConfig,
    OptimConfig,
    Resources,
    RunConfig,
    TrainingConfig,
)
from sigrl_core.data.dataset import ShardDataset, read_batch
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import CheckpointError, ConfigError, ShardError, StorageError
from sigrl_core.evaluation.calibrate import calibrate
from sigrl_core.model.backbone import load_backbone
from sigrl_core.model.checkpoint import save_clip
from sigrl_core.on_ray import cache_features as module
from sigrl_core.on_ray.cache_features import cache_features
from sigrl_core.on_ray.train import train
from sigrl_core.report.evaluation import evaluate_to_report
from sigrl_core.training.state import Metrics, TrainingState
from sigrl_core.training.trainer import Trainer
from tests.conftest import fingerprint, without_clock
from tests.in_process import partitions_here
from tests.processes import joined_to_ray

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

PIPELINE = Path(__file__).parents[2] / "pipelines" / "cache_features.py"
SIXTEEN_BITS = 2e-3
"""Relative: a 16-bit float has eleven bits of its own, and rounding of tokens grows little on the way to a loss."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[BackboneConfig]:
    """Two small CLIPs of different weights, in folders."""
    configs = []
    for seed in range(2):
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp("clip") / "clip"
        save_clip(folder, load_backbone(BackboneConfig(name="toybox-vit", pretrained="random")))
        configs.append(BackboneConfig(name="toybox-vit", pretrained=str(folder), frozen_blocks=2))
    return configs


@pytest.fixture(scope="module")
def cached(toybox_shards: ShardFolder, clips: list[BackboneConfig], tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("cached") / "features")
    cache_features(CacheFeaturesConfig(data=toybox_shards.uri, out=out, backbone=clips[0]), Resources(num_workers=2))
    return out


def run_config(backbone: BackboneConfig, **training) -> RunConfig:
    return RunConfig(
        backbone=backbone,
        optim=OptimConfig(lr=1e-3, warmup_epochs=0.0),
        training=TrainingConfig(epochs=2, batch_size=8, **{"augment": "none", **training}),
    )


def trained_on(data: str, config: RunConfig, out: Path) -> list[Metrics]:
    told: list[Metrics] = []
    experiment = Trainer(config, data)

    def report(metrics: Metrics | None, state: TrainingState) -> None:
        assert metrics is not None
        told.append(metrics)

    experiment.fit(report)
    out.mkdir()
    experiment.save(out, {"selected": told[-1], "history": told})
    return told


def test_features_are_what_the_frozen_blocks_give(
    toybox_shards: ShardFolder, clips: list[BackboneConfig], cached: str
) -> None:
    folder, backbone = ShardFolder.open(cached), load_backbone(clips[0])
    folder.verify()
    assert folder.kind == "features"
    assert folder.vocabulary == toybox_shards.vocabulary
    for key in ("split", "label_counts"):
        assert folder.manifest[key] == toybox_shards.manifest[key]
    for part in ("all", "train", "validation"):
        rows, images = ShardDataset(folder, part), ShardDataset(toybox_shards, part)
        numbers = np.flip(np.arange(len(rows))).copy()
        found, expected = read_batch(rows, numbers, 48), read_batch(images, numbers, 48)
        assert found.uris == expected.uris
        assert torch.equal(found.states_BC, expected.states_BC)
        assert found.pixels_BHWC is None
        assert found.tokens_BNW is not None
        assert found.tokens_BNW.dtype == torch.float16
        tokens_BNW = backbone.forward_frozen(expected.pixels_BHWC)
        torch.testing.assert_close(found.tokens_BNW.float(), tokens_BNW, rtol=SIXTEEN_BITS, atol=1e-3)


@pytest.mark.parametrize("hold", [False, True])
def test_training_and_measuring_are_as_on_images(
    toybox_shards: ShardFolder, clips: list[BackboneConfig], cached: str, tmp_path: Path, hold: bool
) -> None:
    config = run_config(clips[0], cache_features_in_memory=hold)
    images = trained_on(toybox_shards.uri, config, tmp_path / "pictures")
    features = trained_on(cached, config, tmp_path / "features")
    for found, expected in zip(features, images, strict=True):
        assert without_clock(found) == pytest.approx(without_clock(expected), rel=10 * SIXTEEN_BITS)
    if hold:
        return
    for folder in ("pictures", "features"):
        calibrate(CalibrateConfig(checkpoint=str(tmp_path / folder), data=cached, split="all"))
    rows = {}
    for data in (toybox_shards.uri, cached):
        config = EvaluateConfig(checkpoint=str(tmp_path / "pictures"), data=data, out=str(tmp_path / "measured"))
        rows[data] = evaluate_to_report(config)["rows"]
        assert (tmp_path / "measured" / "report.html").read_text().count("<img") >= 24
    for found, expected in zip(rows[cached], rows[toybox_shards.uri], strict=True):
        assert found["gzsl"] == pytest.approx(expected["gzsl"], abs=0.02), expected["name"]


def test_without_the_images_the_report_says_so(
    toybox_shards: ShardFolder, clips: list[BackboneConfig], cached: str, tmp_path: Path, monkeypatch
) -> None:
    trained_on(cached, run_config(clips[0], max_steps=1), tmp_path / "run")
    monkeypatch.setattr(ShardFolder, "image_folder", lambda self: None)
    evaluate_to_report(EvaluateConfig(checkpoint=str(tmp_path / "run"), data=cached, out=str(tmp_path / "measured")))
    page = (tmp_path / "measured" / "report.html").read_text()
    assert page.count("The features that were evaluated have no images beside them any more.") == 2


def test_small_parts_killed_half_way_end_in_the_same_bytes(
    toybox_shards: ShardFolder, clips: list[BackboneConfig], cached: str, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "killed"
    flags = ["--data", toybox_shards.uri, "--out", str(out), "--backbone.pretrained", clips[0].pretrained]
    flags += ["--backbone.name", "toybox-vit", "--backbone.frozen-blocks", "2", "--num-workers", "1"]
    process = subprocess.Popen(
        [sys.executable, PIPELINE, *flags], env=joined_to_ray(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 240
    while not list(out.glob("parts/*.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with pytest.raises(ShardError, match=r"cache_features\.py has not finished here"):
        ShardFolder.open(str(out))
    config = CacheFeaturesConfig(data=toybox_shards.uri, out=str(out), backbone=clips[0])
    with partitions_here():
        manifest = cache_features(config)
        assert fingerprint(out) == fingerprint(Path(cached))  # which two workers made
        assert cache_features(config) == manifest
        shape = manifest["features"]
        monkeypatch.setattr(module, "PARTITION_BYTES", 5 * 2 * shape["tokens"] * shape["width"])
        many = cache_features(dataclasses.replace(config, out=str(tmp_path / "many")))
    assert [shard["rows"] for shard in many["shards"]] == [5, 2] * 5 + [5]
    few = read_batch(ShardDataset(ShardFolder.open(str(out))), np.arange(40), 48)
    found = read_batch(ShardDataset(ShardFolder.open(str(tmp_path / "many"))), np.arange(40), 48)
    assert found.uris == few.uris
    assert found.tokens_BNW is not None
    torch.testing.assert_close(found.tokens_BNW, few.tokens_BNW, rtol=SIXTEEN_BITS, atol=1e-3)


def test_what_does_not_fit_is_refused_before_anything_is_written(
    toybox_shards: ShardFolder, clips: list[BackboneConfig], cached: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ShardError, match="holds features already"):
        cache_features(CacheFeaturesConfig(data=cached, out=str(out), backbone=clips[0]))
    with pytest.raises(CheckpointError, match="no such folder"):
        cache_features(CacheFeaturesConfig(data=toybox_shards.uri, out=str(out), checkpoint=str(tmp_path / "none")))
    with pytest.raises(StorageError, match="was started with frozen_sha256"):
        cache_features(CacheFeaturesConfig(data=toybox_shards.uri, out=cached, backbone=clips[1]))
    with pytest.raises(ConfigError, match=r"features, which cannot be augmented; add --training\.augment none"):
        train(run_config(clips[0], augment="crop_flip"), cached, str(out), resources=Resources())
    for other in (clips[1], dataclasses.replace(clips[0], frozen_blocks=1)):
        with pytest.raises(ShardError, match=r"features after 2 frozen blocks of toybox-vit .* other frozen weights"):
            train(run_config(other), cached, str(out), resources=Resources())
    assert not out.exists()
    trained_on(toybox_shards.uri, run_config(clips[1], max_steps=1), tmp_path / "other")
    with pytest.raises(ShardError, match=f"but {tmp_path}/other/checkpoint has other frozen weights"):
        evaluate_to_report(EvaluateConfig(checkpoint=str(tmp_path / "other"), data=cached, out=str(out)))
