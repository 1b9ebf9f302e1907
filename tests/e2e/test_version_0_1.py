"""What version 0.1.0 wrote is gone on with, read, and made again to the same bytes, all by its own commands.

tests/fixtures/version_0_1/README.md says what its archives hold. The commands, with the flags that 0.1.0 had, stand in
fingerprints.json beside what came of them.
"""

import hashlib
import json
import shlex
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from starlette.testclient import TestClient

from sigrl_core.config import ServeConfig
from tests.conftest import without_clock
from tests.in_process import call, partitions_here
from tests.serving import app_of

FIXTURES = Path(__file__).parents[1] / "fixtures" / "version_0_1"
MADE_IN = "/sigrl-fixture"
"""Where 0.1.0 worked; plans and records of trials name files by such absolute paths."""
RECORDED: dict[str, Any] = json.loads((FIXTURES / "fingerprints.json").read_text())

STORED_IMAGES = ("--quality", 90, "--chroma", "4:2:0", "--long-side", "nearest")
"""How 0.1.0 stored images, which is no longer the default."""
NEW_FIELDS = ("chroma", "long_side", "short_sides", "label_separator", "label_field", "label_numbers")
"""Fields of manifests and their configurations that 0.1.0 did not write."""

RENAMED_FIELDS = {"annotation_scope": "annotated", "label_policy": "labels", "rows_per_shard": "rows_per_part"}
"""Fields of manifests -> their names in 0.1.0; `rows_per_shard` of shards kept its name."""
NEW_COUNTS = {"united", "conflicts", "left_out"}
"""Keys of manifests that 0.1.0 did not have; nothing of this corpus counts there."""
RENAMED_COLUMNS = {
    "scoring.patches_kept": "scoring.top_k_patches",
    "reconstruction.unit_rms": "reconstruction.rms_normalise",
    "optim.head_rate": "optim.head_lr_scale",
    "training.label_fraction": "training.label_keep_fraction",
}
"""Columns of trials.parquet in 0.1.0 -> their names now."""

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("ray_cluster")]

Run = Callable[..., str]


def restore(folder: Path, *archives: str) -> None:
    """Unpacks archives as if 0.1.0 had worked in this folder.

    Manifests name paths too, but they are sealed by a hash and stay as they were: nothing looks for files there.
    """
    for name in archives:
        with tarfile.open(FIXTURES / f"{name}.tar.xz") as archive:
            archive.extractall(folder, filter="data")  # with times of change, which tags carry
    for path in folder.rglob("*.json"):
        if not path.name.endswith("manifest.json") and "checkpoint" not in path.parts:
            text = path.read_text()
            if MADE_IN in text:
                path.write_text(text.replace(MADE_IN, str(folder)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where 0.1.0 left everything."""
    folder = tmp_path_factory.mktemp("version_0_1")
    restore(folder, *(path.name.removesuffix(".tar.xz") for path in FIXTURES.glob("*.tar.xz")))
    yield folder
    shutil.rmtree(folder)  # 200 MB, most of it zeros


@pytest.fixture(scope="module")
def run(folder: Path, ray_cluster) -> Iterator[Run]:
    """Runs a command of 0.1.0 there, in the process of the tests; flags at the end take the place of its own."""

    def run(name: str, *flags: object) -> str:
        script, *words = shlex.split(RECORDED["commands"][name].replace(MADE_IN, str(folder)))
        done = call(script, *words, *flags, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    with partitions_here():
        yield run


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hashes(out: Path, *patterns: str) -> dict[str, str]:
    paths = [path for pattern in patterns for path in out.glob(pattern)]
    return {str(path.relative_to(out)): sha256(path.read_bytes()) for path in paths}


def content_hash(manifest: Path) -> str:
    """Of what a manifest says, without version, paths, and the seal over both."""
    content = json.loads(manifest.read_text())
    for name in ("sha256", "code_version", "images"):
        content.pop(name, None)
    for name in NEW_COUNTS & set(content):
        assert not content.pop(name), name
    for name in ("images", "annotations", "vocabulary"):
        content.get("config", {}).pop(name, None)
    for part in (content, content.get("config", {}), *content.get("shards", [])):
        for name in NEW_FIELDS:
            part.pop(name, None)
        for name, name_of_0_1 in RENAMED_FIELDS.items():
            if name in part and not (name == "rows_per_shard" and content["kind"] == "shards"):
                part[name_of_0_1] = part.pop(name)
    return sha256(json.dumps(content, sort_keys=True).encode())


def files(out: Path) -> dict[str, int]:
    """All of a folder, and when each was written."""
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def epochs_of(out: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in without_clock(line).items() if key != "workers"} for line in lines]


def assert_shards(out: Path) -> None:
    """To the byte."""
    assert (
        hashes(out, "shards/*", "duplicates.parquet", "quarantine.parquet", "listing.parquet", "vocabulary.json")
        == (RECORDED["shards"])
    )
    assert content_hash(out / "manifest.json") == RECORDED["shards_manifest"]


def assert_tags(out: Path) -> None:
    """To the byte, where scores are the same to the last bit; other processors give others by less than 1e-6."""
    rows = [row for path in out.glob("tags/*") for row in pq.read_table(path).to_pylist()]
    scores = {row["uri"]: dict(zip(row["labels"], row["scores"], strict=True)) for row in rows}
    assert {uri: list(tags) for uri, tags in scores.items()} == {
        uri: list(tags) for uri, tags in RECORDED["scores"].items()
    }
    for uri, expected in RECORDED["scores"].items():
        assert scores[uri] == pytest.approx(expected, abs=1e-5)
    found = hashes(out, "tags/*", "jsonl/*")
    assert found.keys() == RECORDED["tags"].keys()
    if scores == RECORDED["scores"]:
        assert found == RECORDED["tags"]
        assert content_hash(out / "manifest.json") == RECORDED["tags_manifest"]


# ---- made again ----


def test_the_same_shards_and_tags(folder: Path, run: Run) -> None:
    printed = run("preprocess", *STORED_IMAGES, "--out", "new_shards")
    assert "16 rows in: 14 good, 1 quarantined, 1 duplicates; 5 labels, 4 shards" in printed
    assert_shards(folder / "new_shards")
    assert "16 rows: 15 tagged, 1 truncated" in run("tag", "--out", "new_tags")
    assert_tags(folder / "new_tags")


def test_what_was_finished_is_found_finished(folder: Path, run: Run) -> None:
    for command, out in (("preprocess", "shards"), ("train", "finished"), ("tag", "tags")):
        before = files(folder / out)
        run(command)
        after = files(folder / out)
        assert {name: after.get(name) for name in before} == before, command
        assert set(after) - set(before) == ({"manifest.json"} if command == "train" else set())  # 0.1.0 wrote none


# ---- gone on with ----


def test_shards_and_tags_go_on(folder: Path, run: Run) -> None:
    for command, check in (("preprocess", assert_shards), ("tag", assert_tags)):
        out = folder / {"preprocess": "shards_unfinished", "tag": "tags_unfinished"}[command]
        done = files(out / "parts")
        assert 0 < len(done) < 4
        assert not (out / "manifest.json").exists()
        run(command, "--out", out)
        assert {name: files(out / "parts")[name] for name in done} == done  # none was done again
        assert len(files(out / "parts")) == 4
        check(out)


def test_training_goes_on(folder: Path, run: Run) -> None:
    out = folder / "unfinished"
    before = (out / "metrics.jsonl").read_text()
    assert len(before.splitlines()) == 2
    printed = run("train", "--out", out)
    assert printed.splitlines()[-1] == f"checkpoint: {out}/checkpoint"
    assert (out / "metrics.jsonl").read_text().startswith(before)
    for found, expected in zip(epochs_of(out), RECORDED["epochs"], strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    found, expected = (load_file(folder / each / "checkpoint/weights.safetensors") for each in (out, "finished"))
    assert found.keys() == expected.keys()
    del expected["head.bias"]  # a ranking's gradient for it is 0 but for rounding, and Adam makes whole steps of that
    assert max(np.abs(found[name] - expected[name]).max() for name in expected) < 1e-4


def test_a_search_goes_on(folder: Path, run: Run) -> None:
    out = folder / "search"
    before = {name: (out / "parts" / name).read_bytes() for name in ("00000.json", "00001.json")}
    printed = run("tune", "--trials", 3)
    assert "3 trials, 3 complete, 6 epochs; best gzsl.map 0.6458 (trial 1, epoch 1)" in printed
    assert {name: (out / "parts" / name).read_bytes() for name in before} == before
    trials = pq.read_table(out / "trials.parquet").to_pylist()
    for found, expected in zip(trials, RECORDED["trials"], strict=True):
        measured = {key: value for key, value in found.items() if key != "seconds" and value is not None}
        assert measured.pop("by_epoch") == pytest.approx(expected["by_epoch"])
        renamed = {RENAMED_COLUMNS.get(key, key): value for key, value in expected.items() if key != "by_epoch"}
        assert measured == pytest.approx(renamed)
    for found, expected in zip(epochs_of(out / "trials" / "00002"), RECORDED["trial_epochs"], strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


# ---- read ----


def test_evaluation(folder: Path, run: Run) -> None:
    run("evaluate")
    rows = json.loads((folder / "evaluation" / "metrics.json").read_text())["rows"]
    assert [row["name"] for row in rows] == [row["name"] for row in RECORDED["evaluation"]]
    for found, expected in zip(rows, RECORDED["evaluation"], strict=True):
        for protocol in ("zsl", "zsl_asked_all", "gzsl", "seen"):
            assert found[protocol] == pytest.approx(expected[protocol], abs=1e-5)


def test_serving(folder: Path) -> None:
    client = TestClient(app_of(ServeConfig(checkpoint=str(folder / "finished"))))
    uris = ["album/00.jpg", "album/half.jpg", "film/07.png", "film/13.png"]
    sent = [("images", (uri, (folder / "corpus" / "images" / uri).read_bytes(), "image/jpeg")) for uri in uris]
    asked = {"labels": (folder / "corpus" / "labels.txt").read_text(), "top_k": "3"}
    response = client.post("/v1/tag", files=sent, data=asked)
    assert response.status_code == 200, response.text
    for uri, result in zip(uris, response.json()["results"], strict=True):
        found = {tag["label"]: tag["score"] for tag in result["tags"]}
        assert found == pytest.approx(RECORDED["scores"][uri], abs=1e-5)
    assert response.json()["results"][1]["error"] == "truncated"
    vocabulary = client.get("/v1/vocabulary").json()
    assert [label["label"] for label in vocabulary["labels"]] == ["circle", "square", "stripe", "triangle", "cross"]
