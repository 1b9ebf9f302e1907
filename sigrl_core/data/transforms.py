"""Crops and augments images for the model, in this process or in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import Literal

import numpy as np
from PIL import Image

from sigrl_core.data import images
from sigrl_core.errors import ImageError

Augmentation = Literal["none", "crop_flip", "randaugment"]


class Decoders:
    """Worker processes that decode images. They exit with the process that started them, even if it is killed.

    Args:
        count: number of processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        # no fork: this process has threads of Arrow and gRPC
        self._pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _end_with_parent)

    def decode(
        self, jpegs: Sequence[bytes], size: int, augmentation: Augmentation, seeds: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """Does the same as `decode_images`; each process decodes a part of the images."""
        shares = [range(len(jpegs))[start :: self.count] for start in range(min(self.count, len(jpegs)))]
        futures = [
            self._pool.submit(decode_images, [jpegs[n] for n in share], size, augmentation, [seeds[n] for n in share])
            for share in shares
        ]
        pixels_BHWC = np.empty((len(jpegs), size, size, 3), np.uint8)
        for share, future in zip(shares, futures, strict=True):
            pixels_BHWC[share.start : share.stop : share.step] = future.result()
        return pixels_BHWC


def _end_with_parent() -> None:
    """Exits with the parent process, so that a killed parent leaves no processes that wait for work."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def centre_crop(image: bytes | Image.Image | np.ndarray | ImageError, size: int) -> np.ndarray | ImageError:
    """Crops an image to uint8 [size, size, 3], or returns the ImageError; an array or an ImageError stays as it is."""
    try:
        return image if isinstance(image, np.ndarray | ImageError) else images.centre_crop_array(image, size)
    except ImageError as error:
        return error


def decode_images(
    jpegs: Sequence[bytes], size: int, augmentation: Augmentation, seeds: Sequence[Sequence[int]]
) -> np.ndarray:
    """Decodes JPEGs to uint8 [B, size, size, 3]; `none` is CLIP's resize and centre crop.

    Args:
        seeds: the seed of each image's augmentation.
    """
    if augmentation == "none":
        return np.stack([images.centre_crop_array(jpeg, size) for jpeg in jpegs])
    return np.stack(
        [augment(images.decode(jpeg), size, augmentation, seed) for jpeg, seed in zip(jpegs, seeds, strict=True)]
    )


def augment(image: Image.Image, size: int, augmentation: Augmentation, seed: Sequence[int]) -> np.ndarray:
    """Crops, resizes and flips an image at random, with `randaugment` also RandAugment m9-mstd0.5-inc1.

    Scale 0.08 to 1 and aspect 3/4 to 4/3 as Szegedy et al. 2015; RandAugment is timm's (Cubuk et al. 2020).

    Returns:
        uint8 [size, size, 3].
    """
    rng = np.random.default_rng([*seed, 1])
    image = image.resize((size, size), Image.Resampling.BICUBIC, _random_box(image.size, rng))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augmentation == "randaugment":
        from timm.data.auto_augment import rand_augment_transform

        # timm uses the global generators: seed them, so that the result depends on this row's seed alone
        random.seed(int(rng.integers(2**32)))
        np.random.seed(int(rng.integers(2**32)))
        image = rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": (124, 117, 104)})(image)
    return np.asarray(image)


def _random_box(extent: tuple[int, int], rng: np.random.Generator) -> tuple[float, float, float, float]:
    width, height = extent
    for _ in range(10):
        area = rng.uniform(0.08, 1.0) * width * height
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = np.sqrt(area * aspect), np.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2
