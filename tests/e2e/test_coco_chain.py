"""The chain on real photographs with an open_clip backbone: shards, training, evaluation.

COCO has no unseen labels: what is measured for those must be left out, not break.
"""

import json
from pathlib import Path

import pytest

from sigrl_core.data.shards import ShardFolder
from sigrl_core.model.checkpoint import load_checkpoint
from tests.in_process import call

pytestmark = pytest.mark.e2e

PIPELINES = Path(__file__).parents[2] / "pipelines"


def test_from_photographs_to_an_evaluation(coco160: Path, tmp_path: Path, in_process) -> None:
    def run(script: str, *arguments: object) -> list[str]:
        done = call(PIPELINES / script, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout.splitlines()

    for split in ("train", "val"):
        annotations = coco160 / "annotations" / f"instances_{split}2017.json"
        where = ["--images", coco160 / f"{split}2017", "--annotations", annotations, "--out", split]
        lines = run("preprocess.py", "--corpus", "coco", *where)
        assert lines[0] == "corpus = coco"
        summary = "80 rows in: 80 good, 0 quarantined, 0 duplicates; 80 labels, 1 shards"
        assert lines[-3:] == [summary, f"page: {split}/dataset.html", f"shards: {split}"]
        shards = ShardFolder.open(str(tmp_path / split))
        shards.verify()
        assert shards.vocabulary.names[:3] == ["person", "bicycle", "car"]
        content = json.loads(annotations.read_text())
        marked = {(row["image_id"], row["category_id"]) for row in content["annotations"]}
        assert sum(counts["present"] for counts in shards.manifest["label_counts"].values()) == len(marked)
        table = shards.read_shard(0)
        assert min(table["width"].to_pylist() + table["height"].to_pylist()) <= 256
        assert table["uri"].to_pylist() == [row["file_name"] for row in content["images"]]
    assert ShardFolder.open(str(tmp_path / "train")).vocabulary == ShardFolder.open(str(tmp_path / "val")).vocabulary

    backbone = ["--backbone.name", "ViT-S-32", "--backbone.pretrained", "random"]
    short = ["--training.max_steps", "3", "--training.batch_size", "8", "--data", "train", "--validation", "val"]
    lines = run("train.py", "default", *backbone, *short, "--out", "run")
    assert lines[-1] == f"checkpoint: {tmp_path}/run/checkpoint"
    (epoch,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert 0 < epoch["validation/map"] < 1
    assert epoch["train/loss"] > 0
    config = load_checkpoint(str(tmp_path / "run")).config
    assert (config.backbone.name, config.training.augment, config.training.max_steps) == ("ViT-S-32", "randaugment", 3)

    lines = run("evaluate.py", "--checkpoint", "run", "--data", "val", "--out", "evaluation")
    assert lines[-1] == "report: evaluation/report.html, evaluation/metrics.json"
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert [row["name"] for row in metrics["rows"]] == [
        "sigrl",
        "sigrl_independent",
        "clip_global",
        "clip_global_local",
    ]
    assert all(set(row) == {"name", "gzsl", "seen"} for row in metrics["rows"])
    assert metrics["labels"] == {"seen": 80, "unseen": 0}
    assert metrics["rows"][0]["seen"]["map"] == pytest.approx(epoch["validation/map"], abs=1e-4)
    assert "<svg" in (tmp_path / "evaluation" / "report.html").read_text()
