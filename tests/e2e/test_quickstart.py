"""The whole chain on the built-in corpus, small: stopped half way, finished, run again; then every command on what it
left.

The run that is stopped is a process; the process of the tests runs the commands after it.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from sigrl_core.config import RunConfig
from sigrl_core.config.json import from_json
from sigrl_core.demo import toybox
from sigrl_core.model.checkpoint import load_checkpoint
from tests.conftest import tagged_rows
from tests.in_process import all_here, call

pytestmark = pytest.mark.e2e

PIPELINES = Path(__file__).parents[2] / "pipelines"
SIZES = ("--captioned", "512", "--labelled", "200", "--test", "100", "--clip-epochs", "1", "--epochs", "2")
ROWS = ["sigrl", "sigrl_independent", "clip_global", "clip_global_local", "mkt_style"]


class Chain(NamedTuple):
    """The folder of a quickstart, and what its three runs said: stopped, finished, run again."""

    out: Path
    stopped: subprocess.CompletedProcess[str]
    finished: subprocess.CompletedProcess[str]
    again: subprocess.CompletedProcess[str]
    metrics: bytes  # of the second run
    worked_again: list[object]  # trainings and jobs that the third began


@pytest.fixture(scope="module")
def chain(tmp_path_factory, ray_cluster) -> Chain:
    out, worked = tmp_path_factory.mktemp("quickstart") / "out", list[object]()
    arguments = [PIPELINES / "quickstart.py", "--out", out, *SIZES]
    stopped = stop_half_way([sys.executable, *map(str, arguments)], out / "sigrl" / "metrics.jsonl")
    with all_here():
        finished = call(*arguments)
        metrics = (out / "metrics.json").read_bytes() if finished.returncode == 0 else b""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("train._Trainer", "preprocess.run_partitions", "tag.run_partitions"):
                patch.setattr(f"sigrl_core.on_ray.{name}", lambda *_, **__: worked.append(_))
            again = call(*arguments)
    return Chain(out, stopped, finished, again, metrics, worked)


def stop_half_way(arguments: list[str], sign: Path) -> subprocess.CompletedProcess[str]:
    """Ctrl-C, which reaches the whole process group, as soon as a file is there."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(arguments, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    deadline = time.monotonic() + 180
    while not sign.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    try:
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


# ---- the chain itself ----


def test_ctrl_c_ends_with_one_line(chain: Chain) -> None:
    assert chain.stopped.returncode == 130, chain.stopped
    assert chain.stopped.stderr.splitlines()[-1] == "interrupted; run the same command again to resume"
    assert "Traceback" not in chain.stopped.stderr
    assert "train sigrl: " not in chain.stopped.stdout


def test_the_same_command_finishes(chain: Chain) -> None:
    assert chain.finished.returncode == 0, chain.finished.stderr
    assert "Traceback" not in chain.finished.stderr
    lines = chain.finished.stdout.splitlines()
    assert lines[:4] == [f"out = {chain.out}", "captioned = 512", "labelled = 200", "test = 100"]
    assert lines[-1] == (
        f"report: {chain.out}/report.html, {chain.out}/metrics.json; tags: {chain.out}/tags/tagging.html"
    )
    table = [line.split()[0] for line in lines if line.split()[0] in ROWS]
    assert sorted(table) == sorted(ROWS)
    assert not [
        line for line in chain.finished.stderr.splitlines() if re.match(r"small CLIP: \d+ of", line)
    ]  # it was there


def test_what_it_leaves(chain: Chain) -> None:
    metrics = json.loads(chain.metrics)
    assert [row["name"] for row in metrics["rows"]] == ROWS
    for row in metrics["rows"]:
        assert set(row) == {"name", "zsl", "zsl_asked_all", "gzsl", "seen"}
        assert all(
            0 <= value <= 1 for protocol in row.values() if protocol != row["name"] for value in protocol.values()
        )
    assert metrics["images"] == 100
    assert metrics["labels"] == {"seen": 50, "unseen": 16}
    assert (chain.out / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")
    assert (chain.out / "shards" / "labelled" / "dataset.html").exists()
    rows = tagged_rows(chain.out / "tags")
    assert [row["uri"] for row in rows] == [f"test_{number:05d}.jpg" for number in range(100)]
    assert all(len(row["tags"]) == 5 for row in rows)
    assert load_checkpoint(str(chain.out / "sigrl")).vocabulary == toybox.vocabulary()
    epochs = [json.loads(line)["epoch"] for line in (chain.out / "sigrl" / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [1, 2]


def test_calibrated_tags_by_their_commands(chain: Chain, in_process, tmp_path: Path) -> None:
    """calibrate.py, then evaluate.py tells of it and tag.py --threshold uses it; before that it is refused.

    The quickstart calibrates SigRL, and not the baseline."""
    assert load_checkpoint(str(chain.out / "sigrl")).calibration is not None
    shutil.copytree(chain.out / "mkt_style" / "checkpoint", checkpoint := tmp_path / "checkpoint")
    images = chain.out / "corpus" / "test" / "pictures"
    tag = [PIPELINES / "tag.py", "--checkpoint", checkpoint, "--images", images, "--out", tmp_path / "tags"]
    refused = call(*tag, "--threshold", "calibrated")
    assert refused.returncode == 1
    assert refused.stderr.startswith(
        f"error: {checkpoint}: not calibrated, so it has no probabilities; run calibrate.py"
    )
    assert not (tmp_path / "tags").exists()
    data = chain.out / "shards" / "labelled"
    done = call(PIPELINES / "calibrate.py", "--checkpoint", checkpoint, "--data", data, "--min-examples", "2")
    assert done.returncode == 0, done.stderr
    assert "held-out images: expected calibration error" in done.stdout.splitlines()[-2]
    test = chain.out / "shards" / "test"
    done = call(PIPELINES / "evaluate.py", "--checkpoint", checkpoint, "--data", test, "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "report" / "metrics.json").read_text())["calibration"]
    assert all(values["ece_after"] < values["ece_before"] / 2 for values in measured.values())
    done = call(*tag, "--threshold", "calibrated")
    assert done.returncode == 0, done.stderr
    rows = tagged_rows(tmp_path / "tags")
    calibration = load_checkpoint(str(checkpoint)).calibration
    assert calibration is not None
    assert len(rows) == 100
    assert len({len(row["tags"]) for row in rows}) > 1
    for item in (item for row in rows for item in row["tags"]):
        assert calibration.curve_of(item["label"]).threshold - 1e-6 <= item["score"] <= 1


def test_run_again_it_finds_everything_done(chain: Chain) -> None:
    assert chain.again.returncode == 0, chain.again.stderr
    assert (chain.out / "metrics.json").read_bytes() == chain.metrics
    assert chain.worked_again == []
    assert [line for line in chain.again.stdout.splitlines() if line.startswith("train ")] == [
        "train sigrl: 0 s",
        "train mkt_style: 0 s",
    ]


def test_other_sizes_into_the_same_folder_are_refused(chain: Chain) -> None:
    done = call(PIPELINES / "quickstart.py", "--out", chain.out, *SIZES[:-1], "3")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {chain.out}: holds a quickstart with epochs = 2, now epochs = 3; ")
    assert line.endswith("choose another --out or delete the folder")
    assert (chain.out / "metrics.json").read_bytes() == chain.metrics


# ---- every command on what it left ----


def test_training_from_the_configuration_of_an_earlier_run(chain: Chain, tmp_path: Path, in_process) -> None:
    earlier = chain.out / "sigrl" / "checkpoint" / "config.json"
    data = chain.out / "shards" / "labelled"
    arguments = ["quickstart", "--config", earlier, "--data", data, "--out", tmp_path / "out", "--num-workers", "1"]
    spellings = ["--training.max-steps", "3", "--training.batch_size", "16"]  # both are taken
    done = call(PIPELINES / "train.py", *arguments, *spellings)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"data = {data}"
    changed = {"training.max_steps = 3", "training.batch_size = 16"}
    assert {*changed, "training.epochs = 2", f"backbone.pretrained = {chain.out}/clip"} <= set(lines)
    assert lines[-1] == f"checkpoint: {tmp_path}/out/checkpoint"
    (epoch,) = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert epoch["epoch"] == 1
    trained = load_checkpoint(str(tmp_path / "out")).config
    before = from_json(RunConfig, earlier.read_text(), "earlier")
    assert trained.optim == before.optim
    assert trained.training == replace(before.training, max_steps=3, batch_size=16)


def test_shards_are_sound(chain: Chain, command) -> None:
    done = command("-m", "sigrl_core.data.shards", chain.out / "shards" / "test")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{chain.out}/shards/test: sound; rows_in 100, rows_out 100, quarantined 0")


def test_evaluation_without_comparison(chain: Chain, tmp_path: Path, in_process) -> None:
    arguments = [
        "--checkpoint",
        chain.out / "sigrl",
        "--data",
        chain.out / "shards" / "test",
        "--out",
        tmp_path / "out",
    ]
    done = call(PIPELINES / "evaluate.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"checkpoint = {chain.out}/sigrl"
    assert done.stdout.splitlines()[-1] == f"report: {tmp_path}/out/report.html, {tmp_path}/out/metrics.json"
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["rows"] == json.loads(chain.metrics)["rows"][:4]


def test_tags_from_labels_never_seen(chain: Chain, tmp_path: Path, in_process) -> None:
    (tmp_path / "words.txt").write_text("a zebra\nhail\nscarlet star\nteal\n")
    images = chain.out / "corpus" / "test" / "pictures"
    asked = ["--vocabulary", tmp_path / "words.txt", "--top-k", "2"]
    arguments = ["--checkpoint", chain.out / "sigrl", "--images", images, "--out", tmp_path / "out"]
    done = call(PIPELINES / "tag.py", *arguments, *asked)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        "100 rows: 100 tagged",
        f"tags: {tmp_path}/out/tags (Parquet), {tmp_path}/out/tagging.html",
    ]
    rows = tagged_rows(tmp_path / "out")
    assert len(rows) == 100
    assert all(len(row["tags"]) == 2 for row in rows)
    assert {item["label"] for row in rows for item in row["tags"]} <= {"a zebra", "hail", "scarlet star", "teal"}
