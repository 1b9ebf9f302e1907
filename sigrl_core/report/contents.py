"""What is in a shard folder, counted shard by shard: one shard in memory at a time, eight bytes kept of every row.

Pictures themselves are read of the few shards alone that samples come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from sigrl_core import storage
from sigrl_core.progress import Advance
from sigrl_core.records import PRESENT, ShardFolder, decode_states, split_of

MAX_TOGETHER = 40
"""Labels of which is counted how often they occur together: the K axis."""
NUM_SAMPLES = 24


class Sample(NamedTuple):
    """One picture to show."""

    uri: str
    jpeg: bytes
    width: int
    height: int
    held_out: bool
    states_C: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Counts over all rows of a shard folder.

    Attributes:
        present_C: pictures in which each label is present; `absent_C`, `unknown_C` likewise.
        trained_C: of `present_C`, those that training gets to see.
        order_C: positions of the labels, the most frequent first.
        together_KK: pictures in which both of two labels are present, of the first K of `order_C` that occur at all.
        labels_each: at place n, the number of pictures with n labels present.
        held_out: pictures that training does not get to see, for validation or the test.
        widths_N, heights_N: of the stored pictures, in pixels.
        shard_bytes: of all shard files together.
        picture_bytes: of each stored picture of the shards that samples come from.
        samples: in the order of their rows.
    """

    present_C: np.ndarray
    absent_C: np.ndarray
    unknown_C: np.ndarray
    trained_C: np.ndarray
    order_C: np.ndarray
    together_KK: np.ndarray
    labels_each: np.ndarray
    held_out: int
    widths_N: np.ndarray
    heights_N: np.ndarray
    shard_bytes: int
    picture_bytes: np.ndarray
    samples: list[Sample]


def count_contents(folder: ShardFolder, advance: Advance) -> Contents:
    """Reads a shard folder once, without its pictures, and then the pictures of a few shards.

    Args:
        advance: called with the number of shards done.

    Raises:
        ShardError: a shard is not what the manifest says.
        StorageError: the folder cannot be listed.
    """
    C = len(folder.vocabulary)
    listed = [folder.manifest["label_counts"][name] for name in folder.vocabulary.names]
    present_C, absent_C, unknown_C = (
        np.array([counts[key] for counts in listed], np.int64) for key in ("present", "absent", "unknown")
    )
    order_C = np.argsort(-present_C, kind="stable")
    first_K = order_C[:MAX_TOGETHER][present_C[order_C[:MAX_TOGETHER]] > 0]
    finder = _SampleFinder(order_C[present_C[order_C] > 0], C, folder.num_rows)
    together_KK = np.zeros((len(first_K), len(first_K)), np.int64)
    trained_C, labels_each, held_out = np.zeros(C, np.int64), np.zeros(C + 1, np.int64), 0
    widths, heights = [], []
    for i in range(len(folder.shard_rows)):
        table = folder.read_columns(i, ["sha256", "width", "height", "label_states"])
        present_NC = decode_states(table["label_states"], C) == PRESENT
        held_out_N = np.array([_held_out(folder, sha256) for sha256 in table["sha256"].to_pylist()], bool)
        held_out += int(held_out_N.sum())
        trained_C += present_NC[~held_out_N].sum(axis=0)
        labels_each += np.bincount(present_NC.sum(axis=1), minlength=C + 1)
        present_NK = present_NC[:, first_K].astype(np.float32)  # exact: a shard has fewer rows than 2^24
        together_KK += (present_NK.T @ present_NK).astype(np.int64)
        finder.look_at(present_NC)
        widths.append(table["width"].to_numpy())
        heights.append(table["height"].to_numpy())
        advance(1)
    samples, picture_bytes = _read_samples(folder, finder.rows())
    files = {file.path: file.size for file in storage.list_files(storage.join(folder.uri, "shards"))}
    return Contents(
        present_C=present_C,
        absent_C=absent_C,
        unknown_C=unknown_C,
        trained_C=trained_C,
        order_C=order_C,
        together_KK=together_KK,
        labels_each=np.trim_zeros(labels_each, "b"),
        held_out=held_out,
        widths_N=np.concatenate(widths),
        heights_N=np.concatenate(heights),
        shard_bytes=sum(files[shard["name"]] for shard in folder.manifest["shards"]),
        picture_bytes=picture_bytes,
        samples=samples,
    )


class _SampleFinder:
    """Chooses rows spread over the folder and over its labels in one pass.

    Every sample has a place, evenly over the rows, and a label, evenly from the most to the least frequent; its row is
    the nearest to its place that has the label. The last one looks for a picture without labels.
    """

    def __init__(self, frequent_first: np.ndarray, num_labels: int, num_rows: int) -> None:
        number, L = np.arange(NUM_SAMPLES), len(frequent_first)
        self.columns = np.full(NUM_SAMPLES, num_labels)
        if L:
            self.columns[:-1] = frequent_first[number * L // NUM_SAMPLES if L > NUM_SAMPLES else number % L][:-1]
        self.places = (2 * number + 1) * num_rows // (2 * NUM_SAMPLES)
        self.num_rows = num_rows
        self._nearest = [np.zeros(0, np.int64)] * NUM_SAMPLES
        self._seen = 0

    def look_at(self, present_NC: np.ndarray) -> None:
        """The rows that follow those of the call before."""
        columns_NC = np.hstack([present_NC, ~present_NC.any(axis=1, keepdims=True)])
        for number, (place, column) in enumerate(zip(self.places, self.columns, strict=True)):
            rows = np.concatenate([self._nearest[number], self._seen + np.flatnonzero(columns_NC[:, column])])
            # as many as there are samples: whatever the others take, one is left
            self._nearest[number] = rows[np.argsort(abs(rows - place), kind="stable")[:NUM_SAMPLES]]
        self._seen += len(present_NC)

    def rows(self) -> list[int]:
        """Different rows in order, as many as samples or as there are."""
        taken: set[int] = set()
        for place, nearest in zip(self.places, self._nearest, strict=True):
            around = np.arange(max(0, place - NUM_SAMPLES), min(self.num_rows, place + NUM_SAMPLES + 1))
            others = around[np.argsort(abs(around - place), kind="stable")]
            taken.update([int(row) for row in (*nearest, *others) if row not in taken][:1])
        return sorted(taken)


def _read_samples(folder: ShardFolder, numbers: Sequence[int]) -> tuple[list[Sample], np.ndarray]:
    """The rows of these numbers, and the bytes of every picture in their shards."""
    samples, lengths = [], []
    for shard, rows in folder.by_shard(numbers):
        table = folder.read_columns(shard, ["uri", "sha256", "image", "width", "height", "label_states"])
        lengths.append(pc.call_function("binary_length", [table["image"]]).to_numpy())
        for row in table.take(rows).to_pylist():
            states_C = np.frombuffer(row["label_states"], np.int8)
            held_out = _held_out(folder, row["sha256"])
            samples.append(Sample(row["uri"], row["image"], row["width"], row["height"], held_out, states_C))
    return samples, np.concatenate(lengths)


def _held_out(folder: ShardFolder, sha256: str) -> bool:
    return split_of(sha256, **folder.manifest["split"]) != "train"
