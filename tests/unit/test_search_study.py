"""What a study proposes and stores, and how it resumes; trials are simulated."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sigrl_core.config import RunConfig, SearchConfig
from sigrl_core.config.json import from_json
from sigrl_core.errors import ConfigError
from sigrl_core.report.search import describe, write_search_page
from sigrl_core.search.space import GraphSpace, Interval, OptimSpace, SearchSpace, contains_all
from sigrl_core.search.study import Study, check_grace_period, choose_held_out_labels, load_warm_start
from tests.conftest import vocabulary_of
from tests.searches import BASE, SPACE, open_study, run_trials

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_resumed_study_proposes_the_same_trials(tmp_path: Path, sampler) -> None:
    uninterrupted = open_study(tmp_path / "uninterrupted", trials=20, sampler=sampler)
    run_trials(uninterrupted, 20)
    for until in (3, 11, 12, 20):
        resumed = open_study(tmp_path / "resumed", trials=20, sampler=sampler)
        assert len(resumed.ended) == {3: 0, 11: 3, 12: 11, 20: 12}[until]
        run_trials(resumed, until)
        if until < 20:
            resumed.propose(until)  # proposed, then killed
    assert resumed.trials == uninterrupted.trials
    assert len({trial.config for trial in uninterrupted.ended}) == 20
    more = open_study(tmp_path / "resumed", trials=22, sampler=sampler)
    assert more.pending() == [20, 21]


def test_tpe_learns_from_trials_and_random_does_not(tmp_path: Path) -> None:
    def distance(search: Study) -> float:
        run_trials(search, 60)
        late = [trial.config.optim.lr for trial in search.ended[30:]]
        return sum(abs(math.log10(rate) + 3) for rate in late) / len(late)

    tpe = distance(open_study(tmp_path / "tpe", trials=60))
    assert tpe < 0.75 * distance(open_study(tmp_path / "random", trials=60, sampler="random"))


def test_the_first_trial_is_the_base_configuration(tmp_path: Path) -> None:
    first = open_study(tmp_path / "tpe").propose(0)
    assert first.config == BASE
    assert first.parameters["optim.lr"] == BASE.optim.lr
    assert open_study(tmp_path / "random", sampler="random").propose(0).config != BASE


def test_the_first_trial_keeps_values_outside_the_space(tmp_path: Path) -> None:
    """Optuna gets the other trials only; results and page show all of them. A value that the space fixes is fixed."""
    space = SearchSpace(
        graph=GraphSpace(kind=("none", "nearest"), layers=(1,)),
        optim=OptimSpace(lr=Interval(low=4e-3, high=1e-2, log=True)),
    )
    search = open_study(tmp_path, trials=8)
    search.space = space
    first = search.propose(0)
    assert first.config == replace(BASE, graph=replace(BASE.graph, layers=1))
    assert BASE.graph.kind not in space.graph.kind
    assert BASE.optim.lr < space.optim.lr.low
    assert (first.parameters["graph.kind"], first.parameters["optim.lr"]) == (BASE.graph.kind, BASE.optim.lr)
    run_trials(search, 8)
    assert [trial.number for trial in search.ended] == list(range(8))
    assert len(search.optuna_study().trials) == 7
    assert all(contains_all(space.domains(BASE), trial.parameters) for trial in search.ended[1:])
    write_search_page(search)
    search.write_results()
    row = pq.read_table(tmp_path / "trials.parquet").to_pylist()[0]
    assert (row["graph.kind"], row["optim.lr"]) == (BASE.graph.kind, BASE.optim.lr)
    assert "optim.lr" in (tmp_path / "search.html").read_text()


def test_a_grace_period_longer_than_a_trial() -> None:
    short = replace(BASE, training=replace(BASE.training, epochs=2))
    message = r"grace_period is 3, but a trial has training\.epochs = 2; expected grace_period of 1 to 2; lower --grace"
    with pytest.raises(ConfigError, match=message):
        check_grace_period(SearchConfig(grace_period=3), short)
    check_grace_period(SearchConfig(grace_period=2), short)
    check_grace_period(SearchConfig(grace_period=3, scheduler="none"), short)


def test_results(tmp_path: Path) -> None:
    search = open_study(tmp_path / "search", trials=8)
    run_trials(search, 8)
    write_search_page(search)
    search.write_results()
    best = search.best
    assert best is not None
    assert best.objective == max(trial.objective or 0 for trial in search.ended)
    assert best.best_epoch == (3 if best.state == "complete" else 1)
    assert from_json(RunConfig, (tmp_path / "search" / "best.json").read_text(), "test") == best.config
    manifest = json.loads((tmp_path / "search" / "manifest.json").read_text())
    assert (manifest["trials"], manifest["best_trial"], manifest["best_epoch"]) == (8, best.number, best.best_epoch)
    rows = pq.read_table(tmp_path / "search" / "trials.parquet").to_pylist()
    assert [row["trial"] for row in rows] == list(range(8))
    for row, trial in zip(rows, search.ended, strict=True):
        assert row["objective"] == trial.objective
        assert (row["state"], row["epochs"], row["by_epoch"]) == (trial.state, len(trial.epochs), list(trial.epochs))
        for name in SPACE.domains(BASE):
            assert row[name] == trial.parameters.get(name)
    assert rows[3]["reason"] == "loss is nan"
    page = (tmp_path / "search" / "search.html").read_text()
    for text in ("loss is nan", "best so far", "graph.propagation", f"{best.objective:.4f}", "2 after epoch 1"):
        assert text in page
    assert describe(search).startswith("8 trials, 4 complete, 2 failed, 2 stopped, 18 epochs; best gzsl.map 0.")


def test_values_that_do_not_fit_together_fail_the_trial(tmp_path: Path) -> None:
    search = open_study(tmp_path, trials=2, sampler="random")
    search.space = SearchSpace(graph=GraphSpace(kind=("complete",), heads=(3, 5)))
    trial = search.propose(0)
    assert trial.state == "failed"
    assert "expected a multiple of graph.heads" in trial.reason
    assert open_study(tmp_path, trials=2).pending() == [1]


def test_a_warm_start(tmp_path: Path) -> None:
    run_trials(open_study(tmp_path / "first", trials=12), 12)
    assert len(load_warm_start([str(tmp_path / "first")], SPACE, BASE, "gzsl.map")) == 9  # all but the failed ones
    narrow = SearchSpace(optim=OptimSpace(lr=Interval(low=1e-3, high=2e-3, log=True)))
    inside = load_warm_start([str(tmp_path / "first")], narrow, BASE, "gzsl.map")
    assert all(1e-3 <= trial.config.optim.lr <= 2e-3 for trial in inside)
    assert len(inside) < 9
    cold, warm = open_study(tmp_path / "cold", trials=2), open_study(tmp_path / "warm", trials=2)
    warm.warm_start = load_warm_start([str(tmp_path / "first")] * 2, SPACE, BASE, "gzsl.map")
    assert len(warm.optuna_study().trials) == 18
    assert cold.propose(0).parameters != warm.propose(0).parameters
    with pytest.raises(ConfigError, match=r"its objective is 'gzsl\.map', here 'map'"):
        load_warm_start([str(tmp_path / "first")], SPACE, BASE, "map")
    with pytest.raises(ConfigError, match="nothing: no search there"):
        load_warm_start([str(tmp_path / "nothing")], SPACE, BASE, "map")


def test_held_out_labels_are_evenly_spaced() -> None:
    vocabulary = vocabulary_of([f"label {number}" for number in range(10)], ["never seen"])
    assert choose_held_out_labels(vocabulary, 0.2) == ["label 2", "label 7"]
    assert choose_held_out_labels(vocabulary, 0.5) == [f"label {number}" for number in (1, 3, 5, 7, 9)]
    for share in (0.01, 0.99):
        with pytest.raises(ConfigError, match="of 10 seen labels would be held out"):
            choose_held_out_labels(vocabulary, share)
