"""A disk that is full in any stage: one line names it, no later stage accepts what is there, the command goes on.

The first full disk of preprocessing is in test_preprocess.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sigrl_core import errors
from sigrl_core.config import CacheFeaturesConfig, CalibrateConfig, EvaluateConfig, Resources, TagConfig
from sigrl_core.config.presets import get_preset
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import CheckpointError, ShardError, SigrlError
from sigrl_core.evaluation.calibrate import calibrate
from sigrl_core.model.checkpoint import load_checkpoint
from sigrl_core.on_ray.cache_features import cache_features
from sigrl_core.on_ray.tag import tag
from sigrl_core.on_ray.train import train
from sigrl_core.report.evaluation import evaluate_to_report
from tests.conftest import untrained_checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("in_process")]

STEP = "disk full; free some space and run the same command again"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")


class Disk:
    """A file system in memory, at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def mount(self, size: str) -> None:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(self.path)]
        if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk needs root")

    def grow(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", self.path], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", self.path], capture_output=True, check=False)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk")
    yield disk
    disk.unmount()


def line(call: Callable[[], object], disk: Disk) -> str:
    """What a command would print, one line that names the disk."""
    with pytest.raises((SigrlError, OSError)) as caught:
        call()
    text = errors.explain(caught.value)
    assert text is not None, caught.value
    assert str(disk.path) in text, text
    assert "\n" not in text
    return text


def test_cache_features(checkpoint: Path, toybox_shards: ShardFolder, disk: Disk) -> None:
    disk.mount("64k")
    out = str(disk.path / "features")
    config = CacheFeaturesConfig(data=toybox_shards.uri, out=out, checkpoint=str(checkpoint))
    assert STEP in line(lambda: cache_features(config, Resources(num_workers=1)), disk)
    with pytest.raises(ShardError, match=r"cache_features\.py has not finished here"):
        ShardFolder.open(out)
    disk.grow("64m")
    assert cache_features(config, Resources(num_workers=1))["rows_out"] == 40
    ShardFolder.open(out).verify()


def test_train(toybox_shards: ShardFolder, disk: Disk) -> None:
    disk.mount("12m")
    preset, out = get_preset("quickstart"), str(disk.path / "run")
    config = replace(
        preset,
        backbone=replace(preset.backbone, pretrained="random"),
        training=replace(preset.training, epochs=1, batch_size=16),
    )

    def run() -> str:
        return train(config, toybox_shards.uri, out, resources=Resources(num_workers=1))

    assert STEP in line(run, disk)
    with pytest.raises(CheckpointError, match="has not finished an epoch"):
        load_checkpoint(out)
    disk.grow("400m")
    assert load_checkpoint(run()).vocabulary == toybox_shards.vocabulary


def test_calibrate(checkpoint: Path, toybox_shards: ShardFolder, disk: Disk) -> None:
    disk.mount("64m")
    copy = shutil.copytree(checkpoint, disk.path / "checkpoint")
    config = CalibrateConfig(checkpoint=str(copy), data=toybox_shards.uri, split="all")
    with contextlib.suppress(OSError), open(disk.path / "filler", "wb", buffering=0) as filler:
        while True:  # until there is no space left
            filler.write(bytes(4096))
    assert STEP in line(lambda: calibrate(config), disk)
    assert load_checkpoint(str(copy)).calibration is None
    os.remove(disk.path / "filler")
    calibrate(config)
    assert load_checkpoint(str(copy)).calibration is not None


def test_evaluate(checkpoint: Path, toybox_shards: ShardFolder, disk: Disk) -> None:
    disk.mount("16k")
    out = disk.path / "evaluation"
    config = EvaluateConfig(checkpoint=str(checkpoint), data=toybox_shards.uri, out=str(out))
    assert STEP in line(lambda: evaluate_to_report(config), disk)
    assert not (out / "metrics.json").exists()
    disk.grow("16m")
    assert evaluate_to_report(config)["images"] == 40
    assert (out / "metrics.json").exists()


def test_tag(checkpoint: Path, images: Path, disk: Disk) -> None:
    disk.mount("32k")
    out = disk.path / "tags"
    config = TagConfig(checkpoint=str(checkpoint), images=str(images), out=str(out), rows_per_shard=2)
    assert STEP in line(lambda: tag(config), disk)
    assert not (out / "_SUCCESS").exists()
    assert not (out / "manifest.json").exists()
    disk.grow("16m")
    assert tag(config)["tagged"] == 12
    assert (out / "_SUCCESS").exists()
