"""Probabilities and thresholds from held-out images, beside scikit-learn and by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score

from sigrl_core.config import CalibrateConfig
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import CheckpointError, ConfigError, ShardError
from sigrl_core.evaluation.calibrate import calibrate
from sigrl_core.evaluation.evaluator import Evaluator, evaluate
from sigrl_core.inference.tagger import Tagger
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.metrics import expected_calibration_error, f1_per_label, reliability
from sigrl_core.model.calibration import (
    Calibration,
    CalibrationCurve,
    choose_threshold,
    fit_calibration,
    fit_curve,
    sigmoid,
)
from sigrl_core.model.checkpoint import add_calibration, load_checkpoint, save_checkpoint
from tests.conftest import tagger_of, vocabulary_of

pytestmark = pytest.mark.unit

CONFIG = CalibrateConfig(checkpoint="c", data="d")
VOCABULARY = vocabulary_of(["often", "seldom"], ["never"])


def drawn(rows: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose true probabilities are sigmoid(2 x - 3), sigmoid(x - 4), and nobody knows."""
    rng = np.random.default_rng(seed)
    logits_NC = rng.normal(0, 2, (rows, 3))
    truth = sigmoid(logits_NC * [2, 1, 1] - [3, 4, 0])
    states_NC = np.where(rng.random((rows, 3)) < truth, 1, -1).astype(np.int8)
    states_NC[:, 2] = 0
    return logits_NC, states_NC


def test_the_error_by_hand() -> None:
    """Two bins: 0.2 and 0.4 of which one is present, 0.9 which is; what is unknown does not count."""
    probabilities, states = np.array([[0.2, 0.4, 0.9, 0.6]]), np.array([[1, -1, 1, 0]], np.int8)
    assert expected_calibration_error(probabilities, states, bins=2) == pytest.approx((2 * 0.2 + 0.1) / 3)
    assert np.isnan(expected_calibration_error(probabilities, 0 * states))
    assert expected_calibration_error(np.array([[1.0]]), np.array([[1]], np.int8)) == 0


def test_reliability_equals_scikit_learn() -> None:
    logits_NC, states_NC = drawn()
    points = reliability(sigmoid(logits_NC), states_NC, bins=10)
    known = states_NC != 0
    present, probability = calibration_curve(states_NC[known] > 0, sigmoid(logits_NC)[known], n_bins=10)
    np.testing.assert_allclose(points.present, present)
    np.testing.assert_allclose(points.probability, probability)
    assert points.entries.sum() == 8000


def test_f1_equals_scikit_learn() -> None:
    logits_NC, states_NC = drawn(200)
    tagged = logits_NC > 1
    found = f1_per_label(tagged, states_NC)
    expected = [f1_score(states_NC[:, c] > 0, tagged[:, c]) for c in (0, 1)]
    np.testing.assert_allclose(found, [*expected, 0])


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_curves_find_the_truth(method: str) -> None:
    logits_NC, states_NC = drawn()
    calibration = fit_calibration(logits_NC, states_NC, VOCABULARY, replace(CONFIG, method=method))
    where = np.array([0.0, 1.5, 3.0])
    np.testing.assert_allclose(calibration.curve_of("often")(where), sigmoid(2 * where - 3), atol=0.06)
    np.testing.assert_allclose(calibration.curve_of("seldom")(where), sigmoid(where - 4), atol=0.06)
    fresh_NC, fresh_states_NC = drawn(seed=1)
    probability_NC = calibration.probabilities(fresh_NC, VOCABULARY.names)
    raw = expected_calibration_error(sigmoid(fresh_NC), fresh_states_NC)
    assert expected_calibration_error(probability_NC, fresh_states_NC) < raw / 10
    assert calibration.held_out["ece_after"] < calibration.held_out["ece_before"] / 10
    assert (calibration.held_out["images"], calibration.held_out["labels_with_their_own_curve"]) == (4000, 2)


def test_labels_with_too_few_examples_share_the_fallback() -> None:
    """`seldom` has its own curve with enough images; unseen and unheard-of labels never do, but thresholds differ."""
    logits_NC, states_NC = drawn(400)
    logits_NC[:, 2] -= 1
    config = replace(CONFIG, min_examples=int((states_NC[:, 1] > 0).sum()) + 1)
    calibration = fit_calibration(logits_NC, states_NC, VOCABULARY, config)
    assert [calibration.curve_of(name).own for name in ("often", "seldom", "never", "martian")] == [
        True,
        False,
        False,
        False,
    ]
    assert calibration.curve_of("martian") is calibration.fallback
    for name in ("seldom", "never"):
        assert calibration.curve_of(name).slope == calibration.fallback.slope
    assert calibration.curve_of("seldom").positives == (states_NC[:, 1] > 0).sum()
    assert calibration.curve_of("never").threshold != calibration.curve_of("seldom").threshold


def test_a_curve_never_falls() -> None:
    logits, present = np.arange(20.0), np.arange(20) < 10
    for method in ("platt", "isotonic"):
        curve = fit_curve(logits, present, replace(CONFIG, method=method))
        assert (np.diff(curve(np.linspace(-5, 25, 50))) >= -1e-12).all()


def test_thresholds_by_hand() -> None:
    """Expected hits of the k best: 0.9, 1.5, 1.7, 1.8 of 1.8 in all; F1 0.64, 0.79, 0.71, 0.62; precision 0.9, 0.75."""
    probabilities = np.array([0.2, 0.9, 0.1, 0.6])
    assert choose_threshold(probabilities, "f1") == pytest.approx(0.4)
    assert choose_threshold(probabilities, "precision", 0.75) == pytest.approx(0.4)
    assert choose_threshold(probabilities, "precision", 0.95) == pytest.approx(0.75)  # cannot be had: the best there is
    assert choose_threshold(probabilities, "recall", 0.94) == pytest.approx(0.15)
    assert choose_threshold(probabilities, "recall", 1.0) == pytest.approx(0.1)


def test_thresholds_keep_what_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    probabilities = sigmoid(rng.normal(-2, 3, 20000))
    present = rng.random(20000) < probabilities
    for criterion, measured in (
        ("precision", lambda tags: present[tags].mean()),
        ("recall", lambda tags: tags[present].mean()),
    ):
        tags = probabilities >= choose_threshold(probabilities, criterion, 0.9)
        assert measured(tags) == pytest.approx(0.9, abs=0.02)
    best = max(f1_score(present, probabilities >= t) for t in np.linspace(0.05, 0.95, 91))
    assert f1_score(present, probabilities >= choose_threshold(probabilities, "f1")) > best - 0.005


def test_nothing_to_learn_from() -> None:
    logits_NC, states_NC = drawn(100)
    with pytest.raises(ShardError, match=r"d: 0 labels present and \d+ absent among 100 held-out images"):
        fit_calibration(logits_NC, np.where(states_NC == 1, 0, states_NC), VOCABULARY, CONFIG)


def test_nonsense_is_refused() -> None:
    for key, value in (("target", 0.0), ("min_examples", 0), ("platt_strength", 0.0)):
        with pytest.raises(ConfigError, match=f"{key} is "):
            replace(CONFIG, **{key: value})


def test_json_and_back() -> None:
    for method in ("platt", "isotonic"):
        calibration = fit_calibration(*drawn(200), VOCABULARY, replace(CONFIG, method=method))
        assert Calibration.parse(calibration.to_json(), VOCABULARY, "here") == calibration
    old = json.loads(calibration.to_json())  # as version 0.1.0 wrote it
    old["goal"], old["held_out"]["pictures"] = old.pop("criterion"), old["held_out"].pop("images")
    assert Calibration.parse(json.dumps(old), VOCABULARY, "here") == calibration
    with pytest.raises(CheckpointError, match="here: made for vocabulary"):
        Calibration.parse(calibration.to_json(), vocabulary_of(["other"]), "here")
    for text in ("{", "{}", '{"curves": 1}', json.dumps({"curves": {"a": {"points": [[1]]}}, "fallback": {}})):
        with pytest.raises(CheckpointError, match="here: not a calibration"):
            Calibration.parse(text, VOCABULARY, "here")


# ---- with a checkpoint ----


@pytest.fixture
def checkpoint(toybox_shards: ShardFolder, tmp_path: Path) -> str:
    tagger = tagger_of(toybox_shards.vocabulary)
    save_checkpoint(tmp_path / "c", tagger.model, tagger.checkpoint.config, {"selected": {}, "history": []})
    return str(tmp_path / "c")


def test_a_checkpoint_is_calibrated_in_its_place(checkpoint: str, toybox_shards: ShardFolder) -> None:
    config = CalibrateConfig(checkpoint=checkpoint, data=toybox_shards.uri, split="all", min_examples=2)
    before = load_checkpoint(checkpoint)
    assert before.calibration is None
    assert evaluate(Evaluator(Tagger(before), {}), toybox_shards).metrics["calibration"] is None
    made = calibrate(config)
    tagger = Tagger.load(checkpoint)
    assert tagger.calibration == made
    measured = evaluate(Evaluator(tagger, {}), toybox_shards).metrics["calibration"]
    assert set(measured) == {"seen", "unseen"}
    assert all(values["ece_after"] < values["ece_before"] for values in measured.values())
    assert calibrate(config) == made  # once more changes nothing


def test_probabilities_are_tags(checkpoint: str, toybox_shards: ShardFolder) -> None:
    calibrate(CalibrateConfig(checkpoint=checkpoint, data=toybox_shards.uri, split="all", min_examples=2))
    tagger = Tagger.load(checkpoint)
    jpegs = toybox_shards.read_shard(0)["image"].to_pylist()
    for tags in tagger.tag(jpegs, threshold=0.1):
        assert tags.scores == sorted(tags.scores, reverse=True)
        assert all(0.1 <= score <= 1 for score in tags.scores)
    everything = tagger.tag(jpegs, threshold=0.0)
    assert {len(tags.labels) for tags in everything} == {66}
    for tags, all_of_it in zip(tagger.tag(jpegs, threshold="calibrated"), everything, strict=True):
        pairs = zip(all_of_it.labels, all_of_it.scores, strict=True)
        assert tags.labels == [name for name, p in pairs if p >= tagger.calibration.curve_of(name).threshold - 1e-12]
    assert {len(tags.labels) for tags in tagger.tag(jpegs, top_k=2, threshold=0.0)} == {2}
    strangers = Vocabulary.from_names(["martian", "red star"])
    alone, among = (tagger.tag(jpegs, vocabulary, threshold=0.0) for vocabulary in (strangers, tagger.vocabulary))
    for few, many in zip(alone, among, strict=True):
        found, expected = (dict(zip(t.labels, t.scores, strict=True))["red star"] for t in (few, many))
        # known labels hear each other in propagation alone, which this model has not
        assert found == pytest.approx(expected, abs=1e-6)


def test_a_calibration_half_written_is_not_read(checkpoint: str) -> None:
    (Path(checkpoint) / "calibration.json").write_text("{")
    assert load_checkpoint(checkpoint).calibration is None


def test_an_altered_calibration_is_refused(checkpoint: str, toybox_shards: ShardFolder) -> None:
    made = fit_calibration(*drawn(200), VOCABULARY, CONFIG)
    add_calibration(checkpoint, replace(made, vocabulary_hash=toybox_shards.vocabulary.hash))
    path = Path(checkpoint) / "calibration.json"
    path.write_text(path.read_text().replace('"slope": ', '"slope": 1'))
    with pytest.raises(CheckpointError, match=r"calibration.json: sha256 is"):
        load_checkpoint(checkpoint)


def test_without_calibration_there_are_no_probabilities(checkpoint: str, toybox_shards: ShardFolder) -> None:
    jpegs = toybox_shards.read_shard(0)["image"].to_pylist()
    with pytest.raises(CheckpointError, match=r"not calibrated, so it has no probabilities; run calibrate.py"):
        Tagger.load(checkpoint).tag(jpegs, threshold=0.5)


def test_a_curve_of_points_stays_inside_them() -> None:
    curve = CalibrationCurve(points=((0.0, 0.1), (1.0, 0.5)))
    np.testing.assert_allclose(curve(np.array([-9, 0.5, 9])), [0.1, 0.3, 0.5])
