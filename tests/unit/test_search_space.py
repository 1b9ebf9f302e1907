"""Which fields a search draws, and that what is drawn is a run."""

import dataclasses
import random
from typing import Any

import pytest

from sigrl_core.config import RunConfig
from sigrl_core.config_json import from_json, to_json
from sigrl_core.errors import ConfigError
from sigrl_core.losses import LOSSES
from sigrl_core.presets import PRESETS, get_preset
from sigrl_core.search_space import (
    ALL_LABELS_KNOWN,
    SOME_LABELS_KNOWN,
    Between,
    GraphSpace,
    LossSpace,
    OptimSpace,
    SearchSpace,
    Where,
    holds,
)

pytestmark = pytest.mark.unit


def anything(rng: random.Random, drawn: dict[str, Any]):
    def draw(name: str, where: Where) -> Any:
        drawn[name] = rng.uniform(where.low, where.high) if isinstance(where, Between) else rng.choice(where)
        return drawn[name]

    return draw


def test_every_field_that_can_be_searched_is_one_of_the_run() -> None:
    for part in dataclasses.fields(SearchSpace):
        here = {field.name for field in dataclasses.fields(getattr(SearchSpace(), part.name))}
        assert here <= {field.name for field in dataclasses.fields(getattr(RunConfig(), part.name))}, part.name


def test_every_loss_belongs_to_one_kind_of_data() -> None:
    assert sorted([*ALL_LABELS_KNOWN, *SOME_LABELS_KNOWN]) == sorted(LOSSES)


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_drawn_is_a_run_with_exactly_those_values(name: str) -> None:
    base, space = get_preset(name), SearchSpace()
    searched = space.searched(base)
    for seed in range(50):
        drawn: dict[str, Any] = {}
        run = space.drawn(base, anything(random.Random(seed), drawn))
        assert drawn.keys() <= searched.keys()
        for dotted, value in drawn.items():
            part, field = dotted.split(".")
            assert getattr(getattr(run, part), field) == value
            assert holds(searched[dotted], value)
        assert from_json(RunConfig, to_json(run), "test") == run
        family = ALL_LABELS_KNOWN if base.loss.kind in ALL_LABELS_KNOWN else SOME_LABELS_KNOWN
        assert run.loss.kind in family


def test_only_what_is_used_is_drawn() -> None:
    base = get_preset("quickstart")
    for kind, used in (
        ("none", set()),
        ("complete", {"layers", "dropout"}),
        ("nearest", {"layers", "dropout", "neighbours"}),
        ("cooccurrence", {"layers", "dropout", "neighbours", "threshold"}),
    ):
        drawn: dict[str, Any] = {}
        space = SearchSpace(graph=GraphSpace(kind=(kind,), heads=(4,), residual=(), propagation=()))
        run = space.drawn(base, anything(random.Random(0), drawn))
        assert run.graph.kind == kind
        assert {name.removeprefix("graph.") for name in drawn if name.startswith("graph.")} == used
        assert run.graph.residual == base.graph.residual
    drawn = {}
    SearchSpace(loss=LossSpace(kind=("focal",))).drawn(base, anything(random.Random(0), drawn))
    assert {name for name in drawn if name.startswith("loss.")} == {"loss.distillation", "loss.focal_gamma"}


def test_a_single_value_is_fixed_and_none_leaves_the_preset() -> None:
    base = get_preset("quickstart")
    fixed = SearchSpace(graph=GraphSpace(kind=("nearest",)), optim=OptimSpace(lr=Between(low=1e-3, high=1e-3)))
    assert not {"graph.kind", "optim.lr"} & fixed.searched(base).keys()
    run = fixed.drawn(base, anything(random.Random(0), {}))
    assert (run.graph.kind, run.optim.lr) == ("nearest", 1e-3)
    with pytest.raises(ConfigError, match=r"from 3 to 1; expected low <= high"):
        Between(low=3, high=1)
    with pytest.raises(ConfigError, match="above 0, as log is set"):
        Between(low=0, high=1, log=True)
    with pytest.raises(ConfigError, match=r"graph\.hidden is 64; expected a multiple of graph\.heads = 3"):
        SearchSpace(graph=GraphSpace(kind=("complete",), heads=(3,))).drawn(base, anything(random.Random(0), {}))
