"""Reads shard rows in a reproducible order and makes batches of them.

Global batch k of epoch e is a pure function of (seed, e, k, shards), and each worker takes its slice of it. Nothing
depends on timing, on the number of workers, or on the state of a random generator.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sigrl_core.data.label_states import PRESENT, decode_states
from sigrl_core.data.shards import ShardFolder, Split, assign_split
from sigrl_core.data.transforms import Augmentation, Decoders, decode_images
from sigrl_core.errors import ShardError
from sigrl_core.io.prefetch import prefetch

WINDOW = 8
"""Number of shards whose rows are shuffled together, and which are thus in memory at the same time."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One worker's slice of one optimiser step.

    Attributes:
        uris: source of each image.
        rows_B: row numbers in the `ShardDataset`.
        states_BC: int8 label states.
        weight_B: 1 for each row; 0 for the placeholder row of a worker whose slice is empty.
        global_rows: number of rows of this step over all workers.
        pixels_BHWC: uint8 images; None for features.
        tokens_BNW: output of the frozen blocks; None for images.
    """

    uris: list[str]
    rows_B: Tensor
    states_BC: Tensor
    weight_B: Tensor
    global_rows: int
    pixels_BHWC: Tensor | None = None
    tokens_BNW: Tensor | None = None

    def split(self, sizes: Sequence[int]) -> list[Batch]:
        """Splits the batch into micro-batches of these sizes, which belong to the same step."""
        stops = list(itertools.accumulate(sizes))
        return [
            replace(
                self,
                uris=self.uris[stop - size : stop],
                **{name: value[stop - size : stop] for name, value in vars(self).items() if isinstance(value, Tensor)},
            )
            for stop, size in zip(stops, sizes, strict=True)
        ]


class ShardDataset:
    """The selected rows of a shard folder, with access by number.

    Args:
        folder: the shards.
        split: `all`, or one split by the seed and fractions in the folder's manifest.
        positive_among: label positions; rows without a positive among these are left out. None keeps all rows.
    """

    def __init__(
        self,
        folder: ShardFolder,
        split: Split | Literal["all"] = "all",
        positive_among: Sequence[int] | None = None,
    ) -> None:
        self.folder = folder
        self._content = "image" if folder.kind == "shards" else "tokens"
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()
        split_config = folder.manifest["split"]
        self._selected: list[np.ndarray] = []  # row numbers in each shard
        for shard, count in enumerate(folder.shard_rows):
            keep = np.ones(count, bool)
            table = folder.read_shard(shard, ["sha256", "label_states"])
            if split != "all":
                hashes = table["sha256"].to_pylist()
                keep &= np.array([assign_split(sha256, **split_config) == split for sha256 in hashes], bool)
            if positive_among is not None:
                states = decode_states(table["label_states"], len(folder.vocabulary))
                keep &= (states[:, list(positive_among)] == PRESENT).any(1)
            self._selected.append(np.flatnonzero(keep))
        # shard, and row in it, of each row of the dataset
        self._shard_N = np.repeat(np.arange(len(self._selected)), [len(rows) for rows in self._selected])
        self._row_N = np.concatenate(self._selected) if self._selected else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._row_N)

    def label_states(self) -> Iterator[np.ndarray]:
        """Yields the int8 label states [n, C] of all rows, one shard at a time."""
        for shard, rows in enumerate(self._selected):
            table = self.folder.read_shard(shard, ["label_states"])
            yield decode_states(table["label_states"], len(self.folder.vocabulary))[rows]

    def epoch_order(self, seed: int, epoch: int) -> np.ndarray:
        """Returns the row numbers of one epoch: shards are shuffled, then the rows within each window of shards."""
        rng = np.random.default_rng([seed, epoch])
        first = np.concatenate([[0], np.cumsum([len(rows) for rows in self._selected])]).astype(int).tolist()
        shards = rng.permutation(len(self._selected))
        windows = [shards[start : start + WINDOW] for start in range(0, len(shards), WINDOW)]
        numbers = [np.concatenate([np.arange(first[s], first[s + 1]) for s in window]) for window in windows]
        return np.concatenate([rng.permutation(window) for window in numbers] or [np.zeros(0, np.int64)])

    def read(self, number: int) -> tuple[str, bytes | pa.Buffer, bytes]:
        """Reads one row: uri, JPEG bytes or features, and encoded label states."""
        table = self._table(int(self._shard_N[number]))
        row = int(self._row_N[number])
        content = table[self._content][row]
        return (
            table["uri"][row].as_py(),
            content.as_py() if self.folder.kind == "shards" else content.as_buffer(),
            table["label_states"][row].as_py(),
        )

    def _table(self, shard: int) -> pa.Table:
        if shard not in self._tables:
            columns = ["uri", self._content, "label_states"]
            self._tables[shard] = self.folder.read_shard(shard, columns).combine_chunks()
            if len(self._tables) > WINDOW + 1:
                self._tables.popitem(last=False)
        self._tables.move_to_end(shard)
        return self._tables[shard]


@dataclass(frozen=True, kw_only=True)
class RankShard:
    """This worker's slice of every global batch."""

    rank: int = 0
    world_size: int = 1

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Returns this worker's slice of a global batch's row numbers."""
        return np.array_split(rows, self.world_size)[self.rank]


def num_steps(num_rows: int, batch_size: int) -> int:
    """Returns the number of optimiser steps of one epoch; the last batch may be smaller."""
    return -(-num_rows // batch_size)


def epoch_batches(
    order: np.ndarray,
    batch_size: int,
    shard: RankShard,
    make: Callable[[np.ndarray], Batch],
    first: int = 0,
) -> Iterator[Batch]:
    """Yields this worker's slices of one epoch's global batches; a thread reads the next while one is in use.

    Args:
        order: row numbers of the whole epoch.
        batch_size: rows of a global batch.
        shard: the slice of this worker.
        make: row numbers -> Batch, for example `read_batch`.
        first: number of the first batch to yield; earlier ones are not read.
    """
    steps = [order[start : start + batch_size] for start in range(first * batch_size, len(order), batch_size)]

    def prepare(step: np.ndarray) -> Batch:
        local = shard.take(step)
        if len(local):
            return replace(make(local), global_rows=len(step))
        return replace(make(step[:1]), weight_B=torch.zeros(1), global_rows=len(step))

    return prefetch(map(prepare, steps))


def read_batch(
    dataset: ShardDataset,
    numbers: np.ndarray,
    size: int,
    augmentation: Augmentation = "none",
    seed: Sequence[int] = (),
    decoders: Decoders | None = None,
) -> Batch:
    """Reads rows and decodes their images, or reads their features from a folder of features.

    Args:
        numbers: row numbers.
        size: side of the images in pixels.
        augmentation: `none` is CLIP's resize and centre crop; features cannot be augmented.
        seed: (seed, epoch); a row's augmentation is a function of these and its number.
        decoders: worker processes that decode; None decodes in this process.
    """
    uris, contents, encoded = zip(*map(dataset.read, numbers), strict=True)
    pixels_BHWC = tokens_BNW = None
    if dataset.folder.kind == "features":
        shape = dataset.folder.manifest["features"]
        tokens = np.stack([np.frombuffer(content, np.float16) for content in contents])
        tokens_BNW = torch.from_numpy(tokens).view(len(uris), shape["tokens"], shape["width"])
    else:
        seeds = [[*seed, int(number)] for number in numbers]
        decode_all = decoders.decode if decoders else decode_images
        pixels_BHWC = torch.from_numpy(decode_all(contents, size, augmentation, seeds))
    return Batch(
        uris=list(uris),
        rows_B=torch.from_numpy(np.asarray(numbers, np.int64)),
        states_BC=torch.from_numpy(np.stack([np.frombuffer(row, np.int8) for row in encoded])),
        weight_B=torch.ones(len(uris)),
        global_rows=len(uris),
        pixels_BHWC=pixels_BHWC,
        tokens_BNW=tokens_BNW,
    )


@dataclass(frozen=True)
class InMemoryFeatures:
    """The frozen blocks' output for every row, in memory.

    Attributes:
        tokens_NTW: T tokens of width W for each of N rows, as 32-bit floats, because 16 bits would change results.
    """

    uris: list[str]
    states_NC: Tensor
    tokens_NTW: Tensor

    @classmethod
    def compute(
        cls, dataset: ShardDataset, size: int, encode: Callable[[Batch], Tensor], batch_size: int = 128
    ) -> InMemoryFeatures:
        """Reads and encodes every row once, in order.

        Args:
            size: side of the images in pixels.
            encode: computes the tokens [B,T,W] of a batch.
        """
        if not len(dataset):
            raise ShardError(f"{dataset.folder.uri}: no rows for training or validation; preprocess a larger corpus")
        order = np.arange(len(dataset))
        batches = epoch_batches(order, batch_size, RankShard(), lambda numbers: read_batch(dataset, numbers, size))
        encoded = [(batch.uris, batch.states_BC, encode(batch)) for batch in batches]
        return cls(
            [uri for uris, _, _ in encoded for uri in uris],
            torch.cat([states for _, states, _ in encoded]),
            torch.cat([tokens for _, _, tokens in encoded]),
        )

    def batch(self, numbers: np.ndarray) -> Batch:
        """Returns the batch of these row numbers."""
        index = torch.from_numpy(np.asarray(numbers, np.int64))
        return Batch(
            uris=[self.uris[number] for number in numbers],
            rows_B=index,
            states_BC=self.states_NC[index],
            weight_B=torch.ones(len(numbers)),
            global_rows=len(numbers),
            tokens_BNW=self.tokens_NTW[index],
        )
