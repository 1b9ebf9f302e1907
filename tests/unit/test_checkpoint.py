"""The checkpoint folder: what was saved is loaded to the last bit, what was altered or not finished is refused."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from sigrl_core.errors import CheckpointError, StorageError
from sigrl_core.inference.tagger import Tagger
from sigrl_core.io.checksums import sha256_of
from sigrl_core.labels.vocabulary import Label, Vocabulary
from sigrl_core.model.checkpoint import (
    is_checkpoint,
    load_checkpoint,
    load_clip,
    publish_checkpoint,
    save_checkpoint,
    save_clip,
)
from tests.conftest import tagger_of

pytestmark = pytest.mark.unit

VOCABULARY = Vocabulary(
    (
        Label(name="red star", prompts=("a red star", "étoile rouge")),
        Label(name="sand"),
        Label(name="snow", group="unseen"),
    )
)
METRICS = {"selected": {"validation/map": 0.1234567890123}, "history": [{"epoch": 1, "train/loss": 2.5}, {"epoch": 2}]}


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return tagger_of(VOCABULARY)


@pytest.fixture(scope="module")
def saved(tagger: Tagger, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "a new folder" / "checkpoint"
    save_checkpoint(folder, tagger.model, tagger.checkpoint.config, METRICS)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy to spoil; gone afterwards, as it takes 30 MB."""
    yield shutil.copytree(saved, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy")


def refusal(folder: Path | str) -> str:
    """Why a folder is not accepted."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(folder))
    assert str(folder) in str(caught.value)
    return str(caught.value)


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def sign(folder: Path, name: str) -> None:
    """Makes the manifest agree with a file that was changed, as someone who means it would."""
    files = json.loads((folder / "manifest.json").read_text())["files"]
    edit_manifest(folder, files={**files, name: sha256_of((folder / name).read_bytes())})


# ---- what was saved is loaded ----


def test_scores_survive_to_the_last_bit(tagger: Tagger, saved: Path) -> None:
    torch.manual_seed(5)
    loaded = Tagger.load(str(saved))
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8))
    for vocabulary in (VOCABULARY, Vocabulary.from_names(["water", "a green ring"])):
        expected = tagger.score(tagger.encode_images(pixels), vocabulary)
        assert np.array_equal(loaded.score(loaded.encode_images(pixels), vocabulary), expected)
        assert np.ptp(expected) > 0


def test_everything_else_survives(tagger: Tagger, saved: Path) -> None:
    loaded = load_checkpoint(str(saved))
    assert loaded.vocabulary == VOCABULARY
    assert loaded.metrics == METRICS
    assert loaded.config == tagger.checkpoint.config
    assert loaded.uri == str(saved)
    assert not loaded.model.training
    assert loaded.model.backbone.description == tagger.model.backbone.description
    expected = tagger.model.state_dict()
    found = loaded.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_teacher_stays_the_original_clip(tmp_path: Path) -> None:
    """Also when the backbone has moved away from it."""
    moved = tagger_of(VOCABULARY)
    original = moved.model.teacher.proj.clone()
    with torch.no_grad():
        moved.model.backbone.clip.visual.proj += 1
    save_checkpoint(tmp_path / "c", moved.model, moved.checkpoint.config, {})
    loaded = load_checkpoint(str(tmp_path / "c")).model
    assert torch.equal(loaded.teacher.proj, original)
    assert torch.equal(loaded.backbone.clip.visual.proj, original + 1)


def test_a_run_and_its_checkpoint_are_both_accepted(saved: Path) -> None:
    assert load_checkpoint(str(saved.parent)).uri == str(saved)
    assert load_checkpoint(f"{saved}/").vocabulary == VOCABULARY
    assert is_checkpoint(saved)
    assert not is_checkpoint(saved.parent)


def test_there_is_nothing_to_unpickle(saved: Path) -> None:
    assert {path.suffix for path in saved.iterdir()} == {".safetensors", ".json"}
    for path in saved.glob("*.json"):
        json.loads(path.read_text())
    with safe_open(saved / "weights.safetensors", "pt") as weights:
        assert {name.split(".")[0] for name in weights.keys()} == {"backbone", "head", "teacher"}  # noqa: SIM118
    assert list(saved.parent.iterdir()) == [saved]


def test_saving_again_replaces_what_lies_there(tagger: Tagger, copy: Path) -> None:
    (copy / "left over").write_text("x")
    (copy.with_name("copy.partial")).mkdir()
    (copy.with_name("copy.partial") / "half").write_text("x")
    save_checkpoint(copy, tagger.model, tagger.checkpoint.config, {"history": [1]})
    assert load_checkpoint(str(copy)).metrics == {"history": [1]}
    assert not (copy / "left over").exists()
    assert list(copy.parent.iterdir()) == [copy]


# ---- what was altered is refused ----


@pytest.mark.parametrize("where", [0.0, 0.001, 0.5, 0.999999])
def test_a_flipped_byte_in_the_weights_is_found(copy: Path, where: float) -> None:
    with open(copy / "weights.safetensors", "r+b") as file:
        file.seek(int(where * os.path.getsize(copy / "weights.safetensors")))
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    assert "weights.safetensors: sha256 is" in refusal(copy)


def cut(folder: Path) -> None:
    os.truncate(folder / "weights.safetensors", 1_000_000)


def edit_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"top_k_patches": 16', '"top_k_patches": 15'))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (cut, "weights.safetensors: sha256 is"),
        (edit_config, "config.json: sha256 is"),
        (lambda folder: (folder / "vocabulary.json").unlink(), "vocabulary.json: sha256 is missing"),
        (lambda folder: (folder / "backbone.json").unlink(), "backbone.json: sha256 is missing"),
        (lambda folder: (folder / "metrics.json").write_text("{}"), "metrics.json: sha256 is"),
        (lambda folder: (folder / "weights.safetensors").unlink(), "no checkpoint here"),
        (lambda folder: (folder / "manifest.json").unlink(), "no checkpoint here (no manifest.json with"),
        (lambda folder: (folder / "manifest.json").write_text('{"kind": "sig'), "not the manifest of a checkpoint"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "not the manifest of a checkpoint"),
        (lambda folder: edit_manifest(folder, files=3), "not the manifest of a checkpoint"),
        (lambda folder: edit_manifest(folder, files={}), "weights.safetensors: sha256 is"),
        (lambda folder: edit_manifest(folder, kind="shards"), "holds 'shards', expected a checkpoint"),
        (lambda folder: edit_manifest(folder, schema_version=2), "schema version 2, this program reads 1"),
    ],
)
def test_changed_folders_are_refused(copy: Path, change: Callable[[Path], None], reason: str) -> None:
    change(copy)
    assert reason in refusal(copy)


@pytest.mark.parametrize(
    ("name", "old", "new", "reason"),
    [
        ("config.json", '"hidden": 8', '"hidden": 16', "size mismatch"),
        ("config.json", '"hidden"', '"hiden"', "unknown key graph.hiden"),
        ("config.json", "{", "", "not valid JSON"),
        ("vocabulary.json", '"split": "seen"', '"split": "sen"', 'split is "sen"'),
        ("backbone.json", '"name"', '"nam"', "'name'"),
        ("metrics.json", "{", "", "cannot be loaded"),
    ],
)
def test_a_signed_change_that_does_not_fit_is_refused_in_words(
    copy: Path, name: str, old: str, new: str, reason: str
) -> None:
    text = (copy / name).read_text()
    assert old in text
    (copy / name).write_text(text.replace(old, new, 1))
    sign(copy, name)
    assert reason in refusal(copy)


def test_a_clip_is_no_checkpoint_with_a_head(tagger: Tagger, tmp_path: Path) -> None:
    save_clip(tmp_path / "clip", tagger.model.backbone)
    assert f"train one on it (train.py --backbone.pretrained {tmp_path}/clip)" in refusal(tmp_path / "clip")
    loaded, expected = load_clip(tmp_path / "clip").state_dict(), tagger.model.backbone.state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    os.truncate(tmp_path / "clip/weights.safetensors", 1000)
    with pytest.raises(CheckpointError, match="sha256"):
        load_clip(tmp_path / "clip")


def test_a_published_one_is_the_same_with_all_epochs_and_clears_what_a_killed_process_left(
    saved: Path, tmp_path: Path
) -> None:
    (tmp_path / ".weights.safetensors.0123abcd.tmp").write_bytes(b"half")
    publish_checkpoint(str(saved), str(tmp_path), [{"epoch": 1}, {"epoch": 2}, {"epoch": 3}])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in saved.iterdir())
    published, before = load_checkpoint(str(tmp_path)), load_checkpoint(str(saved))
    assert published.metrics == {**before.metrics, "history": [{"epoch": 1}, {"epoch": 2}, {"epoch": 3}]}
    assert (tmp_path / "weights.safetensors").read_bytes() == (saved / "weights.safetensors").read_bytes()


def test_nothing_there(tmp_path: Path, saved: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "missing")
    assert "give the --out of train.py" in refusal(tmp_path)
    assert refusal(saved / "config.json")
    (tmp_path / "plan.json").write_text('{"kind": "search"}')
    assert "no checkpoint here" in refusal(tmp_path)
    (tmp_path / "plan.json").write_text('{"kind": "training"}')
    assert "this training has not finished an epoch; run the same train.py command again" in refusal(tmp_path)
    (tmp_path / "plan.json").unlink()
    (tmp_path / "run.json").write_text("{}")  # its name in version 0.1.0
    assert "this training has not finished an epoch; run the same train.py command again" in refusal(tmp_path)


def test_a_half_written_folder_is_never_accepted(saved: Path, tmp_path: Path) -> None:
    """However far writing came: the manifest is last, and the name appears when everything is there."""
    names = ["weights.safetensors", "backbone.json", "config.json", "vocabulary.json", "metrics.json"]
    assert sorted([*names, "manifest.json"]) == sorted(path.name for path in saved.iterdir())
    run = tmp_path / "run"
    partial = run / "checkpoint.partial"
    partial.mkdir(parents=True)
    for name in names:
        shutil.copyfile(saved / name, partial / name)
        assert "no checkpoint here" in refusal(partial)
    shutil.copyfile(saved / "manifest.json", partial / "manifest.json")
    assert "no checkpoint here" in refusal(run)
    assert "no such folder" in refusal(run / "checkpoint")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB; a checkpoint takes 30."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here; run as root to test a full disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_nothing_to_accept(tagger: Tagger, small_disk: Path) -> None:
    with pytest.raises(StorageError, match=r"checkpoint cannot be written .* free space or choose another --out"):
        save_checkpoint(small_disk / "run/checkpoint", tagger.model, tagger.checkpoint.config, {})
    assert list((small_disk / "run").iterdir()) == []
    assert "no checkpoint here" in refusal(small_disk / "run")
