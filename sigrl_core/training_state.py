"""What resuming needs and inference does not, beside a checkpoint::

    optimiser.safetensors       moments of every parameter that trains
    label_memory.safetensors    estimator or soft labels, see label_memory.py
    weights.safetensors         of what trains, where the checkpoint has their average
    state.json                  written last: epoch, step, and the hash of every other file

No state of a random generator: every draw is a function of (seed, step or epoch, row or rank, purpose).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sigrl_core.errors import CheckpointError, StorageError
from sigrl_core.optim import fill, trained_of
from sigrl_core.records import sha256_of
from sigrl_core.training import TrainingState

_STATE = "state.json"


def save_training_state(folder: Path, state: TrainingState) -> None:
    """Writes a local folder; the weights themselves are the checkpoint's.

    Raises:
        StorageError: it cannot be written.
    """
    moments: dict[str, Tensor] = {}
    for index, values in state.optimiser.state_dict()["state"].items():
        moments |= {f"{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
    files = {"optimiser.safetensors": moments, "label_memory.safetensors": state.memory.state_dict()}
    if state.average.decay is not None:
        files["weights.safetensors"] = {name: value.detach() for name, value in trained_of(state.recogniser)}
    try:
        folder.mkdir(exist_ok=True)
        (folder / _STATE).unlink(missing_ok=True)
        hashes: dict[str, str] = {}
        for name, tensors in files.items():
            data = save({key: value.cpu().contiguous() for key, value in tensors.items()})
            (folder / name).write_bytes(data)
            hashes[name] = sha256_of(data)
        told = {
            "epoch": state.epoch,
            "step": state.step,
            "totals": state.totals,
            "best": None if state.best[1] == 0 else list(state.best),
            "averaged_steps": state.average.steps,
            "files": hashes,
        }
        (folder / _STATE).write_text(json.dumps(told), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{folder}: training state cannot be written ({error}); free some space") from error


def load_training_state(folder: Path, state: TrainingState) -> None:
    """Brings a state, its weights loaded from the checkpoint already, to where the other was saved.

    Raises:
        CheckpointError: a file is missing, altered, or of another training.
    """
    try:
        told = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        files = {name: _read(folder / name, expected) for name, expected in told["files"].items()}
        state.memory.load_state_dict(files["label_memory.safetensors"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in files["optimiser.safetensors"].items():
            index, key = name.split(".", 1)
            moments.setdefault(int(index), {})[key] = value
        state.optimiser.load_state_dict(
            {"state": moments, "param_groups": state.optimiser.state_dict()["param_groups"]}
        )
        state.average.restart(state.recogniser, told["averaged_steps"])
        if "weights.safetensors" in files:
            fill(dict(trained_of(state.recogniser)), files["weights.safetensors"])
        state.epoch, state.step, state.totals = told["epoch"], told["step"], told["totals"]
        if told["best"] is not None:
            state.best = (told["best"][0], told["best"][1])
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: training cannot go on from here ({error}); choose a new --out") from error


def _read(path: Path, expected: str) -> dict[str, Any]:
    data = path.read_bytes()
    if (found := sha256_of(data)) != expected:
        raise ValueError(f"sha256 of {path.name} is {found[:12]}, was {expected[:12]}")
    return load(data)
