"""What tests of training share: drawn images, and their shards."""

import json
from pathlib import Path

import pytest

from tests.conftest import without_clock
from tests.drawn import drawn_shards, write_drawn
from tests.in_process import partitions_here


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """60 small drawn scenes with the seen labels of each."""
    folder = tmp_path_factory.mktemp("toybox")
    write_drawn(folder, 60, 48)
    return folder


@pytest.fixture(scope="session")
def shards(corpus: Path, ray_cluster) -> Path:
    with partitions_here():
        return drawn_shards(corpus, 48, rows_per_shard=25)


def epochs_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def compared(row: dict) -> dict:
    """Without what the clock says, and how many worked."""
    return {key: value for key, value in without_clock(row).items() if key != "workers"}
