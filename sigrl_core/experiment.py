"""A configuration and its data, brought to where `training.fit` starts: rows, label graph, model, batches.

Knows files but not Ray: train.py runs it under Ray Train, and anything else may in its own process.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sigrl_core.batches import Batch, HeldFeatures, Rows, Slice, epoch_batches, num_steps, read_batch
from sigrl_core.checkpoint import load_weights, save_checkpoint
from sigrl_core.config import GraphConfig, RunConfig, ScaleConfig
from sigrl_core.decoding import Augmentation, Decoders
from sigrl_core.evaluation import ValidationQuestion, validate
from sigrl_core.heat_map import draw, heat_map
from sigrl_core.label_edges import LabelEdges
from sigrl_core.label_embeddings import load_embeddings
from sigrl_core.model.backbone import load_backbone
from sigrl_core.model.recogniser import Recogniser
from sigrl_core.model.scoring import patch_fits
from sigrl_core.records import ShardFolder
from sigrl_core.training import SELECTION, Metrics, OnStep, Report, Task, TrainingState, fit, tokens_of
from sigrl_core.training_state import load_training_state, save_training_state
from sigrl_core.vocabulary import Vocabulary

NUM_EXAMPLES = 4


class Example(NamedTuple):
    """A picture beside where a label fits in it, uint8 [H, 2 W, 3]."""

    uri: str
    label: str
    pixels_HWC: np.ndarray


class Experiment:
    """One worker's share of a training.

    Args:
        config: the experiment.
        data: shard folder to train on.
        validation: shard folder to choose the best epoch on; None takes the seeded split that `data` keeps.
        mine: this worker's share of every batch.
        device: where to compute.
        decoders: processes that decode pictures for this worker; 0 decodes in a thread beside the training.
        held_out: seen labels that are taken for unseen: not trained on, and asked for in validation. Labels that are
            unseen are then asked for nowhere, so that what is chosen by them says nothing of these.
        objective: the question whose mAP chooses the best epoch: `map`, of the labels trained on, or with labels held
            out `zsl.map`, of these alone, or `gzsl.map`, of both.
    """

    def __init__(
        self,
        config: RunConfig,
        data: str,
        validation: str | None = None,
        mine: Slice | None = None,
        device: torch.device | str = "cpu",
        decoders: int = 0,
        held_out: Sequence[str] = (),
        objective: str = "map",
    ) -> None:
        self.config, self.objective, mine = config, objective, mine or Slice()
        folder = ShardFolder.open(data).with_unseen(held_out)
        vocabulary, self.seen = folder.vocabulary, folder.vocabulary.positions("seen")
        training_rows, validation_rows = rows_of(folder, validation)
        torch.manual_seed(config.training.seed)  # random weights are the same on every worker and after a restart
        edges = label_edges(config.graph, training_rows)
        own = config.backbone.label_embeddings
        embeddings_VE = torch.from_numpy(load_embeddings(own, vocabulary)) if own else None
        backbone = load_backbone(config.backbone)
        for each in {rows.folder.uri: rows.folder for rows in (training_rows, validation_rows)}.values():
            each.check_features(backbone.frozen_sha256, "--backbone")
        recogniser = Recogniser.start(backbone, config, vocabulary, edges, embeddings_VE).to(device)
        pool = Decoders(decoders) if decoders else None
        self.training, self.validation = (
            _Source(rows, recogniser, config, mine, pool) for rows in (training_rows, validation_rows)
        )
        self.task = Task(
            asked=recogniser.ask(vocabulary.subset("seen")),
            positions=self.seen,
            steps_per_epoch=num_steps(len(training_rows), config.training.batch_size),
        )
        self.questions = {"map": ValidationQuestion(self.task.asked, self.seen)}
        if held_out:
            unseen = [vocabulary.index[name] for name in held_out]
            for name, positions in (("zsl.map", sorted(unseen)), ("gzsl.map", sorted([*self.seen, *unseen]))):
                asked = recogniser.ask(Vocabulary(tuple(vocabulary.labels[c] for c in positions)))
                self.questions[name] = ValidationQuestion(asked, positions)
        self.state = TrainingState.start(recogniser, config, len(training_rows), len(self.seen))

    def fit(
        self, report: Report, on_step: OnStep = lambda step, metrics: None, scale: ScaleConfig | None = None
    ) -> bool:
        """Trains to the configured end; see `training.fit`."""
        return fit(
            self.state,
            self.task,
            self.training.shuffled,
            self._validate,
            report,
            self.config,
            scale or ScaleConfig(),
            on_step,
        )

    def _validate(self, model: Recogniser) -> Metrics:
        metrics = validate(model, self.validation.in_order(), self.questions)
        chosen = metrics.get(f"validation/{self.objective}", math.nan)
        return metrics if math.isnan(chosen) else {**metrics, SELECTION: chosen}

    @torch.no_grad()
    def examples(self) -> list[Example]:
        """A few validation pictures and where their best seen label fits, as of now; none where these are features."""
        rows, recogniser = self.validation.rows, self.state.recogniser
        if rows.folder.kind == "features" or not len(rows):
            return []
        batch = read_batch(rows, np.arange(min(NUM_EXAMPLES, len(rows))), self.validation.size)
        asked = self.task.asked.to(recogniser.device)
        with self.state.average.in_place_of(recogniser):
            scores = recogniser(tokens_of(recogniser, batch), asked).scores
            labels_CD = recogniser.embedded(asked).labels_CD
        best_B = scores.scores_BC.argmax(1)
        fits_BP = patch_fits(scores.patches_BPD, labels_CD[best_B][:, None])[:, 0].float().cpu().numpy()
        names = rows.folder.vocabulary.subset("seen").names
        assert batch.pixels_BHWC is not None
        return [
            Example(
                uri,
                names[best],
                np.hstack([picture, np.asarray(draw(heat_map(fit_P, recogniser.backbone.grid), picture))]),
            )
            for uri, best, picture, fit_P in zip(
                batch.uris, best_B.tolist(), batch.pixels_BHWC.numpy(), fits_BP, strict=True
            )
        ]

    def save_checkpoint(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Writes `checkpoint/` into an existing folder."""
        with self.state.average.in_place_of(self.state.recogniser):
            save_checkpoint(folder / "checkpoint", self.state.recogniser, self.config, metrics)

    def save(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Writes `checkpoint/` and what `resume` needs into an existing folder."""
        self.save_checkpoint(folder, metrics)
        save_training_state(folder / "state", self.state)

    def resume(self, folder: Path) -> None:
        """Goes back to where `save` left it.

        Raises:
            CheckpointError: a file is missing or altered.
        """
        load_weights(folder / "checkpoint", self.state.recogniser)
        load_training_state(folder / "state", self.state)


def rows_of(folder: ShardFolder, validation: str | None) -> tuple[Rows, Rows]:
    """Rows to train on, without those that show nothing seen, and rows to validate on."""
    seen = folder.vocabulary.positions("seen")
    if validation:
        return Rows(folder, "all", seen), Rows(ShardFolder.open(validation))
    return Rows(folder, "train", seen), Rows(folder, "validation")


def label_edges(config: GraphConfig, rows: Rows) -> LabelEdges | None:
    """The edges that the label graph of a configuration wants to be given."""
    vocabulary = rows.folder.vocabulary
    if config.kind == "cooccurrence":
        seen = vocabulary.positions("seen")
        states = (states_NC[:, seen] for states_NC in rows.label_states())
        return LabelEdges.cooccurrence(vocabulary.subset("seen").names, states, config.threshold, config.others)
    return LabelEdges.load(config.edges, vocabulary) if config.edges is not None else None


class _Source:
    """Batches of one set of rows for this worker: from pictures, or from features held in memory."""

    def __init__(
        self, rows: Rows, recogniser: Recogniser, config: RunConfig, mine: Slice, decoders: Decoders | None
    ) -> None:
        self.rows, self.config, self.mine, self.decoders = rows, config.training, mine, decoders
        self.size = recogniser.backbone.image_size
        self.held: HeldFeatures | None = None
        if self.config.hold_features and len(rows):
            self.held = HeldFeatures.compute(rows, self.size, lambda batch: tokens_of(recogniser, batch))

    def shuffled(self, epoch: int, first: int) -> Iterable[Batch]:
        seed = (self.config.seed, epoch)
        return self._batches(self.rows.order(*seed), first, self.config.augment, seed)

    def in_order(self) -> Iterable[Batch]:
        return self._batches(np.arange(len(self.rows)))

    def _batches(
        self, order: np.ndarray, first: int = 0, augmentation: Augmentation = "none", seed: Sequence[int] = ()
    ) -> Iterable[Batch]:
        def read(numbers: np.ndarray) -> Batch:
            return read_batch(self.rows, numbers, self.size, augmentation, seed, self.decoders)

        make = self.held.batch if self.held else read
        return epoch_batches(self.rows, order, self.config.batch_size, self.mine, make, first)
