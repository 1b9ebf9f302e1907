"""From shards to batches: which rows, in which order, seen how.

Global batch k of epoch e is a pure function of (seed, e, k, shards); a worker takes its slice of it. Nothing depends on
timing, on the number of workers, or on the state of a generator.
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

from sigrl_core.corpora.ahead import one_ahead
from sigrl_core.decoding import Augmentation, Decoders, decode_pictures
from sigrl_core.errors import ShardError
from sigrl_core.records import PRESENT, ShardFolder, Split, decode_states, split_of

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

    def split(self, sizes: Sequence[int]) -> list[Batch]:
        """Pieces of so many rows each, of the same step."""
        stops = list(itertools.accumulate(sizes))
        return [
            replace(
                self,
                uris=self.uris[stop - size : stop],
                **{name: value[stop - size : stop] for name, value in vars(self).items() if isinstance(value, Tensor)},
            )
            for stop, size in zip(stops, sizes, strict=True)
        ]


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
        self._content = "image" if folder.kind == "shards" else "tokens"
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

    def read(self, number: int) -> tuple[str, bytes | pa.Buffer, bytes]:
        """uri, JPEG bytes or features, and encoded label states of one row."""
        table = self._table(int(self._shard_of[number]))
        row = int(self._row_of[number])
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
        make: row numbers -> Batch, for example `read_batch`.
        first: number of the first batch wanted; those before it are not made.
    """
    steps = [order[start : start + batch_size] for start in range(first * batch_size, len(order), batch_size)]

    def prepare(step: np.ndarray) -> Batch:
        slice_ = mine.of(step)
        if len(slice_):
            return replace(make(slice_), global_rows=len(step))
        return replace(make(step[:1]), weight_B=torch.zeros(1), global_rows=len(step))

    return one_ahead(map(prepare, steps))


def read_batch(
    rows: Rows,
    numbers: np.ndarray,
    size: int,
    augmentation: Augmentation = "none",
    seed: Sequence[int] = (),
    decoders: Decoders | None = None,
) -> Batch:
    """Decodes rows into a batch of uint8 pictures, or takes their features where the folder holds these.

    Args:
        numbers: row numbers.
        size: pixels on a side.
        augmentation: `none` is CLIP's own resize and centre crop; features cannot be augmented.
        seed: (seed, epoch); a row's random choices are a function of these and its number.
        decoders: processes that share the decoding; None decodes here.
    """
    uris, contents, encoded = zip(*map(rows.read, numbers), strict=True)
    pixels_BHWC = tokens_BNW = None
    if rows.folder.kind == "features":
        shape = rows.folder.manifest["features"]
        tokens = np.stack([np.frombuffer(content, np.float16) for content in contents])
        tokens_BNW = torch.from_numpy(tokens).view(len(uris), shape["tokens"], shape["width"])
    else:
        seeds = [[*seed, int(number)] for number in numbers]
        decode_all = decoders.decode if decoders else decode_pictures
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
class HeldFeatures:
    """What the frozen blocks give for every row, in memory; 16 bits a number would change results, so 32."""

    uris: list[str]
    states_NC: Tensor
    tokens_NTW: Tensor

    @classmethod
    def compute(cls, rows: Rows, size: int, encode: Callable[[Batch], Tensor], batch_size: int = 128) -> HeldFeatures:
        """Reads and encodes every row once, in row order."""
        if not len(rows):
            raise ShardError(f"{rows.folder.uri}: no rows to train on or to measure; preprocess a larger corpus")
        batches = epoch_batches(
            rows, np.arange(len(rows)), batch_size, Slice(), lambda numbers: read_batch(rows, numbers, size)
        )
        parts = [(batch.uris, batch.states_BC, encode(batch)) for batch in batches]
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
