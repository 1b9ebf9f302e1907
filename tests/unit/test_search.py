"""What a search proposes, keeps, and goes on from; no trial is run here."""

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sigrl_core.config import RunConfig
from sigrl_core.config_json import from_json
from sigrl_core.errors import ConfigError
from sigrl_core.report.search import told, write_search_page
from sigrl_core.search import Search, earlier_trials, held_out_labels
from sigrl_core.search_space import Between, GraphSpace, OptimSpace, SearchSpace
from tests.conftest import vocabulary_of
from tests.searches import BASE, SPACE, go_on, opened

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_is_the_same_whether_it_was_interrupted_or_not(tmp_path: Path, sampler) -> None:
    through = opened(tmp_path / "through", trials=20, sampler=sampler)
    go_on(through, 20)
    for until in (3, 11, 12, 20):
        again = opened(tmp_path / "again", trials=20, sampler=sampler)
        assert len(again.ended) == {3: 0, 11: 3, 12: 11, 20: 12}[until]
        go_on(again, until)
        if until < 20:
            again.proposed(until)  # noted, and killed
    assert again.trials == through.trials
    assert len({trial.config for trial in through.ended}) == 20
    more = opened(tmp_path / "again", trials=22, sampler=sampler)
    assert more.undone() == [20, 21]


def test_tpe_learns_from_trials_and_random_does_not(tmp_path: Path) -> None:
    def distance(search: Search) -> float:
        go_on(search, 60)
        late = [trial.config.optim.lr for trial in search.ended[30:]]
        return sum(abs(math.log10(rate) + 3) for rate in late) / len(late)

    tpe = distance(opened(tmp_path / "tpe", trials=60))
    assert tpe < 0.75 * distance(opened(tmp_path / "random", trials=60, sampler="random"))


def test_the_first_trial_is_what_the_search_starts_from(tmp_path: Path) -> None:
    first = opened(tmp_path / "tpe").proposed(0)
    assert first.config == BASE
    assert first.parameters["optim.lr"] == BASE.optim.lr
    assert opened(tmp_path / "random", sampler="random").proposed(0).config != BASE


def test_results(tmp_path: Path) -> None:
    search = opened(tmp_path / "search", trials=8)
    go_on(search, 8)
    write_search_page(search)
    search.write_results()
    best = search.best
    assert best is not None
    assert best.objective == max(trial.objective or 0 for trial in search.ended)
    assert best.best_epoch == (3 if best.state == "complete" else 1)
    assert from_json(RunConfig, (tmp_path / "search" / "best.json").read_text(), "test") == best.config
    rows = pq.read_table(tmp_path / "search" / "trials.parquet").to_pylist()
    assert [row["trial"] for row in rows] == list(range(8))
    for row, trial in zip(rows, search.ended, strict=True):
        assert row["objective"] == trial.objective
        assert (row["state"], row["epochs"], row["by_epoch"]) == (trial.state, len(trial.epochs), list(trial.epochs))
        for name in SPACE.searched(BASE):
            assert row[name] == trial.parameters.get(name)
    assert rows[3]["reason"] == "loss is nan"
    page = (tmp_path / "search" / "search.html").read_text()
    for text in ("loss is nan", "best so far", "graph.propagation", f"{best.objective:.4f}", "2 after epoch 1"):
        assert text in page
    assert told(search).startswith("8 trials, 4 complete, 2 failed, 2 stopped, 18 epochs; best gzsl.map 0.")


def test_values_that_do_not_go_together_are_a_failed_trial(tmp_path: Path) -> None:
    search = opened(tmp_path, trials=2)
    search.space = SearchSpace(graph=GraphSpace(kind=("complete",), heads=(3, 5)))
    trial = search.proposed(0)
    assert trial.state == "failed"
    assert "expected a multiple of graph.heads" in trial.reason
    assert opened(tmp_path, trials=2).undone() == [1]


def test_a_warm_start(tmp_path: Path) -> None:
    go_on(opened(tmp_path / "first", trials=12), 12)
    assert len(earlier_trials([str(tmp_path / "first")], SPACE, BASE, "gzsl.map")) == 9  # but for those that failed
    narrow = SearchSpace(optim=OptimSpace(lr=Between(low=1e-3, high=2e-3, log=True)))
    inside = earlier_trials([str(tmp_path / "first")], narrow, BASE, "gzsl.map")
    assert all(1e-3 <= trial.config.optim.lr <= 2e-3 for trial in inside)
    assert len(inside) < 9
    cold, warm = opened(tmp_path / "cold", trials=2), opened(tmp_path / "warm", trials=2)
    warm.earlier = earlier_trials([str(tmp_path / "first")] * 2, SPACE, BASE, "gzsl.map")
    assert len(warm.study().trials) == 18
    assert cold.proposed(0).parameters != warm.proposed(0).parameters
    with pytest.raises(ConfigError, match=r"its objective is 'gzsl\.map', here 'map'"):
        earlier_trials([str(tmp_path / "first")], SPACE, BASE, "map")
    with pytest.raises(ConfigError, match="nothing: no search there"):
        earlier_trials([str(tmp_path / "nothing")], SPACE, BASE, "map")


def test_labels_held_out() -> None:
    vocabulary = vocabulary_of([f"label {number}" for number in range(10)], ["never seen"])
    assert held_out_labels(vocabulary, 0.2) == ["label 2", "label 7"]
    assert held_out_labels(vocabulary, 0.5) == [f"label {number}" for number in (1, 3, 5, 7, 9)]
    for share in (0.01, 0.99):
        with pytest.raises(ConfigError, match="of 10 seen labels would be held out"):
            held_out_labels(vocabulary, share)
