"""Row order and batches, which do not depend on the number of workers or on timing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sigrl_core.config import BackboneConfig
from sigrl_core.data.dataset import (
    Batch,
    InMemoryFeatures,
    RankShard,
    ShardDataset,
    epoch_batches,
    num_steps,
    read_batch,
)
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import ShardError
from sigrl_core.model.backbone import load_backbone
from tests.conftest import random_states, vocabulary_of, write_shards

pytestmark = pytest.mark.unit

VOCABULARY = vocabulary_of(["red", "green"], ["blue"])


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> ShardDataset:
    """83 rows in 21 shards: more shards than one window holds."""
    root = tmp_path_factory.mktemp("many") / "shards"
    return ShardDataset(write_shards(root, VOCABULARY, random_states(83, 3), rows_per_shard=4))


def without_images(rows: ShardDataset) -> Callable[[np.ndarray], Batch]:
    """Returns a function that makes batches without images."""

    def make(numbers: np.ndarray) -> Batch:
        uris, _, states = zip(*(rows.read(n) for n in numbers), strict=True)
        states_BC = torch.from_numpy(np.stack([np.frombuffer(s, np.int8) for s in states]))
        rows_B = torch.arange(len(uris))
        return Batch(
            uris=list(uris), rows_B=rows_B, states_BC=states_BC, weight_B=torch.ones(len(uris)), global_rows=len(uris)
        )

    return make


def epoch_of(rows: ShardDataset, order: np.ndarray, batch_size: int, workers: int) -> list[list[Batch]]:
    """Every worker's batches of one epoch."""
    shards = [RankShard(rank=rank, world_size=workers) for rank in range(workers)]
    return [list(epoch_batches(order, batch_size, shard, without_images(rows))) for shard in shards]


def test_the_order_is_a_permutation_and_a_function_of_seed_and_epoch(many: ShardDataset) -> None:
    orders = {(seed, epoch): many.epoch_order(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}
    for (seed, epoch), order in orders.items():
        assert sorted(order) == list(range(83))
        np.random.default_rng(7).random()
        np.testing.assert_array_equal(ShardDataset(many.folder).epoch_order(seed, epoch), order)
    assert len({tuple(order) for order in orders.values()}) == len(orders)


def test_the_order_mixes_shards_but_opens_few_at_a_time(many: ShardDataset) -> None:
    order = many.epoch_order(0, 0)
    shards = order // 4
    assert len(set(shards[:8])) > 2
    assert max(np.ptp(np.flatnonzero(shards == shard)) for shard in range(21)) < 8 * 4


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [5, 7, 16, 200])
def test_slices_form_the_global_batch(many: ShardDataset, workers: int, batch_size: int) -> None:
    order = many.epoch_order(3, 1)
    by_worker = epoch_of(many, order, batch_size, workers)
    assert {len(batches) for batches in by_worker} == {num_steps(83, batch_size)}
    uris: list[str] = []
    for k, slices in enumerate(zip(*by_worker, strict=True)):
        expected = [f"{number:03d}.jpg" for number in order[k * batch_size : (k + 1) * batch_size]]
        local = [uri for batch in slices for uri, w in zip(batch.uris, batch.weight_B.tolist(), strict=True) if w]
        assert local == expected
        assert {batch.global_rows for batch in slices} == {len(expected)}
        assert sum(batch.weight_B.sum().item() for batch in slices) == len(expected)
        uris += local
    assert len(uris) == len(set(uris)) == 83


def test_an_empty_slice_has_a_placeholder_without_weight(many: ShardDataset) -> None:
    """81 = 10 x 8 + 1: the last batch has one row, so two of three workers have none."""
    by_worker = epoch_of(many, many.epoch_order(0, 0)[:81], 8, 3)
    last = [batches[-1] for batches in by_worker]
    assert [batch.weight_B.tolist() for batch in last] == [[1.0], [0.0], [0.0]]
    assert [batch.global_rows for batch in last] == [1, 1, 1]
    assert all(batch.states_BC.shape == (1, 3) for batch in last)
    assert last[1].uris == last[0].uris


def test_states_stay_with_their_rows(many: ShardDataset) -> None:
    states_NC = random_states(83, 3)
    for batch in epoch_of(many, many.epoch_order(0, 5), 9, 1)[0]:
        numbers = [int(uri.removesuffix(".jpg")) for uri in batch.uris]
        np.testing.assert_array_equal(batch.states_BC.numpy(), states_NC[numbers])


def test_rows_without_a_seen_positive_are_left_out(tmp_path: Path) -> None:
    states_NC = np.array([[1, -1, -1], [-1, -1, 1], [0, 0, 1], [-1, 1, 0], [-1, -1, -1], [0, 0, 0], [1, 1, 1]], np.int8)
    folder = write_shards(tmp_path / "shards", VOCABULARY, states_NC, rows_per_shard=2)
    rows = ShardDataset(folder, positive_among=VOCABULARY.positions("seen"))
    assert [rows.read(n)[0] for n in range(len(rows))] == ["000.jpg", "003.jpg", "006.jpg"]
    assert sorted(rows.epoch_order(0, 0)) == [0, 1, 2]
    assert len(ShardDataset(folder)) == 7


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.999])
def test_training_and_validation_are_disjoint_and_complete(tmp_path: Path, fraction: float) -> None:
    folder = write_shards(tmp_path / "shards", VOCABULARY, random_states(40, 3), validation_fraction=fraction)
    splits = [ShardDataset(folder, split) for split in ("train", "validation")]
    train, validation = ({rows.read(n)[0] for n in range(len(rows))} for rows in splits)
    assert not train & validation
    assert train | validation == {f"{n:03d}.jpg" for n in range(40)}
    assert abs(len(validation) - 40 * fraction) <= 8


def test_no_rows(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", VOCABULARY, -np.ones((3, 3), np.int8))
    empty = write_shards(tmp_path / "empty", VOCABULARY, np.zeros((0, 3), np.int8))
    for rows in (ShardDataset(folder, positive_among=[0, 1]), ShardDataset(empty)):
        assert len(rows) == len(rows.epoch_order(0, 0)) == 0
        assert epoch_of(rows, rows.epoch_order(0, 0), 4, 2) == [[], []]
        with pytest.raises(ShardError, match="no rows for training or validation"):
            InMemoryFeatures.compute(rows, 48, lambda batch: batch.rows_B)


def test_an_error_while_a_batch_is_made_is_raised() -> None:
    def make(numbers: np.ndarray) -> Batch:
        raise ShardError(f"row {numbers[0]} is gone")

    with pytest.raises(ShardError, match="row 0 is gone"):
        list(epoch_batches(np.arange(4), 2, RankShard(), make))


def test_features_in_memory_equal_those_of_images(toybox_shards: ShardFolder) -> None:
    torch.manual_seed(0)
    backbone = load_backbone(BackboneConfig(name="toybox-vit", pretrained="random", frozen_blocks=1))
    rows = ShardDataset(toybox_shards)
    features = InMemoryFeatures.compute(
        rows, 48, lambda batch: backbone.forward_frozen(batch.pixels_BHWC), batch_size=16
    )
    numbers = np.array([3, 39, 0, 3])
    actual, expected = features.batch(numbers), read_batch(rows, numbers, 48)
    assert expected.pixels_BHWC is not None
    assert actual.pixels_BHWC is None
    torch.testing.assert_close(actual.tokens_BNW, backbone.forward_frozen(expected.pixels_BHWC), rtol=1e-5, atol=1e-5)
    assert torch.equal(actual.states_BC, expected.states_BC)
    assert torch.equal(actual.weight_B, expected.weight_B)
    assert (actual.uris, actual.global_rows) == (expected.uris, expected.global_rows)
