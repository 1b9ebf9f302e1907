"""The named runs: complete, written down, and exactly what their docstrings say."""

import ast
import dataclasses
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from sigrl_core.cli.common import preset_and_flags
from sigrl_core.config import GraphConfig, LossConfig, ReconstructionConfig, RunConfig, ScaleConfig, presets
from sigrl_core.config.deprecated import RENAMED_PRESETS
from sigrl_core.config.json import from_json, to_json
from sigrl_core.config.presets import PRESETS, get_preset
from sigrl_core.corpora import apply_label_policy
from sigrl_core.data.dataset import RankShard, ShardDataset, epoch_batches, read_batch
from sigrl_core.errors import ConfigError
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.model.backbone import load_backbone
from sigrl_core.model.model import SigRLModel
from sigrl_core.training.loop import fit
from sigrl_core.training.losses import LOSSES
from sigrl_core.training.state import TrainingState, TrainingTask
from tests.conftest import random_states, vocabulary_of, write_shards

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    preset = get_preset(name)
    assert from_json(RunConfig, to_json(preset), name) == preset
    assert preset.loss.kind in LOSSES


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'quick' is unknown; known are default, published, "):
        get_preset("quick")


def docstrings() -> dict[str, str]:
    """Preset name -> the text below its assignment."""
    texts: dict[str, str] = {}
    body = ast.parse(Path(presets.__file__).read_text()).body
    for statement, text in pairwise(body):
        if isinstance(statement, ast.Assign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            (target,) = statement.targets
            assert isinstance(target, ast.Name)
            texts[target.id.lower()] = str(text.value.value)
    return texts


def test_every_preset_begins_with_the_command_that_runs_it() -> None:
    texts = docstrings()
    assert texts.keys() == PRESETS.keys()
    for name, text in texts.items():
        command, blank, *_ = text.splitlines()
        assert blank == ""
        python, script, *arguments = command.split()
        assert python == "python"
        assert (ROOT / script).is_file()
        if script == "pipelines/train.py":
            assert arguments[0] == name
            assert {"--data", "--out"} <= set(arguments)
            known, flags = preset_and_flags(arguments, "")
            assert known == get_preset(name)
            assert flags == arguments[1:]
        if name in BENCHMARK_LABELS:
            assert all(word in text for word in ("Images: ", "Labels: ", "Metric"))


def test_no_two_presets_are_equal() -> None:
    assert len({to_json(preset) for preset in PRESETS.values()}) == len(PRESETS)


@pytest.mark.parametrize("old", RENAMED_PRESETS)
def test_an_old_name_is_read_with_one_line(old: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert get_preset(old) == get_preset("published")
    assert capsys.readouterr().err == f"preset {old!r} is deprecated; use 'published'\n"


# a few labels of each benchmark as it spells them, the last two unseen where it has unseen labels
NUS_WIDE = ["2007", "abstract", "bokeh", "graffiti", "airport", "zebra"]
OPEN_IMAGES = ["Vehicle", "Tree", "Clothing", "Electric guitar", "Boxing glove", "Sea ice"]
VOC = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus"]
COCO = ["person", "bicycle", "car", "motorcycle", "airplane", "bus"]
BENCHMARK_LABELS = {
    "nus_wide_zero_shot": NUS_WIDE,
    "nus_wide_zero_shot_published": NUS_WIDE,
    "open_images_zero_shot": OPEN_IMAGES,
    "open_images_zero_shot_published": OPEN_IMAGES,
    "voc_single_positive": VOC,
    "voc_single_positive_published": VOC,
    "coco_single_positive": COCO,
    "coco_single_positive_published": COCO,
    "nus_single_positive": ["airport", "animal", "beach", "bear", "birds", "boats"],
    "cub_single_positive": ["has_bill_shape::curved_(up_or_down)", "has_wing_color::blue", "a", "b", "c", "d"],
}


@pytest.mark.parametrize("name", BENCHMARK_LABELS)
def test_every_benchmark_trains_on_its_labels(name: str, tmp_path: Path) -> None:
    """Two steps of the preset's own recipe, on eight images and the small backbone."""
    names = BENCHMARK_LABELS[name]
    zero_shot = "zero_shot" in name
    vocabulary = vocabulary_of(names[:4], names[4:]) if zero_shot else vocabulary_of(names)
    states_NC = random_states(8, 6)
    if not zero_shot:
        states_NC = np.stack(
            [apply_label_policy(s, "single-positive", f"{n:064x}", 0) for n, s in enumerate(states_NC)]
        )
    folder = write_shards(tmp_path / "shards", vocabulary, states_NC)
    preset = get_preset(name)
    config = replace(
        preset,
        backbone=replace(preset.backbone, name="toybox-vit", pretrained="random", frozen_blocks=1),
        training=replace(preset.training, max_steps=2, batch_size=4),
    )
    seen = vocabulary.positions("seen")
    rows = ShardDataset(folder, "all", seen)
    model = SigRLModel.start(load_backbone(config.backbone), config, vocabulary)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    label_set = model.encode_labels(vocabulary.subset("seen"))
    recorded: list[dict[str, float]] = []
    fit(
        TrainingState.start(model, config, len(rows), len(seen)),
        TrainingTask(label_set=label_set, positions=seen, steps_per_epoch=2),
        lambda epoch, first: epoch_batches(
            rows.epoch_order(0, epoch),
            4,
            RankShard(),
            lambda numbers: read_batch(rows, numbers, 48, config.training.augment, (0, epoch)),
            first,
        ),
        lambda model: {},
        lambda metrics, state: None,
        config,
        ScaleConfig(),
        on_step_end=lambda step, metrics: recorded.append(metrics),
    )
    assert len(recorded) == 2
    assert all(np.isfinite(metrics["loss"]) for metrics in recorded)
    moved = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert any(key.startswith("head.") for key in moved)
    assert any("resblocks.1" in key for key in moved)
    assert not any("resblocks.0" in key for key in moved)


def test_the_published_recipe() -> None:
    """arXiv 2504.03801, zero-shot, each number as published."""
    assert dataclasses.asdict(get_preset("published")) == {
        "backbone": {
            "name": "ViT-B-16",
            "pretrained": "openai",
            "frozen_blocks": 10,
            "prompt_templates": ("a photo of a {}.",),
            "label_embeddings": None,
            "patch_attention": "query-key",
        },
        "graph": {
            "kind": "complete",
            "neighbours": 8,
            "max_complete_labels": 2048,
            "edges": None,
            "threshold": 0.4,
            "neighbour_weight": 0.2,
            "layers": 2,
            "hidden": 128,
            "heads": 4,
            "dropout": 0.3,
            "residual": False,
            "propagation": False,
        },
        "reconstruction": {
            "enabled": True,
            "residual": False,
            "rms_normalise": False,
            "coefficient_rank": None,
            "implementation": "auto",
        },
        "scoring": {"top_k_patches": 16, "learn_scale": False, "initial_scale": 1.0, "local_candidates": None},
        "loss": {**dataclasses.asdict(LossConfig()), "kind": "ranking", "distillation": 1.0},
        "optim": {
            "lr": 1e-4,
            "weight_decay": 0.05,
            "layer_decay": 0.65,
            "head_lr_scale": 1.0,
            "warmup_epochs": 2.0,
            "final_lr": 1e-7,
            "clip_norm": None,
        },
        "training": {
            "epochs": 20,
            "batch_size": 32,
            "max_steps": None,
            "label_keep_fraction": 1.0,
            "augment": "randaugment",
            "cache_features_in_memory": False,
            "precision": "fp32",
            "ema": None,
            "patience": None,
            "seed": 0,
        },
    }


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.endswith(("published", "mkt"))])
def test_the_best_measured_form(name: str) -> None:
    """docs/RESULTS.md: what the published form lacks."""
    preset = get_preset(name)
    assert (preset.graph.residual, preset.graph.propagation) == (True, True)
    assert (preset.reconstruction.residual, preset.reconstruction.rms_normalise) == (True, True)
    assert (preset.scoring.learn_scale, preset.scoring.initial_scale) == (True, 20.0)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("published")])
def test_the_published_form(name: str) -> None:
    """Head and scores are those of the paper, whatever the benchmark."""
    preset, published = get_preset(name), get_preset("published")
    parts = (preset.graph, preset.reconstruction, preset.scoring)
    assert parts == (published.graph, published.reconstruction, published.scoring)


def test_the_baseline_is_the_same_run_without_graph_and_reconstruction() -> None:
    quickstart, baseline = get_preset("quickstart"), get_preset("quickstart_mkt")
    assert quickstart.reconstruction.enabled
    assert not baseline.reconstruction.enabled
    assert baseline.training.epochs >= quickstart.training.epochs
    training = dataclasses.replace(baseline.training, epochs=quickstart.training.epochs)
    full = replace(baseline, graph=quickstart.graph, reconstruction=quickstart.reconstruction, training=training)
    assert full == quickstart
    assert not baseline.graph.propagation


def test_how_reconstruction_is_done_means_nothing_where_it_is_off() -> None:
    """The baseline need not repeat `residual` and `rms_normalise`, and has neither label graph nor SVFR."""
    quickstart, baseline = get_preset("quickstart"), get_preset("quickstart_mkt")
    spelt_out = replace(
        quickstart, graph=GraphConfig(), reconstruction=dataclasses.replace(quickstart.reconstruction, enabled=False)
    )
    assert spelt_out.reconstruction != ReconstructionConfig(enabled=False)
    scores = []
    for config in (baseline, spelt_out):
        torch.manual_seed(0)
        model = SigRLModel.start(load_backbone(config.backbone), config, Vocabulary.from_names("ab")).eval()
        assert [name for name, _ in model.head.named_parameters()] == ["log_scale", "bias"]
        tokens = model.backbone.forward_frozen(torch.zeros(1, 48, 48, 3, dtype=torch.uint8))
        scores.append(model(tokens, model.encode_labels(model.vocabulary)).scores.scores_BC)
    assert torch.equal(*scores)
