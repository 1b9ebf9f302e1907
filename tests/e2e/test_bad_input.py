"""Input that cannot be used: one clear line that names the thing and the next step, and nothing that looks finished.

Most are asked of the call that a command makes, with the line that the command would print; some of whole commands.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sigrl_core import errors
from sigrl_core.cli import common as command_line
from sigrl_core.config import EvaluateConfig, PreprocessConfig, RunConfig, TagConfig
from sigrl_core.config.json import to_json
from sigrl_core.config.presets import get_preset
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import SigrlError
from sigrl_core.model.checkpoint import load_checkpoint, save_checkpoint, save_clip
from sigrl_core.on_ray.preprocess import preprocess
from sigrl_core.on_ray.tag import tag
from sigrl_core.on_ray.train import train
from sigrl_core.report.evaluation import evaluate_to_report
from sigrl_core.training.losses import LOSSES
from tests.conftest import random_states, tagger_of, vocabulary_of, write_shards

pytestmark = pytest.mark.e2e

PIPELINES = Path(__file__).parents[2] / "pipelines"
VOCABULARY = vocabulary_of(["cat", "dog", "sofa"], ["okapi"])


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Things that are what they seem, and some that are not."""
    root = tmp_path_factory.mktemp("world")
    write_shards(root / "shards", VOCABULARY, random_states(10, 4))
    write_shards(root / "other_shards", vocabulary_of(["cat", "dog"]), random_states(10, 2))
    write_shards(root / "unseen_shards", vocabulary_of([], ["cat", "dog"]), random_states(10, 2))
    (root / "unfinished").mkdir()
    (root / "unfinished" / "plan.json").write_text("{}")
    model = tagger_of(VOCABULARY)
    measured = {"selected": {}, "history": []}
    save_checkpoint(root / "checkpoint", model.model, model.checkpoint.config, measured)
    save_clip(root / "clip", model.model.backbone)
    (root / "started").mkdir()
    (root / "started" / "plan.json").write_text('{"kind": "training"}')
    (root / "empty").mkdir()
    (root / "random").mkdir()
    (root / "random" / "data.bin").write_bytes(np.random.default_rng(0).bytes(1000))
    (root / "pictures" / "cat").mkdir(parents=True)
    (root / "pictures" / "cat" / "1.jpg").write_bytes(
        ShardFolder.open(str(root / "shards")).read_shard(0)["image"][0].as_py()
    )
    for name, text in {
        "nothing.txt": "\n \n",
        "twice.txt": "cat\ndog\ncat\n",
        "without_cat.txt": "dog\nsofa\n",
        "labels.jsonl": '{"uri": "cat/1.jpg", "labels": ["cat", "unicorn"]}\n',
        "broken.jsonl": '{"uri": "cat/1.jpg", "labels": ["cat"]}\n{"uri": \n',
        "not.json": "{epochs: 3",
        "unknown_key.json": json.dumps({"optim": {"learning_rate": 1}}),
        "wrong_type.json": json.dumps({"training": {"epochs": "three"}}),
    }.items():
        (root / name).write_text(text)
    (root / "binary.txt").write_bytes(b"\xff\xfe\x00\x81cat\n")
    return root


def line_of(call: Callable[[], object]) -> str:
    """What the command would print after `error: `."""
    with pytest.raises(SigrlError) as caught:
        call()
    line = errors.explain(caught.value)
    assert line is not None
    return line


# ---- preprocess ----


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"images": "missing"}, ["missing", "no such folder of images", "check --images"]),
        ({"images": "empty"}, ["empty", "no image files", "check --images"]),
        ({"images": "binary.txt"}, ["binary.txt", "a file, expected the folder"]),
        ({"corpus": "voc2012"}, ["corpus is 'voc2012'", "expected one of folder, files, shards"]),
        ({"corpus": "jsonl"}, ["needs an annotation file", "--annotations FILE"]),
        ({"corpus": "jsonl", "annotations": "missing.jsonl"}, ["missing.jsonl", "no such file"]),
        ({"corpus": "jsonl", "annotations": "binary.txt"}, ["binary.txt, line 1", "one object per line"]),
        ({"corpus": "jsonl", "annotations": "broken.jsonl"}, ["broken.jsonl, line 2", "one object per line"]),
        ({"corpus": "coco", "annotations": "binary.txt"}, ["binary.txt", "give a COCO instances file"]),
        ({"corpus": "coco", "annotations": "unknown_key.json"}, ["unknown_key.json", "give a COCO instances file"]),
        (
            {"corpus": "jsonl", "annotations": "labels.jsonl", "vocabulary": "without_cat.txt"},
            ["cat/1.jpg", "'cat' is not in the vocabulary"],
        ),
        ({"quality": 0}, ["quality is 0"]),
        ({"images": "http://host/pictures"}, ["scheme http:// is not known"]),
        ({"corpus": "coco"}, ["add --annotations"]),
        ({"vocabulary": "missing.txt"}, ["missing.txt", "no such file"]),
        ({"vocabulary": "nothing.txt"}, ["nothing.txt", "write one label per line"]),
        ({"vocabulary": "twice.txt"}, ["twice.txt", "listed twice: cat", "keep one of each"]),
        ({"vocabulary": "binary.txt"}, ["binary.txt", "not UTF-8 text", "save it as plain text"]),
    ],
)
def test_preprocess(world: Path, tmp_path: Path, changes: dict[str, Any], expected: list[str]) -> None:
    def path(key: str, value: Any) -> Any:
        return value if key in ("corpus", "quality") or "://" in value else str(world / value)

    config = PreprocessConfig(corpus="folder", images=str(world / "pictures"), out=str(tmp_path / "out"))
    changed = {key: path(key, value) for key, value in changes.items()}
    line = line_of(lambda: preprocess(replace(config, **changed)))
    assert all(part in line for part in expected), line
    assert not (tmp_path / "out").exists()


# ---- train ----


def with_backbone(**changes) -> RunConfig:
    return replace(get_preset("quickstart"), backbone=replace(get_preset("quickstart").backbone, **changes))


@pytest.mark.parametrize(
    ("data", "run", "expected"),
    [
        ("missing", {}, ["missing", "no shard folder here", "preprocess.py --out"]),
        ("empty", {}, ["empty", "no shard folder here", "preprocess.py --out"]),
        ("unfinished", {}, ["unfinished", "has not finished here", "run the same command again"]),
        ("checkpoint", {}, ["checkpoint/manifest.json", "not the manifest of a shard folder"]),
        ("unseen_shards", {}, ["unseen_shards", "no seen labels", "run preprocess.py with labels"]),
        ("shards", {"name": "ViT-Z-99"}, ["'ViT-Z-99' is unknown", "toybox-vit", "ViT-B-16"]),
        ("shards", {"pretrained": "openai"}, ["no published weights 'openai'", "checkpoint folder", "'random'"]),
        (
            "shards",
            {"pretrained": "{world}/random"},
            ["random", "no backbone.json", "made by train.py or quickstart.py"],
        ),
        (
            "shards",
            {"name": "ViT-B-32", "pretrained": "laion"},
            ["'laion'", "nor a tag of ViT-B-32", "laion2b_s34b_b79k"],
        ),
        ("shards", {"name": "ViT-S-32", "pretrained": "{world}/binary.txt"}, ["binary.txt", "not weights of ViT-S-32"]),
        ("shards", {"name": "RN50", "pretrained": "random"}, ["RN50", "choose one such as ViT-B-16"]),
    ],
)
def test_train(world: Path, tmp_path: Path, data: str, run: dict[str, str], expected: list[str]) -> None:
    config = with_backbone(**{key: value.format(world=world) for key, value in run.items()})
    line = line_of(lambda: train(config, str(world / data), str(tmp_path / "out")))
    assert all(part in line for part in expected), line
    assert not (tmp_path / "out").exists()


def test_weights_that_cannot_be_fetched(world: Path, tmp_path: Path, command, monkeypatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))  # nothing there, and no network to get it from
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    weights = ["--backbone.name", "ViT-B-32", "--backbone.pretrained", "laion2b_s34b_b79k"]
    out = tmp_path / "out"
    done = command(PIPELINES / "train.py", "default", "--data", world / "shards", "--out", out, *weights)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: weights 'laion2b_s34b_b79k' of ViT-B-32 cannot be fetched")
    assert "download open_clip_model.safetensors of huggingface.co/laion/CLIP-ViT-B-32-laion2B-s34B-b79K on" in line
    assert "pass its path: --backbone.pretrained /path/to/file" in line
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_train_refuses_a_loss_and_a_validation_set_it_cannot_use(world: Path, tmp_path: Path) -> None:
    preset, out = get_preset("quickstart"), str(tmp_path / "out")
    unknown = replace(preset, loss=replace(preset.loss, kind="cosine"))
    line = line_of(lambda: train(unknown, str(world / "shards"), out))
    known = f"{', '.join(LOSSES)}, or a name that a plug-in registers (--plugin MODULE)"
    assert line == f"loss.kind is 'cosine'; expected one of {known}"
    line = line_of(lambda: train(preset, str(world / "shards"), out, validation=str(world / "other_shards")))
    assert "other_shards: vocabulary" in line
    assert f"run preprocess.py with --vocabulary {world}/shards/vocabulary.json" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nus"], ["'nus' is unknown", "default, published, "]),
        (["--data", "x"], ["the preset comes first", "default"]),
        (["quickstart", "--config"], ["--config needs a file"]),
        (
            ["quickstart", "--config", "missing.json"],
            ["missing.json", "cannot be read", "config.json of an earlier run"],
        ),
        (["quickstart", "--config", "binary.txt"], ["binary.txt", "cannot be read", "config.json of an earlier run"]),
        (["quickstart", "--config", "not.json"], ["not.json", "not valid JSON", "config.json of an earlier run"]),
        (["quickstart", "--config", "unknown_key.json"], ["unknown key optim.learning_rate", "known are lr"]),
        (["quickstart", "--config=wrong_type.json"], ["training.epochs is 'three'", "expected int"]),
    ],
)
def test_presets_and_configurations(world: Path, monkeypatch, arguments: list[str], expected: list[str]) -> None:
    monkeypatch.chdir(world)
    line = line_of(lambda: command_line.preset_and_flags(arguments, ""))
    assert all(part in line for part in expected), line


# ---- evaluate and tag ----


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
        ("missing", ["missing", "no such folder", "give the --out of train.py"]),
        ("random", ["random", "no checkpoint here", "give the --out of train.py"]),
        ("shards", ["shards", "no checkpoint here", "give the --out of train.py"]),
        ("clip", ["clip", "a CLIP without a SigRL head", "--backbone.pretrained"]),
        ("started", ["started", "has not finished an epoch", "run the same train.py command again"]),
    ],
)
def test_a_checkpoint_that_is_none(world: Path, tmp_path: Path, checkpoint: str, expected: list[str]) -> None:
    uri, out = str(world / checkpoint), str(tmp_path / "out")
    for call in (
        lambda: tag(TagConfig(checkpoint=uri, images=str(world / "pictures"), out=out)),
        lambda: evaluate_to_report(EvaluateConfig(checkpoint=uri, data=str(world / "shards"), out=out)),
    ):
        line = line_of(call)
        assert all(part in line for part in expected), line
        assert not (tmp_path / "out").exists()


def test_an_altered_checkpoint(world: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(str(world / "checkpoint"))
    save_checkpoint(tmp_path / "c", checkpoint.model, checkpoint.config, {})
    (tmp_path / "c" / "config.json").write_text(to_json(with_backbone(frozen_blocks=1)))
    line = line_of(lambda: load_checkpoint(str(tmp_path / "c")))
    assert "c/config.json: sha256 is" in line
    assert line.endswith("copy the folder again")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("other_shards", ["other_shards", "(2 labels)", "(4 labels)", "run preprocess.py with --vocabulary"]),
        ("unfinished", ["unfinished", "has not finished here"]),
        ("pictures", ["pictures", "no shard folder here"]),
    ],
)
def test_evaluate(world: Path, tmp_path: Path, data: str, expected: list[str]) -> None:
    config = EvaluateConfig(checkpoint=str(world / "checkpoint"), data=str(world / data), out=str(tmp_path / "out"))
    line = line_of(lambda: evaluate_to_report(config))
    assert all(part in line for part in expected), line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("vocabulary", "expected"),
    [
        ("missing.txt", ["missing.txt", "no such file"]),
        ("nothing.txt", ["nothing.txt", "no labels found", "write one label per line"]),
        ("twice.txt", ["twice.txt", "listed twice: cat"]),
        ("binary.txt", ["binary.txt", "save it as plain text"]),
        ("shards", ["shards", "cannot be read"]),
    ],
)
def test_tag_with_a_vocabulary_that_is_none(world: Path, tmp_path: Path, vocabulary: str, expected: list[str]) -> None:
    config = TagConfig(
        checkpoint=str(world / "checkpoint"),
        images=str(world / "pictures"),
        out=str(tmp_path / "out"),
        vocabulary=str(world / vocabulary),
    )
    line = line_of(lambda: tag(config))
    assert all(part in line for part in expected), line
    assert not (tmp_path / "out").exists()


# ---- whole commands ----


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["train.py", "nus", "--data", "shards"], 1, "error: preset 'nus' is unknown; known are default, "),
        (["train.py", "quickstart", "--data", "unfinished"], 1, "preprocess.py has not finished here"),
        (["train.py", "quickstart", "--data", "shards", "--optim.momentum", "1"], 2, "--optim.momentum"),
        (["evaluate.py", "--checkpoint", "clip", "--data", "shards"], 1, "a CLIP without a SigRL head"),
        (["preprocess.py", "--corpus", "folder", "--images", "missing"], 1, "missing: no such folder of images"),
        (["tag.py", "--checkpoint", "checkpoint", "--images", "empty", "--top-k", "0"], 1, "error: top_k is 0"),
    ],
)
def test_commands(world: Path, tmp_path: Path, command, arguments: list[str], status: int, expected: str) -> None:
    script, *flags = arguments
    done = command(PIPELINES / script, *flags, "--out", tmp_path / "out", cwd=world)
    assert done.returncode == status, done
    assert expected in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    if status == 1:
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
