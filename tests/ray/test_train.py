"""Training under Ray Train on a real local Ray: the same curve whoever works, whatever is killed."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sigrl_core.config import Resources, RunConfig
from sigrl_core.config.deprecated import FIELDS
from sigrl_core.config.presets import get_preset
from sigrl_core.data.dataset import ShardDataset, num_steps
from sigrl_core.data.shards import ShardFolder
from sigrl_core.demo import toybox
from sigrl_core.errors import ConfigError, ShardError
from sigrl_core.inference.tagger import Tagger
from sigrl_core.model.backbone import load_backbone
from sigrl_core.model.checkpoint import checkpoint_version, save_clip
from sigrl_core.on_ray.train import train
from tests.in_process import training_here
from tests.ray.conftest import compared, epochs_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

PIPELINE = Path(__file__).parents[2] / "pipelines" / "train.py"
TOLERANCE = 1e-5
"""Of losses, relative: workers change the order of sums and nothing else."""


def run_config(**training) -> RunConfig:
    """The quickstart's run on random weights, without graph dropout (which draws other masks on every worker)."""
    preset = get_preset("quickstart")
    return dataclasses.replace(
        preset,
        graph=dataclasses.replace(preset.graph, dropout=0.0),
        training=dataclasses.replace(preset.training, **training),
    )


@pytest.fixture(scope="module")
def augmented(shards: Path) -> RunConfig:
    """Three epochs on augmented images, in batches whose last one is a single row: one of two workers has none."""
    folder = ShardFolder.open(str(shards))
    rows = len(ShardDataset(folder, "train", folder.vocabulary.positions("seen")))
    batch_size = next(size for size in range(8, rows) if rows % size == 1)
    return run_config(epochs=3, batch_size=batch_size, augment="randaugment", cache_features_in_memory=False)


@pytest.fixture(scope="module")
def trained(shards: Path, augmented: RunConfig, tmp_path_factory) -> dict[int, Path]:
    """Number of workers -> the folder they trained in. The one alone is in the process of the tests."""
    outs = {workers: tmp_path_factory.mktemp("trained") / f"{workers}" for workers in (1, 2)}
    for workers, out in outs.items():
        with training_here() if workers == 1 else contextlib.nullcontext():
            result = train(augmented, str(shards), str(out), resources=Resources(num_workers=workers))
        assert result == str(out / "checkpoint")
    return outs


def fingerprint(folder: Path) -> dict[str, tuple[str, int]]:
    """sha256 and time of change of every file in a folder."""
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---- whole runs ----


def test_the_number_of_workers_changes_no_loss(trained: dict[int, Path]) -> None:
    one, two = epochs_of(trained[1]), epochs_of(trained[2])
    assert [row["epoch"] for row in one] == [row["epoch"] for row in two] == [1, 2, 3]
    for alone, together in zip(one, two, strict=True):
        measured = sorted(compared(alone))
        assert measured == [
            *("epoch", "selection", "train/distillation", "train/gradient_norm"),
            *("train/loss", "train/ranking", "validation/map"),
        ]
        assert {key: alone[key] for key in measured} == pytest.approx(
            {key: together[key] for key in measured}, rel=TOLERANCE
        )
    assert len({row["train/loss"] for row in one}) == 3  # it moves: equal curves are no equal constants


def test_processes_that_decode_change_nothing(
    shards: Path, augmented: RunConfig, trained: dict[int, Path], tmp_path: Path
) -> None:
    folder = ShardFolder.open(str(shards))
    rows = len(ShardDataset(folder, "train", folder.vocabulary.positions("seen")))
    steps = num_steps(rows, augmented.training.batch_size)
    config = dataclasses.replace(augmented, training=dataclasses.replace(augmented.training, max_steps=steps))
    train(config, str(shards), str(tmp_path / "run"), resources=Resources(num_workers=1, cpus_per_worker=3))
    (found,) = epochs_of(tmp_path / "run")
    assert compared(found) == compared(epochs_of(trained[1])[0])


def test_the_checkpoint_is_the_best_epoch_and_tags(trained: dict[int, Path], corpus: Path) -> None:
    tagger = Tagger.load(str(trained[2]))
    history = tagger.checkpoint.metrics["history"]
    best = max(epochs_of(trained[2]), key=lambda row: row["validation/map"])
    assert tagger.checkpoint.metrics["selected"] == best
    assert history == epochs_of(trained[2])[: len(history)]
    assert tagger.vocabulary == toybox.vocabulary()
    (tags,) = tagger.tag([(corpus / "pictures" / "labelled_00000.jpg").read_bytes()], top_k=3)
    assert not tags.error
    assert len(tags.labels) == len(tags.scores) == 3
    assert tags.scores == sorted(tags.scores, reverse=True)
    assert set(tags.labels) <= set(tagger.vocabulary.names)


def test_tensorboard_holds_the_losses(trained: dict[int, Path], augmented: RunConfig, shards: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained[2] / "tensorboard"))
    events.Reload()
    rows = len(ShardDataset(folder := ShardFolder.open(str(shards)), "train", folder.vocabulary.positions("seen")))
    steps = -(-rows // augmented.training.batch_size)
    assert [event.step for event in events.Scalars("step/loss")] == list(range(1, 3 * steps + 1))
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(
        [row["train/loss"] for row in epochs_of(trained[2])], rel=1e-6
    )
    images = events.Tags()["images"]
    assert len(images) == 4
    for tag in images:
        assert [event.step for event in events.Images(tag)] == [1, 2, 3]
        assert (events.Images(tag)[0].width, events.Images(tag)[0].height) == (2 * 48, 48)
    assert {"step/lr", "step/ranking", "step/data_wait_s", "validation/map"} <= set(events.Tags()["scalars"])


def test_the_second_run_finds_it_done(
    trained: dict[int, Path], augmented: RunConfig, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, begun = fingerprint(trained[2]), list[object]()
    for name in ("load_backbone", "_Trainer"):  # it loads no model and starts no worker
        monkeypatch.setattr(f"sigrl_core.on_ray.train.{name}", lambda *_, **__: begun.append(_))
    result = train(augmented, str(shards), str(trained[2]), resources=Resources())  # resources are no part of a run
    assert begun == []
    assert result == str(trained[2] / "checkpoint")
    assert fingerprint(trained[2]) == before


def test_a_folder_of_version_0_1_0_is_continued(
    trained: dict[int, Path], augmented: RunConfig, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(trained[2], out)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["checkpoint_sha256"] == checkpoint_version(str(out))
    (out / "manifest.json").unlink()
    plan = json.loads((out / "plan.json").read_text())
    (out / "plan.json").unlink()
    del plan["kind"]
    for new, old in {new: old for old, new in FIELDS["RunConfig"].items()}.items():
        section, name = new.split(".")
        plan["config"][section][old.split(".")[1]] = plan["config"][section].pop(name)
    assert "hold_features" in plan["config"]["training"]
    (out / "run.json").write_text(json.dumps(plan))
    assert train(augmented, str(shards), str(out)) == str(out / "checkpoint")
    assert json.loads((out / "manifest.json").read_text()) == manifest
    slower = dataclasses.replace(augmented, optim=dataclasses.replace(augmented.optim, head_lr_scale=0.5))
    with pytest.raises(ConfigError, match=r"holds a training with another config\.optim\.head_lr_scale"):
        train(slower, str(shards), str(out))


def test_another_run_in_the_same_folder_is_refused(trained, augmented: RunConfig, shards: Path, tmp_path: Path) -> None:
    before = fingerprint(trained[2])
    shutil.copytree(shards, tmp_path / "moved")
    slower = dataclasses.replace(augmented, optim=dataclasses.replace(augmented.optim, lr=1e-4))
    for key, config, data, validation in (
        ("config.optim.lr", slower, shards, None),
        ("data", augmented, tmp_path / "moved", None),
        ("validation", augmented, shards, str(tmp_path / "moved")),
    ):
        with pytest.raises(ConfigError, match=rf"holds a training with another {key}; choose another --out or delete"):
            train(config, str(data), str(trained[2]), validation=validation)
    with pytest.raises(ConfigError, match="holds files of something else"):
        train(augmented, str(shards), str(shards))
    assert fingerprint(trained[2]) == before


def test_files_are_found_by_workers_and_those_of_labels_kept(shards: Path, tmp_path: Path, monkeypatch) -> None:
    """Named from this process' folder, read on two workers, needed no more by the checkpoint; altered ones are another
    run."""
    monkeypatch.chdir(tmp_path)
    edges = [
        {"source": "grass", "target": "red circle"},
        {"source": "red circle", "target": "grass", "weight": 0.5},
    ]
    Path("edges.json").write_text(json.dumps(edges))
    np.save("own.npy", np.random.default_rng(0).normal(size=(66, 24)))
    config = run_config(epochs=1, batch_size=16)
    save_clip("clip", load_backbone(config.backbone))
    config = dataclasses.replace(
        config,
        graph=dataclasses.replace(config.graph, kind="listed", edges="edges.json"),
        backbone=dataclasses.replace(config.backbone, pretrained="clip", label_embeddings="own.npy"),
    )
    checkpoint = train(config, str(shards), "out", resources=Resources(num_workers=2))
    assert Tagger.load(checkpoint).checkpoint.config.backbone.pretrained == str(tmp_path / "clip")
    np.save("own.npy", np.ones((66, 24)))
    with pytest.raises(ConfigError, match="another label_embeddings_sha256"):
        train(config, str(shards), "out", resources=Resources(num_workers=2))
    Path("own.npy").unlink()
    Path("edges.json").unlink()
    tagger = Tagger.load(checkpoint)
    assert tagger.model.edges is not None
    assert tagger.model.edges.weights == {("grass", "red circle"): 1.0, ("red circle", "grass"): 0.5}
    assert tagger.model.project.weight.shape == (128, 24)


# ---- errors ----


def test_what_is_wrong_before_the_first_step(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "altered")
    victim = tmp_path / "altered" / "shards" / "00001.parquet"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    unknown = dataclasses.replace(run_config(), loss=dataclasses.replace(run_config().loss, kind="cosine"))
    for kind, message, config, data in (
        (ShardError, r"altered/shards/00001.parquet: sha256 is .*; run preprocess.py again", run_config(), "altered"),
        (ConfigError, r"loss.kind is 'cosine'; expected one of ranking", unknown, shards),
    ):
        with pytest.raises(kind, match=message):
            train(config, str(tmp_path / data), str(tmp_path / "out"))
        assert not (tmp_path / "out" / "checkpoint").exists()
