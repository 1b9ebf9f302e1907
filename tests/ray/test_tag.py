"""Batch tagging on a real local Ray: one row per picture in listing order, the same bytes whoever works."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sigrl_core.checkpoint import save_checkpoint
from sigrl_core.config import TagConfig
from sigrl_core.demo import toybox
from sigrl_core.errors import CheckpointError, CorpusError, StorageError, VocabularyError
from sigrl_core.model.backbone import load_backbone
from sigrl_core.model.recogniser import Recogniser
from sigrl_core.on_ray.tag import TAGS_SCHEMA, tag
from sigrl_core.presets import get_preset
from sigrl_core.tagger import Tagger
from tests.conftest import fingerprint

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

PIPELINE = Path(__file__).parents[2] / "pipelines" / "tag.py"


def make_checkpoint(folder: Path, seed: int) -> Path:
    """An untrained model of the built-in corpus's vocabulary, saved as training saves it."""
    config = get_preset("quickstart")
    torch.manual_seed(seed)
    recogniser = Recogniser.start(load_backbone(config.backbone), config, toybox.vocabulary()).eval()
    save_checkpoint(folder, recogniser, config, {"selected": {}, "history": []})
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", seed=0)


@pytest.fixture
def album(pictures: Path) -> Path:
    """The 12 pictures of `pictures`, three files that are none, and one that is no candidate at all."""
    (pictures / "cat" / "empty.jpg").touch()
    (pictures / "cat" / "text.JPG").write_text("not a picture")
    (pictures / "dog" / "half.jpg").write_bytes((pictures / "dog" / "06.jpg").read_bytes()[:300])
    (pictures / "dog" / "notes.txt").write_text("no picture by its name")
    return pictures


def config_for(checkpoint: Path, album: Path, out: Path, **changes) -> TagConfig:
    config = TagConfig(checkpoint=str(checkpoint), images=str(album), out=str(out), rows_per_part=4)
    return dataclasses.replace(config, **changes)


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "tags.jsonl").read_text().splitlines()]


def test_one_row_for_every_picture_in_order(checkpoint: Path, album: Path, tmp_path: Path) -> None:
    manifest = tag(config_for(checkpoint, album, tmp_path / "out"))
    rows = rows_of(tmp_path / "out")
    uris = sorted(str(path.relative_to(album)) for path in album.rglob("*") if path.suffix.lower() == ".jpg")
    assert [row["uri"] for row in rows] == uris
    assert len(uris) == 15
    errors = {row["uri"]: row["error"] for row in rows if "error" in row}
    assert errors == {"cat/empty.jpg": "empty", "cat/text.JPG": "not_an_image", "dog/half.jpg": "truncated"}
    assert all(row["tags"] == [] for row in rows if "error" in row)
    assert {"rows": 15, "tagged": 12, "errors": {"empty": 1, "not_an_image": 1, "truncated": 1}}.items() <= (
        manifest.items()
    )
    tables = [pq.read_table(tmp_path / "out" / part["name"]) for part in manifest["parts"]]
    assert [table.num_rows for table in tables] == [4, 4, 4, 3]
    assert all(table.schema == TAGS_SCHEMA for table in tables)
    from_parquet = [
        {
            "uri": row["uri"],
            "tags": [
                {"label": label, "score": round(score, 6)}
                for label, score in zip(row["labels"], row["scores"], strict=True)
            ],
            **({"error": row["error"]} if row["error"] else {}),
        }
        for row in pa.concat_tables(tables).to_pylist()
    ]
    assert from_parquet == rows
    expected = ["manifest.json", "plan.json", "tags.jsonl", *(f"tags/0000{i}.parquet" for i in range(4))]
    assert sorted(fingerprint(tmp_path / "out")) == expected

    tagger = Tagger.load(str(checkpoint))  # alone, each picture gets the tags it got in its batch
    good = [row for row in rows if "error" not in row]
    for row in good:
        (tags,) = tagger.tag([(album / row["uri"]).read_bytes()])
        assert tags.labels == [item["label"] for item in row["tags"]]
        assert tags.scores == pytest.approx([item["score"] for item in row["tags"]], abs=1e-5)
    assert len({json.dumps(row["tags"]) for row in good}) == 12  # they are not all alike


def test_the_number_of_workers_changes_no_byte_and_the_second_run_finds_it_done(
    checkpoint: Path, album: Path, tmp_path: Path
) -> None:
    outs = [tmp_path / "one", tmp_path / "two"]
    for workers, out in enumerate(outs, 1):
        manifest = tag(config_for(checkpoint, album, out), workers)
    assert fingerprint(outs[0]) == fingerprint(outs[1])
    before = {path: path.stat().st_mtime_ns for path in outs[1].rglob("*")}
    started = time.monotonic()
    assert tag(config_for(checkpoint, album, outs[1]), workers=1) == manifest
    assert time.monotonic() - started < 2
    assert {path: path.stat().st_mtime_ns for path in outs[1].rglob("*")} == before


def test_words_that_training_never_saw(checkpoint: Path, album: Path, tmp_path: Path) -> None:
    words = ["okapi", "a red star", "drizzle", "Fußgängerzone", "42"]
    (tmp_path / "words.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    asked = {"vocabulary": str(tmp_path / "words.txt"), "rows_per_part": 1000}
    tag(config_for(checkpoint, album, tmp_path / "three", top_k=3, **asked))
    tag(config_for(checkpoint, album, tmp_path / "all", top_k=50, **asked))
    for three, everything in zip(rows_of(tmp_path / "three"), rows_of(tmp_path / "all"), strict=True):
        assert three["tags"] == everything["tags"][:3]
        if "error" not in three:
            assert len(three["tags"]) == 3
            assert sorted(item["label"] for item in everything["tags"]) == sorted(words)
            scores = [item["score"] for item in everything["tags"]]
            assert scores == sorted(scores, reverse=True)


def test_another_run_in_the_same_folder_is_refused(checkpoint: Path, album: Path, tmp_path: Path) -> None:
    config = config_for(checkpoint, album, tmp_path / "out")
    tag(config)
    before = fingerprint(tmp_path / "out")
    other = make_checkpoint(tmp_path / "other" / "checkpoint", seed=1)
    (tmp_path / "words.txt").write_text("okapi\n")
    for what, changes in {
        "model": {"checkpoint": str(other)},
        "vocabulary": {"vocabulary": str(tmp_path / "words.txt")},
        "top_k": {"top_k": 2},
        "rows_per_part": {"rows_per_part": 5},
    }.items():
        with pytest.raises(StorageError, match=f"was started with {what} = .*; delete the folder or choose another"):
            tag(dataclasses.replace(config, **changes))
    (album / "cat" / "00.jpg").rename(album / "cat" / "0.jpg")
    with pytest.raises(StorageError, match="was started with listing = "):
        tag(config)
    with pytest.raises(StorageError, match="holds files of something else"):
        tag(dataclasses.replace(config, out=str(album)))
    assert fingerprint(tmp_path / "out") == before


def test_inputs_that_cannot_be_used(checkpoint: Path, album: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    config = config_for(checkpoint, album, tmp_path / "out")
    for kind, message, changes in (
        (CheckpointError, "no checkpoint here", {"checkpoint": str(album)}),
        (CorpusError, "no such folder of pictures", {"images": str(tmp_path / "missing")}),
        (CorpusError, "no image files", {"images": str(tmp_path / "empty")}),
        (VocabularyError, "no such vocabulary file", {"vocabulary": str(tmp_path / "missing.txt")}),
    ):
        with pytest.raises(kind, match=message):
            tag(dataclasses.replace(config, **changes))
    assert not (tmp_path / "out").exists()


def test_a_killed_run_goes_on_and_writes_the_same_bytes(
    checkpoint: Path, album: Path, tmp_path: Path, make_picture
) -> None:
    for i in range(12, 120):
        make_picture(i, 600, 500).save(album / "dog" / f"{i}.jpg")
    config = config_for(checkpoint, album, tmp_path / "killed", rows_per_part=2)
    arguments = ["--checkpoint", checkpoint, "--images", album, "--out", config.out, "--rows-per-part", 2]
    full = [sys.executable, PIPELINE, *arguments]
    process = subprocess.Popen([*map(str, full)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    commits = tmp_path / "killed" / "parts"
    deadline = time.monotonic() + 120
    while len(list(commits.glob("*.json"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "manifest.json").exists()
    time.sleep(1)  # the model's process may be writing its last part
    kept = {path.stem for path in commits.glob("*.json")}
    parts = {name: tmp_path / "killed" / "tags" / f"{name}.parquet" for name in kept}
    times = {name: path.stat().st_mtime_ns for name, path in parts.items()}
    assert tag(config)["rows"] == 123
    assert {name: path.stat().st_mtime_ns for name, path in parts.items()} == times
    tag(dataclasses.replace(config, out=str(tmp_path / "whole")), workers=2)
    assert fingerprint(tmp_path / "killed") == fingerprint(tmp_path / "whole")
