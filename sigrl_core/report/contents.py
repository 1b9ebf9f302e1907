"""Counts the contents of a shard folder. One shard is in memory at a time, and eight bytes of each row are kept.

Images are read only from the few shards that the samples are in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from sigrl_core.data.label_states import PRESENT, decode_states
from sigrl_core.data.shards import ShardFolder, assign_split
from sigrl_core.io import storage
from sigrl_core.io.progress import Advance

MAX_TOGETHER = 40
"""Maximum length of the K axis: labels whose joint occurrences are counted."""
NUM_SAMPLES = 24


class Sample(NamedTuple):
    """One image for the page."""

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
        present_C, absent_C, unknown_C: number of images in which each label has this state.
        training_C: number of images for training in which each label is present.
        order_C: positions of the labels, the most frequent first.
        together_KK: number of images in which both labels are present, for the first K of `order_C` that occur.
        images_by_num_labels: at index n, the number of images with n labels present.
        held_out: number of images that are not for training, but for validation or the test.
        widths_N, heights_N: sizes of the stored images, in pixels.
        shard_bytes: size of all shard files together.
        image_bytes: size of each stored image in the shards that the samples are in.
        samples: images for the page, in the order of their rows.
    """

    present_C: np.ndarray
    absent_C: np.ndarray
    unknown_C: np.ndarray
    training_C: np.ndarray
    order_C: np.ndarray
    together_KK: np.ndarray
    images_by_num_labels: np.ndarray
    held_out: int
    widths_N: np.ndarray
    heights_N: np.ndarray
    shard_bytes: int
    image_bytes: np.ndarray
    samples: list[Sample]


def count_contents(folder: ShardFolder, advance: Advance) -> Contents:
    """Reads a shard folder once, without its images, and then the images of a few shards.

    Args:
        advance: called with the number of shards that were read.

    Raises:
        ShardError: a shard differs from the manifest.
        StorageError: the folder cannot be listed.
    """
    C = len(folder.vocabulary)
    counts = [folder.manifest["label_counts"][name] for name in folder.vocabulary.names]
    present_C, absent_C, unknown_C = (
        np.array([label[state] for label in counts], np.int64) for state in ("present", "absent", "unknown")
    )
    order_C = np.argsort(-present_C, kind="stable")
    first_K = order_C[:MAX_TOGETHER][present_C[order_C[:MAX_TOGETHER]] > 0]
    chooser = _SampleChooser(order_C[present_C[order_C] > 0], C, folder.num_rows)
    together_KK = np.zeros((len(first_K), len(first_K)), np.int64)
    training_C, images_by_num_labels, held_out = np.zeros(C, np.int64), np.zeros(C + 1, np.int64), 0
    widths, heights = [], []
    for i in range(len(folder.shard_rows)):
        table = folder.read_columns(i, ["sha256", "width", "height", "label_states"])
        present_NC = decode_states(table["label_states"], C) == PRESENT
        held_out_N = np.array([_held_out(folder, sha256) for sha256 in table["sha256"].to_pylist()], bool)
        held_out += int(held_out_N.sum())
        training_C += present_NC[~held_out_N].sum(axis=0)
        images_by_num_labels += np.bincount(present_NC.sum(axis=1), minlength=C + 1)
        present_NK = present_NC[:, first_K].astype(np.float32)  # exact: a shard has fewer rows than 2^24
        together_KK += (present_NK.T @ present_NK).astype(np.int64)
        chooser.add_rows(present_NC)
        widths.append(table["width"].to_numpy())
        heights.append(table["height"].to_numpy())
        advance(1)
    samples, image_bytes = _read_samples(folder, chooser.rows())
    files = {file.path: file.size for file in storage.list_files(storage.join(folder.uri, "shards"))}
    return Contents(
        present_C=present_C,
        absent_C=absent_C,
        unknown_C=unknown_C,
        training_C=training_C,
        order_C=order_C,
        together_KK=together_KK,
        images_by_num_labels=np.trim_zeros(images_by_num_labels, "b"),
        held_out=held_out,
        widths_N=np.concatenate(widths),
        heights_N=np.concatenate(heights),
        shard_bytes=sum(files[shard["name"]] for shard in folder.manifest["shards"]),
        image_bytes=image_bytes,
        samples=samples,
    )


class _SampleChooser:
    """Chooses rows that are spread over the folder and over its labels, in one pass.

    Each sample has a target row, at equal distances, and a label, from the most to the least frequent; the chosen row
    is the one with this label that is nearest to the target. The last sample needs an image without labels.
    """

    def __init__(self, frequent_first: np.ndarray, num_labels: int, num_rows: int) -> None:
        number, L = np.arange(NUM_SAMPLES), len(frequent_first)
        self.columns = np.full(NUM_SAMPLES, num_labels)
        if L:
            self.columns[:-1] = frequent_first[number * L // NUM_SAMPLES if L > NUM_SAMPLES else number % L][:-1]
        self.targets = (2 * number + 1) * num_rows // (2 * NUM_SAMPLES)
        self.num_rows = num_rows
        self._nearest = [np.zeros(0, np.int64)] * NUM_SAMPLES
        self._num_added = 0

    def add_rows(self, present_NC: np.ndarray) -> None:
        """Considers the rows after those of the previous call."""
        columns_NC = np.hstack([present_NC, ~present_NC.any(axis=1, keepdims=True)])
        for number, (target, column) in enumerate(zip(self.targets, self.columns, strict=True)):
            rows = np.concatenate([self._nearest[number], self._num_added + np.flatnonzero(columns_NC[:, column])])
            # NUM_SAMPLES rows are kept, so that one is left whichever rows the other samples take
            self._nearest[number] = rows[np.argsort(abs(rows - target), kind="stable")[:NUM_SAMPLES]]
        self._num_added += len(present_NC)

    def rows(self) -> list[int]:
        """Returns distinct rows in order: one per sample, or all rows if there are fewer."""
        chosen: set[int] = set()
        for target, nearest in zip(self.targets, self._nearest, strict=True):
            around = np.arange(max(0, target - NUM_SAMPLES), min(self.num_rows, target + NUM_SAMPLES + 1))
            fallback = around[np.argsort(abs(around - target), kind="stable")]
            chosen.update([int(row) for row in (*nearest, *fallback) if row not in chosen][:1])
        return sorted(chosen)


def _read_samples(folder: ShardFolder, numbers: Sequence[int]) -> tuple[list[Sample], np.ndarray]:
    """Returns the samples at these row numbers, and the size of each image in their shards in bytes."""
    samples, lengths = [], []
    for shard, rows in folder.rows_by_shard(numbers):
        table = folder.read_columns(shard, ["uri", "sha256", "image", "width", "height", "label_states"])
        lengths.append(pc.call_function("binary_length", [table["image"]]).to_numpy())
        for row in table.take(rows).to_pylist():
            states_C = np.frombuffer(row["label_states"], np.int8)
            held_out = _held_out(folder, row["sha256"])
            samples.append(Sample(row["uri"], row["image"], row["width"], row["height"], held_out, states_C))
    return samples, np.concatenate(lengths)


def _held_out(folder: ShardFolder, sha256: str) -> bool:
    return assign_split(sha256, **folder.manifest["split"]) != "train"
