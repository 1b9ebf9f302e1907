"""Scoring on many workers: every picture once and in order, the same numbers whoever scores and whoever is killed."""

import dataclasses
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from sigrl_core.checkpoint import save_checkpoint
from sigrl_core.config import EvaluateConfig
from sigrl_core.errors import CheckpointError
from sigrl_core.evaluation import BATCH_SIZE, Comparison, Scored
from sigrl_core.on_ray import evaluate as module
from sigrl_core.on_ray.evaluate import scored_by_workers
from sigrl_core.records import ShardFolder
from sigrl_core.report.evaluation import evaluate_to_report
from tests.conftest import random_states, tagger_of, vocabulary_of, write_shards
from tests.processes import family

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

PICTURES = 5 * BATCH_SIZE + 9
TOLERANCE = 1e-5
"""Of scores, absolute: a worker sums with one thread, this process with several."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    """Two checkpoints beside each other, on pictures of which the last batch is small."""
    folder = tmp_path_factory.mktemp("measured")
    vocabulary = vocabulary_of(["red", "green", "blue", "black"], ["white", "grey"])
    shards = write_shards(folder, vocabulary, random_states(PICTURES, 6), rows_per_shard=50)
    for seed, name in enumerate(("ours", "other")):
        tagger = tagger_of(vocabulary, seed=seed)
        save_checkpoint(folder / name, tagger.recogniser, tagger.checkpoint.config, {"selected": {}, "history": []})
    return EvaluateConfig(
        checkpoint=str(folder / "ours"),
        compare=(f"other={folder / 'other'}",),
        data=shards.uri,
        out=str(folder / "evaluation"),
    )


@pytest.fixture(autouse=True)
def two_batches_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that each worker is asked more than once."""
    monkeypatch.setattr(module, "BATCHES_AT_A_TIME", 2)


@pytest.fixture(scope="module")
def alone(config: EvaluateConfig) -> list[Scored]:
    """What this process finds."""
    comparison = Comparison.load(config)
    return list(comparison.score(comparison.measured_rows(ShardFolder.open(config.data))))


def assert_same(found: list[Scored], expected: list[Scored], atol: float) -> None:
    assert [each.uris for each in found] == [each.uris for each in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.states_BC, other.states_BC)
        assert {name: set(by) for name, by in one.scores.items()} == {n: set(by) for n, by in other.scores.items()}
        for name, by in one.scores.items():
            for protocol, scores in by.items():
                np.testing.assert_allclose(scores, other.scores[name][protocol], rtol=0, atol=atol)


def test_any_number_of_workers_finds_the_same(config: EvaluateConfig, alone: list[Scored], tmp_path: Path) -> None:
    one, two = (list(scored_by_workers(config, PICTURES, workers)) for workers in (1, 2))
    uris = [uri for each in two for uri in each.uris]
    assert len(uris) == len(set(uris)) == PICTURES
    assert_same(two, one, atol=0)
    assert_same(two, alone, atol=TOLERANCE)
    by_one, by_two = (
        evaluate_to_report(dataclasses.replace(config, out=str(tmp_path / name)), lambda rows, scored=scored: scored)
        for name, scored in (("one", one), ("two", two))
    )
    assert by_one == by_two
    assert by_two["pictures"] == PICTURES
    assert [row["name"] for row in by_two["rows"]][-1] == "other"


def test_killed_workers_are_replaced(config: EvaluateConfig, alone: list[Scored]) -> None:
    scored = scored_by_workers(config, PICTURES, workers=2)
    found = [next(scored)]
    killed = [pid for pid, command in family(os.getpid()).items() if command.startswith("ray::_Scorer")]
    assert len(killed) == 2
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    assert_same(found + list(scored), alone, atol=TOLERANCE)


def test_what_a_worker_stops_for_is_told_as_it_is(config: EvaluateConfig, tmp_path: Path) -> None:
    missing = dataclasses.replace(config, checkpoint=str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match="nothing"):
        list(scored_by_workers(missing, PICTURES, workers=1))
