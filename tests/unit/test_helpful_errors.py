"""Mistakes that users make: one line that names the thing, where it is, what was expected, and the next step.

Found by trying. `{w}` is the folder `world`; commands run in this process, and none of them gets as far as Ray.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import sigrl_core
from sigrl_core.config import Resources, TagConfig
from sigrl_core.errors import SigrlError
from sigrl_core.io.resumable_job import MANIFEST, PLAN
from sigrl_core.model.checkpoint import save_checkpoint
from sigrl_core.on_ray.tag import dry_run
from tests.conftest import REPOSITORY, random_states, tagger_of, vocabulary_of, write_shards
from tests.in_process import call

pytestmark = pytest.mark.unit

sigrl: Any = sigrl_core  # called with arguments of wrong types


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One thing of each kind."""
    root, vocabulary = tmp_path_factory.mktemp("world"), vocabulary_of(["cat", "dog", "sofa"], ["okapi"])
    write_shards(root / "shards", vocabulary, random_states(10, 4))
    model = tagger_of(vocabulary)
    save_checkpoint(root / "checkpoint", model.model, model.checkpoint.config, {"selected": {}, "history": []})
    (root / "images" / "cat").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (64, 48), (40 * number, 9, 9)).save(root / "images" / "cat" / f"{number}.jpg")
    (root / "mine").mkdir()
    (root / "mine" / "thesis.txt").write_text("two years of work")
    (root / "labels.txt").write_text("cat\ndog\n")
    (root / "coco.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    return root


TAG = "tag --checkpoint {w}/checkpoint --images {w}/images --out {w}/out"
EVALUATE = "evaluate --checkpoint {w}/checkpoint --data {w}/shards --out {w}/out"
CALIBRATE = "calibrate --checkpoint {w}/checkpoint --data {w}/shards"
CACHE = "cache_features --checkpoint {w}/checkpoint --data {w}/shards --out {w}/out"
TRAIN = "train quickstart --data {w}/shards --out {w}/out --backbone.pretrained random"
TUNE = "tune quickstart --data {w}/shards --out {w}/out --backbone.pretrained random --objective map"
PREPROCESS = "preprocess --corpus folder --images {w}/images --out {w}/out"
SERVE = "serve --checkpoint {w}/checkpoint"

CHECKPOINTS = [TAG, EVALUATE, CALIBRATE, CACHE, SERVE]
SHARDS = [EVALUATE, CALIBRATE, CACHE, TRAIN, TUNE]
OUTS = [TAG, EVALUATE, CACHE, TRAIN, PREPROCESS, "quickstart --out {w}/out"]
NO_CHECKPOINT = "give the --out of train.py"
NO_SHARDS = "preprocess.py"

CASES: list[tuple[str, str, list[str]]] = [
    # a command, its last flags, and what the line holds
    *(
        (
            command,
            "--checkpoint {w}/labels.txt",
            ["{w}/labels.txt: a file, not a checkpoint folder", "--vocabulary", NO_CHECKPOINT],
        )
        for command in CHECKPOINTS
    ),
    *(
        (
            command,
            "--checkpoint {w}/shards",
            ["{w}/shards: no checkpoint here, but a shard folder of preprocess.py", NO_CHECKPOINT],
        )
        for command in CHECKPOINTS
    ),
    *(
        (command, "--checkpoint {w}/images", ["{w}/images: no checkpoint here", NO_CHECKPOINT])
        for command in CHECKPOINTS
    ),
    *(
        (
            command,
            "--data {w}/checkpoint",
            ["{w}/checkpoint/manifest.json: not the manifest of a shard folder, but of a checkpoint", NO_SHARDS],
        )
        for command in SHARDS
    ),
    *((command, "--data {w}/images", ["{w}/images: no shard folder here", NO_SHARDS]) for command in SHARDS),
    *(
        (command, "--data {w}/labels.txt", ["{w}/labels.txt: a file, expected a shard folder", NO_SHARDS])
        for command in SHARDS
    ),
    (TRAIN, "--validation {w}/checkpoint", ["but of a checkpoint", NO_SHARDS]),
    (
        TAG,
        "--images {w}/shards",
        ["{w}/shards: a shard folder of preprocess.py, expected a folder of images", "add --corpus shards"],
    ),
    (TAG, "--images {w}/checkpoint", ["{w}/checkpoint: a checkpoint, expected a folder of images"]),
    (TAG, "--images {w}/images/cat/0.jpg", ["0.jpg: a file, expected the folder of the images", "check --images"]),
    (
        PREPROCESS,
        "--images {w}/shards",
        ["a shard folder of preprocess.py, expected a folder of images", "add --corpus shards"],
    ),
    (PREPROCESS, "--images {w}/checkpoint", ["a checkpoint, expected a folder of images"]),
    (
        PREPROCESS,
        "--corpus coco --images {w}/coco.json --annotations {w}/images",
        ["{w}/coco.json is a file", "{w}/images is a folder", "exchange the two"],
    ),
    (TAG, "--vocabulary {w}/checkpoint", ["because it is a folder; give {w}/checkpoint/vocabulary.json"]),
    (PREPROCESS, "--vocabulary {w}/images", ["because it is a folder; give a file with one label per line"]),
    (TAG, "--vocabulary {w}/images/cat/0.jpg", ["0.jpg: not UTF-8 text", "save it as plain text"]),
    (
        TAG,
        "--label-embeddings {w}/labels.txt",
        ["labels.txt: cannot be read as .npy (no .npy file of numbers)", "numpy.save"],
    ),
    (
        TRAIN,
        "--graph.kind listed --graph.edges {w}/labels.txt",
        ["labels.txt: not valid JSON", "write one edge per line"],
    ),
    (TRAIN, "--backbone.pretrained {w}/shards", ["shards: no backbone.json in it", "train.py or quickstart.py"]),
    # places that are misspelt
    *(
        (command, f"{flag} {place}", [place, "is misspelt; write s3://bucket/x"])
        for place in ("s3:/bucket/x", "s3:bucket/x", "S3://bucket/x")
        for command, flag in (
            (TAG, "--images"),
            (TAG, "--out"),
            (EVALUATE, "--data"),
            (TRAIN, "--out"),
            (SERVE, "--checkpoint"),
        )
    ),
    (PREPROCESS, "--images http://host/x", ["scheme http:// is not known; give a local path, s3://"]),
    # places that are in use
    *(
        (command, "--out {w}/mine", ["{w}/mine: holds files of something else", "choose another --out"])
        for command in OUTS
    ),
    *(
        (command, "--out {w}/labels.txt", ["{w}/labels.txt: a file, expected a folder to write; choose another --out"])
        for command in OUTS
    ),
    *(
        (command, f"--out {out}", ["below images, where the next run would list it; choose another folder"])
        for command in (TAG, PREPROCESS)
        for out in ("{w}/images", "{w}/images/out")
    ),
]


@pytest.mark.parametrize(
    ("command", "flags", "expected"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_commands(world: Path, command: str, flags: str, expected: list[str]) -> None:
    words = f"{command} {flags}".format(w=world).split()
    before = sorted(world.rglob("*"))
    done = call(f"{words[0]}.py", *words[1:])
    assert done.returncode == 1, done
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert all(part.format(w=world) in line for part in expected), line
    assert "Traceback" not in done.stderr
    assert sorted(world.rglob("*")) == before  # nothing is written, and nothing is lost


API: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "one image": (
        lambda w: sigrl.tag(["x.jpg"]),
        ["checkpoint: found a list of str", "whose method tag takes single images"],
    ),
    "images": (
        lambda w: sigrl.tag(w / "checkpoint", ["x.jpg"]),
        ["images: found a list of str", "Tagger.tag takes single images"],
    ),
    "no out": (lambda w: sigrl.tag(w / "checkpoint", w / "images"), ["out: found nothing; expected a folder to write"]),
    "exchanged": (
        lambda w: sigrl.tag(w / "images", w / "checkpoint", out=w / "out"),
        ["a checkpoint, expected a folder of images"],
    ),
    "labels": (lambda w: sigrl.load(w / "labels.txt"), ["a file, not a checkpoint folder"]),
    "shards": (lambda w: sigrl.load(w / "shards"), ["no checkpoint here, but a shard folder of preprocess.py"]),
    "list": (lambda w: sigrl.load([w / "checkpoint"]), ["path: found a list of", "expected a checkpoint folder"]),
    "typo": (lambda w: sigrl.load("s3:/bucket/x"), ["misspelt; write s3://bucket/x"]),
    "shards as image": (
        lambda w: sigrl.load(w / "checkpoint").tag(w / "shards"),
        ["is a shard folder of preprocess.py; expected an image file"],
    ),
    "checkpoint as image": (
        lambda w: sigrl.load(w / "checkpoint").tag(w / "checkpoint"),
        ["is a checkpoint; expected an image file"],
    ),
    "a name": (
        lambda w: sigrl.load(w / "checkpoint").tag(w / "images/cat/0.jpg", labels="cat"),
        ["label names are given as a list, labels=['cat']"],
    ),
    "train on a checkpoint": (
        lambda w: sigrl.train(w / "checkpoint", out=w / "out"),
        ["not the manifest of a shard folder, but of a checkpoint"],
    ),
    "preprocess a checkpoint": (
        lambda w: sigrl.preprocess(w / "checkpoint", out=w / "out"),
        ["a checkpoint, expected a folder of images"],
    ),
    "serve shards": (lambda w: sigrl.serve(w / "shards"), ["no checkpoint here, but a shard folder"]),
}


@pytest.mark.parametrize("name", API)
def test_api(world: Path, name: str) -> None:
    function, expected = API[name]
    with pytest.raises(SigrlError) as caught:
        function(world)
    assert all(part in str(caught.value) for part in expected), caught.value
    assert not (world / "out").exists()


def test_every_kind_of_folder_has_a_name_in_errors(world: Path, tmp_path: Path) -> None:
    """Every folder has a manifest.json, so a message names what it is of."""
    from sigrl_core.io.resumable_job import FOLDER_KINDS, describe_folder

    for kind, description in FOLDER_KINDS.items():
        (tmp_path / MANIFEST).write_text(json.dumps({"kind": kind}))
        assert describe_folder(str(tmp_path)) == description
    for text in ("[]", "{", '{"kind": ["x"]}', "{}"):
        (tmp_path / MANIFEST).write_text(text)
        assert describe_folder(str(tmp_path)) is None
    (tmp_path / MANIFEST).rename(tmp_path / PLAN)
    assert describe_folder(str(tmp_path)) is None
    assert describe_folder(str(world / "labels.txt")) is None


def test_out_inside_a_work_tree(world: Path, tmp_path: Path) -> None:
    """One line where Git would list the files, none where it ignores them."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("runs/\n")
    for out, is_noted in ((tmp_path / "here", True), (tmp_path / "runs" / "here", False), (world / "out", False)):
        done = call("tag.py", "--checkpoint", world / "shards", "--images", world / "images", "--out", out)
        note = (
            f"note: {out} is in a Git work tree that does not ignore it; add it to .gitignore, or choose another --out"
        )
        assert (note in done.stderr.splitlines()) == is_noted
        assert done.stderr.splitlines()[-1].startswith("error: ")


SCRIPT = """
import sys
from sigrl_core.cli.__main__ import main
try:
    main(sys.argv[1:])
finally:
    print([name for name in ("torch", "open_clip", "ray") if name in sys.modules], file=sys.stderr)
"""


def test_an_unknown_backbone_is_found_without_torch(world: Path) -> None:
    command = ["train", "default", "--data", "d", "--out", world / "out", "--backbone.name", "ViT-B-61"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, command)], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 1
    *_, line, imported = done.stderr.splitlines()
    assert line.startswith("error: backbone.name 'ViT-B-61' is unknown; known are toybox-vit, ")
    assert "ViT-B-16" in line
    assert imported == "[]"


@pytest.mark.parametrize("words", ["--help", "train default --help", "nonsense"])
def test_a_reader_that_has_ended_gets_no_traceback(words: str) -> None:
    command = f"{sys.executable} -m sigrl_core.cli {words} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_a_dry_run_states_the_cost_and_the_processor(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = TagConfig(checkpoint=str(world / "checkpoint"), images=str(world / "images"), out=str(tmp_path / "out"))
    plain = dry_run(config)
    assert "cost" not in plain
    priced = dry_run(config, Resources(num_workers=2, gpus_per_worker=1), 3.5).splitlines()
    assert "with 2 workers as fast as this process on its CPU" in priced[1]
    assert priced[2].startswith("this process has no GPU; workers with GPUs are faster")
    assert priced[3].startswith("cost at 3.5 an hour: about 0.")
    assert not (tmp_path / "out").exists()
