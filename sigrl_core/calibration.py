"""From scores to probabilities, and from probabilities to tags: one curve and one threshold for each label.

Curves are fitted on held-out pictures, to the scores that do not depend on the vocabulary asked (`Tagger.logits`):
Platt's sigmoid or isotonic regression. Labels with too few examples there, unseen labels and labels of other
vocabularies share a fallback that is fitted to all labels together.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int8
from numpy.typing import NDArray

from sigrl_core.config import CalibrateConfig
from sigrl_core.errors import CheckpointError, ShardError
from sigrl_core.metrics import expected_calibration_error
from sigrl_core.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Logit -> probability, rising, and the probability from which a label counts as a tag.

    Attributes:
        slope, intercept: of Platt's sigmoid(slope * logit + intercept), where there are no points.
        points: logits and probabilities of isotonic regression, straight lines between.
        threshold: see `CalibrateConfig.goal`.
        positives: held-out pictures that showed the label.
        own: whether it was fitted to this label alone.
    """

    slope: float = 1.0
    intercept: float = 0.0
    points: tuple[tuple[float, float], ...] = ()
    threshold: float = 0.5
    positives: int = 0
    own: bool = False

    def __call__(self, logits: NDArray) -> NDArray:
        if self.points:
            return np.interp(logits, *np.array(self.points).T)
        return sigmoid(self.slope * logits + self.intercept)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What calibrate.py found, for one checkpoint.

    Attributes:
        vocabulary_hash: of the checkpoint it was made for.
        goal: what the thresholds were chosen for.
        curves: label of the vocabulary -> its curve.
        fallback: for every other label.
        held_out: what was measured on held-out pictures, each judged by curves that had not seen it.
    """

    vocabulary_hash: str
    goal: str
    curves: dict[str, Curve]
    fallback: Curve
    held_out: dict[str, Any]

    def probabilities(self, logits_NC: Float[NDArray, "N C"], names: Sequence[str]) -> Float[NDArray, "N C"]:
        """Probabilities of labels by name."""
        pairs = zip(names, np.asarray(logits_NC, np.float64).T, strict=True)
        return np.stack([self.of(name)(logits_N) for name, logits_N in pairs], axis=1)

    def thresholds(self, names: Sequence[str]) -> Float[NDArray, " C"]:
        return np.array([self.of(name).threshold for name in names])

    def of(self, name: str) -> Curve:
        return self.curves.get(name, self.fallback)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def parse(cls, text: str, vocabulary: Vocabulary, where: str) -> Calibration:
        """Reads what `to_json` wrote; CheckpointError where it is not that, or of another vocabulary."""
        try:
            values = json.loads(text)
            curves = {name: _curve(each) for name, each in values.pop("curves").items()}
            calibration = cls(curves=curves, fallback=_curve(values.pop("fallback")), **values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{where}: not a calibration ({error!r}); run calibrate.py again") from error
        if calibration.vocabulary_hash != vocabulary.hash:
            raise CheckpointError(
                f"{where}: made for vocabulary {calibration.vocabulary_hash[:8]}, the checkpoint has "
                f"{vocabulary.hash[:8]}; run calibrate.py again"
            )
        return calibration


def _curve(values: dict[str, Any]) -> Curve:
    return Curve(**{**values, "points": tuple((float(x), float(y)) for x, y in values["points"])})


def fit_calibration(
    logits_NC: Float[NDArray, "N C"], states_NC: Int8[NDArray, "N C"], vocabulary: Vocabulary, config: CalibrateConfig
) -> Calibration:
    """Fits a curve to every label with enough examples, the fallback to all labels together, and chooses thresholds.

    Args:
        logits_NC: of held-out pictures, vocabulary-independent.
        states_NC: what is known of them.

    Raises:
        ShardError: the pictures do not show both presence and absence of any label often enough.
    """
    names, logits_NC = vocabulary.names, np.asarray(logits_NC, np.float64)
    halves = np.arange(len(logits_NC)) % 2
    curves, fallback = _fit(logits_NC, states_NC, names, config)
    crossed_NC = np.zeros_like(logits_NC)
    for half in (0, 1):
        fitted, _ = _fit(logits_NC[halves != half], states_NC[halves != half], names, config)
        for c, name in enumerate(names):
            crossed_NC[halves == half, c] = fitted[name](logits_NC[halves == half, c])
    held_out = {
        "pictures": len(logits_NC),
        "labels_with_their_own_curve": sum(curve.own for curve in curves.values()),
        "ece_before": expected_calibration_error(sigmoid(logits_NC), states_NC),
        "ece_after": expected_calibration_error(crossed_NC, states_NC),
    }
    goal = config.goal if config.goal == "f1" else f"{config.goal} {config.at:g}"
    return Calibration(vocabulary_hash=vocabulary.hash, goal=goal, curves=curves, fallback=fallback, held_out=held_out)


def _fit(
    logits_NC: NDArray, states_NC: NDArray, names: Sequence[str], config: CalibrateConfig
) -> tuple[dict[str, Curve], Curve]:
    """A curve for each label, with too few examples the fallback's; a threshold of its own all the same."""
    known_NC, present_NC = states_NC != 0, states_NC > 0
    logits, present = logits_NC[known_NC], present_NC[known_NC]
    if min(present.sum(), (~present).sum()) < config.min_examples:
        raise ShardError(
            f"{config.data}: {int(present.sum())} labels present and {int((~present).sum())} absent among "
            f"{len(logits_NC)} held-out pictures; calibration wants {config.min_examples} of both in each half of them"
        )
    fallback = _with_threshold(fit_curve(logits, present, config), logits, config)
    curves = {}
    for name, logits_N, known_N, present_N in zip(names, logits_NC.T, known_NC.T, present_NC.T, strict=True):
        enough = min(present_N.sum(), (known_N & ~present_N).sum()) >= config.min_examples
        curve = fit_curve(logits_N[known_N], present_N[known_N], config) if enough else fallback
        curve = dataclasses.replace(curve, own=bool(enough), positives=int(present_N.sum()))
        curves[name] = _with_threshold(curve, logits_N, config)
    return curves, fallback


def _with_threshold(curve: Curve, logits_N: NDArray, config: CalibrateConfig) -> Curve:
    return dataclasses.replace(curve, threshold=choose_threshold(curve(logits_N), config.goal, config.at))


def fit_curve(logits: Float[NDArray, " N"], present: Bool[NDArray, " N"], config: CalibrateConfig) -> Curve:
    """Platt 1999, or isotonic regression (Zadrozny and Elkan 2002)."""
    from sklearn.isotonic import IsotonicRegression  # takes a second to import, and only fitting needs it
    from sklearn.linear_model import LogisticRegression

    if config.method == "isotonic":
        model = IsotonicRegression(out_of_bounds="clip").fit(logits, present)
        return Curve(points=tuple(zip(model.X_thresholds_.tolist(), model.y_thresholds_.tolist(), strict=True)))
    centre, width = float(logits.mean()), max(float(logits.std()), 1e-9)
    model = LogisticRegression(C=config.platt_strength, max_iter=1000)
    model.fit(((logits - centre) / width)[:, None], present)
    slope = max(float(np.ravel(model.coef_)[0]), 0.0) / width  # a falling curve would turn the ranking over
    return Curve(slope=slope, intercept=float(np.ravel(model.intercept_)[0]) - slope * centre)


def choose_threshold(
    probabilities: Float[NDArray, " N"], goal: Literal["f1", "precision", "recall"], at: float = 0.9
) -> float:
    """The probability from which a label is a tag, by what the probabilities themselves lead to expect.

    Tagging the k most probable pictures is expected to find the sum of their probabilities: that over k is precision,
    over the sum of all recall. `f1` is where F1 is best (Lipton et al. 2014, arXiv 1402.1892); `precision` the lowest
    that keeps precision `at`, or the highest where none does; `recall` the highest that keeps recall `at`. Counts of a
    label's own few positives would fit their noise, and unseen labels have none.
    """
    ordered = np.sort(probabilities)[::-1]
    hits, tagged, total = np.cumsum(ordered), np.arange(1, len(ordered) + 1), max(float(ordered.sum()), 1e-12)
    if goal == "f1":
        best = int(np.argmax(2 * hits / (tagged + total)))
    elif goal == "recall":
        best = int(np.argmax(hits / total >= at - 1e-9))
    else:
        best = max(int((hits / tagged >= at).sum()) - 1, 0)  # falls with every picture
    following = ordered[min(best + 1, len(ordered) - 1)]
    return float((ordered[best] + following) / 2)  # half way to the next picture: either side is as good


def sigmoid(logits: NDArray) -> NDArray:
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, np.float64)))
