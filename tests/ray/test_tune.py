"""Searches under Ray Tune on a real local Ray: every trial once, the same table whatever is killed."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sigrl_core.config import Resources, RunConfig, SearchConfig
from sigrl_core.config.json import from_json
from sigrl_core.config.presets import get_preset
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import ConfigError, ShardError, StorageError
from sigrl_core.inference.tagger import Tagger
from sigrl_core.on_ray import tune as tune_module
from sigrl_core.on_ray.tune import search
from sigrl_core.report.search import write_search_page
from sigrl_core.search.space import GraphSpace, Interval, LossSpace, OptimSpace, SearchSpace
from sigrl_core.search.study import Study, choose_held_out_labels
from sigrl_core.training.run_log import read_metrics
from sigrl_core.training.state import MONITOR
from sigrl_core.training.trainer import Trainer
from tests.conftest import random_states, vocabulary_of, write_shards
from tests.in_process import call
from tests.processes import apart_from_ray, family, noted, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

PIPELINE = Path(__file__).parents[2] / "pipelines" / "tune.py"
TRIALS, EPOCHS = 6, 4


@pytest.fixture(scope="module")
def base() -> RunConfig:
    """The quickstart's run on random weights, a few short epochs."""
    preset = get_preset("quickstart")
    return dataclasses.replace(
        preset,
        backbone=dataclasses.replace(preset.backbone, pretrained="random"),
        training=dataclasses.replace(preset.training, epochs=EPOCHS, batch_size=8),
    )


def flags(data: str, out: Path) -> list[str]:
    """The same as a command."""
    run = f"--backbone.pretrained random --training.epochs {EPOCHS} --training.batch-size 8"
    return ["quickstart", *run.split(), *f"--data {data} --out {out} --trials {TRIALS} --concurrency 1".split()]


def table(out: Path) -> list[dict]:
    """Rows of the trials, without what the clock says."""
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def run_search(base: RunConfig, data: ShardFolder, out: Path, concurrency: int | None = 1, **options) -> Study:
    space = options.pop("space", SearchSpace())
    resources = options.pop("resources", None)
    return search(
        SearchConfig(**({"trials": TRIALS} | options)),
        base,
        space,
        data.uri,
        str(out),
        resources=resources,
        concurrency=concurrency,
        finish=write_search_page,
    )


@pytest.fixture(scope="module")
def one_at_a_time(base: RunConfig, toybox_shards: ShardFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "search"
    run_search(base, toybox_shards, out)
    return out


def test_a_search_and_what_it_leaves(base: RunConfig, toybox_shards: ShardFolder, one_at_a_time: Path) -> None:
    rows = table(one_at_a_time)
    assert [row["trial"] for row in rows] == list(range(TRIALS))
    assert {row["state"] for row in rows} == {"complete", "stopped"}
    assert all(row["epochs"] == (EPOCHS if row["state"] == "complete" else row["epochs"]) for row in rows)
    assert all(row["epochs"] == 2 for row in rows if row["state"] == "stopped")  # the rung
    assert (rows[0]["state"], rows[0]["optim.lr"]) == ("complete", base.optim.lr)  # what it starts from
    best = max(rows, key=lambda row: row["objective"])
    config = from_json(RunConfig, (one_at_a_time / "best.json").read_text(), "best.json")
    assert config.optim.lr == best["optim.lr"]
    tagger = Tagger.load(str(one_at_a_time))
    assert tagger.checkpoint.config == config
    history = tagger.checkpoint.metrics["history"]
    assert [line[MONITOR] for line in history] == best["by_epoch"]
    assert tagger.checkpoint.metrics["selected"][MONITOR] == best["objective"]
    held_out = choose_held_out_labels(toybox_shards.vocabulary, 0.2)
    assert set(held_out) < set(tagger.vocabulary.subset("unseen").names)
    folders = sorted(path for path in (one_at_a_time / "trials").iterdir() if path.is_dir())
    assert [folder.name for folder in folders] == [f"{number:05d}" for number in range(TRIALS)]
    assert all(list((folder / "tensorboard").iterdir()) for folder in folders)
    assert [folder.name for folder in folders if (folder / "checkpoint").exists()] == [f"{best['trial']:05d}"]
    assert "Objective by trial" in (one_at_a_time / "search.html").read_text()
    assert not (one_at_a_time / "work").exists()
    manifest = json.loads((one_at_a_time / "manifest.json").read_text())
    assert (manifest["kind"], manifest["trials"], manifest["best_trial"]) == ("search", TRIALS, best["trial"])
    assert manifest["best_objective"] == best["objective"]


def test_nothing_that_has_ended_runs_again(base: RunConfig, toybox_shards: ShardFolder, one_at_a_time: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (one_at_a_time / "trials").rglob("*") if path.is_file()}
    run_search(base, toybox_shards, one_at_a_time)
    assert {p: p.stat().st_mtime_ns for p in (one_at_a_time / "trials").rglob("*") if p.is_file()} == before
    manifest = (one_at_a_time / "manifest.json").read_bytes()
    (one_at_a_time / "manifest.json").unlink()  # version 0.1.0 wrote none, and named two keys of the plan differently
    plan = json.loads((one_at_a_time / "plan.json").read_text())
    plan["grace_epochs"], plan["reduction"] = plan.pop("grace_period"), plan.pop("reduction_factor")
    (one_at_a_time / "plan.json").write_text(json.dumps(plan))
    run_search(base, toybox_shards, one_at_a_time)
    assert (one_at_a_time / "manifest.json").read_bytes() == manifest
    with pytest.raises(Exception, match="was started with seed = 0, now seed = 1"):
        run_search(base, toybox_shards, one_at_a_time, seed=1)


def test_a_trial_among_others_is_the_configuration_alone(
    base: RunConfig, toybox_shards: ShardFolder, tmp_path: Path
) -> None:
    found = run_search(base, toybox_shards, tmp_path / "search", concurrency=2, trials=2, scheduler="none")
    assert [trial.state for trial in found.ended] == ["complete"] * 2
    for trial in found.ended[1:]:
        alone: list[float] = []
        experiment = Trainer(
            trial.config,
            toybox_shards.uri,
            held_out=choose_held_out_labels(toybox_shards.vocabulary, 0.2),
            objective="gzsl.map",
        )
        experiment.fit(lambda metrics, state, alone=alone: alone.append((metrics or {})[MONITOR]))
        assert alone == pytest.approx(list(trial.epochs), abs=1e-6)


@pytest.mark.soak
def test_killed_at_any_moment_it_goes_on_to_the_same_table(
    toybox_shards: ShardFolder, one_at_a_time: Path, tmp_path: Path, soak: bool
) -> None:
    out, log, rng = tmp_path / "search", tmp_path / "log", random.Random(0)
    environment = apart_from_ray()
    command = [sys.executable, str(PIPELINE), *flags(toybox_shards.uri, out)]
    kills = 5 if soak else 1
    with noted() as note:
        for number in range(kills):
            with log.open("w") as told:
                running = note(subprocess.Popen(command, env=environment, stdout=told, stderr=subprocess.STDOUT))
            wanted = (number + 1) * (TRIALS - 2) // (kills + 1)
            wait_for(lambda wanted=wanted: len(list(out.glob("parts/*.json"))) > wanted, running, log)
            time.sleep(2 * rng.random())
            processes = family(running.pid)
            running.kill()
            running.wait()
            for pid in processes:  # the machine is gone, not only the command
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
    done = call(*command[1:], "--resume")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert table(out) == table(one_at_a_time)
    print(f"killed {kills} times: {TRIALS} trials, each once, the same table")


# ---- trials that fail ----


def test_trials_that_fail_are_told_and_the_search_ends_well(
    base: RunConfig, toybox_shards: ShardFolder, tmp_path: Path
) -> None:
    space = SearchSpace(
        graph=GraphSpace(kind=("complete",), heads=(4, 3)),
        loss=LossSpace(kind=("ranking", "nonsense")),
        optim=OptimSpace(lr=Interval(low=1e-2, high=1e14, log=True)),
    )
    found = run_search(
        base, toybox_shards, tmp_path / "search", trials=10, sampler="random", scheduler="none", space=space
    )
    reasons = [trial.reason for trial in found.ended if trial.state == "failed"]
    for told in (
        "expected a multiple of graph.heads",
        "loss.kind is 'nonsense'",
        "training: the loss of step",
    ):
        assert any(told in reason for reason in reasons), (told, reasons)
    assert all(reasons)
    assert found.best is not None
    page = (tmp_path / "search" / "search.html").read_text()
    assert "Why trials failed" in page


def test_a_trial_whose_process_is_lost_runs_once_more(
    base: RunConfig, toybox_shards: ShardFolder, one_at_a_time: Path, tmp_path: Path
) -> None:
    """Trial 0 loses one process after an epoch, and ends as undisturbed; trial 1 loses two."""
    out, killed, over = tmp_path / "search", list[int](), threading.Event()

    def kill() -> None:
        for number in (0, 1, 1):
            written = out / "trials" / f"{number:05d}" / "metrics.jsonl"
            while not written.exists() and not over.is_set():
                time.sleep(0.01)
            for pid, name in family(os.getpid()).items():
                if name.startswith("ray::") and ("_trial" in name or "ImplicitFunc" in name):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(number)
            while written.exists() and not over.is_set():  # a trial that starts again clears its folder
                time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        found = run_search(base, toybox_shards, out, trials=2)
    finally:
        over.set()
        killer.join()
    assert killed == [0, 1, 1]
    (first, second), undisturbed = found.ended, table(one_at_a_time)
    assert (first.state, list(first.epochs)) == ("complete", undisturbed[0]["by_epoch"])
    assert first.config.optim.lr == undisturbed[0]["optim.lr"]
    assert (second.state, second.reason) == (
        "failed",
        "its process ended twice without a word: killed, or out of memory",
    )


def test_where_no_trial_comes_to_a_result(base: RunConfig, toybox_shards: ShardFolder, tmp_path: Path) -> None:
    space = SearchSpace(loss=LossSpace(kind=("nonsense",)))
    with pytest.raises(ConfigError, match=r"none of 2 trials came to a result: loss\.kind is 'nonsense'"):
        run_search(base, toybox_shards, tmp_path / "search", trials=2, space=space)
    assert not (tmp_path / "search" / "manifest.json").exists()
    assert not (tmp_path / "search" / "best.json").exists()


def test_more_than_there_is_room_for_is_refused_with_the_arithmetic(
    base: RunConfig, toybox_shards: ShardFolder, tmp_path: Path
) -> None:
    cores = os.cpu_count() or 1
    for resources, concurrency, told in (
        (Resources(num_workers=cores), 4, f"need {4 * cores} CPUs, and there are {cores}"),
        (Resources(cpus_per_worker=cores + 1), None, f"need {cores + 1} CPUs, and there are {cores}"),
        (Resources(gpus_per_worker=1), None, "need 1 GPUs, and there are 0"),
        (Resources(num_workers=2, min_workers=1), None, "min_workers is 1, which tune cannot use"),
    ):
        with pytest.raises(ConfigError, match=told):
            run_search(base, toybox_shards, tmp_path / "search", concurrency, resources=resources)
    with pytest.raises(ConfigError, match="0 of 50 seen labels would be held out"):
        run_search(base, toybox_shards, tmp_path / "search", held_out=0.001)
    states_NC = np.zeros((20, 4), np.int8)
    states_NC[:, 0] = 1
    unmeasurable = write_shards(tmp_path / "shards", vocabulary_of(["a", "b", "c", "d"]), states_NC)
    with pytest.raises(ShardError, match="shows a label that is held out, so the objective cannot be measured"):
        run_search(base, unmeasurable, tmp_path / "search")
    assert not (tmp_path / "search").exists()


def test_trials_of_two_workers(
    toybox_shards: ShardFolder, one_at_a_time: Path, tmp_path: Path, command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside another Ray on the same machine: the tests' own."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = command(PIPELINE, *flags(toybox_shards.uri, tmp_path / "search"), "--num-workers", "2", "--trials", "3")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-2].startswith("3 trials, ")
    pairs = list(zip(table(tmp_path / "search"), table(one_at_a_time), strict=False))
    assert len(pairs) == 3
    # Adam makes whole steps of what the order of sums leaves, and of ten images mAP takes large ones
    curves = [read_metrics(str(where / "trials" / "00000")) for where in (tmp_path / "search", one_at_a_time)]
    assert len(curves[0]) == len(curves[1]) == EPOCHS
    for by_two, by_one in zip(*curves, strict=True):
        assert by_two["train/loss"] == pytest.approx(by_one["train/loss"], rel=3e-3)
        assert by_two[MONITOR] == pytest.approx(by_one[MONITOR], abs=3e-2)
    assert curves[0][0]["train/loss"] == pytest.approx(curves[1][0]["train/loss"], rel=5e-5)
    assert [row["state"] for row, _ in pairs] == ["complete", "complete", "stopped"]
    tagger = Tagger.load(str(tmp_path / "search"))
    best = max(table(tmp_path / "search"), key=lambda row: row["objective"])
    assert tagger.checkpoint.metrics["selected"][MONITOR] == best["objective"]
    assert [line[MONITOR] for line in tagger.checkpoint.metrics["history"]] == best["by_epoch"]
    assert not list((tmp_path / "search" / "trials").glob("*/state"))


def test_a_search_stops_at_other_shards_and_goes_on_with_the_planned_ones(
    base: RunConfig, toybox_shards: ShardFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is not the trial's, so the trial is not recorded as failed."""
    labels = len(toybox_shards.vocabulary)
    other = write_shards(tmp_path / "other", toybox_shards.vocabulary, random_states(70, labels), rows_per_shard=20)
    data, out = Path(shutil.copytree(toybox_shards.uri, tmp_path / "data")), tmp_path / "search"
    folder, max_trials = ShardFolder.open(str(data)), tune_module.max_trials

    def replace_then_start(*arguments: Any) -> int:
        data.rename(tmp_path / "planned")
        shutil.copytree(other.uri, data)
        return max_trials(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tune_module, "max_trials", replace_then_start)
        with pytest.raises(StorageError) as caught:
            run_search(base, folder, out, trials=2)
    hashes = [each.manifest["sha256"][:12] for each in (other, folder)]
    assert str(caught.value).startswith(f"{data}: holds shards {hashes[0]}, the plan of {out} has {hashes[1]}; restore")
    assert not (out / "parts").exists()
    shutil.rmtree(data)
    (tmp_path / "planned").rename(data)
    assert {trial.state for trial in run_search(base, folder, out, trials=2).ended} <= {"complete", "stopped"}
