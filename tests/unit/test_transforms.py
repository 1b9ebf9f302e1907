"""Crops and augmentation, in this process and in worker processes."""

import io
import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sigrl_core.data import images
from sigrl_core.data.dataset import ShardDataset, read_batch
from sigrl_core.data.shards import ShardFolder
from sigrl_core.data.transforms import Decoders, augment
from tests.conftest import REPOSITORY, random_states, vocabulary_of, write_shards

pytestmark = pytest.mark.unit

VOCABULARY = vocabulary_of(["red", "green"], ["blue"])


def test_without_augmentation_images_are_cropped_as_in_clip(toybox_shards: ShardFolder) -> None:
    rows = ShardDataset(toybox_shards)
    for size in (48, 32):
        batch = read_batch(rows, np.array([7, 0, 39]), size)
        assert batch.pixels_BHWC is not None
        for pixels, number in zip(batch.pixels_BHWC.numpy(), (7, 0, 39), strict=True):
            np.testing.assert_array_equal(pixels, images.centre_crop_array(rows.read(number)[1], size))


@pytest.mark.parametrize("augmentation", ["crop_flip", "randaugment"])
def test_augmentation_is_a_function_of_seed_epoch_and_row(toybox_shards: ShardFolder, augmentation) -> None:
    def augmented(numbers: list[int], epoch: int = 0, seed: int = 0) -> dict[int, bytes]:
        torch.manual_seed(len(numbers))  # the state of the global generators does not matter
        np.random.seed(len(numbers))
        batch = read_batch(ShardDataset(toybox_shards), np.array(numbers), 48, augmentation, (seed, epoch))
        assert batch.pixels_BHWC is not None
        return {n: p.numpy().tobytes() for n, p in zip(numbers, batch.pixels_BHWC, strict=True)}

    numbers = list(range(12))
    whole = augmented(numbers)
    assert augmented(numbers[::-1]) == whole
    assert {**augmented(numbers[5:]), **augmented(numbers[:5])} == whole  # as on two workers
    for other in (augmented(numbers, epoch=1), augmented(numbers, seed=1)):
        assert sum(other[n] != whole[n] for n in numbers) >= 11
    assert len(set(whole.values())) == 12


@pytest.mark.parametrize("augmentation", ["crop_flip", "randaugment"])
def test_rows_of_equal_images_are_augmented_differently(tmp_path: Path, make_image, encoded, augmentation) -> None:
    jpegs = [encoded(make_image(0, 60, 44))] * 20
    rows = ShardDataset(write_shards(tmp_path / "shards", VOCABULARY, random_states(20, 3), jpegs))
    pixels = read_batch(rows, np.arange(20), 32, augmentation, (0, 0)).pixels_BHWC
    assert pixels is not None
    assert pixels.shape == (20, 32, 32, 3)
    assert pixels.dtype == torch.uint8
    assert len({image.numpy().tobytes() for image in pixels}) >= 19


def test_images_are_flipped_half_the_time() -> None:
    """The image is red on the left and blue on the right. A crop keeps the sides, a flip swaps them."""
    image = Image.fromarray(np.repeat(np.linspace([255, 0, 0], [0, 0, 255], 64)[None], 64, axis=0).astype(np.uint8))
    crops = [augment(image, 16, "crop_flip", (0, 0, row)).astype(int) for row in range(60)]
    flipped = [pixels[:, 0, 0].mean() < pixels[:, -1, 0].mean() for pixels in crops]
    assert 15 <= sum(flipped) <= 45


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 300), (500, 2)])
def test_images_of_any_shape_can_be_augmented(make_image, encoded, width: int, height: int) -> None:
    image = Image.open(io.BytesIO(encoded(make_image(0, width, height))))
    for row in range(5):
        assert augment(image, 24, "randaugment", (0, 0, row)).shape == (24, 24, 3)


def test_processes_decode_to_the_same_images(toybox_shards: ShardFolder) -> None:
    rows, decoders = ShardDataset(toybox_shards), Decoders(3)
    for augmentation, numbers in product(("none", "randaugment"), (np.arange(20), np.array([5, 7]))):
        here = read_batch(rows, numbers, 48, augmentation, (0, 3))
        there = read_batch(rows, numbers, 48, augmentation, (0, 3), decoders)
        assert torch.equal(here.pixels_BHWC, there.pixels_BHWC)


KILLED = """
import sys, time
from sigrl_core.data.transforms import Decoders
if __name__ == "__main__":
    decoders = Decoders(2)
    decoders.decode([open(sys.argv[1], "rb").read()] * 4, 32, "none", [[0]] * 4)
    print(*decoders._pool._processes, flush=True)
    time.sleep(600)
"""


def test_no_process_outlives_a_killed_worker(images: Path, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "worker.py"), str(images / "cat" / "00.jpg")]
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
