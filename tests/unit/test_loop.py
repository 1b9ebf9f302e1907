"""Training: it learns, it is the same however it is split over workers, epochs and restarts, it stops where it must."""

import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from sigrl_core.config import (
    BackboneConfig,
    GraphConfig,
    LossConfig,
    OptimConfig,
    ReconstructionConfig,
    RunConfig,
    ScaleConfig,
    ScoringConfig,
    TrainingConfig,
)
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
from sigrl_core.demo import toybox
from sigrl_core.errors import ConfigError, NotFiniteError
from sigrl_core.model.backbone import load_backbone
from sigrl_core.model.checkpoint import load_weights, save_checkpoint
from sigrl_core.model.model import SigRLModel, compute_tokens
from sigrl_core.training.loop import fit
from sigrl_core.training.optim import (
    describe_parameter_groups,
    parameter_groups,
    set_learning_rate,
    trainable_parameters,
)
from sigrl_core.training.state import (
    MONITOR,
    Metrics,
    TrainingState,
    TrainingTask,
    load_training_state,
    save_training_state,
)
from sigrl_core.training.step import draw_label_subset
from sigrl_core.training.validation import ValidationTask, validate
from tests.conftest import without_clock, write_shards

pytestmark = pytest.mark.unit

ALL = RankShard()
REPOSITORY = Path(__file__).parents[2]
EVERY_EPOCH, EVERY_STEP = ScaleConfig(), ScaleConfig(save_every=1)

CONFIG = RunConfig(
    backbone=BackboneConfig(name="toybox-vit", pretrained="random", frozen_blocks=1, prompt_templates=("a {}",)),
    graph=GraphConfig(hidden=16, heads=2, residual=True, dropout=0.0),
    reconstruction=ReconstructionConfig(rms_normalise=True),
    scoring=ScoringConfig(top_k_patches=8, learn_scale=True, initial_scale=20.0),
    optim=OptimConfig(lr=1e-3, warmup_epochs=0.5),
    training=TrainingConfig(epochs=3, batch_size=8, augment="none"),
)


def changed(**changes: dict[str, Any]) -> RunConfig:
    """CONFIG with some fields of some of its parts replaced."""
    return replace(CONFIG, **{part: replace(getattr(CONFIG, part), **values) for part, values in changes.items()})


def fresh(config: RunConfig) -> TrainingState:
    torch.manual_seed(0)
    model = SigRLModel.start(load_backbone(config.backbone), config, toybox.vocabulary())
    return TrainingState.start(model, config, rows=40, labels=50)


@pytest.fixture(scope="module")
def single_positive_shards(toybox_shards: ShardFolder, tmp_path_factory: pytest.TempPathFactory) -> ShardFolder:
    """The toybox images with one of their seen labels each, nothing known of the rest."""
    vocabulary, tables = toybox_shards.vocabulary, [toybox_shards.read_shard(n) for n in range(6)]
    rows = [row for table in tables for row in table.to_pylist()]
    states_NC = np.zeros((len(rows), len(vocabulary)), np.int8)
    for number, row in enumerate(rows):
        present = np.flatnonzero(np.frombuffer(row["label_states"], np.int8) == 1)
        seen = [c for c in present if vocabulary.labels[c].group == "seen"]
        states_NC[number, seen[number % len(seen)]] = 1
    folder = tmp_path_factory.mktemp("single_positive") / "shards"
    return write_shards(folder, vocabulary, states_NC, [row["image"] for row in rows], rows_per_shard=7)


def drifted(config: RunConfig) -> TrainingState:
    """As after some training. Where training starts |student - teacher| is 0 but for rounding, and the sign of that,
    which is its gradient, differs with the number of rows."""
    state = fresh(config)
    with torch.no_grad():
        for parameter in state.model.backbone.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    return state


@dataclass
class Record:
    """What one call of `fit` told."""

    steps: list[Metrics] = field(default_factory=list)
    epochs: list[Metrics] = field(default_factory=list)
    ended: bool = False

    @property
    def losses(self) -> list[float]:
        return [metrics["loss"] for metrics in self.steps]


def train(
    folder: ShardFolder,
    config: RunConfig,
    state: TrainingState,
    mine: RankShard = ALL,
    num_rows: int | None = None,
    on_report: Callable[[TrainingState], None] = lambda state: None,
    scale: ScaleConfig = EVERY_EPOCH,
    leave_at: int | None = None,
) -> Record:
    """Trains on the first `num_rows` images of a folder, validating on the same."""
    rows = ShardDataset(folder, "all")
    count = len(rows) if num_rows is None else num_rows
    seen = folder.vocabulary.positions("seen")
    batch_size = config.training.batch_size
    asked = state.model.encode_labels(folder.vocabulary.subset("seen"))
    held = None
    if config.training.cache_features_in_memory:
        held = InMemoryFeatures.compute(rows, 48, lambda batch: compute_tokens(state.model, batch))

    def batches(order: np.ndarray, augment: Any, seed: tuple[int, int], first: int = 0) -> Iterable[Batch]:
        make = held.batch if held else lambda numbers: read_batch(rows, numbers, 48, augment, seed)
        return epoch_batches(order[order < count], batch_size, mine, make, first)

    def evaluate(model: SigRLModel) -> Metrics:
        tasks = {"": ValidationTask(asked, seen)}
        found = validate(model, batches(np.arange(count), "none", (0, 0)), tasks)
        return {**found, MONITOR: found["validation/map"]}

    def shuffled(epoch: int, first: int) -> Iterable[Batch]:
        seed = (config.training.seed, epoch)
        return batches(rows.epoch_order(*seed), config.training.augment, seed, first)

    record = Record()

    def report(metrics: Metrics | None, state: TrainingState) -> None:
        if metrics is not None:
            record.epochs.append(metrics)
        on_report(state)

    def on_step_end(step: int, metrics: Metrics) -> bool:
        record.steps.append({"step": step, **metrics})
        return step == leave_at

    record.ended = fit(
        state,
        TrainingTask(label_set=asked, positions=seen, steps_per_epoch=num_steps(count, batch_size)),
        shuffled,
        evaluate,
        report,
        config,
        scale,
        on_step_end,
    )
    return record


def parameters_of(state: TrainingState) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.model.state_dict().items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


# ---- it learns ----


def test_the_loss_falls_and_what_is_reported_is_what_happened(toybox_shards: ShardFolder) -> None:
    config = changed(training={"epochs": 6}, graph={"dropout": 0.3})
    state = fresh(config)
    record = train(toybox_shards, config, state, num_rows=24)
    by_epoch = np.array(record.losses).reshape(6, 3)
    assert by_epoch[-1].mean() < 0.9 * by_epoch[0].mean()
    assert (state.epoch, state.step) == (6, 18)
    assert [metrics["step"] for metrics in record.steps] == list(range(1, 19))
    assert [metrics["epoch"] for metrics in record.epochs] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([metrics["train/loss"] for metrics in record.epochs], by_epoch.mean(1))
    for metrics in record.steps:
        assert metrics["loss"] == pytest.approx(metrics["ranking"] + metrics["distillation"])
    assert record.epochs[-1]["validation/map"] > record.epochs[0]["validation/map"]
    assert not state.model.training
    rates = [metrics["lr"] for metrics in record.steps]
    assert rates[0] == 0
    assert max(rates) == pytest.approx(1e-3, rel=0.02)
    assert rates[-1] < rates[10] < rates[4]


def test_the_recorded_loss_curve(toybox_shards: ShardFolder) -> None:
    """A change that is meant to keep the numbers keeps these; one that means to change them writes them anew."""
    config = changed(training={"epochs": 4, "augment": "crop_flip", "label_keep_fraction": 0.5})
    found = train(toybox_shards, config, fresh(config)).losses
    recorded = json.loads(Path(__file__).with_name("loss_curve.json").read_text())["losses"]
    assert found == pytest.approx(recorded, rel=1e-3), (
        f"if this is meant, put into loss_curve.json: {json.dumps(found)}"
    )
    assert len(recorded) == 20


def test_the_baseline_and_plain_scores_train_too(toybox_shards: ShardFolder) -> None:
    for config in (
        changed(reconstruction={"enabled": False}, training={"max_steps": 2}),
        changed(scoring={"learn_scale": False}, loss={"distillation": 0.0}, training={"max_steps": 2}),
        changed(graph={"kind": "none"}, optim={"clip_norm": 0.1}, training={"max_steps": 2}),
    ):
        record = train(toybox_shards, config, fresh(config), num_rows=16)
        assert np.isfinite(record.losses).all()


def test_without_distillation_only_the_ranking_counts(toybox_shards: ShardFolder) -> None:
    config = changed(loss={"distillation": 0.0}, training={"max_steps": 2})
    for metrics in train(toybox_shards, config, fresh(config), num_rows=16).steps:
        assert metrics["loss"] == metrics["ranking"]
        assert metrics["distillation"] == 0


def test_gradients_are_clipped(toybox_shards: ShardFolder) -> None:
    def norm(config: RunConfig) -> float:
        state = fresh(config)
        train(toybox_shards, config, state, num_rows=8)
        return float(torch.stack([p.grad.norm() for p in state.model.parameters() if p.grad is not None]).norm())

    assert norm(changed(training={"max_steps": 1})) > 0.05
    assert norm(changed(training={"max_steps": 1}, optim={"clip_norm": 0.01})) == pytest.approx(0.01, rel=1e-3)


def test_half_precision(toybox_shards: ShardFolder) -> None:
    config = changed(training={"max_steps": 4, "precision": "bf16"})
    state = fresh(config)
    found = train(toybox_shards, config, state, num_rows=16)
    expected = train(toybox_shards, changed(training={"max_steps": 4}), fresh(CONFIG), num_rows=16)
    assert found.losses != expected.losses
    assert found.losses == pytest.approx(expected.losses, rel=0.02)
    assert {p.dtype for p in state.model.parameters()} == {torch.float32}


def test_held_features_give_the_losses_of_images(toybox_shards: ShardFolder) -> None:
    config = changed(training={"epochs": 2, "cache_features_in_memory": True}, backbone={"frozen_blocks": 2})
    held = train(toybox_shards, config, fresh(config), num_rows=20)
    config = replace(config, training=replace(config.training, cache_features_in_memory=False))
    images = train(toybox_shards, config, fresh(config), num_rows=20)
    assert held.losses == pytest.approx(images.losses, rel=1e-5)
    assert held.epochs[-1]["validation/map"] == pytest.approx(images.epochs[-1]["validation/map"], rel=1e-3)


# ---- what trains, at which rate ----


def test_frozen_parts_get_no_gradient_and_do_not_move(toybox_shards: ShardFolder) -> None:
    config = changed(optim={"weight_decay": 0.0})
    state = fresh(config)
    before = parameters_of(state)
    train(toybox_shards, config, state, num_rows=16)
    upper = ("backbone.clip.visual.transformer.resblocks.1.", "backbone.clip.visual.ln_post.", "head.")
    trainable = {n for n in before if n.startswith(upper) or n == "backbone.clip.visual.proj"}
    cancel = {"head.semantic.coef.bias", "head.reconstruction.coef.bias"}  # in the softmax
    moved = {name for name, value in parameters_of(state).items() if not torch.equal(value, before[name])}
    assert moved == trainable - cancel
    for name, parameter in state.model.named_parameters():
        assert (parameter.grad is not None) == (name in trainable), name


def test_rates_fall_with_depth_and_vectors_do_not_decay() -> None:
    state = fresh(
        changed(backbone={"frozen_blocks": 0}, optim={"layer_decay": 0.5, "weight_decay": 0.2, "head_lr_scale": 0.4})
    )
    model, groups = state.model, state.optimiser.param_groups
    parameters = dict(model.named_parameters())
    listed = [name for group in groups for name in group["names"]]
    assert sorted(listed) == sorted(name for name, p in parameters.items() if p.requires_grad)
    scale = {name: group["lr_scale"] for group in groups for name in group["names"]}
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    visual = "backbone.clip.visual"
    assert scale[f"{visual}.proj"] == scale[f"{visual}.ln_post.weight"] == scale["head.log_scale"] == 1
    assert scale["head.semantic.coef.weight"] == scale["head.graph.layers.0.linear.weight"] == 0.4
    assert scale[f"{visual}.transformer.resblocks.1.attn.in_proj_weight"] == 0.5
    assert scale[f"{visual}.transformer.resblocks.0.ln_1.bias"] == 0.25
    assert {name: 0.2 if parameters[name].ndim > 1 else 0.0 for name in listed} == decay
    assert decay["head.log_scale"] == 0
    set_learning_rate(state.optimiser, 0.1)
    assert sorted({group["lr"] for group in groups}) == pytest.approx([0.025, 0.04, 0.05, 0.1])
    assert {group["lr_scale"] for group in parameter_groups(model, OptimConfig(layer_decay=1.0))} == {1.0}


def test_parameter_groups_are_described() -> None:
    state = fresh(replace(changed(optim={"layer_decay": 0.5, "head_lr_scale": 0.25}), loss=LossConfig(kind="role")))
    lines = describe_parameter_groups(state.optimiser.param_groups)
    rates = [float(re.match(r"lr x (\S+): ", line)[1]) for line in lines]
    assert rates == sorted(rates, reverse=True)
    assert any(line.startswith("lr x 0.5: visual.transformer.resblocks.") for line in lines)
    assert any("head.semantic" in line for line in lines if line.startswith("lr x 0.25: "))
    assert any("label estimator" in line for line in lines)
    trained = [*trainable_parameters(state.model), *state.sample_labels.named_parameters()]
    described = sum(int(re.search(r"\(([\d,]+) parameters\)$", line)[1].replace(",", "")) for line in lines)
    assert described == sum(parameter.numel() for _, parameter in trained)
    frozen = {name for name, value in state.model.named_parameters() if not value.requires_grad}
    assert any("resblocks.0." in name for name in frozen)
    assert not any("resblocks.0" in line for line in lines)


def test_label_subsets() -> None:
    for step in range(20):
        chosen = draw_label_subset(50, 0.3, 7, step)
        assert len(chosen) == len(set(chosen.tolist())) == 15
        assert chosen.tolist() == sorted(chosen.tolist())
        torch.manual_seed(step)  # no generator's state matters, so every worker draws the same
        assert torch.equal(draw_label_subset(50, 0.3, 7, step), chosen)
    drawn = [tuple(draw_label_subset(50, 0.3, 7, step).tolist()) for step in range(20)]
    assert len(set(drawn)) == 20
    assert set().union(*drawn) == set(range(50))
    assert draw_label_subset(50, 0.3, 8, 0).tolist() != list(drawn[0])
    assert draw_label_subset(4, 1.0, 0, 0).tolist() == [0, 1, 2, 3]
    assert len(draw_label_subset(4, 0.01, 0, 0)) == 1


# ---- the same, however it is split ----


@pytest.mark.parametrize("saved_at", [1, 3, 5])  # inside an epoch, at its end, one step before the end of all
@pytest.mark.parametrize("kind", ["ranking", "role", "em_apl"])
def test_training_that_is_taken_up_again_ends_the_same(
    single_positive_shards: ShardFolder, toybox_shards: ShardFolder, tmp_path: Path, kind: str, saved_at: int
) -> None:
    shards = toybox_shards if kind == "ranking" else single_positive_shards
    config = changed(
        graph={"dropout": 0.3},
        loss={"kind": kind, "soft_warmup_epochs": 1, "soft_weight": 0.5},
        training={"label_keep_fraction": 0.5, "augment": "crop_flip", "ema": 0.9, "epochs": 2},
    )
    straight = fresh(config)

    def save_once(state: TrainingState) -> None:
        if state.step == saved_at:
            with state.ema.swapped_into(state.model):
                save_checkpoint(tmp_path / "checkpoint", state.model, config, {})
            save_training_state(tmp_path / "state", state)

    whole = train(shards, config, straight, num_rows=20, on_report=save_once, scale=EVERY_STEP)

    torch.manual_seed(99)
    again = fresh(config)
    load_weights(tmp_path / "checkpoint", again.model)
    load_training_state(tmp_path / "state", again)
    assert (again.epoch, again.step) == (saved_at // 3, saved_at)
    rest = train(shards, config, again, num_rows=20)
    assert rest.losses == whole.losses[saved_at:]
    assert list(map(without_clock, rest.epochs)) == list(map(without_clock, whole.epochs[saved_at // 3 :]))
    assert_equal(parameters_of(again), parameters_of(straight))
    assert_equal(again.ema.weights, straight.ema.weights)


def test_who_is_asked_to_leave_saves_at_that_step(toybox_shards: ShardFolder) -> None:
    saved: list[int] = []
    state = fresh(CONFIG)
    record = train(toybox_shards, CONFIG, state, num_rows=24, on_report=lambda s: saved.append(s.step), leave_at=2)
    assert (record.ended, saved, record.epochs) == (False, [2], [])
    assert train(toybox_shards, CONFIG, state, num_rows=24).ended


def test_a_stop_at_the_last_step_of_an_epoch_ends_the_epoch_first(toybox_shards: ShardFolder) -> None:
    """One report of that step: Ray Train deletes the folder of an older report, which a second one would share."""
    saved: list[int] = []
    state = fresh(CONFIG)
    record = train(toybox_shards, CONFIG, state, num_rows=24, on_report=lambda s: saved.append(s.step), leave_at=3)
    assert (record.ended, saved, [metrics["epoch"] for metrics in record.epochs]) == (False, [3], [1])
    again = train(toybox_shards, CONFIG, state, num_rows=24, on_report=lambda s: saved.append(s.step))
    assert again.ended
    assert saved == sorted(set(saved))


def test_the_average_follows_the_weights(toybox_shards: ShardFolder) -> None:
    config = changed(training={"ema": 0.5, "epochs": 1})
    state, seen = fresh(config), []
    weights = dict(trainable_parameters(state.model))
    follow = {name: value.detach().clone() for name, value in weights.items()}

    def on_report(state: TrainingState) -> None:
        for name, value in weights.items():
            share = 1 - min(0.5, (1 + state.step) / (10 + state.step))
            follow[name] = follow[name] + share * (value.detach() - follow[name])
        with state.ema.swapped_into(state.model):
            seen.append({name: value.detach().clone() for name, value in weights.items()})

    train(toybox_shards, config, state, num_rows=24, on_report=on_report, scale=EVERY_STEP)
    assert len(seen) == 3
    for name, value in follow.items():
        torch.testing.assert_close(seen[-1][name], value, msg=name)
        assert name.endswith("bias") or not torch.equal(seen[-1][name], weights[name])


def test_no_better_epoch_for_long_enough_ends_it(toybox_shards: ShardFolder) -> None:
    config = changed(training={"epochs": 9, "patience": 2}, optim={"lr": 1e-12, "final_lr": 1e-12})
    record = train(toybox_shards, config, fresh(config), num_rows=24)
    assert [metrics["epoch"] for metrics in record.epochs] == [1, 2, 3]  # the first is the best: nothing moves
    assert record.ended


def test_slices_of_a_batch_sum_to_its_gradient(toybox_shards: ShardFolder) -> None:
    config = changed(training={"max_steps": 1, "batch_size": 7})

    def gradients(mine: RankShard) -> dict[str, Tensor]:
        state = drifted(config)
        train(toybox_shards, config, state, mine, num_rows=7)
        return {n: p.grad for n, p in state.model.named_parameters() if p.grad is not None}

    whole = gradients(ALL)
    parts = [gradients(RankShard(rank=rank, world_size=3)) for rank in range(3)]
    for name, expected in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), expected, rtol=1e-4, atol=1e-6, msg=name)


def data_parallel(kind: str) -> RunConfig:
    """11 rows in 11 steps of 5, 5, 1, 5, 5 and so on: two workers have 3 and 2 rows of most, one of them none of each
    third."""
    return changed(
        loss={"kind": kind, "soft_warmup_epochs": 1, "soft_weight": 0.5, "rejection": 0.2},
        training={"epochs": 4, "batch_size": 5, "max_steps": 11, "label_keep_fraction": 0.5},
    )


def data_parallel_start(config: RunConfig) -> TrainingState:
    """AdamW divides a gradient that is 0 but for rounding by its own size: with a larger epsilon it stays 0."""
    state = drifted(config)
    for group in state.optimiser.param_groups:
        group["eps"] = 1e-3
    return state


def remembered_by(state: TrainingState) -> dict[str, Tensor]:
    remembered = {
        f"memory.{name}": value.detach().nan_to_num(-1) for name, value in state.sample_labels.state_dict().items()
    }
    return {**parameters_of(state), **remembered}


def worker(rank: int, workers: int, data: dict[str, str], out: str) -> None:
    """One of several processes that train together, as Ray Train would start them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=workers)
    for kind, uri in data.items():
        config = data_parallel(kind)
        state = data_parallel_start(config)
        mine, scale = RankShard(rank=rank, world_size=workers), ScaleConfig(micro_batches=2)
        record = train(ShardFolder.open(uri), config, state, mine, num_rows=11, scale=scale)
        save_file(remembered_by(state), f"{out}/{kind}{rank}.safetensors")
        Path(f"{out}/{kind}{rank}.json").write_text(json.dumps([record.losses, record.epochs[-1]["validation/map"]]))
    dist.destroy_process_group()


KINDS, MORE_KINDS = ("ranking", "role", "em_apl"), ("epr", "em_pl", "ll_r")
"""Losses with statistics of the whole batch, labels stored for each row, values gathered from all workers."""


@pytest.mark.soak
def test_two_processes_in_two_pieces_train_what_one_does_at_once(
    toybox_shards: ShardFolder, single_positive_shards: ShardFolder, tmp_path: Path, monkeypatch, soak: bool
) -> None:
    monkeypatch.syspath_prepend(REPOSITORY)  # the processes import this file
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    kinds = KINDS + (MORE_KINDS if soak else ())
    data = {kind: (toybox_shards if kind == "ranking" else single_positive_shards).uri for kind in kinds}
    torch.multiprocessing.spawn(worker, (2, data, str(tmp_path)), nprocs=2)
    for kind, uri in data.items():
        config = data_parallel(kind)
        alone = data_parallel_start(config)
        record = train(ShardFolder.open(uri), config, alone, num_rows=11)
        found = [load_file(tmp_path / f"{kind}{rank}.safetensors") for rank in range(2)]
        assert_equal(found[0], found[1])
        start = remembered_by(data_parallel_start(config))
        assert max(float((found[0][name] - start[name]).abs().max()) for name in start) > 1e-3
        for name, expected in remembered_by(alone).items():
            torch.testing.assert_close(found[0][name], expected, rtol=0, atol=1e-5, msg=f"{kind}: {name}")
        told = [json.loads((tmp_path / f"{kind}{rank}.json").read_text()) for rank in range(2)]
        assert told[0] == told[1]
        losses, validation = told[0]
        assert losses == pytest.approx(record.losses, rel=1e-5), kind
        assert len(losses) == 11
        assert validation == pytest.approx(record.epochs[-1]["validation/map"], abs=1e-6)


def test_pieces_come_back_with_the_masks_that_they_went_with(toybox_shards: ShardFolder) -> None:
    config = changed(graph={"dropout": 0.5}, training={"max_steps": 1})
    state, logits = fresh(config), list[Tensor]()
    hook = state.model.register_forward_hook(lambda *told: logits.append(told[-1].scores.logits_BC.detach()))
    train(toybox_shards, config, state, num_rows=8, scale=ScaleConfig(micro_batches=3))
    hook.remove()
    assert [len(piece) for piece in logits[:5]] == [3, 3, 2, 3, 2]  # the first is not asked again
    assert torch.equal(logits[1], logits[3])
    assert torch.equal(logits[2], logits[4])


def test_more_pieces_than_images(toybox_shards: ShardFolder) -> None:
    config = changed(training={"max_steps": 2, "batch_size": 3})
    whole, pieces = data_parallel_start(config), data_parallel_start(config)
    train(toybox_shards, config, whole, num_rows=4)
    train(toybox_shards, config, pieces, num_rows=4, scale=ScaleConfig(micro_batches=100))
    for name, expected in parameters_of(whole).items():
        torch.testing.assert_close(parameters_of(pieces)[name], expected, rtol=0, atol=1e-5, msg=name)


@pytest.mark.soak
def test_compiled_it_learns_the_same(toybox_shards: ShardFolder, soak: bool) -> None:
    if not soak or shutil.which("g++") is None:
        pytest.skip("compiles for two minutes, with a C++ compiler: make soak")
    config = changed(training={"epochs": 1})
    plain, compiled = data_parallel_start(config), data_parallel_start(config)
    expected = train(toybox_shards, config, plain, num_rows=20).losses
    found = train(toybox_shards, config, compiled, num_rows=20, scale=ScaleConfig(compile=True)).losses
    assert found == pytest.approx(expected, rel=1e-5)


# ---- it stops where it must ----


def test_max_steps_stop_in_the_middle_of_an_epoch(toybox_shards: ShardFolder) -> None:
    config = changed(training={"epochs": 5, "max_steps": 4})
    state = fresh(config)
    record = train(toybox_shards, config, state, num_rows=24)
    assert (state.step, state.epoch, len(record.steps), len(record.epochs)) == (4, 2, 4, 2)
    assert record.epochs[-1]["train/loss"] == pytest.approx(record.losses[-1])
    assert train(toybox_shards, config, state, num_rows=24) == Record(ended=True)


def test_a_loss_that_is_not_finite_names_images_and_changes_nothing(toybox_shards: ShardFolder) -> None:
    state = fresh(CONFIG)
    with torch.no_grad():
        state.model.head.log_scale.fill_(float("nan"))
    before = parameters_of(state)
    order = ShardDataset(toybox_shards).epoch_order(0, 0)
    first = [f"{number:03d}.jpg" for number in order[order < 16][:8]]
    with pytest.raises(NotFiniteError, match="the loss of step 0 is nan") as caught:
        train(toybox_shards, CONFIG, state, num_rows=16)
    assert pickle.loads(pickle.dumps(caught.value)).uris == caught.value.uris == first
    assert f"images {', '.join(first[:3])} ...; lower optim.lr" in str(caught.value)
    moved = [n for n, v in parameters_of(state).items() if not torch.equal(v.nan_to_num(), before[n].nan_to_num())]
    assert moved == []


def test_nothing_to_train_on(toybox_shards: ShardFolder) -> None:
    with pytest.raises(ConfigError, match="no image with a seen positive label in --data"):
        train(toybox_shards, CONFIG, fresh(CONFIG), num_rows=0)
