"""What tests of training share: drawn pictures, and their shards."""

import json
from pathlib import Path

import pytest

from sigrl_core.config import PreprocessConfig
from sigrl_core.demo import toybox
from sigrl_core.demo.corpus import write_corpus
from sigrl_core.on_ray.ingest import preprocess
from tests.conftest import without_clock


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """60 small drawn scenes with the seen labels of each."""
    folder = tmp_path_factory.mktemp("toybox")
    write_corpus("labelled", 60, folder, lambda part, count: toybox.pictures(part, range(count), size=48, seed=0))
    return folder


@pytest.fixture(scope="session")
def shards(corpus: Path, ray_cluster) -> Path:
    preprocess(
        PreprocessConfig(
            corpus="jsonl",
            images=str(corpus / "pictures"),
            annotations=str(corpus / "labels.jsonl"),
            vocabulary=str(corpus / "vocabulary.json"),
            out=str(corpus / "shards"),
            short_side=48,
            rows_per_shard=25,
            annotated="seen",
        )
    )
    return corpus / "shards"


def epochs_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def compared(row: dict) -> dict:
    """Without what the clock says, and how many worked."""
    return {key: value for key, value in without_clock(row).items() if key != "workers"}
