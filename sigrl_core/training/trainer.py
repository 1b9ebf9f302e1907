"""Prepares a training from a configuration and shard folders: rows, label edges, model, batches.

It reads files but does not use Ray: train.py runs it in Ray Train's workers, a search or a test in its own process.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sigrl_core.config import GraphConfig, RunConfig, ScaleConfig
from sigrl_core.data.dataset import (
    Batch,
    InMemoryFeatures,
    RankShard,
    ShardDataset,
    epoch_batches,
    num_steps,
    read_batch,
)
from sigrl_core.data.shards import ShardFolder
from sigrl_core.data.transforms import Augmentation, Decoders
from sigrl_core.errors import CheckpointError
from sigrl_core.inference.heat_map import draw, heat_map
from sigrl_core.io.checksums import Pinned
from sigrl_core.labels.edges import LabelEdges
from sigrl_core.labels.embeddings import load_embeddings
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.model.backbone import load_backbone
from sigrl_core.model.checkpoint import load_weights, save_checkpoint
from sigrl_core.model.model import SigRLModel, compute_tokens
from sigrl_core.model.scoring import patch_fits
from sigrl_core.training.loop import OnCheckpoint, OnStepEnd, fit
from sigrl_core.training.state import (
    MONITOR,
    Metrics,
    TrainingState,
    TrainingTask,
    load_training_state,
    save_training_state,
)
from sigrl_core.training.validation import ValidationTask, validate

NUM_EXAMPLES = 4


class Example(NamedTuple):
    """An image and, to its right, the heat map of a label on it: uint8 [H, 2 W, 3]."""

    uri: str
    label: str
    pixels_HWC: np.ndarray


class Trainer:
    """The training of one worker.

    Args:
        config: the experiment.
        data: shard folder to train on.
        validation: shard folder that selects the best epoch; None uses the validation split of `data`.
        rank_shard: this worker's share of every batch.
        device: torch device that computes.
        decoders: number of processes that decode images for this worker; 0 decodes in a thread of this process.
        held_out: seen labels that are treated as unseen: they are not trained, and validation scores them. Labels that
            are unseen already are then not scored at all, so that a selection by validation does not depend on them.
        objective: the question whose mAP chooses the best epoch: `map`, of the labels trained on, or with labels held
            out `zsl.map`, of these alone, or `gzsl.map`, of both.
        expected: the hashes that the inputs must have, see `inputs.pinned_inputs`.

    Raises:
        SigrlError: an input cannot be used, or is another one than expected.
    """

    def __init__(
        self,
        config: RunConfig,
        data: str,
        validation: str | None = None,
        rank_shard: RankShard | None = None,
        device: torch.device | str = "cpu",
        decoders: int = 0,
        held_out: Sequence[str] = (),
        objective: str = "map",
        expected: Mapping[str, Pinned] | None = None,
    ) -> None:
        expected = expected or {}
        self.config, self.objective, rank_shard = config, objective, rank_shard or RankShard()
        folder = ShardFolder.open(data, expected.get("data_sha256")).with_unseen(held_out)
        vocabulary, self.seen = folder.vocabulary, folder.vocabulary.positions("seen")
        training_rows, validation_rows = open_datasets(folder, validation, expected.get("validation_sha256"))
        model = _start_model(config, training_rows, validation_rows, expected).to(device)
        pool = Decoders(decoders) if decoders else None
        self.training, self.validation = (
            _BatchSource(rows, model, config, rank_shard, pool) for rows in (training_rows, validation_rows)
        )
        self.task = TrainingTask(
            label_set=model.encode_labels(vocabulary.subset("seen")),
            positions=self.seen,
            steps_per_epoch=num_steps(len(training_rows), config.training.batch_size),
        )
        self.validation_tasks = {"": ValidationTask(self.task.label_set, self.seen)}
        if held_out:
            unseen = [vocabulary.index[name] for name in held_out]
            for prefix, positions in (("zsl.", sorted(unseen)), ("gzsl.", sorted([*self.seen, *unseen]))):
                label_set = model.encode_labels(Vocabulary(tuple(vocabulary.labels[c] for c in positions)))
                self.validation_tasks[prefix] = ValidationTask(label_set, positions)
        self.state = TrainingState.start(model, config, len(training_rows), len(self.seen))

    def fit(
        self,
        on_checkpoint: OnCheckpoint,
        on_step_end: OnStepEnd = lambda step, metrics: None,
        scale: ScaleConfig | None = None,
    ) -> bool:
        """Trains to the configured end; see `loop.fit`."""
        return fit(
            self.state,
            self.task,
            self.training.shuffled,
            self._validate,
            on_checkpoint,
            self.config,
            scale or ScaleConfig(),
            on_step_end,
        )

    def _validate(self, model: SigRLModel) -> Metrics:
        metrics = validate(model, self.validation.in_order(), self.validation_tasks)
        monitored = metrics.get(f"validation/{self.objective}", math.nan)
        return metrics if math.isnan(monitored) else {**metrics, MONITOR: monitored}

    @torch.no_grad()
    def make_examples(self) -> list[Example]:
        """Draws the heat map of the best seen label on a few validation images; returns none for cached features."""
        rows, model = self.validation.rows, self.state.model
        if rows.folder.kind == "features" or not len(rows):
            return []
        batch = read_batch(rows, np.arange(min(NUM_EXAMPLES, len(rows))), self.validation.size)
        label_set = self.task.label_set.to(model.device)
        with self.state.ema.swapped_into(model):
            scores = model(compute_tokens(model, batch), label_set).scores
            labels_CD = model.project_labels(label_set).labels_CD
        best_B = scores.scores_BC.argmax(1)
        fits_BP = patch_fits(scores.patches_BPD, labels_CD[best_B][:, None])[:, 0].float().cpu().numpy()
        names = rows.folder.vocabulary.subset("seen").names
        assert batch.pixels_BHWC is not None
        return [
            Example(
                uri,
                names[best],
                np.hstack([image, np.asarray(draw(heat_map(fit_P, model.backbone.grid), image))]),
            )
            for uri, best, image, fit_P in zip(
                batch.uris, best_B.tolist(), batch.pixels_BHWC.numpy(), fits_BP, strict=True
            )
        ]

    def save_checkpoint(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Writes `checkpoint/` into an existing folder."""
        with self.state.ema.swapped_into(self.state.model):
            save_checkpoint(folder / "checkpoint", self.state.model, self.config, metrics)

    def save(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Writes `checkpoint/` and the state that `resume` reads into an existing folder."""
        self.save_checkpoint(folder, metrics)
        save_training_state(folder / "state", self.state)

    def resume(self, folder: Path) -> None:
        """Restores the state that `save` wrote.

        Raises:
            CheckpointError: a file is missing or altered.
        """
        load_weights(folder / "checkpoint", self.state.model)
        load_training_state(folder / "state", self.state)


def _start_model(
    config: RunConfig, training_rows: ShardDataset, validation_rows: ShardDataset, expected: Mapping[str, Pinned]
) -> SigRLModel:
    vocabulary = training_rows.folder.vocabulary
    torch.manual_seed(config.training.seed)  # random weights are the same on every worker and after a restart
    edges = make_label_edges(config.graph, training_rows, expected.get("label_edges_sha256"))
    uri, embeddings_VE = config.backbone.label_embeddings, None
    if uri:
        embeddings_VE = torch.from_numpy(load_embeddings(uri, vocabulary, expected.get("label_embeddings_sha256")))
    backbone = load_backbone(config.backbone)
    if (planned := expected.get("backbone_sha256")) is not None:
        planned.check(config.backbone.pretrained, "weights", backbone.weights_sha256(), CheckpointError)
    for folder in {rows.folder.uri: rows.folder for rows in (training_rows, validation_rows)}.values():
        folder.check_features(backbone.frozen_sha256, "--backbone")
    return SigRLModel.start(backbone, config, vocabulary, edges, embeddings_VE)


def open_datasets(
    folder: ShardFolder, validation: str | None, expected: Pinned | None = None
) -> tuple[ShardDataset, ShardDataset]:
    """Returns the rows to train on, without those that have no seen label, and the rows to validate on.

    Args:
        folder: the shards to train on.
        validation: shard folder to validate on; None uses the validation split of `folder`.
        expected: hash that the folder `validation` must have.
    """
    seen = folder.vocabulary.positions("seen")
    if validation:
        return ShardDataset(folder, "all", seen), ShardDataset(ShardFolder.open(validation, expected))
    return ShardDataset(folder, "train", seen), ShardDataset(folder, "validation")


def make_label_edges(config: GraphConfig, rows: ShardDataset, expected: Pinned | None = None) -> LabelEdges | None:
    """Counts or reads the label edges that a label graph is given; returns None for graphs without such edges."""
    vocabulary = rows.folder.vocabulary
    if config.kind == "cooccurrence":
        seen = vocabulary.positions("seen")
        states = (states_NC[:, seen] for states_NC in rows.label_states())
        return LabelEdges.cooccurrence(
            vocabulary.subset("seen").names, states, config.threshold, config.neighbour_weight
        )
    return LabelEdges.load(config.edges, vocabulary, expected) if config.edges is not None else None


class _BatchSource:
    """Makes this worker's batches of a dataset, from images or from features in memory."""

    def __init__(
        self, rows: ShardDataset, model: SigRLModel, config: RunConfig, rank_shard: RankShard, decoders: Decoders | None
    ) -> None:
        self.rows, self.config, self.rank_shard, self.decoders = rows, config.training, rank_shard, decoders
        self.size = model.backbone.image_size
        self.features: InMemoryFeatures | None = None
        if self.config.cache_features_in_memory and len(rows):
            self.features = InMemoryFeatures.compute(rows, self.size, lambda batch: compute_tokens(model, batch))

    def shuffled(self, epoch: int, first: int) -> Iterable[Batch]:
        """Yields the batches of an epoch from number `first` on."""
        seed = (self.config.seed, epoch)
        return self._batches(self.rows.epoch_order(*seed), first, self.config.augment, seed)

    def in_order(self) -> Iterable[Batch]:
        return self._batches(np.arange(len(self.rows)))

    def _batches(
        self, order: np.ndarray, first: int = 0, augmentation: Augmentation = "none", seed: Sequence[int] = ()
    ) -> Iterable[Batch]:
        def read(numbers: np.ndarray) -> Batch:
            return read_batch(self.rows, numbers, self.size, augmentation, seed, self.decoders)

        make = self.features.batch if self.features else read
        return epoch_batches(order, self.config.batch_size, self.rank_shard, make, first)
