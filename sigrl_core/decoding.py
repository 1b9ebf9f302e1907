"""Pictures of training rows as the model takes them, augmented by seeds of their own, here or in processes."""

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

from sigrl_core import images
from sigrl_core.errors import ImageError

Augmentation = Literal["none", "crop_flip", "randaugment"]


class Decoders:
    """Processes that decode for one worker; they end when it does, however it ends.

    Args:
        count: of them.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        # not forked: a process with threads of Arrow and gRPC may not be
        self._pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _end_with_parent)

    def decode(
        self, jpegs: Sequence[bytes], size: int, augmentation: Augmentation, seeds: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """As `decode_pictures`, each process a part of the pictures."""
        shares = [range(len(jpegs))[start :: self.count] for start in range(min(self.count, len(jpegs)))]
        futures = [
            self._pool.submit(decode_pictures, [jpegs[n] for n in share], size, augmentation, [seeds[n] for n in share])
            for share in shares
        ]
        pixels_BHWC = np.empty((len(jpegs), size, size, 3), np.uint8)
        for share, future in zip(shares, futures, strict=True):
            pixels_BHWC[share.start : share.stop : share.step] = future.result()
        return pixels_BHWC


def _end_with_parent() -> None:
    """So that a killed worker leaves none behind, which would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def centre_crop(picture: bytes | Image.Image | np.ndarray | ImageError, size: int) -> np.ndarray | ImageError:
    """A picture as the model takes it, uint8 [size, size, 3], or why there is none; what is either already, stays."""
    try:
        return picture if isinstance(picture, np.ndarray | ImageError) else images.centre_crop_array(picture, size)
    except ImageError as error:
        return error


def decode_pictures(
    jpegs: Sequence[bytes], size: int, augmentation: Augmentation, seeds: Sequence[Sequence[int]]
) -> np.ndarray:
    """JPEGs -> uint8 [B, size, size, 3]; `none` is CLIP's own resize and centre crop.

    Args:
        seeds: of each picture, all that its random choices depend on.
    """
    if augmentation == "none":
        return np.stack([images.centre_crop_array(jpeg, size) for jpeg in jpegs])
    return np.stack(
        [augmented(images.decode(jpeg), size, augmentation, seed) for jpeg, seed in zip(jpegs, seeds, strict=True)]
    )


def augmented(image: Image.Image, size: int, augmentation: Augmentation, seed: Sequence[int]) -> np.ndarray:
    """Random resized crop and flip, with `randaugment` also RandAugment m9-mstd0.5-inc1: uint8 [size, size, 3].

    Scale 0.08 to 1 and aspect 3/4 to 4/3 as Szegedy et al. 2015; RandAugment is timm's (Cubuk et al. 2020).
    """
    rng = np.random.default_rng([*seed, 1])
    image = image.resize((size, size), Image.Resampling.BICUBIC, _random_box(image.size, rng))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augmentation == "randaugment":
        from timm.data.auto_augment import rand_augment_transform

        # timm draws from the global generators: set them for this row, so that its picture depends on nothing else
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
