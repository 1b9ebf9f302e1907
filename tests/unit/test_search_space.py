"""Which fields a search samples; every sample is a valid configuration."""

import dataclasses
import random
from typing import Any

import pytest

from sigrl_core.config import RunConfig
from sigrl_core.config.json import from_json, to_json
from sigrl_core.config.presets import PRESETS, get_preset
from sigrl_core.errors import ConfigError
from sigrl_core.search.space import (
    FULL_LABEL_LOSSES,
    PARTIAL_LABEL_LOSSES,
    Domain,
    GraphSpace,
    Interval,
    LossSpace,
    OptimSpace,
    SearchSpace,
    contains,
)
from sigrl_core.training.losses import LOSSES

pytestmark = pytest.mark.unit


def uniform(rng: random.Random, sampled: dict[str, Any]):
    def suggest(name: str, domain: Domain) -> Any:
        sampled[name] = rng.uniform(domain.low, domain.high) if isinstance(domain, Interval) else rng.choice(domain)
        return sampled[name]

    return suggest


def test_every_field_of_the_space_is_a_field_of_the_run() -> None:
    for section in dataclasses.fields(SearchSpace):
        names = {field.name for field in dataclasses.fields(getattr(SearchSpace(), section.name))}
        assert names <= {field.name for field in dataclasses.fields(getattr(RunConfig(), section.name))}, section.name


def test_every_loss_belongs_to_one_kind_of_data() -> None:
    assert sorted([*FULL_LABEL_LOSSES, *PARTIAL_LABEL_LOSSES]) == sorted(LOSSES)


@pytest.mark.parametrize("name", PRESETS)
def test_a_sample_is_a_run_with_exactly_these_values(name: str) -> None:
    base, space = get_preset(name), SearchSpace()
    domains = space.domains(base)
    for seed in range(50):
        sampled: dict[str, Any] = {}
        run = space.sample(base, uniform(random.Random(seed), sampled))
        assert sampled.keys() <= domains.keys()
        for dotted, value in sampled.items():
            part, field = dotted.split(".")
            assert getattr(getattr(run, part), field) == value
            assert contains(domains[dotted], value)
        assert from_json(RunConfig, to_json(run), "test") == run
        family = FULL_LABEL_LOSSES if base.loss.kind in FULL_LABEL_LOSSES else PARTIAL_LABEL_LOSSES
        assert run.loss.kind in family


def test_only_used_fields_are_sampled() -> None:
    base = get_preset("quickstart")
    for kind, used in (
        ("none", set()),
        ("complete", {"layers", "dropout"}),
        ("nearest", {"layers", "dropout", "neighbours"}),
        ("cooccurrence", {"layers", "dropout", "neighbours", "threshold"}),
    ):
        sampled: dict[str, Any] = {}
        space = SearchSpace(graph=GraphSpace(kind=(kind,), heads=(4,), residual=(), propagation=()))
        run = space.sample(base, uniform(random.Random(0), sampled))
        assert run.graph.kind == kind
        assert {name.removeprefix("graph.") for name in sampled if name.startswith("graph.")} == used
        assert run.graph.residual == base.graph.residual
    sampled = {}
    SearchSpace(loss=LossSpace(kind=("focal",))).sample(base, uniform(random.Random(0), sampled))
    assert {name for name in sampled if name.startswith("loss.")} == {"loss.distillation", "loss.focal_gamma"}


def test_a_single_value_is_fixed_and_none_leaves_the_preset() -> None:
    base = get_preset("quickstart")
    fixed = SearchSpace(graph=GraphSpace(kind=("nearest",)), optim=OptimSpace(lr=Interval(low=1e-3, high=1e-3)))
    assert not {"graph.kind", "optim.lr"} & fixed.domains(base).keys()
    run = fixed.sample(base, uniform(random.Random(0), {}))
    assert (run.graph.kind, run.optim.lr) == ("nearest", 1e-3)
    with pytest.raises(ConfigError, match=r"from 3 to 1; expected low <= high"):
        Interval(low=3, high=1)
    with pytest.raises(ConfigError, match="above 0, as log is set"):
        Interval(low=0, high=1, log=True)
    with pytest.raises(ConfigError, match=r"graph\.hidden is 64; expected a multiple of graph\.heads = 3"):
        SearchSpace(graph=GraphSpace(kind=("complete",), heads=(3,))).sample(base, uniform(random.Random(0), {}))
