"""What resuming needs: the whole of it comes back, half of it or another's is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sigrl_core.config import LossConfig, RunConfig
from sigrl_core.errors import CheckpointError
from sigrl_core.model.checkpoint import load_weights, save_checkpoint
from sigrl_core.training.state import TrainingState, load_training_state, save_training_state
from tests.unit.test_loop import changed, fresh, parameters_of

pytestmark = pytest.mark.unit

CONFIG = replace(changed(training={"ema": 0.9}), loss=LossConfig(kind="role"))


def one_step(state: TrainingState) -> None:
    for parameter in (*state.model.parameters(), *state.sample_labels.parameters()):
        parameter.grad = 0.1 * torch.ones_like(parameter) if parameter.requires_grad else None
    state.optimiser.step()
    state.ema.update(state.model)
    state.step += 1


def saved(state: TrainingState, config: RunConfig, folder: Path) -> None:
    with state.ema.swapped_into(state.model):
        save_checkpoint(folder / "checkpoint", state.model, config, {})
    save_training_state(folder / "state", state)


def other() -> TrainingState:
    state = fresh(CONFIG)
    with torch.no_grad():
        for parameter in (*state.model.parameters(), *state.sample_labels.parameters()):
            parameter += 1
    return state


def test_the_next_step_is_the_same(tmp_path: Path) -> None:
    first, second = fresh(CONFIG), other()
    one_step(first)
    first.totals, first.best = {"loss": 0.1 + 0.2, "steps": 1.0}, (41.5, 3)
    saved(first, CONFIG, tmp_path)
    saved(first, CONFIG, tmp_path)  # over one that is there
    load_weights(tmp_path / "checkpoint", second.model)
    load_training_state(tmp_path / "state", second)
    assert (second.step, second.totals, second.best) == (1, first.totals, first.best)
    for state in (first, second):
        one_step(state)
    for found, expected in (
        (parameters_of(second), parameters_of(first)),
        (dict(second.sample_labels.named_parameters()), dict(first.sample_labels.named_parameters())),
        (second.ema.weights, first.ema.weights),
    ):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", ["optimiser", "label_memory", "weights", "state"])
@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_half_a_training_state_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    state = fresh(CONFIG)
    one_step(state)
    saved(state, CONFIG, tmp_path)
    (path,) = (tmp_path / "state").glob(f"{name}.*")
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(CheckpointError, match="training cannot go on from here"):
        load_training_state(tmp_path / "state", other())


def test_weights_of_another_training_are_refused(tmp_path: Path) -> None:
    state = fresh(CONFIG)
    saved(state, CONFIG, tmp_path)
    weights = tmp_path / "checkpoint/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(CheckpointError, match="sha256"):
        load_weights(tmp_path / "checkpoint", state.model)
