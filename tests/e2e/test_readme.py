"""README's commands, word for word, one after the other: a user's own pictures to tags."""

import json
import re
import shlex
from pathlib import Path

import pytest

from sigrl_core.checkpoint import load_checkpoint, save_clip
from sigrl_core.config import BackboneConfig
from sigrl_core.model.backbone import load_backbone
from sigrl_core.records import ShardFolder
from tests.conftest import REPOSITORY, tagged_rows

pytestmark = pytest.mark.e2e

BACKBONE = "--backbone.name toybox-vit --backbone.pretrained clip"
"""In the place of the preset's ViT-B/16, whose weights would be downloaded."""
PICTURES = 480  # a tenth is held out, of which calibration wants ten positives and negatives in each half
MORE = {"train.py": f"{BACKBONE} --training.max-steps 2 --training.batch-size 8", "cache_features.py": BACKBONE}
MORE["tune.py"] = f"{MORE['train.py']} --trials 2"


def commands() -> list[str]:
    """Those of the section on one's own pictures that run here: no cluster, no server."""
    text = (REPOSITORY / "README.md").read_text()
    section = text[text.index("## Your own pictures") : text.index("## What is where")]
    return [line for line in re.findall(r"^    (python .*)$", section, re.MULTILINE) if "serve.py" not in line]


def small(line: str) -> list[str]:
    """A command's arguments, with a model of a few layers."""
    words = shlex.split(line.replace("--backbone.frozen-blocks 12", "--backbone.frozen-blocks 2"))[1:]
    return words + shlex.split(MORE.get(Path(words[0]).name, ""))


@pytest.fixture
def home(tmp_path: Path, make_picture) -> Path:
    """A folder as the README supposes: code, pictures, lists of labels, labelled pictures for a test."""
    (tmp_path / "pipelines").symlink_to(REPOSITORY / "pipelines")
    (tmp_path / "photos").mkdir()
    lines = []
    for number in range(PICTURES):
        make_picture(number, 60, 50).save(tmp_path / "photos" / f"{number}.jpg")
        labels = [name for bit, name in enumerate(("dog", "beach", "a red car")) if number + 1 & 1 << bit]
        lines.append(json.dumps({"uri": f"{number}.jpg", "labels": labels}) + "\n")
    save_clip(tmp_path / "clip", load_backbone(BackboneConfig(name="toybox-vit", pretrained="random")))
    (tmp_path / "labels.jsonl").write_text("".join(lines))
    (tmp_path / "labels.txt").write_text("dog\nbeach\na red car\n")
    (tmp_path / "other_labels.txt").write_text("okapi\ndrizzle\nmarket\nFußgängerzone\n42\nharbour\n")
    return tmp_path


@pytest.mark.timeout(1500)  # a dozen commands, each with a Ray of its own
def test_the_commands_for_ones_own_pictures(home: Path, command) -> None:
    (test,) = (line for line in commands() if "preprocess.py" in line and "positives" not in line)
    for line in [test.replace("runs/shards", "runs/test_shards"), *commands()]:
        done = command(*small(line), cwd=home)
        assert done.returncode == 0, (line, done.stderr)
        assert "Traceback" not in done.stderr
        assert done.stdout.strip(), line
    runs = home / "runs"
    assert len(tagged_rows(runs / "tags")) == PICTURES
    assert all(len(row["tags"]) == 5 for row in tagged_rows(runs / "tags"))
    assert {tag["label"] for row in tagged_rows(runs / "sure_tags") for tag in row["tags"]} <= {
        "dog",
        "beach",
        "a red car",
    }
    assert (runs / "evaluation" / "report.html").exists()
    counts = ShardFolder.open(str(runs / "positives")).manifest["label_counts"]
    assert all(count["unknown"] > 200 > count["absent"] for count in counts.values())  # absent in what is held out
    assert load_checkpoint(str(runs / "single")).config.loss.kind == "em"
    assert ShardFolder.open(str(runs / "features")).kind == "features"
    assert load_checkpoint(str(runs / "head")).config.backbone.frozen_blocks == 2
    assert load_checkpoint(str(runs / "best")).config.optim == load_checkpoint(str(runs / "search")).config.optim
    print(f"{len(commands())} commands of the README")
    assert len(commands()) >= 12
