"""The metrics against scikit-learn and against values worked by hand."""

import numpy as np
import pytest
import sklearn.metrics

from sigrl_core import metrics

pytestmark = pytest.mark.unit


@pytest.fixture(params=[1, 100])  # scores rounded to steps of 1 / steps: ties
def data(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    scores = np.round(random.normal(size=(300, 9)) * request.param) / request.param
    states = random.choice(np.array([-1, 0, 1], dtype=np.int8), size=scores.shape, p=[0.6, 0.2, 0.2])
    states[:, 4][states[:, 4] == 1] = -1
    for array in (scores, states):
        array.flags.writeable = False  # a metric that modifies its input fails here
    return scores, states


def test_average_precision_is_scikit_learns(data) -> None:
    scores, states = data
    found = metrics.average_precision(scores, states)
    assert found[4] == 0
    for c in set(range(9)) - {4}:
        known = states[:, c] != 0
        expected = sklearn.metrics.average_precision_score(states[known, c] == 1, scores[known, c])
        assert found[c] == pytest.approx(expected, abs=1e-12)
    assert metrics.mean_average_precision(scores, states) == pytest.approx(np.delete(found, 4).mean())


def test_average_precision_by_hand() -> None:
    scores, states = np.array([[0.9], [0.8], [0.7], [0.6]]), np.array([[1], [-1], [1], [0]])
    assert metrics.average_precision(scores, states) == pytest.approx([(1 / 1 + 2 / 3) / 2])


def test_no_positive_anywhere_is_not_a_number() -> None:
    assert np.isnan(metrics.mean_average_precision(np.ones((3, 2)), -np.ones((3, 2))))


def test_at_k_by_hand() -> None:
    scores = np.array([[0.9, 0.8, 0.1], [0.2, 0.3, 0.1]])
    states = np.array([[1, -1, 1], [0, 0, -1]], dtype=np.int8)
    found = metrics.precision_recall_f1_at_k(scores, states, k=1)
    assert found == pytest.approx((1 / 2, 1 / 2, 1 / 2))
    assert metrics.precision_recall_f1_at_k(scores, states, k=9) == pytest.approx((2 / 6, 2 / 2, 4 / 8))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_at_k_is_scikit_learns_micro_average(data, k: int) -> None:
    scores, states = data
    scores = scores + np.random.default_rng(1).uniform(0, 1e-6, scores.shape)  # ties have no one answer here
    tags = np.zeros(states.shape, dtype=bool)
    np.put_along_axis(tags, np.argsort(-scores, axis=1)[:, :k], True, axis=1)
    expected = sklearn.metrics.precision_recall_fscore_support(states == 1, tags, average="micro")[:3]
    assert metrics.precision_recall_f1_at_k(scores, states, k) == pytest.approx(expected)


def test_curve_is_scikit_learns(data) -> None:
    scores, states = data
    known = states != 0
    precision, recall, thresholds = sklearn.metrics.precision_recall_curve(states[known] == 1, scores[known])
    found = metrics.precision_recall_curve(scores, states)
    np.testing.assert_allclose(found.precision, precision[-2::-1])
    np.testing.assert_allclose(found.recall, recall[-2::-1])
    np.testing.assert_array_equal(found.thresholds, thresholds[::-1])


def test_curve_without_a_positive_is_empty() -> None:
    assert [len(part) for part in metrics.precision_recall_curve(np.ones((2, 2)), np.zeros((2, 2)))] == [0, 0, 0]
