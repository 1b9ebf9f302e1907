"""Calibrates checkpoints, and measures how good a calibration is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np

from sigrl_core.config import CalibrateConfig
from sigrl_core.data.dataset import ShardDataset
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import ShardError
from sigrl_core.evaluation.inputs import check_folder, iterate_batches
from sigrl_core.inference.tagger import Tagger
from sigrl_core.io.checksums import Pinned
from sigrl_core.io.progress import progress_line
from sigrl_core.labels.vocabulary import LabelGroup
from sigrl_core.metrics import expected_calibration_error, f1_per_label, reliability
from sigrl_core.model.calibration import Calibration, fit_calibration, sigmoid
from sigrl_core.model.checkpoint import add_calibration
from sigrl_core.model.model import compute_tokens


def calibrate(config: CalibrateConfig, tagger: Tagger | None = None) -> Calibration:
    """Fits a calibration on held-out images and writes it into the checkpoint.

    Args:
        config: checkpoint, images and method.
        tagger: the loaded checkpoint of `config`, which gets the calibration too; None loads it.

    Raises:
        CheckpointError, ShardError: an input cannot be used, inputs have different vocabularies, there are too few
            examples, or the folder no longer holds the checkpoint that was loaded; nothing is written.
    """
    tagger, folder = tagger or Tagger.load(config.checkpoint), ShardFolder.open(config.data)
    check_folder(folder, tagger)
    folder.check_image_size(tagger.model.backbone.image_size, "--allow-enlarged", config.allow_enlarged)
    dataset = ShardDataset(folder, config.split)
    if not len(dataset):
        raise ShardError(
            f"{folder.uri}: no images to calibrate on (split {config.split}); preprocess with --validation-fraction "
            "above 0, or use shards that nothing was trained on with --split all"
        )
    logits, states = [], []
    with progress_line("calibrate", len(dataset), unit="images") as advance:
        for batch in iterate_batches(dataset, tagger.model.backbone.image_size):
            logits.append(tagger.logits(compute_tokens(tagger.model, batch), tagger.vocabulary))
            states.append(batch.states_BC.numpy())
            advance(len(batch.uris))
    calibration = fit_calibration(np.concatenate(logits), np.concatenate(states), tagger.vocabulary, config)
    loaded = Pinned(tagger.checkpoint.sha256, "the model that was calibrated", "run the command again")
    sha256 = add_calibration(tagger.checkpoint.uri, calibration, loaded)
    tagger.checkpoint = replace(tagger.checkpoint, calibration=calibration, sha256=sha256)
    return calibration


def measure_calibration(
    tagger: Tagger, logits_NC: np.ndarray, states_NC: np.ndarray
) -> dict[LabelGroup, dict[str, Any]] | None:
    """Measures a checkpoint's calibration for seen and for unseen labels; None if it is not calibrated.

    Returns:
        For each group of labels that occur:

        - `ece_before`, `ece_after`: expected calibration error of the uncalibrated and the calibrated probabilities;
        - `f1_raw_half`, `f1_half`, `f1_thresholds`: mean F1 per label, if tags are the labels with an uncalibrated
          probability of 0.5, a calibrated one of 0.5, or a calibrated one of the label's own threshold;
        - `reliability`: [mean probability, share present] of each bin, `before` and `after` calibration.
    """
    calibration, vocabulary = tagger.checkpoint.calibration, tagger.vocabulary
    if calibration is None:
        return None
    raw_NC, probability_NC = sigmoid(logits_NC), calibration.probabilities(logits_NC, vocabulary.names)
    thresholds_C = calibration.thresholds(vocabulary.names)
    result = {}
    for group in get_args(LabelGroup):
        columns = np.array(vocabulary.positions(group), int)
        columns = columns[(states_NC[:, columns] > 0).any(0)]
        if len(columns):
            states, raw, probability = states_NC[:, columns], raw_NC[:, columns], probability_NC[:, columns]
            tagged = {
                "f1_raw_half": raw >= 0.5,
                "f1_half": probability >= 0.5,
                "f1_thresholds": probability >= thresholds_C[columns],
            }
            result[group] = {
                "ece_before": expected_calibration_error(raw, states),
                "ece_after": expected_calibration_error(probability, states),
                **{name: float(f1_per_label(tags, states).mean()) for name, tags in tagged.items()},
                "reliability": {
                    name: np.stack(reliability(values, states)[:2], axis=1).tolist()
                    for name, values in (("before", raw), ("after", probability))
                },
            }
    return result
