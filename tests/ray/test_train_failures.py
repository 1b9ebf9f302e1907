"""Training whose processes and machines are killed goes on, to the same parameters; what is wrong is one line."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ray.cluster_utils import Cluster
from safetensors.torch import load

from sigrl_core.errors import CheckpointError
from sigrl_core.tagger import Tagger
from tests.processes import apart_from_ray, assert_gone, family, free_ports, noted, wait_for
from tests.ray.conftest import compared, epochs_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

PIPELINE = Path(__file__).parents[2] / "pipelines" / "train.py"


@pytest.fixture
def start():
    """`start_training`, and nothing of it is left when the test has failed."""
    with noted() as note:
        yield lambda *arguments, address=None: note(start_training(*arguments, address=address))


def start_training(out: Path, shards: Path, log: Path, *flags: object, address: str | None = None) -> subprocess.Popen:
    """train.py as a user calls it, on a private Ray or the one of that address, with quick health checks; what it says
    goes to `log`."""
    settings = ["--backbone.pretrained", "random", "--graph.dropout", "0", "--training.batch-size", "8"]
    full = [sys.executable, PIPELINE, "quickstart", "--data", shards, "--out", out, *settings, *flags]
    environment = {**apart_from_ray(), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
    environment |= {"RAY_ADDRESS": address} if address else {}
    with log.open("w") as file:
        return subprocess.Popen([*map(str, full)], stdout=file, stderr=subprocess.STDOUT, env=environment)


def latest_saved(out: Path) -> dict | None:
    """The last checkpoint that Ray Train has noted, so that a run could go on from it; None before the first."""
    noted = out / "state" / "checkpoint_manager_snapshot.json"
    for _ in range(20):
        if (text := noted.read_text() if noted.exists() else "null") != "":
            return (json.loads(text) or {}).get("latest_checkpoint_result")
        time.sleep(0.05)  # Ray is writing it
    raise AssertionError(f"{noted}: stays empty")


def saved_epoch(out: Path) -> int:
    latest = latest_saved(out)
    return latest["metrics"]["epoch"] if latest else 0


def saved_step(out: Path) -> int:
    latest = latest_saved(out)
    return int(latest["checkpoint_dir_name"].removeprefix("step_")) if latest else 0


IN_STEPS = ("--training.batch-size", 2, "--training.epochs", 3, "--training.ema", 0.9, "--graph.dropout", 0.3)
IN_STEPS += ("--training.no-hold-features", "--training.augment", "randaugment", "--scale.save-every", 5)


def last_state(out: Path) -> dict[str, bytes]:
    """Weights, moments and averages after the last step."""
    (folder,) = [path for path in (out / "state").glob("step_*") if int(path.name[5:]) == saved_step(out)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.soak
def test_runs_that_end_inside_an_epoch_go_on_to_the_same_parameters(
    shards: Path, tmp_path: Path, start, soak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run ended three times, in the long form nine: SIGKILL to the driver, SIGTERM to it, SIGKILL to a worker, at
    random steps; with dropout, augmentation and an average of the weights. MLflow has every epoch once."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = f"file://{tmp_path}/mlflow"
    command = (*IN_STEPS, "--training.epochs", 9 if soak else 3, "--scale.workers", 2)
    whole = tmp_path / "whole"
    assert start(whole, shards, tmp_path / "log", *command).wait(500) == 0, (tmp_path / "log").read_text()
    expected, steps = last_state(whole), saved_step(whole)
    per_epoch = steps // len(epochs_of(whole))
    files = {"checkpoint/weights.safetensors", "state/optimiser.safetensors", "state/weights.safetensors"}
    assert files < set(expected)
    rng = random.Random(20261125)
    times = 9 if soak else 3  # each in an epoch of its own
    out, log, epochs, everyone = tmp_path / "out", tmp_path / "log of out", list[str](), dict[int, str]()
    for time_ in range(times):
        kind = ("driver", "notice", "worker")[time_ % 3]
        process = start(out, shards, log, *command, "--scale.mlflow", mlflow)
        enough = max(saved_step(out) + 1, per_epoch * time_ + rng.randrange(1, per_epoch // 2))
        wait_for(lambda enough=enough: saved_step(out) >= enough, process, log)
        members = family(process.pid)
        everyone |= members
        assert any("raylet" in name for name in members.values())
        workers = {pid: name for pid, name in members.items() if "ray::RayTrainWorker" in name}
        assert len(workers) == 2
        if kind == "worker":
            os.kill(next(iter(workers)), signal.SIGKILL)
            continues = time_ < times - 1
            if continues:  # as a worker alone, then everything
                wait_for(lambda enough=enough: saved_step(out) > enough, process, log)
                process.kill()
                process.wait()
                continue
            assert process.wait(300) == 0, log.read_text()
            break
        process.send_signal(signal.SIGKILL if kind == "driver" else signal.SIGTERM)
        assert process.wait(60) == (-signal.SIGKILL if kind == "driver" else 143), log.read_text()
        stopped = saved_step(out)
        assert enough <= stopped < steps
        if kind == "notice":
            assert log.read_text().splitlines()[-1] == f"{out}: saved at step {stopped}; the same command goes on"
        assert_gone(workers)
        with pytest.raises(CheckpointError, match="has not finished"):
            Tagger.load(str(out))
        lines = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
        assert lines[: len(epochs)] == epochs  # seconds and all: what was trained is never trained again
        epochs = lines[: stopped // per_epoch]
    assert_gone(everyone)
    text = log.read_text()
    assert text.splitlines()[-1] == f"checkpoint: {out}/checkpoint"
    assert "Traceback" not in text
    assert saved_step(out) == steps
    assert epochs
    assert (out / "metrics.jsonl").read_text().splitlines()[: len(epochs)] == epochs
    found = last_state(out)
    assert [name for name in expected if found[name] != expected[name]] == []
    assert found.keys() == expected.keys()
    assert [compared(row) for row in epochs_of(out)] == [compared(row) for row in epochs_of(whole)]
    after = epochs_of(out)
    assert [row["epoch"] for row in after] == list(range(1, len(after) + 1))
    assert Tagger.load(str(out)).checkpoint.metrics["selected"] in after
    tracked = MlflowClient(mlflow)
    (run,) = tracked.search_runs([experiment.experiment_id for experiment in tracked.search_experiments()])
    assert run.info.status == "FINISHED"
    told = {each.step: each.value for each in tracked.get_metric_history(run.info.run_id, "train/loss")}
    assert told == {row["epoch"]: row["train/loss"] for row in after}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that trains nothing, for the driver, and two machines with one CPU each."""
    (port,) = free_ports(1)  # Ray's own choice may be taken by what runs beside this
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": port})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


def workers_of(out: Path) -> list[int]:
    """How many trained each epoch that has ended."""
    return [row["workers"] for row in epochs_of(out)] if (out / "metrics.jsonl").exists() else []


@pytest.mark.soak
def test_a_machine_that_leaves_is_done_without(
    shards: Path, tmp_path: Path, start, cluster: Cluster, soak: bool
) -> None:
    """2 -> 1 workers, in the long form -> 2 again: the parameters of a run that never changed size."""
    command = (*IN_STEPS, "--training.epochs", 12 if soak else 3, "--graph.dropout", 0, "--scale.workers", 2)
    command += ("--scoring.patches-kept", 36)  # all: where rounding decides which are best, it no longer stays small
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
        assert compared(row) == pytest.approx(compared(expected), rel=1e-5)
    expected, furthest = load(last_state(alone)["checkpoint/weights.safetensors"]), 0.0
    for name, value in load(last_state(out)["checkpoint/weights.safetensors"]).items():
        if name == "head.bias":  # a ranking's gradient for it is 0 but for rounding, and Adam makes whole steps of that
            continue
        furthest = max(furthest, (value - expected[name]).abs().max().item())
    print(f"workers of each epoch {counts}: no parameter further than {furthest:.1e} from two workers throughout")
    assert furthest < 1e-4


def test_a_shard_damaged_meanwhile_is_found_once(shards: Path, tmp_path: Path, start) -> None:
    """By workers that start again, of which twenty may: they are not started again for that."""
    own, out, log = tmp_path / "shards", tmp_path / "out", tmp_path / "log"
    shutil.copytree(shards, own)
    process = start(out, own, log, "--training.epochs", 200, "--scale.workers", 2)
    wait_for(lambda: saved_epoch(out), process, log)
    damaged = next((own / "shards").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    os.kill(next(pid for pid, name in family(process.pid).items() if "ray::RayTrainWorker" in name), signal.SIGKILL)
    assert process.wait(60) == 1, log.read_text()
    assert log.read_text().splitlines()[-1].startswith(f"error: {damaged}: "), log.read_text()
    assert "Traceback" not in log.read_text()


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
