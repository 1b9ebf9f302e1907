"""Scoring on many workers: every image once and in order, the same numbers whoever scores and whoever is killed."""

import dataclasses
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from sigrl_core.config import EvaluateConfig, Resources
from sigrl_core.data.dataset import ShardDataset
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import CheckpointError, ShardError
from sigrl_core.evaluation.evaluator import Evaluator, ScoredBatch
from sigrl_core.evaluation.inputs import BATCH_SIZE
from sigrl_core.model.checkpoint import checkpoint_version, save_checkpoint
from sigrl_core.on_ray import evaluate as module
from sigrl_core.on_ray.evaluate import score_on_workers
from sigrl_core.report.evaluation import evaluate_to_report
from tests.conftest import random_states, tagger_of, vocabulary_of, write_shards
from tests.in_process import one_thread
from tests.processes import family

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

IMAGES = 5 * BATCH_SIZE + 9


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    """Two checkpoints beside each other, on images of which the last batch is small."""
    folder = tmp_path_factory.mktemp("measured")
    vocabulary = vocabulary_of(["red", "green", "blue", "black"], ["white", "grey"])
    shards = write_shards(folder, vocabulary, random_states(IMAGES, 6), rows_per_shard=50)
    for seed, name in enumerate(("ours", "other")):
        tagger = tagger_of(vocabulary, seed=seed)
        save_checkpoint(folder / name, tagger.model, tagger.checkpoint.config, {"selected": {}, "history": []})
    return EvaluateConfig(
        checkpoint=str(folder / "ours"),
        compare=(f"other={folder / 'other'}",),
        data=shards.uri,
        out=str(folder / "evaluation"),
    )


@pytest.fixture(autouse=True)
def two_batches_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that each worker is asked more than once."""
    monkeypatch.setattr(module, "BATCHES_PER_CALL", 2)


@pytest.fixture(scope="module")
def alone(config: EvaluateConfig) -> list[ScoredBatch]:
    """What this process finds, with one thread, as a worker has it."""
    with one_thread():
        evaluator = Evaluator.load(config)
        return list(evaluator.score(evaluator.open_images(ShardFolder.open(config.data))))


def opened(config: EvaluateConfig) -> tuple[Evaluator, ShardDataset]:
    """What the driver has loaded before workers start."""
    evaluator = Evaluator.load(config)
    return evaluator, evaluator.open_images(ShardFolder.open(config.data))


def assert_same(found: list[ScoredBatch], expected: list[ScoredBatch]) -> None:
    assert [each.uris for each in found] == [each.uris for each in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.states_BC, other.states_BC)
        assert {name: set(by) for name, by in one.scores.items()} == {n: set(by) for n, by in other.scores.items()}
        for name, by in one.scores.items():
            for protocol, scores in by.items():
                np.testing.assert_array_equal(scores, other.scores[name][protocol])


def test_two_workers_find_what_one_process_finds(
    config: EvaluateConfig, alone: list[ScoredBatch], tmp_path: Path
) -> None:
    two = list(score_on_workers(config, *opened(config), Resources(num_workers=2)))
    uris = [uri for each in two for uri in each.uris]
    assert len(uris) == len(set(uris)) == IMAGES
    assert_same(two, alone)
    by_one, by_two = (
        evaluate_to_report(dataclasses.replace(config, out=str(tmp_path / name)), lambda *_, scored=scored: scored)
        for name, scored in (("one", alone), ("two", two))
    )
    assert by_one == by_two
    assert by_two["images"] == IMAGES
    assert [row["name"] for row in by_two["rows"]][-1] == "other"


def test_killed_workers_are_replaced(config: EvaluateConfig, alone: list[ScoredBatch]) -> None:
    scored = score_on_workers(config, *opened(config), Resources(num_workers=2))
    found = [next(scored)]
    killed = [pid for pid, command in family(os.getpid()).items() if command.startswith("ray::_Scorer")]
    assert len(killed) == 2
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    assert_same(found + list(scored), alone)


def test_what_a_worker_stops_for_is_told_as_it_is(config: EvaluateConfig, tmp_path: Path) -> None:
    missing = dataclasses.replace(config, checkpoint=str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match="nothing"):
        list(score_on_workers(missing, *opened(config), Resources(num_workers=1)))


@pytest.mark.parametrize("replaced", ["ours", "other", "shards"])
def test_workers_stop_where_another_input_lies_than_the_driver_read(
    config: EvaluateConfig, tmp_path: Path, replaced: str
) -> None:
    before = opened(config)
    vocabulary = before[0].tagger.vocabulary
    if replaced == "shards":
        changed = dataclasses.replace(config, data=write_shards(tmp_path / "x", vocabulary, random_states(9, 6)).uri)
        hashes = [ShardFolder.open(uri).manifest["sha256"] for uri in (changed.data, config.data)]
        stopped: type[Exception] = ShardError
    else:
        other = tagger_of(vocabulary, seed=7)
        save_checkpoint(tmp_path / "x", other.model, other.checkpoint.config, {"selected": {}, "history": []})
        planned = Path(config.checkpoint).with_name(replaced)
        hashes = [checkpoint_version(str(path)) for path in (tmp_path / "x", planned)]
        uri = str(tmp_path / "x")
        change = {"checkpoint": uri} if replaced == "ours" else {"compare": (f"other={uri}",)}
        changed, stopped = dataclasses.replace(config, **change), CheckpointError
    with pytest.raises(stopped) as caught:
        list(score_on_workers(changed, *before, Resources(num_workers=1)))
    assert all(sha256[:12] in str(caught.value) for sha256 in hashes), caught.value
    assert str(caught.value).startswith(str(tmp_path / "x"))
    assert "the driver of this evaluation has" in str(caught.value)
