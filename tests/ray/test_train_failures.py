"""Training whose processes and machines are killed goes on, to the same parameters; what is wrong is one line."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from mlflow import MlflowClient
from ray.cluster_utils import Cluster
from ray.experimental.internal_kv import _initialize_internal_kv
from safetensors.torch import load

from sigrl_core.errors import CheckpointError
from sigrl_core.inference.tagger import Tagger
from tests.in_process import call
from tests.processes import apart_from_ray, assert_gone, family, free_ports, noted, wait_for
from tests.ray.conftest import compared, epochs_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

PIPELINE = Path(__file__).parents[2] / "pipelines" / "train.py"


@pytest.fixture
def start():
    """`start_training`, and nothing of it is left when the test has failed."""
    with noted() as note:
        yield lambda *arguments, address=None: note(start_training(*arguments, address=address))


def command_of(out: Path, shards: Path, *flags: object) -> list[str]:
    settings = ["--backbone.pretrained", "random", "--graph.dropout", "0", "--training.batch-size", "8"]
    return [*map(str, [PIPELINE, "quickstart", "--data", shards, "--out", out, *settings, *flags])]


def start_training(out: Path, shards: Path, log: Path, *flags: object, address: str | None = None) -> subprocess.Popen:
    """Starts train.py on a private Ray or the one of that address; `log` gets its output."""
    environment = apart_from_ray()
    environment |= {"RAY_ADDRESS": address} if address else {}
    with log.open("w") as file:
        command = [sys.executable, *command_of(out, shards, *flags)]
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)


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
IN_STEPS += ("--training.no-cache-features-in-memory", "--training.augment", "randaugment", "--scale.save-every", 5)


def last_state(out: Path) -> dict[str, bytes]:
    """Weights, moments and averages after the last step."""
    folder = max((out / "state").glob("step_*"))  # names sort as steps do
    assert saved_step(out) in (0, int(folder.name[5:]))  # a training in the process of the tests has no snapshot of Ray
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.soak
def test_runs_that_end_inside_an_epoch_go_on_to_the_same_parameters(
    shards: Path, tmp_path: Path, start, soak: bool
) -> None:
    """The long form ends a run nine times, at random steps: by SIGKILL to the driver, by SIGTERM to it, and by SIGKILL
    to it after a worker was killed and replaced. The short form ends it once: a worker is killed and replaced, then the
    driver gets SIGTERM. With dropout, augmentation and an average of the weights. MLflow has every epoch once. Runs
    that nothing ends are in the process of the tests."""
    mlflow = f"file://{tmp_path}/mlflow"
    kinds = ("driver", "notice", "worker") * 3 if soak else ("worker, notice",)  # each in an epoch of its own
    command = (*IN_STEPS, "--training.epochs", len(kinds) + (not soak), "--num-workers", 2)
    whole = tmp_path / "whole"
    assert call(*command_of(whole, shards, *command, "--scale.save-every", 1000)).returncode == 0
    expected, steps = last_state(whole), saved_step(whole)
    per_epoch = steps // len(epochs_of(whole))
    files = {"checkpoint/weights.safetensors", "state/optimiser.safetensors", "state/weights.safetensors"}
    assert files < set(expected)
    rng = random.Random(20261125)
    out, log, epochs, everyone = tmp_path / "out", tmp_path / "log of out", list[str](), dict[int, str]()

    def workers(process: subprocess.Popen) -> dict[int, str]:
        return {pid: name for pid, name in family(process.pid).items() if "ray::RayTrainWorker" in name}

    for time_, kind in enumerate(kinds):
        process = start(out, shards, log, *command, "--scale.mlflow", mlflow)
        enough = max(saved_step(out) + 1, per_epoch * time_ + rng.randrange(1, per_epoch // 2))
        wait_for(lambda enough=enough: saved_step(out) >= enough, process, log)
        members = family(process.pid)
        assert any("raylet" in name for name in members.values())
        if "worker" in kind:
            before = workers(process)
            os.kill(next(iter(before)), signal.SIGKILL)
            wait_for(
                lambda before=before, process=process: len(workers(process).keys() - before.keys()) == 2, process, log
            )
            enough = max(saved_step(out), per_epoch * (time_ + (not soak))) + 1  # in the short form in the next epoch
            wait_for(lambda enough=enough: saved_step(out) >= enough, process, log)
            members |= family(process.pid)
        at_work = workers(process)
        assert len(at_work) == 2
        everyone |= members
        process.send_signal(signal.SIGTERM if "notice" in kind else signal.SIGKILL)
        assert process.wait(60) == (143 if "notice" in kind else -signal.SIGKILL), log.read_text()
        stopped = saved_step(out)
        assert enough <= stopped < steps
        if "notice" in kind:
            assert (
                log.read_text().splitlines()[-1]
                == f"{out}: saved at step {stopped}; run the same command again to resume"
            )
        assert_gone(at_work)
        with pytest.raises(CheckpointError, match="has not finished"):
            Tagger.load(str(out))
        lines = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
        assert lines[: len(epochs)] == epochs  # seconds and all: what was trained is never trained again
        epochs = lines[: stopped // per_epoch]
    assert_gone(everyone)
    done = call(*command_of(out, shards, *command, "--scale.mlflow", mlflow))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"checkpoint: {out}/checkpoint"
    assert "Traceback" not in done.stderr
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
        if ray.is_initialized():  # the shutdown also removed the key-value client of the Ray of the tests
            _initialize_internal_kv(ray._private.worker.global_worker.gcs_client)


def workers_of(out: Path) -> list[int]:
    """How many trained each epoch that has ended."""
    return [row["workers"] for row in epochs_of(out)] if (out / "metrics.jsonl").exists() else []


@pytest.mark.soak
def test_a_machine_that_leaves_is_done_without(
    shards: Path, tmp_path: Path, start, cluster: Cluster, soak: bool
) -> None:
    """2 -> 1 workers, in the long form -> 2 again: the parameters of a run that never changed size."""
    command = (*IN_STEPS, "--training.epochs", 12 if soak else 2, "--graph.dropout", 0, "--num-workers", 2)
    command += ("--scoring.top-k-patches", 36)  # all: where rounding decides which are best, it no longer stays small
    alone = tmp_path / "alone"
    assert call(*command_of(alone, shards, *command, "--scale.save-every", 1000)).returncode == 0

    out, log = tmp_path / "out", tmp_path / "elastic log"
    process = start(
        out, shards, log, *command, "--min-workers", 1, "--scale.resize-seconds", 2, address=cluster.address
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
    print(f"workers of each epoch {counts}: no parameter further than {furthest:.1e} from one number throughout")
    assert furthest < 1e-4


def test_a_shard_damaged_meanwhile_is_found_once(shards: Path, tmp_path: Path) -> None:
    """By workers that start again, of which twenty may: they are not started again for that."""
    own, out = tmp_path / "shards", tmp_path / "out"
    shutil.copytree(shards, own)
    damaged, over = next((own / "shards").iterdir()), threading.Event()

    def damage() -> None:
        while not saved_epoch(out):
            if over.wait(0.05):
                return
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
        os.kill(next(pid for pid, name in family(os.getpid()).items() if "ray::RayTrainWorker" in name), signal.SIGKILL)

    thread = threading.Thread(target=damage)
    thread.start()
    try:
        done = call(*command_of(out, own, "--training.epochs", 200, "--num-workers", 2))
    finally:
        over.set()
        thread.join()
    assert done.returncode == 1, done
    assert done.stderr.splitlines()[-1].startswith(f"error: {damaged}: "), done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_an_error_on_a_worker_is_one_line(shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    done = call(*command_of(out, shards, "--optim.lr", "1e30", "--num-workers", 2))
    assert done.returncode == 1, done
    assert capfd.readouterr() == ("", "")  # of what does not go through Python's streams
    assert done.stdout.splitlines()[0] == f"data = {shards}"
    assert all(" = " in line for line in done.stdout.splitlines())
    lines = done.stderr.splitlines()
    (error,) = [line for line in lines if not line.startswith("train: ")]
    assert re.fullmatch(
        r"error: training: the loss of step \d+ is \S+, its gradient's norm \S+; images .* \.\.\.; "
        r"lower optim.lr, or set optim.clip_norm",
        error,
    )
    assert error == lines[-1]
    found = json.loads((out / "not_finite.json").read_text())
    assert f"step {found['step']} is {found['loss']}" in error
    assert len(set(found["uris"])) == 8  # of both workers
    assert not (out / "checkpoint").exists()
