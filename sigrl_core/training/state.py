"""The state of a training, and the files that resuming needs beside a checkpoint::

    optimiser.safetensors       moments of every trainable parameter
    label_memory.safetensors    label estimator or soft labels, see soft_labels.py
    weights.safetensors         trainable parameters, if the checkpoint contains their average
    state.json                  written last: epoch, step, and the hash of every other file

There is no state of a random generator: every random choice is a function of (seed, step or epoch, row or rank,
purpose).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sigrl_core.config import RunConfig
from sigrl_core.errors import CheckpointError, StorageError
from sigrl_core.io.checksums import sha256_of
from sigrl_core.model.label_set import LabelSet
from sigrl_core.model.model import SigRLModel
from sigrl_core.training.optim import EMA, copy_values, parameter_groups, trainable_parameters
from sigrl_core.training.soft_labels import PerSampleLabels

Metrics = dict[str, float]


MONITOR = "selection"
"""The metric that selects the best epoch, returned by `evaluate`; the epoch's number if `evaluate` returns none."""


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """The labels that are trained.

    Attributes:
        label_set: the labels.
        positions: their columns in the states of a batch.
        steps_per_epoch: optimiser steps of one epoch.
    """

    label_set: LabelSet
    positions: Sequence[int]
    steps_per_epoch: int


@dataclass
class TrainingState:
    """Everything that training continues from after `epoch` whole epochs and `step` steps.

    Attributes:
        sample_labels: label estimates of the training rows.
        ema: average of the weights over the steps, with `training.ema`; it is what is evaluated and published.
        totals: sums over the steps of the current epoch.
        best: the highest `MONITOR` so far and its epoch.
    """

    model: SigRLModel
    sample_labels: PerSampleLabels
    optimiser: torch.optim.Optimizer
    ema: EMA
    epoch: int = 0
    step: int = 0
    totals: Metrics = field(default_factory=dict)
    best: tuple[float, int] = (-math.inf, 0)

    @classmethod
    def start(cls, model: SigRLModel, config: RunConfig, rows: int, labels: int) -> TrainingState:
        """Makes the state before the first step, for a number of training rows and trained labels."""
        sample_labels = PerSampleLabels(config.loss, rows, labels, config.training.seed).to(model.device)
        groups = parameter_groups(model, config.optim)
        if estimator := list(sample_labels.parameters()):
            groups.append({"params": estimator, "lr_scale": config.loss.estimator_lr_scale, "weight_decay": 0.0})
        ema = EMA(model, config.training.ema)
        return cls(model, sample_labels, torch.optim.AdamW(groups, lr=config.optim.lr), ema)


_STATE = "state.json"


def save_training_state(folder: Path, state: TrainingState) -> None:
    """Writes the state into a local folder, without the weights, which are in the checkpoint.

    Raises:
        StorageError: the folder cannot be written.
    """
    moments: dict[str, Tensor] = {}
    for index, values in state.optimiser.state_dict()["state"].items():
        moments |= {f"{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
    files = {"optimiser.safetensors": moments, "label_memory.safetensors": state.sample_labels.state_dict()}
    if state.ema.decay is not None:
        files["weights.safetensors"] = {name: value.detach() for name, value in trainable_parameters(state.model)}
    try:
        folder.mkdir(exist_ok=True)
        (folder / _STATE).unlink(missing_ok=True)
        hashes: dict[str, str] = {}
        for name, tensors in files.items():
            data = save({key: value.cpu().contiguous() for key, value in tensors.items()})
            (folder / name).write_bytes(data)
            hashes[name] = sha256_of(data)
        content = {
            "epoch": state.epoch,
            "step": state.step,
            "totals": state.totals,
            "best": None if state.best[1] == 0 else list(state.best),
            "averaged_steps": state.ema.steps,
            "files": hashes,
        }
        (folder / _STATE).write_text(json.dumps(content), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{folder}: training state cannot be written ({error}); free some space") from error


def load_training_state(folder: Path, state: TrainingState) -> None:
    """Restores a saved state; the weights must be loaded from the checkpoint before.

    Raises:
        CheckpointError: a file is missing, altered, or belongs to another training.
    """
    try:
        content = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        files = {name: _read(folder / name, expected) for name, expected in content["files"].items()}
        state.sample_labels.load_state_dict(files["label_memory.safetensors"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in files["optimiser.safetensors"].items():
            index, key = name.split(".", 1)
            moments.setdefault(int(index), {})[key] = value
        state.optimiser.load_state_dict(
            {"state": moments, "param_groups": state.optimiser.state_dict()["param_groups"]}
        )
        state.ema.reset(state.model, content["averaged_steps"])
        if "weights.safetensors" in files:
            copy_values(dict(trainable_parameters(state.model)), files["weights.safetensors"])
        state.epoch, state.step, state.totals = content["epoch"], content["step"], content["totals"]
        if content["best"] is not None:
            state.best = (content["best"][0], content["best"][1])
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: training cannot go on from here ({error}); choose a new --out") from error


def _read(path: Path, expected: str) -> dict[str, Any]:
    data = path.read_bytes()
    if (actual := sha256_of(data)) != expected:
        raise ValueError(f"sha256 of {path.name} is {actual[:12]}, was {expected[:12]}")
    return load(data)
