"""The public API from a DataFrame to tags: `preprocess`, `train`, `calibrate`, `evaluate` and `tag`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

import sigrl_core as sigrl
from sigrl_core.config import RunConfig
from sigrl_core.config.presets import get_preset
from sigrl_core.demo import toybox
from sigrl_core.errors import ConfigError, SigrlError, StorageError
from tests import in_process
from tests.ray.conftest import epochs_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

PRESET = get_preset("quickstart")


@pytest.fixture(scope="module", autouse=True)
def _here() -> Iterator[None]:
    """These tests are not about other processes."""
    with in_process.all_here():
        yield


@pytest.fixture(scope="module")
def table(corpus: Path) -> pd.DataFrame:
    rows = [json.loads(line) for line in (corpus / "labels.jsonl").read_text().splitlines()]
    return pd.DataFrame(rows)[["uri", "labels"]]


@pytest.fixture(scope="module")
def images(corpus: Path) -> Path:
    (folder,) = [path for path in corpus.iterdir() if path.is_dir() and any(path.glob("*.jpg"))]
    return folder


@pytest.fixture(scope="module")
def mine(table: pd.DataFrame, images: Path, tmp_path_factory: pytest.TempPathFactory) -> sigrl.Tagger:
    out = tmp_path_factory.mktemp("runs") / "mine"
    return sigrl.train(table, images, out=out, preset=PRESET, epochs=2, batch_size=16)


def test_training_on_a_table(mine: sigrl.Tagger, table: pd.DataFrame, images: Path) -> None:
    out = Path(mine.checkpoint.uri).parent
    assert isinstance(mine, sigrl.Tagger)
    assert mine.vocabulary.names == sorted({name for labels in table["labels"] for name in labels})
    assert len(epochs_of(out)) == 2
    assert (out / "shards" / "manifest.json").exists()
    assert len(mine.tag(images / table["uri"][0], top_k=3).labels) == 3
    again = sigrl.train(table, str(images), out=str(out), preset=PRESET, epochs=2, batch_size=16)
    assert again.tag(images / table["uri"][0]) == mine.tag(images / table["uri"][0])
    assert len(epochs_of(out)) == 2


def test_another_table_in_the_same_folder_is_refused(mine: sigrl.Tagger, table: pd.DataFrame, images: Path) -> None:
    out = Path(mine.checkpoint.uri).parent
    with pytest.raises(StorageError, match=r"shards: was made of 60 listed images"):
        sigrl.train(table[:50], images, out=out, preset=PRESET, epochs=2, batch_size=16)
    with pytest.raises(ConfigError, match=r"holds a training with another config.training.epochs"):
        sigrl.train(table, images, out=out, preset=PRESET, epochs=3, batch_size=16)


def test_calibrating_and_evaluating_a_table(
    mine: sigrl.Tagger, table: pd.DataFrame, images: Path, tmp_path: Path
) -> None:
    absolute = table.assign(uri=[str(images / uri) for uri in table["uri"]])
    with pytest.raises(SigrlError, match="calibration needs"):  # six held-out images
        mine.calibrate(min_examples=1000)
    assert mine.calibrate(absolute, min_examples=5) is mine
    probabilities = mine.probabilities([images / uri for uri in table["uri"][:4]], labels=["sand", "a dog"])
    assert probabilities.shape == (4, 2)
    assert probabilities.index[0] == str(images / table["uri"][0])
    assert sigrl.load(mine.checkpoint.uri).calibration.held_out == mine.calibration.held_out
    evaluation = mine.evaluate(table, images=images, out=tmp_path / "evaluation")
    row = evaluation.metrics["rows"][0]
    assert row["name"] == "sigrl"
    assert 0 < row["gzsl"]["map"] <= 1
    assert evaluation.metrics == sigrl.evaluate(Path(mine.checkpoint.uri).parent, table, images).metrics | {
        "data": evaluation.metrics["data"]
    }
    assert {path.name for path in (tmp_path / "evaluation").iterdir()} == {"metrics.json", "report.html"}
    unknown = pd.DataFrame({"uri": absolute["uri"][:2], "labels": [["sand"], ["a dog"]]})
    with pytest.raises(SigrlError, match="a dog"):
        mine.evaluate(unknown)


def test_preprocessing_every_form(table: pd.DataFrame, corpus: Path, images: Path, tmp_path: Path) -> None:
    of_table = sigrl.preprocess(table, images, out=tmp_path / "table", short_side=32)
    of_file = sigrl.preprocess(corpus / "labels.jsonl", images, out=tmp_path / "file", short_side=32)
    rows = [folder.read_shard(0).to_pylist() for folder in (of_table, of_file)]
    assert rows[0] == rows[1]
    for number, scene in enumerate(toybox.scenes("test", range(4), size=48, seed=0)):
        folder = tmp_path / "photos" / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(scene.jpeg)
    of_folder = sigrl.preprocess(tmp_path / "photos", out=tmp_path / "folder", labels=["dog", "cat", "bird"])
    assert of_folder.vocabulary.names == ["dog", "cat", "bird"]
    assert of_folder.num_rows == 4
    with pytest.raises(ConfigError, match=r"images: found str 'x', but .* is a shard folder; leave images out"):
        sigrl.train(of_folder, "x", out=tmp_path / "run")


def test_training_on_shards_and_tagging_a_folder(shards: Path, images: Path, tmp_path: Path) -> None:
    run: RunConfig = PRESET
    tagger = sigrl.train(shards, out=tmp_path / "run", preset=run, epochs=1, batch_size=16)
    manifest = sigrl.tag(tagger, images, out=tmp_path / "tags", labels=["sand", "red ring", "a dog"], top_k=2)
    assert manifest["rows"] == 60
    tags = pd.read_parquet(tmp_path / "tags" / "tags")
    assert set(tags["labels"].explode()) <= {"sand", "red ring", "a dog"}
    first = tagger.tag(images / tags["uri"][0], ["sand", "red ring", "a dog"], top_k=2)
    assert list(tags["labels"][0]) == first.labels
    with pytest.raises(ConfigError, match="topk is no option here; did you mean top_k"):
        sigrl.tag(tagger, images, out=tmp_path / "other", topk=2)
