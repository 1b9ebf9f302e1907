"""Images of shard folders for evaluation and calibration."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sigrl_core.data.dataset import Batch, RankShard, ShardDataset, epoch_batches, read_batch
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import ShardError
from sigrl_core.inference.tagger import Tagger

BATCH_SIZE = 64


def open_test_split(folder: ShardFolder) -> ShardDataset:
    """Opens a folder's test split, or all of its images if it has none."""
    return ShardDataset(folder, "test" if folder.manifest["split"]["test"] else "all")


def check_folder(folder: ShardFolder, tagger: Tagger) -> None:
    """Raises ShardError if a folder has another vocabulary, or features of another backbone, than a checkpoint."""
    vocabulary, uri = tagger.vocabulary, tagger.checkpoint.uri
    if folder.vocabulary.hash != vocabulary.hash:
        raise ShardError(
            f"{folder.uri}: vocabulary {folder.vocabulary.hash[:8]} ({len(folder.vocabulary)} labels), "
            f"{uri} expects {vocabulary.hash[:8]} ({len(vocabulary)} labels); "
            "run preprocess.py with --vocabulary set to the checkpoint's vocabulary.json"
        )
    folder.check_features(tagger.model.backbone.frozen_sha256, uri)


def iterate_batches(dataset: ShardDataset, image_size: int, indices: np.ndarray | None = None) -> Iterable[Batch]:
    """Yields batches of the images at these indices, in order; None means all images."""
    order = np.arange(len(dataset)) if indices is None else indices
    return epoch_batches(order, BATCH_SIZE, RankShard(), lambda numbers: read_batch(dataset, numbers, image_size))
