"""The named runs: complete, written down, and exactly what their docstrings say."""

import dataclasses
from dataclasses import replace

import pytest
import torch

from sigrl_core.config import LossConfig, ReconstructionConfig, RunConfig, from_json, to_json
from sigrl_core.errors import ConfigError
from sigrl_core.losses import LOSSES
from sigrl_core.model.backbone import load_backbone
from sigrl_core.model.recogniser import Recogniser
from sigrl_core.presets import PRESETS, get_preset

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    preset = get_preset(name)
    assert from_json(RunConfig, to_json(preset), name) == preset
    assert preset.loss.kind in LOSSES


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'quick' is unknown; known are clip_zero_shot, quickstart, quickstart_mkt"):
        get_preset("quick")


def test_the_published_recipe() -> None:
    """arXiv 2504.03801, zero-shot, each number as published."""
    assert dataclasses.asdict(get_preset("clip_zero_shot")) == {
        "backbone": {
            "name": "ViT-B-16",
            "pretrained": "openai",
            "frozen_blocks": 10,
            "prompt_templates": ("a photo of a {}.",),
        },
        "graph": {
            "kind": "complete",
            "neighbours": 8,
            "layers": 2,
            "hidden": 128,
            "heads": 4,
            "dropout": 0.3,
            "residual": False,
        },
        "reconstruction": {"enabled": True, "residual": False, "unit_rms": False},
        "scoring": {"patches_kept": 16, "learn_scale": False, "initial_scale": 1.0},
        "loss": {**dataclasses.asdict(LossConfig()), "kind": "ranking", "distillation": 1.0},
        "optim": {
            "lr": 1e-4,
            "weight_decay": 0.05,
            "layer_decay": 0.65,
            "head_rate": 1.0,
            "warmup_epochs": 2.0,
            "final_lr": 1e-7,
            "clip_norm": None,
        },
        "training": {
            "epochs": 20,
            "batch_size": 32,
            "max_steps": None,
            "label_fraction": 1.0,
            "augment": "randaugment",
            "hold_features": False,
            "precision": "fp32",
            "seed": 0,
        },
    }


def test_the_baseline_is_the_same_run_without_reconstruction() -> None:
    quickstart, baseline = get_preset("quickstart"), get_preset("quickstart_mkt")
    assert quickstart.reconstruction.enabled
    assert not baseline.reconstruction.enabled
    assert baseline.training.epochs >= quickstart.training.epochs
    training = dataclasses.replace(baseline.training, epochs=quickstart.training.epochs)
    assert replace(baseline, reconstruction=quickstart.reconstruction, training=training) == quickstart


def test_how_reconstruction_is_done_means_nothing_where_it_is_off() -> None:
    """The baseline need not repeat `residual` and `unit_rms`, and has neither label graph nor SVFR."""
    quickstart, baseline = get_preset("quickstart"), get_preset("quickstart_mkt")
    spelt_out = replace(quickstart, reconstruction=dataclasses.replace(quickstart.reconstruction, enabled=False))
    assert spelt_out.reconstruction != ReconstructionConfig(enabled=False)
    scores = []
    for config in (baseline, spelt_out):
        torch.manual_seed(0)
        recogniser = Recogniser.start(load_backbone(config.backbone), config).eval()
        assert [name for name, _ in recogniser.head.named_parameters()] == ["log_scale", "bias"]
        tokens = recogniser.backbone.encode_frozen(torch.zeros(1, 48, 48, 3, dtype=torch.uint8))
        scores.append(recogniser(tokens, recogniser.backbone.encode_text([["a"], ["b"]])).scores.scores_BC)
    assert torch.equal(*scores)
