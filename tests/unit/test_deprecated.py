"""Old names of fields, flags and keys: each still works, and each stands for a name that exists."""

from __future__ import annotations

import dataclasses
import json
from operator import attrgetter
from typing import Any

import pytest

from sigrl_core import config
from sigrl_core.config import PreprocessConfig, RunConfig, TagConfig, deprecated
from sigrl_core.config.deprecated import keep_defaults_of_0_1, upgrade_plan
from sigrl_core.config.json import from_json, to_json
from sigrl_core.search.space import SearchSpace

pytestmark = pytest.mark.unit


def default_of(kind: str) -> Any:
    """An object or class that has the fields of a configuration."""
    if kind == "SearchSpace":
        return SearchSpace()
    return RunConfig() if kind == "RunConfig" else getattr(config, kind)


@pytest.mark.parametrize("kind", sorted(set(deprecated.FIELDS) - {"Calibration", "SearchSpace"}))
def test_every_old_field_stands_for_one_that_exists(kind: str) -> None:
    for old, new in deprecated.FIELDS[kind].items():
        section, _, name = f".{new}".rpartition(".")
        owner = attrgetter(section.strip("."))(default_of(kind)) if section.strip(".") else default_of(kind)
        names = {each.name for each in dataclasses.fields(owner)}
        assert name in names
        assert old.rpartition(".")[2] not in names


def test_a_configuration_of_version_0_1_0_is_read() -> None:
    old = json.loads(to_json(RunConfig()))
    for before, now in deprecated.FIELDS["RunConfig"].items():
        section, name = before.split(".")
        old[section][name] = old[section].pop(now.split(".")[1])
    assert "hold_features" in old["training"]
    assert from_json(RunConfig, json.dumps(old), "config.json") == RunConfig()
    tag = {"checkpoint": "a", "images": "b", "out": "c", "rows_per_part": 7}
    assert from_json(TagConfig, json.dumps(tag), "x").rows_per_shard == 7


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("train", "--scale.workers 4", "--num-workers 4"),
        ("train", "--scale.gpus", "--gpus-per-worker 1"),
        ("train", "--scale.no-gpus --out x", "--gpus-per-worker 0 --out x"),
        ("train", "--training.no-hold-features", "--training.no-cache-features-in-memory"),
        ("train", "--optim.head_rate=0.1", "--optim.head-lr-scale=0.1"),
        ("tune", "--space.optim.head-rate.low 0.1", "--space.optim.head-lr-scale.low 0.1"),
        ("tune", "--grace-epochs 1 --reduction 2", "--grace-period 1 --reduction-factor 2"),
        ("evaluate", "--gpus --workers 8", "--gpus-per-worker 1 --num-workers 8"),
        ("serve", "--gpus 0.5 --least 1 --most 4", "--gpus-per-worker 0.5 --min-replicas 1 --max-replicas 4"),
        ("serve", "--open-to-everyone", "--allow-anonymous"),
        ("calibrate", "--goal recall --at 0.8 --part all", "--criterion recall --target 0.8 --split all"),
        ("preprocess", "--labels full --annotated seen", "--label-policy full --annotation-scope seen"),
        ("tag", "--rows-per-part 8", "--rows-per-shard 8"),
    ],
)
def test_old_flags(command: str, old: str, new: str) -> None:
    flags, messages = deprecated.rename_flags(command, old.split())
    assert flags == new.split()
    assert len(messages) == len([word for word in old.split() if word.startswith("--") and word != "--out"])
    assert all(f"{word.partition('=')[0]} is deprecated; use --" in message for word, message in zip(
        [word for word in old.split() if word.startswith("--") and word != "--out"], messages, strict=True
    ))  # fmt: skip
    assert deprecated.rename_flags(command, flags) == (flags, [])


def test_a_flag_of_another_command_is_left_alone() -> None:
    assert deprecated.rename_flags("tag", ["--goal", "f1"]) == (["--goal", "f1"], [])


def test_plans() -> None:
    old = {"kind": "search", "grace_epochs": 2, "base": {"optim": {"head_rate": 1.0, "lr": 2.0}}, "space": {}}
    new = {"kind": "search", "grace_period": 2, "base": {"optim": {"head_lr_scale": 1.0, "lr": 2.0}}, "space": {}}
    assert deprecated.upgrade_plan("tune")(old) == new
    assert deprecated.upgrade_plan("tune")(new) == new
    assert list(deprecated.upgrade_plan("tune")(old)) == list(new)
    config = {"config": {"scoring": {"patches_kept": 4}}, "data": "x"}
    assert deprecated.upgrade_plan("train")(config) == {"config": {"scoring": {"top_k_patches": 4}}, "data": "x"}


def test_a_folder_that_0_1_0_started_keeps_how_it_stores_images() -> None:
    plan = {"corpus": "folder", "labels": "full", "short_side": 256, "quality": 90}
    upgraded = upgrade_plan("preprocess")(plan)
    assert upgraded == {
        **{"corpus": "folder", "label_policy": "full", "short_side": 256, "quality": 90},
        **{"chroma": "4:2:0", "long_side": "nearest"},
    }
    assert upgrade_plan("preprocess")({**plan, "quality": 95})["chroma"] == "4:4:4"
    config = PreprocessConfig(corpus="folder", images="a", out="b")
    kept = keep_defaults_of_0_1(config, plan)
    for name in ("short_side", "quality", "chroma", "long_side"):
        assert getattr(kept, name) == upgraded[name]
    assert keep_defaults_of_0_1(dataclasses.replace(config, short_side=64), plan).short_side == 64
    for other in ({**plan, "chroma": "4:4:4"}, {"kind": "training"}):  # a later version; another command
        assert keep_defaults_of_0_1(config, other) == config
        assert "long_side" not in upgrade_plan("preprocess")(other)
