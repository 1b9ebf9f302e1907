import dataclasses
import json

import pytest

from sigrl_core.config import OptimConfig, PreprocessConfig, RunConfig
from sigrl_core.config.json import from_json, to_json
from sigrl_core.errors import ConfigError

pytestmark = pytest.mark.unit

PREPROCESS = PreprocessConfig(corpus="folder", images="a", out="b")


@pytest.mark.parametrize("config", [RunConfig(), RunConfig(optim=OptimConfig(lr=3e-5, clip_norm=1.0)), PREPROCESS])
def test_json_round_trip(config) -> None:
    assert from_json(type(config), to_json(config), "x") == config


def edited(path: str, value: object) -> str:
    values = json.loads(to_json(RunConfig()))
    *folders, name = path.split(".")
    inner = values
    for folder in folders:
        inner = inner[folder]
    inner[name] = value
    return json.dumps(values)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optim.learning_rate", 1, "unknown key optim.learning_rate; known are lr"),
        ("optim.lr", "fast", "optim.lr is 'fast'; expected float"),
        ("optim.lr", -1.0, "optim.lr is -1.0; expected above 0"),
        ("training.epochs", True, "training.epochs is True; expected int"),
        ("training.precision", "fp8", "expected one of 'fp32'"),
        ("graph", 3, "graph must be an object"),
        ("optim.clip_norm", "x", "expected float or NoneType"),
        ("backbone.prompt_templates", "a {}", "backbone.prompt_templates is 'a {}'; expected a list"),
        ("backbone.prompt_templates", ["a {}", 3], r"backbone.prompt_templates\[1\] is 3; expected str"),
        ("backbone.prompt_templates", ["a thing"], "one or more texts with {} in each"),
        ("loss.label_smoothing", 1.0, r"loss.label_smoothing is 1.0; expected in \[0, 1\)"),
        ("loss.expected_positives", 0, "loss.expected_positives is 0.0; expected above 0"),
    ],
)
def test_errors_name_the_dotted_key(path: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_json(RunConfig, edited(path, value), "run.json")


def test_whole_numbers_are_floats_where_floats_are_due() -> None:
    assert isinstance(from_json(RunConfig, edited("optim.warmup_epochs", 3), "x").optim.warmup_epochs, float)
    with pytest.raises(ConfigError, match="not valid JSON"):
        from_json(RunConfig, "{", "x")


@pytest.mark.parametrize(
    "change",
    [{"quality": 0}, {"short_side": -1}, {"rows_per_shard": 0}, {"validation_fraction": 1.0}, {"max_pixels": 0}],
)
def test_preprocessing_bounds(change: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        dataclasses.replace(PREPROCESS, **change)
