"""From shards to batches: which rows, in which order, seen how.

Global batch k of epoch e is a pure function of (seed, e, k, shards); a worker takes its slice of it. Nothing depends on
timing, on the number of workers, or on the state of a generator.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from sigrl_core import images
from sigrl_core.errors import ShardError
from sigrl_core.records import PRESENT, ShardFolder, Split, decode_states, split_of

Augmentation = Literal["none", "crop_flip", "randaugment"]

WINDOW = 8
"""Shards that are shuffled together, and so held in memory at once."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One worker's slice of one optimiser step.

    Attributes:
        uris: where each picture came from.
        rows_B: their numbers among the `Rows` they are of.
        states_BC: int8 label states.
        weight_B: 1 for each row; 0 for a row that stands in where a worker's slice would be empty.
        global_rows: rows of this step over all workers.
        pixels_BHWC: uint8 pictures, or None where `tokens_BNW` holds what the frozen blocks gave for them.
    """

    uris: list[str]
    rows_B: Tensor
    states_BC: Tensor
    weight_B: Tensor
    global_rows: int
    pixels_BHWC: Tensor | None = None
    tokens_BNW: Tensor | None = None


class Rows:
    """The rows of a shard folder that take part, and access to them by number.

    Args:
        folder: the shards.
        part: `all`, or one part of the seeded split that the folder's manifest keeps.
        positive_among: label positions; rows without a positive among them are left out. None keeps all rows.
    """

    def __init__(
        self,
        folder: ShardFolder,
        part: Split | Literal["all"] = "all",
        positive_among: Sequence[int] | None = None,
    ) -> None:
        self.folder = folder
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()
        split = folder.manifest["split"]
        chosen: list[np.ndarray] = []
        for shard, count in enumerate(folder.shard_rows):
            keep = np.ones(count, bool)
            table = folder.read_shard(shard, ["sha256", "label_states"])
            if part != "all":
                keep &= np.array([split_of(sha256, **split) == part for sha256 in table["sha256"].to_pylist()], bool)
            if positive_among is not None:
                states = decode_states(table["label_states"], len(folder.vocabulary))
                keep &= (states[:, list(positive_among)] == PRESENT).any(1)
            chosen.append(np.flatnonzero(keep))
        self._of_shard = chosen
        self._shard_of = np.repeat(np.arange(len(chosen)), [len(rows) for rows in chosen])
        self._row_of = np.concatenate(chosen) if chosen else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._row_of)

    def label_states(self) -> Iterator[np.ndarray]:
        """int8 label states of all rows [N,C], one shard at a time."""
        for shard, rows in enumerate(self._of_shard):
            table = self.folder.read_shard(shard, ["label_states"])
            yield decode_states(table["label_states"], len(self.folder.vocabulary))[rows]

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Row numbers in the order of one epoch: shards shuffled, then rows within each window of shards."""
        rng = np.random.default_rng([seed, epoch])
        first = np.concatenate([[0], np.cumsum([len(rows) for rows in self._of_shard])]).astype(int).tolist()
        shards = rng.permutation(len(self._of_shard))
        windows = [shards[start : start + WINDOW] for start in range(0, len(shards), WINDOW)]
        numbers = [np.concatenate([np.arange(first[s], first[s + 1]) for s in window]) for window in windows]
        return np.concatenate([rng.permutation(window) for window in numbers] or [np.zeros(0, np.int64)])

    def read(self, number: int) -> tuple[str, bytes, bytes]:
        """uri, JPEG bytes and encoded label states of one row."""
        table = self._table(int(self._shard_of[number]))
        row = int(self._row_of[number])
        return table["uri"][row].as_py(), table["image"][row].as_py(), table["label_states"][row].as_py()

    def _table(self, shard: int) -> pa.Table:
        if shard not in self._tables:
            self._tables[shard] = self.folder.read_shard(shard, ["uri", "image", "label_states"]).combine_chunks()
            if len(self._tables) > WINDOW + 1:
                self._tables.popitem(last=False)
        self._tables.move_to_end(shard)
        return self._tables[shard]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Which share of every global batch is this worker's."""

    rank: int = 0
    workers: int = 1

    def of(self, rows: np.ndarray) -> np.ndarray:
        return np.array_split(rows, self.workers)[self.rank]


def num_steps(rows: int, batch_size: int) -> int:
    """Optimiser steps of one epoch; the last may be smaller."""
    return -(-rows // batch_size)


def epoch_batches(
    rows: Rows,
    order: np.ndarray,
    batch_size: int,
    mine: Slice,
    make: Callable[[np.ndarray], Batch],
    first: int = 0,
) -> Iterator[Batch]:
    """This worker's slices of the global batches of one epoch, the next one made while the last is used.

    Args:
        order: row numbers of the whole epoch.
        make: row numbers -> Batch, for example `picture_batch`.
        first: number of the first batch wanted; those before it are not made.
    """
    steps = [order[start : start + batch_size] for start in range(first * batch_size, len(order), batch_size)]

    def prepare(step: np.ndarray) -> Batch:
        slice_ = mine.of(step)
        batch = make(slice_ if len(slice_) else step[:1])
        return Batch(
            uris=batch.uris,
            rows_B=batch.rows_B,
            states_BC=batch.states_BC,
            weight_B=batch.weight_B if len(slice_) else torch.zeros(1),
            global_rows=len(step),
            pixels_BHWC=batch.pixels_BHWC,
            tokens_BNW=batch.tokens_BNW,
        )

    with ThreadPoolExecutor(1) as pool:
        upcoming = None
        for step in steps:
            ready, upcoming = upcoming, pool.submit(prepare, step)
            if ready is not None:
                yield ready.result()
        if upcoming is not None:
            yield upcoming.result()


def picture_batch(
    rows: Rows, numbers: np.ndarray, size: int, augmentation: Augmentation = "none", seed: Sequence[int] = ()
) -> Batch:
    """Decodes rows into a batch of uint8 pictures.

    Args:
        numbers: row numbers.
        size: pixels on a side.
        augmentation: `none` is CLIP's own resize and centre crop.
        seed: (seed, epoch); a row's random choices are a function of these and its number.
    """
    uris, pixels, states = [], [], []
    for number in numbers:
        uri, jpeg, encoded = rows.read(number)
        uris.append(uri)
        states.append(np.frombuffer(encoded, np.int8))
        if augmentation == "none":
            pixels.append(images.centre_crop_array(jpeg, size))
        else:
            pixels.append(augmented(images.decode(jpeg), size, augmentation, [*seed, int(number)]))
    return Batch(
        uris=uris,
        rows_B=torch.from_numpy(np.asarray(numbers, np.int64)),
        states_BC=torch.from_numpy(np.stack(states)),
        weight_B=torch.ones(len(uris)),
        global_rows=len(uris),
        pixels_BHWC=torch.from_numpy(np.stack(pixels)),
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


@dataclass(frozen=True)
class HeldFeatures:
    """What the frozen blocks give for every row, in memory; 16 bits a number would change results, so 32."""

    uris: list[str]
    states_NC: Tensor
    tokens_NTW: Tensor

    @classmethod
    def compute(cls, rows: Rows, size: int, encode: Callable[[Tensor], Tensor], batch_size: int = 128) -> HeldFeatures:
        """Decodes and encodes every row once, in row order."""
        if not len(rows):
            raise ShardError(f"{rows.folder.uri}: no rows to train on or to measure; preprocess a larger corpus")
        batches = epoch_batches(
            rows, np.arange(len(rows)), batch_size, Slice(), lambda numbers: picture_batch(rows, numbers, size)
        )
        parts = [(batch.uris, batch.states_BC, encode(_pixels(batch))) for batch in batches]
        return cls(
            [uri for uris, _, _ in parts for uri in uris],
            torch.cat([states for _, states, _ in parts]),
            torch.cat([tokens for _, _, tokens in parts]),
        )

    def batch(self, numbers: np.ndarray) -> Batch:
        index = torch.from_numpy(np.asarray(numbers, np.int64))
        return Batch(
            uris=[self.uris[number] for number in numbers],
            rows_B=index,
            states_BC=self.states_NC[index],
            weight_B=torch.ones(len(numbers)),
            global_rows=len(numbers),
            tokens_BNW=self.tokens_NTW[index],
        )


def _pixels(batch: Batch) -> Tensor:
    assert batch.pixels_BHWC is not None
    return batch.pixels_BHWC
