"""Batches: which rows, in which order, seen how; nothing depends on workers or on timing."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sigrl_core import images
from sigrl_core.batches import (
    Batch,
    HeldFeatures,
    Rows,
    Slice,
    epoch_batches,
    num_steps,
    read_batch,
)
from sigrl_core.config import BackboneConfig
from sigrl_core.decoding import Decoders, augmented
from sigrl_core.errors import ShardError
from sigrl_core.model.backbone import load_backbone
from sigrl_core.records import ShardFolder
from tests.conftest import REPOSITORY, random_states, vocabulary_of, write_shards

pytestmark = pytest.mark.unit

VOCABULARY = vocabulary_of(["red", "green"], ["blue"])


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """83 rows in 21 shards: more shards than one window holds."""
    root = tmp_path_factory.mktemp("many") / "shards"
    return Rows(write_shards(root, VOCABULARY, random_states(83, 3), rows_per_shard=4))


def bare(rows: Rows) -> Callable[[np.ndarray], Batch]:
    """Batches without pictures."""

    def make(numbers: np.ndarray) -> Batch:
        uris, _, states = zip(*(rows.read(n) for n in numbers), strict=True)
        states_BC = torch.from_numpy(np.stack([np.frombuffer(s, np.int8) for s in states]))
        rows_B = torch.arange(len(uris))
        return Batch(
            uris=list(uris), rows_B=rows_B, states_BC=states_BC, weight_B=torch.ones(len(uris)), global_rows=len(uris)
        )

    return make


def epoch_of(rows: Rows, order: np.ndarray, batch_size: int, workers: int) -> list[list[Batch]]:
    """Every worker's batches of one epoch."""
    shares = [Slice(rank=rank, workers=workers) for rank in range(workers)]
    return [list(epoch_batches(rows, order, batch_size, mine, bare(rows))) for mine in shares]


def test_an_order_is_a_permutation_and_a_function_of_seed_and_epoch(many: Rows) -> None:
    orders = {(seed, epoch): many.order(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}
    for (seed, epoch), order in orders.items():
        assert sorted(order) == list(range(83))
        np.random.default_rng(7).random()
        np.testing.assert_array_equal(Rows(many.folder).order(seed, epoch), order)
    assert len({tuple(order) for order in orders.values()}) == len(orders)


def test_an_order_mixes_shards_but_opens_few_at_a_time(many: Rows) -> None:
    order = many.order(0, 0)
    shards = order // 4
    assert len(set(shards[:8])) > 2
    assert max(np.ptp(np.flatnonzero(shards == shard)) for shard in range(21)) < 8 * 4


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [5, 7, 16, 200])
def test_slices_unite_to_the_global_batch(many: Rows, workers: int, batch_size: int) -> None:
    order = many.order(3, 1)
    of_workers = epoch_of(many, order, batch_size, workers)
    assert {len(batches) for batches in of_workers} == {num_steps(83, batch_size)}
    seen: list[str] = []
    for k, slices in enumerate(zip(*of_workers, strict=True)):
        expected = [f"{number:03d}.jpg" for number in order[k * batch_size : (k + 1) * batch_size]]
        found = [uri for batch in slices for uri, w in zip(batch.uris, batch.weight_B.tolist(), strict=True) if w]
        assert found == expected
        assert {batch.global_rows for batch in slices} == {len(expected)}
        assert sum(batch.weight_B.sum().item() for batch in slices) == len(expected)
        seen += found
    assert len(seen) == len(set(seen)) == 83


def test_an_empty_slice_gets_a_stand_in_that_weighs_nothing(many: Rows) -> None:
    """81 = 10 x 8 + 1: the last batch is one row, which two of three workers do without."""
    of_workers = epoch_of(many, many.order(0, 0)[:81], 8, 3)
    last = [batches[-1] for batches in of_workers]
    assert [batch.weight_B.tolist() for batch in last] == [[1.0], [0.0], [0.0]]
    assert [batch.global_rows for batch in last] == [1, 1, 1]
    assert all(batch.states_BC.shape == (1, 3) for batch in last)
    assert last[1].uris == last[0].uris


def test_states_stay_with_their_rows(many: Rows) -> None:
    states_NC = random_states(83, 3)
    for batch in epoch_of(many, many.order(0, 5), 9, 1)[0]:
        numbers = [int(uri.removesuffix(".jpg")) for uri in batch.uris]
        np.testing.assert_array_equal(batch.states_BC.numpy(), states_NC[numbers])


def test_rows_without_a_seen_positive_are_left_out(tmp_path: Path) -> None:
    states_NC = np.array([[1, -1, -1], [-1, -1, 1], [0, 0, 1], [-1, 1, 0], [-1, -1, -1], [0, 0, 0], [1, 1, 1]], np.int8)
    folder = write_shards(tmp_path / "shards", VOCABULARY, states_NC, rows_per_shard=2)
    rows = Rows(folder, positive_among=VOCABULARY.positions("seen"))
    assert [rows.read(n)[0] for n in range(len(rows))] == ["000.jpg", "003.jpg", "006.jpg"]
    assert sorted(rows.order(0, 0)) == [0, 1, 2]
    assert len(Rows(folder)) == 7


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.999])
def test_training_and_validation_are_disjoint_and_complete(tmp_path: Path, fraction: float) -> None:
    folder = write_shards(tmp_path / "shards", VOCABULARY, random_states(40, 3), validation_fraction=fraction)
    parts = [Rows(folder, part) for part in ("train", "validation")]
    train, validation = ({rows.read(n)[0] for n in range(len(rows))} for rows in parts)
    assert not train & validation
    assert train | validation == {f"{n:03d}.jpg" for n in range(40)}
    assert abs(len(validation) - 40 * fraction) <= 8


def test_no_rows(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", VOCABULARY, -np.ones((3, 3), np.int8))
    empty = write_shards(tmp_path / "empty", VOCABULARY, np.zeros((0, 3), np.int8))
    for rows in (Rows(folder, positive_among=[0, 1]), Rows(empty)):
        assert len(rows) == len(rows.order(0, 0)) == 0
        assert epoch_of(rows, rows.order(0, 0), 4, 2) == [[], []]
        with pytest.raises(ShardError, match="no rows to train on or to measure"):
            HeldFeatures.compute(rows, 48, lambda batch: batch.rows_B)


def test_an_error_while_a_batch_is_made_is_raised(many: Rows) -> None:
    def make(numbers: np.ndarray) -> Batch:
        raise ShardError(f"row {numbers[0]} is gone")

    with pytest.raises(ShardError, match="row 0 is gone"):
        list(epoch_batches(many, np.arange(4), 2, Slice(), make))


# ---- how pictures are seen ----


def test_without_augmentation_a_picture_is_seen_as_clip_sees_it(toybox_shards: ShardFolder) -> None:
    rows = Rows(toybox_shards)
    for size in (48, 32):
        batch = read_batch(rows, np.array([7, 0, 39]), size)
        assert batch.pixels_BHWC is not None
        for pixels, number in zip(batch.pixels_BHWC.numpy(), (7, 0, 39), strict=True):
            np.testing.assert_array_equal(pixels, images.centre_crop_array(rows.read(number)[1], size))


@pytest.mark.parametrize("augmentation", ["crop_flip", "randaugment"])
def test_augmentation_is_a_function_of_seed_epoch_and_row(toybox_shards: ShardFolder, augmentation) -> None:
    def seen(numbers: list[int], epoch: int = 0, seed: int = 0) -> dict[int, bytes]:
        torch.manual_seed(len(numbers))  # the state of no generator matters
        np.random.seed(len(numbers))
        batch = read_batch(Rows(toybox_shards), np.array(numbers), 48, augmentation, (seed, epoch))
        assert batch.pixels_BHWC is not None
        return {n: p.numpy().tobytes() for n, p in zip(numbers, batch.pixels_BHWC, strict=True)}

    numbers = list(range(12))
    whole = seen(numbers)
    assert seen(numbers[::-1]) == whole
    assert {**seen(numbers[5:]), **seen(numbers[:5])} == whole  # as two workers would
    for other in (seen(numbers, epoch=1), seen(numbers, seed=1)):
        assert sum(other[n] != whole[n] for n in numbers) >= 11
    assert len(set(whole.values())) == 12


@pytest.mark.parametrize("augmentation", ["crop_flip", "randaugment"])
def test_rows_of_one_picture_are_seen_differently(tmp_path: Path, make_picture, encoded, augmentation) -> None:
    jpegs = [encoded(make_picture(0, 60, 44))] * 20
    rows = Rows(write_shards(tmp_path / "shards", VOCABULARY, random_states(20, 3), jpegs))
    pixels = read_batch(rows, np.arange(20), 32, augmentation, (0, 0)).pixels_BHWC
    assert pixels is not None
    assert pixels.shape == (20, 32, 32, 3)
    assert pixels.dtype == torch.uint8
    assert len({seen.numpy().tobytes() for seen in pixels}) >= 19


def test_pictures_are_flipped_half_the_time() -> None:
    """Red left, blue right: a crop keeps the sides, a flip changes them."""
    picture = Image.fromarray(np.repeat(np.linspace([255, 0, 0], [0, 0, 255], 64)[None], 64, axis=0).astype(np.uint8))
    seen = [augmented(picture, 16, "crop_flip", (0, 0, row)).astype(int) for row in range(60)]
    flipped = [pixels[:, 0, 0].mean() < pixels[:, -1, 0].mean() for pixels in seen]
    assert 15 <= sum(flipped) <= 45


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 300), (500, 2)])
def test_pictures_of_any_shape_can_be_augmented(make_picture, encoded, width: int, height: int) -> None:
    picture = Image.open(io.BytesIO(encoded(make_picture(0, width, height))))
    for row in range(5):
        assert augmented(picture, 24, "randaugment", (0, 0, row)).shape == (24, 24, 3)


@pytest.mark.parametrize("augmentation", ["none", "randaugment"])
def test_processes_decode_to_the_same_pictures(toybox_shards: ShardFolder, augmentation) -> None:
    rows, decoders = Rows(toybox_shards), Decoders(3)
    for numbers in (np.arange(20), np.array([5, 7])):
        here = read_batch(rows, numbers, 48, augmentation, (0, 3))
        there = read_batch(rows, numbers, 48, augmentation, (0, 3), decoders)
        assert torch.equal(here.pixels_BHWC, there.pixels_BHWC)


KILLED = """
import sys, time
from sigrl_core.decoding import Decoders
if __name__ == "__main__":
    decoders = Decoders(2)
    decoders.decode([open(sys.argv[1], "rb").read()] * 4, 32, "none", [[0]] * 4)
    print(*decoders._pool._processes, flush=True)
    time.sleep(600)
"""


def test_no_process_outlives_a_killed_worker(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "worker.py"), str(pictures / "cat" / "00.jpg")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as worker:
        assert worker.stdout is not None
        numbers = [int(number) for number in worker.stdout.readline().split()]
        assert len(numbers) == 2
        assert all(Path(f"/proc/{number}").exists() for number in numbers)
        worker.kill()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{number}").exists() for number in numbers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_held_features_are_what_encoding_on_the_fly_gives(toybox_shards: ShardFolder) -> None:
    torch.manual_seed(0)
    backbone = load_backbone(BackboneConfig(name="toybox-vit", pretrained="random", frozen_blocks=1))
    rows = Rows(toybox_shards)
    held = HeldFeatures.compute(rows, 48, lambda batch: backbone.encode_frozen(batch.pixels_BHWC), batch_size=16)
    numbers = np.array([3, 39, 0, 3])
    found, expected = held.batch(numbers), read_batch(rows, numbers, 48)
    assert expected.pixels_BHWC is not None
    assert found.pixels_BHWC is None
    torch.testing.assert_close(found.tokens_BNW, backbone.encode_frozen(expected.pixels_BHWC), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.states_BC, expected.states_BC)
    assert torch.equal(found.weight_B, expected.weight_B)
    assert (found.uris, found.global_rows) == (expected.uris, expected.global_rows)
