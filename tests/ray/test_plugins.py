"""Plug-ins in every process: modules, and functions of `__main__` as in a notebook; workers, trials, replicas."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sigrl_core import plugins
from sigrl_core.config import Resources
from sigrl_core.config.presets import get_preset
from sigrl_core.config.stages import ServeConfig
from sigrl_core.demo import toybox
from sigrl_core.errors import CheckpointError, ConfigError
from sigrl_core.model.backbone import load_backbone
from sigrl_core.model.checkpoint import load_checkpoint, save_checkpoint
from sigrl_core.model.model import SigRLModel
from sigrl_core.on_ray import worker_plugins
from sigrl_core.on_ray.train import train
from sigrl_core.plugins import GRAPHS, LOSSES, METRICS
from tests.conftest import REPOSITORY
from tests.processes import joined_to_ray
from tests.ray.conftest import epochs_of

pytestmark = pytest.mark.ray

MODULE = """
from sigrl_core.plugins import register_graph, register_loss


@register_loss("squared_of_module")
def squared(logits, targets, config, batch):
    is_known = targets.states_BC != 0
    return batch.local_mean(((logits.sigmoid() - (targets.states_BC > 0).float()) * is_known).square().mean(1))


@register_graph("ring")
def ring(labels, known, config):
    return labels.new_ones(len(labels), 1).diag_embed().squeeze(-1) + labels.new_zeros(len(labels), len(labels)) + 1
"""

NOTEBOOK = """
import dataclasses, json, sys

import torch
import numpy as np

from sigrl_core.config import Resources, SearchConfig
from sigrl_core.config.presets import get_preset
from sigrl_core.on_ray.train import train
from sigrl_core.on_ray.tune import search
from sigrl_core.plugins import load, register_loss, register_metric
from sigrl_core.search.space import SearchSpace

data, out = sys.argv[1:]
base = get_preset("quickstart")
training = dataclasses.replace(base.training, epochs=1, batch_size=16)


def run_of(loss):
    return dataclasses.replace(base, loss=dataclasses.replace(base.loss, kind=loss), training=training)


def constant(value):
    return lambda logits, targets, config, batch: batch.local_mean(logits.sum(1) * 0 + value)


register_loss("mine")(constant(3.0))


@register_metric("rows")
def rows(scores, states):
    return np.shape(scores)[0]


train(run_of("mine"), data, out + "/first", resources=Resources(num_workers=2))
register_loss("mine")(constant(5.0))  # the cell once more, changed, while Ray runs
train(run_of("mine"), data, out + "/second", resources=Resources(num_workers=1))
load(["losses_of_this_test"])
found = search(
    SearchConfig(trials=1, objective="map", scheduler="none"), run_of("squared_of_module"), SearchSpace(),
    data, out + "/search",
)
print(json.dumps([trial.reason for trial in found.ended]))
"""


@pytest.fixture(autouse=True)
def _tables_as_before() -> Iterator[None]:
    tables = [LOSSES, GRAPHS, METRICS]
    before = [dict(table._entries) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table._entries.clear()
        table._entries.update(entries)


@pytest.mark.usefixtures("ray_cluster")
def test_functions_of_a_notebook_and_of_a_module_train_on_workers_and_in_a_trial(shards: Path, tmp_path: Path) -> None:
    """A notebook is a process of its own, which joins the Ray of the tests."""
    (tmp_path / "notebook.py").write_text(NOTEBOOK)
    (tmp_path / "losses_of_this_test.py").write_text(MODULE)
    done = subprocess.run(
        [sys.executable, tmp_path / "notebook.py", shards, tmp_path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**joined_to_ray(), "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [""]
    for name, loss, workers in (("first", 3, 2), ("second", 5, 1)):
        (row,) = epochs_of(tmp_path / name)
        assert row["workers"] == workers
        assert row["train/mine"] == pytest.approx(loss)
        assert row["validation/rows"] > 0
    assert epochs_of(tmp_path / "search" / "trials" / "00000")[0]["train/squared_of_module"] > 0


@pytest.mark.usefixtures("ray_cluster")
def test_a_module_loaded_while_ray_runs_trains_on_two_workers(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "later_losses.py").write_text(
        MODULE.replace("squared_of_module", "later").replace("ring", "later_ring")
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    plugins.load(["later_losses"])
    preset = get_preset("quickstart")
    run = dataclasses.replace(
        preset,
        loss=dataclasses.replace(preset.loss, kind="later"),
        graph=dataclasses.replace(preset.graph, kind="later_ring"),
        training=dataclasses.replace(preset.training, epochs=1, batch_size=16),
    )
    train(run, str(shards), str(tmp_path / "out"), resources=Resources(num_workers=2))
    assert epochs_of(tmp_path / "out")[0]["train/later"] > 0


@pytest.mark.usefixtures("ray_cluster")
def test_a_replica_loads_a_checkpoint_whose_label_graph_is_a_plug_in(tmp_path: Path) -> None:
    from ray import serve

    from sigrl_core.on_ray.serve import Arguments, build

    @plugins.register_graph("all_ones")
    def all_ones(labels_CD: torch.Tensor, known_CC: torch.Tensor | None, config: object) -> torch.Tensor:
        return labels_CD.new_ones(len(labels_CD), len(labels_CD))

    all_ones.__module__ = "__main__"  # as a notebook's
    preset = get_preset("quickstart")
    config = dataclasses.replace(preset, graph=dataclasses.replace(preset.graph, kind="all_ones"))
    model = SigRLModel.start(load_backbone(config.backbone), config, toybox.vocabulary()).eval()
    save_checkpoint(tmp_path / "checkpoint", model, config, {"selected": {}, "history": []})
    serve.start(proxy_location="Disabled")
    try:
        arguments = Arguments(config=ServeConfig(checkpoint=str(tmp_path / "checkpoint"), allow_anonymous=True))
        serve.run(build(arguments), name="tags")
        assert serve.status().applications["tags"].status == "RUNNING"
    finally:
        serve.shutdown()
    payload = worker_plugins.dump()
    del GRAPHS["all_ones"]
    with pytest.raises(CheckpointError, match=r"graph.kind is 'all_ones'; expected one of complete, .*--plugin MODULE"):
        load_checkpoint(str(tmp_path / "checkpoint"))
    worker_plugins.install(payload)
    assert GRAPHS.registered() == ["all_ones"]


def test_a_function_that_cannot_be_sent_is_named() -> None:
    import threading

    lock = threading.Lock()

    @plugins.register_loss("locked")
    def locked(*_: object) -> None:
        lock.acquire()

    with pytest.raises(ConfigError, match=r"loss 'locked' of .* cannot be sent to Ray workers \(TypeError: .*--plugin"):
        worker_plugins.dump()


def test_a_module_that_a_machine_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    plugins.load(["only_here"])
    payload = worker_plugins.dump()
    monkeypatch.delitem(sys.modules, "only_here")
    (tmp_path / "only_here.py").unlink()
    with pytest.raises(
        ConfigError, match=r"plug-ins cannot be loaded on machine .*No module named 'only_here'.*submit"
    ):
        worker_plugins.install(payload)
