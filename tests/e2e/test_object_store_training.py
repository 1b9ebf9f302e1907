"""Training into a real object store: killed while a checkpoint goes up, and with the store away for a while."""

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sigrl_core.data.shards import ShardFolder
from sigrl_core.inference.tagger import Tagger
from sigrl_core.io import storage
from tests.conftest import REPOSITORY
from tests.e2e.conftest import Store, bucket_of
from tests.in_process import call, training_here
from tests.processes import apart_from_ray, assert_gone, family

pytestmark = pytest.mark.e2e

TRAIN = REPOSITORY / "pipelines" / "train.py"


def command_of(shards: str, out: str) -> list[str]:
    """Four epochs with a checkpoint after every second step."""
    flags = ["--backbone.pretrained", "random", "--training.batch-size", "8", "--training.epochs", "4"]
    flags += ["--num-workers", "1", "--scale.save-every", "2", "--data", shards, "--out", out]
    return [str(TRAIN), "quickstart", *flags]


def start(shards: str, out: str, log: Path) -> subprocess.Popen:
    """Starts the command with its own Ray; `log` gets its output."""
    with log.open("w") as file:
        command = [sys.executable, *command_of(shards, out)]
        return subprocess.Popen(command, env=apart_from_ray(), stdout=file, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def whole(store: Store, toybox_shards: ShardFolder, ray_cluster) -> str:
    """The --out of a training that nothing disturbed, in the process of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment().items():
            patch.setenv(name, value)
        out = bucket_of(store, "undisturbed") + "/run"
        with training_here():
            done = call(*command_of(toybox_shards.uri, out))
        assert done.returncode == 0, done.stderr
    return out


def saved(out: str) -> dict[str, list[str]]:
    """Checkpoints of a training, whole or not: name -> its objects."""
    found: dict[str, list[str]] = {}
    for file in storage.walk(f"{out}/state") if storage.exists(f"{out}/state") else []:
        name, _, path = file.path.partition("/")
        if name.startswith("step_"):
            found.setdefault(name, []).append(path)
    return found


def weights(out: str) -> str:
    return hashlib.sha256(storage.read_bytes(f"{out}/checkpoint/weights.safetensors")).hexdigest()


def wait_for_step(out: str, step: int, running: subprocess.Popen, log: Path) -> None:
    """Until something of the checkpoint of that step, or of a later one, is in the store."""
    deadline = time.monotonic() + 300
    while max(saved(out), default="") < f"step_{step:08d}":
        assert time.monotonic() < deadline, log.read_text()
        assert running.poll() is None, log.read_text()
        time.sleep(0.2)


def stop_within_a_checkpoint(store: Store, out: str, objects: int, running: subprocess.Popen, log: Path) -> None:
    """Stops the process that keeps the objects while the latest checkpoint has some of its objects and not all."""
    keeper = store.processes[2]
    deadline = time.monotonic() + 120
    while True:
        keeper.send_signal(signal.SIGSTOP)
        found = saved(out)
        if found and len(found[max(found)]) < objects:
            return
        keeper.send_signal(signal.SIGCONT)
        assert time.monotonic() < deadline, log.read_text()
        assert running.poll() is None, log.read_text()
        time.sleep(0.03)


@pytest.mark.soak
def test_a_checkpoint_that_went_up_in_part_is_never_loaded(
    reached: Store, toybox_shards: ShardFolder, whole: str, tmp_path: Path, in_process, soak: bool
) -> None:
    """The long form kills the training twice; the last run is in the process of the tests."""
    out, log = bucket_of(reached, "killed") + "/run", tmp_path / "log"
    objects = {len(paths) for paths in saved(whole).values()}
    assert len(objects) == 1  # every checkpoint that is kept has as many
    halves = 0
    for step in (4, 8) if soak else (4,):
        running = start(toybox_shards.uri, out, log)
        wait_for_step(out, step, running, log)
        stop_within_a_checkpoint(reached, out, min(objects), running, log)
        halves += 1
        members = family(running.pid)
        running.kill()
        running.wait()
        assert_gone({pid: name for pid, name in members.items() if "ray::RayTrainWorker" in name})
        reached.processes[2].send_signal(signal.SIGCONT)
    done = call(*command_of(toybox_shards.uri, out))
    assert done.returncode == 0, done.stderr
    assert weights(out) == weights(whole)
    assert Tagger.load(out).vocabulary == toybox_shards.vocabulary
    print(f"killed while a checkpoint went up, {halves} left in part: the same parameters")


@pytest.mark.soak
def test_a_store_that_is_away_for_a_while_loses_nothing(
    reached: Store, toybox_shards: ShardFolder, whole: str, tmp_path: Path, soak: bool
) -> None:
    out, log, pause = bucket_of(reached, "interrupted") + "/run", tmp_path / "log", 30 if soak else 10
    running = start(toybox_shards.uri, out, log)
    wait_for_step(out, 4, running, log)
    reached.processes[2].send_signal(signal.SIGSTOP)
    time.sleep(pause)
    reached.processes[2].send_signal(signal.SIGCONT)
    assert running.wait(300) == 0, log.read_text()
    assert weights(out) == weights(whole)
    print(f"{pause} s without the store: the same parameters")
