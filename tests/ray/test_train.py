"""Training under Ray Train on a real local Ray: the same curve whoever works, whatever is killed."""

import dataclasses
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.cluster_utils import Cluster
from safetensors.torch import load

from sigrl_core.batches import Rows, num_steps
from sigrl_core.config import PreprocessConfig, RunConfig, ScaleConfig
from sigrl_core.demo import toybox
from sigrl_core.demo.corpus import write_corpus
from sigrl_core.errors import CheckpointError, ConfigError, ShardError
from sigrl_core.on_ray.ingest import preprocess
from sigrl_core.on_ray.train import train
from sigrl_core.presets import get_preset
from sigrl_core.records import ShardFolder
from sigrl_core.tagger import Tagger
from tests.conftest import without_clock

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

PIPELINE = Path(__file__).parents[2] / "pipelines" / "train.py"
TOLERANCE = 1e-5
"""Of losses, relative: workers change the order of sums and nothing else."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """60 small drawn scenes with the seen labels of each."""
    folder = tmp_path_factory.mktemp("toybox")
    write_corpus("labelled", 60, folder, lambda part, count: toybox.pictures(part, range(count), size=48, seed=0))
    return folder


@pytest.fixture(scope="module")
def shards(corpus: Path, ray_cluster) -> Path:
    preprocess(
        PreprocessConfig(
            corpus="jsonl",
            images=str(corpus / "pictures"),
            annotations=str(corpus / "labels.jsonl"),
            vocabulary=str(corpus / "vocabulary.json"),
            out=str(corpus / "shards"),
            short_side=48,
            rows_per_shard=25,
            annotated="seen",
        )
    )
    return corpus / "shards"


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
    """Three epochs on augmented pictures, in batches whose last one is a single row: one of two workers has none."""
    folder = ShardFolder.open(str(shards))
    rows = len(Rows(folder, "train", folder.vocabulary.positions("seen")))
    batch_size = next(size for size in range(8, rows) if rows % size == 1)
    return run_config(epochs=3, batch_size=batch_size, augment="randaugment", hold_features=False)


@pytest.fixture(scope="module")
def trained(shards: Path, augmented: RunConfig, tmp_path_factory) -> dict[int, Path]:
    """Number of workers -> the folder they trained in."""
    outs = {workers: tmp_path_factory.mktemp("trained") / f"{workers}" for workers in (1, 2)}
    for workers, out in outs.items():
        result = train(augmented, ScaleConfig(workers=workers), str(shards), None, str(out))
        assert result == str(out / "checkpoint")
    return outs


def epochs_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


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
    rows = len(Rows(folder, "train", folder.vocabulary.positions("seen")))
    steps = num_steps(rows, augmented.training.batch_size)
    config = dataclasses.replace(augmented, training=dataclasses.replace(augmented.training, max_steps=steps))
    train(config, ScaleConfig(workers=1, cpus_per_worker=3), str(shards), None, str(tmp_path / "run"))
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
    rows = len(Rows(folder := ShardFolder.open(str(shards)), "train", folder.vocabulary.positions("seen")))
    steps = -(-rows // augmented.training.batch_size)
    assert [event.step for event in events.Scalars("step/loss")] == list(range(1, 3 * steps + 1))
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(
        [row["train/loss"] for row in epochs_of(trained[2])], rel=1e-6
    )
    assert {"step/lr", "step/ranking", "step/data_wait_s", "validation/map"} <= set(events.Tags()["scalars"])


def test_the_second_run_finds_it_done(trained: dict[int, Path], augmented: RunConfig, shards: Path) -> None:
    before = fingerprint(trained[2])
    started = time.monotonic()
    result = train(augmented, ScaleConfig(workers=1), str(shards), None, str(trained[2]))  # scale is no part of a run
    assert time.monotonic() - started < 1
    assert result == str(trained[2] / "checkpoint")
    assert fingerprint(trained[2]) == before


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
            train(config, ScaleConfig(), str(data), validation, str(trained[2]))
    with pytest.raises(ConfigError, match="holds files of something else"):
        train(augmented, ScaleConfig(), str(shards), None, str(shards))
    assert fingerprint(trained[2]) == before


def test_files_of_labels_are_found_by_workers_and_kept(shards: Path, tmp_path: Path, monkeypatch) -> None:
    """Named from this process' folder, read on two workers, needed no more by the checkpoint; altered ones are another
    run."""
    monkeypatch.chdir(tmp_path)
    edges = [{"label": "red circle", "hears": "grass"}, {"label": "grass", "hears": "red circle", "weight": 0.5}]
    Path("edges.json").write_text(json.dumps(edges))
    np.save("own.npy", np.random.default_rng(0).normal(size=(66, 24)))
    config = run_config(epochs=1, batch_size=16)
    config = dataclasses.replace(
        config,
        graph=dataclasses.replace(config.graph, kind="listed", edges="edges.json"),
        backbone=dataclasses.replace(config.backbone, label_embeddings="own.npy"),
    )
    checkpoint = train(config, ScaleConfig(workers=2), str(shards), None, "out")
    np.save("own.npy", np.ones((66, 24)))
    with pytest.raises(ConfigError, match="another label_embeddings_sha256"):
        train(config, ScaleConfig(workers=2), str(shards), None, "out")
    Path("own.npy").unlink()
    Path("edges.json").unlink()
    tagger = Tagger.load(checkpoint)
    assert tagger.recogniser.edges is not None
    assert tagger.recogniser.edges.weights == {("red circle", "grass"): 1.0, ("grass", "red circle"): 0.5}
    assert tagger.recogniser.project.weight.shape == (128, 24)


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
            train(config, ScaleConfig(), str(tmp_path / data), None, str(tmp_path / "out"))
        assert not (tmp_path / "out" / "checkpoint").exists()


# ---- processes that die ----


@pytest.fixture
def start():
    """`start_training`, and nothing of it is left when the test has failed."""
    started: list[subprocess.Popen] = []

    def start_and_note(*arguments: object, address: str | None = None) -> subprocess.Popen:
        started.append(start_training(*arguments, address=address))
        return started[-1]

    yield start_and_note
    for process in started:
        process.kill()
        process.wait()


def start_training(out: Path, shards: Path, log: Path, *flags: object, address: str | None = None) -> subprocess.Popen:
    """train.py as a user calls it, on a private Ray or the one of that address, with quick health checks; what it says
    goes to `log`."""
    settings = ["--backbone.pretrained", "random", "--graph.dropout", "0", "--training.batch-size", "8"]
    full = [sys.executable, PIPELINE, "quickstart", "--data", shards, "--out", out, *settings, *flags]
    environment = {**os.environ, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
    environment.pop("RAY_ADDRESS", None)
    environment |= {"RAY_ADDRESS": address} if address else {}
    with log.open("w") as file:
        return subprocess.Popen([*map(str, full)], stdout=file, stderr=subprocess.STDOUT, env=environment)


def wait_for(what: Callable[[], object], process: subprocess.Popen, log: Path, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, log.read_text()
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)


def latest_saved(out: Path) -> dict | None:
    """The last checkpoint that Ray Train has noted, so that a run could go on from it; None before the first."""
    noted = out / "state" / "checkpoint_manager_snapshot.json"
    return json.loads(noted.read_text())["latest_checkpoint_result"] if noted.exists() else None


def saved_epoch(out: Path) -> int:
    latest = latest_saved(out)
    return latest["metrics"]["epoch"] if latest else 0


def saved_step(out: Path) -> int:
    latest = latest_saved(out)
    return int(latest["checkpoint_dir_name"].removeprefix("step_")) if latest else 0


def family(pid: int) -> dict[int, str]:
    """Processes below one, and itself: pid -> command."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it has just ended
                continue
            if status[0] != "Z":
                parents[int(entry.name)] = (int(status[1]), command)
    found = {pid}
    while more := {child for child, (parent, _) in parents.items() if parent in found} - found:
        found |= more
    return {member: parents[member][1] for member in found if member in parents}


def assert_gone(processes: dict[int, str], seconds: float = 60) -> None:
    """Ray's agents look after their raylet now and then, and end some seconds after it."""
    deadline = time.monotonic() + seconds
    while alive := {pid: name[:80] for pid, name in processes.items() if family(pid).get(pid) == name}:
        assert time.monotonic() < deadline, alive
        time.sleep(0.2)


def test_a_killed_run_goes_on_and_a_killed_worker_is_replaced(shards: Path, tmp_path: Path, start) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    command = (out, shards, log, "--training.epochs", 20, "--scale.workers", 2)
    killed = start(*command)
    wait_for(lambda: saved_epoch(out), killed, log)
    orphans = family(killed.pid)
    assert any("raylet" in name for name in orphans.values())
    killed.kill()
    killed.wait()
    assert_gone({pid: name for pid, name in orphans.items() if "ray::RayTrainWorker" in name})
    before = (out / "metrics.jsonl").read_text().splitlines()
    assert len(before) < 20
    with pytest.raises(CheckpointError, match="has not finished"):
        Tagger.load(str(out))

    again = start(*command)
    wait_for(lambda: len(epochs_of(out)) > len(before) + 1, again, log)
    processes = family(again.pid)
    workers = [pid for pid, name in processes.items() if "ray::RayTrainWorker" in name]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    assert again.wait(120) == 0, log.read_text()
    after = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in after] == list(range(1, 21))
    assert after[0] == before[0]  # seconds and all: the first epoch was never trained again
    text = log.read_text()
    assert text.splitlines()[-1] == f"checkpoint: {out}/checkpoint"
    assert "Traceback" not in text
    assert Tagger.load(str(out)).checkpoint.metrics["selected"] in map(json.loads, after)
    assert_gone(orphans | processes)


IN_STEPS = ("--training.batch-size", 2, "--training.epochs", 3, "--training.ema", 0.9, "--graph.dropout", 0.3)
IN_STEPS += ("--training.no-hold-features", "--training.augment", "randaugment", "--scale.save-every", 5)


def last_state(out: Path) -> dict[str, bytes]:
    """Weights, moments and averages after the last step."""
    (folder,) = [path for path in (out / "state").glob("step_*") if int(path.name[5:]) == saved_step(out)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.soak
def test_runs_that_end_inside_an_epoch_go_on_to_the_same_parameters(
    shards: Path, tmp_path: Path, start, soak: bool
) -> None:
    """SIGKILL to the driver or a worker, SIGTERM to the driver, at random steps; with dropout and augmentation."""
    command = (*IN_STEPS, "--scale.workers", 2)
    whole = tmp_path / "whole"
    assert start(whole, shards, tmp_path / "log", *command).wait(300) == 0, (tmp_path / "log").read_text()
    expected, steps = last_state(whole), saved_step(whole)
    assert {"checkpoint/weights.safetensors", "state/optimiser.safetensors", "state/weights.safetensors"} < set(
        expected
    )
    rng = random.Random(20261125)
    for run in range(9 if soak else 2):
        kind = ("driver", "notice", "worker")[run % 3]
        out, log = tmp_path / f"{run}", tmp_path / f"log {run}"
        process = start(out, shards, log, *command)
        enough = rng.randrange(1, steps * 2 // 3)
        wait_for(lambda out=out, enough=enough: saved_step(out) >= enough, process, log)
        members = family(process.pid)
        if kind == "worker":
            os.kill(next(pid for pid, name in members.items() if "ray::RayTrainWorker" in name), signal.SIGKILL)
            assert process.wait(200) == 0, log.read_text()
        else:
            process.send_signal(signal.SIGKILL if kind == "driver" else signal.SIGTERM)
            assert process.wait(60) == (-signal.SIGKILL if kind == "driver" else 143), log.read_text()
            stopped = saved_step(out)
            assert enough <= stopped < steps
            if kind == "notice":
                assert log.read_text().splitlines()[-1] == f"{out}: saved at step {stopped}; the same command goes on"
            assert_gone({pid: name for pid, name in members.items() if "ray::RayTrainWorker" in name})
            again = start(out, shards, log, *command)
            assert again.wait(200) == 0, log.read_text()
        assert saved_step(out) == steps
        found = last_state(out)
        assert [name for name in expected if found[name] != expected[name]] == [], kind
        assert found.keys() == expected.keys()
        assert [compared(row) for row in epochs_of(out)] == [compared(row) for row in epochs_of(whole)]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that trains nothing, for the driver, and two machines with one CPU each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


def workers_of(out: Path) -> list[int]:
    """How many trained each epoch."""
    return [row["workers"] for row in epochs_of(out)]


def test_a_machine_that_leaves_is_done_without(
    shards: Path, tmp_path: Path, start, cluster: Cluster, soak: bool
) -> None:
    """2 -> 1 workers, in the long form -> 2 again: the parameters of a run that never changed size."""
    epochs = 12 if soak else 3
    command = (*IN_STEPS, "--training.epochs", epochs, "--graph.dropout", 0, "--scale.workers", 2)
    alone = tmp_path / "alone"
    assert start(alone, shards, tmp_path / "log", *command).wait(300) == 0, (tmp_path / "log").read_text()

    out, log = tmp_path / "out", tmp_path / "elastic log"
    process = start(
        out, shards, log, *command, "--scale.min-workers", 1, "--scale.resize-seconds", 2, address=cluster.address
    )
    wait_for(lambda: saved_step(out) >= 5, process, log)
    cluster.remove_node(sorted(cluster.worker_nodes, key=str)[0], allow_graceful=False)
    if soak:
        wait_for(lambda: workers_of(out)[-1:] == [1], process, log)
        cluster.add_node(num_cpus=1)
    assert process.wait(500) == 0, log.read_text()
    counts = workers_of(out)
    assert 1 in counts, counts
    assert not soak or counts[-1] == 2, counts
    for row, expected in zip(epochs_of(out), epochs_of(alone), strict=True):
        assert compared(row) == pytest.approx(compared(expected), rel=1e-3)
    expected = load(last_state(alone)["checkpoint/weights.safetensors"])
    for name, value in load(last_state(out)["checkpoint/weights.safetensors"]).items():
        if name == "head.bias":  # a ranking's gradient for it is 0 but for rounding, and Adam makes whole steps of that
            continue
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5, msg=name)


def compared(row: dict) -> dict:
    """Without what the clock says, and how many worked."""
    return {key: value for key, value in without_clock(row).items() if key != "workers"}


def test_an_error_on_a_worker_is_one_line(shards: Path, tmp_path: Path, start) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    process = start(out, shards, log, "--optim.lr", "1e30", "--scale.workers", 2)
    assert process.wait(120) == 1, log.read_text()
    lines = log.read_text().splitlines()
    assert lines[0] == f"data = {shards}"
    (error,) = [line for line in lines if not line.startswith("train: ") and " = " not in line]
    assert re.fullmatch(
        r"error: training: the loss of step \d+ is \S+, its gradient's norm \S+; pictures .* \.\.\.; "
        r"lower optim.lr, or set optim.clip_norm",
        error,
    )
    assert error == lines[-1]
    found = json.loads((out / "not_finite.json").read_text())
    assert f"step {found['step']} is {found['loss']}" in error
    assert len(set(found["uris"])) == 8  # of both workers
    assert not (out / "checkpoint").exists()
