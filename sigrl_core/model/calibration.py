"""Calibration: one curve from logits to probabilities and one threshold per label.

Curves are fitted on held-out images to vocabulary-independent logits (`Tagger.logits`), as Platt's sigmoid or by
isotonic regression. Labels with too few examples, unseen labels and labels of other vocabularies use a fallback curve,
which is fitted to all labels together.
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
from sigrl_core.config.deprecated import FIELDS, rename_keys
from sigrl_core.errors import CheckpointError, ShardError
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.metrics import expected_calibration_error


@dataclass(frozen=True, kw_only=True)
class CalibrationCurve:
    """An increasing curve from logits to probabilities, and the smallest probability of a tag.

    Attributes:
        slope, intercept: Platt's sigmoid(slope * logit + intercept), if there are no points.
        points: logits and probabilities of isotonic regression, linearly interpolated.
        threshold: see `CalibrateConfig.criterion`.
        positives: number of held-out images with the label.
        own: whether it was fitted to this label only.
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
    """The calibration of one checkpoint.

    Attributes:
        vocabulary_hash: vocabulary of the checkpoint.
        criterion: criterion that chose the thresholds.
        curves: label -> its curve.
        fallback: the curve of every other label.
        held_out: metrics of held-out images, by cross-fitting: an image is never in the fit of the curves that rate it.
    """

    vocabulary_hash: str
    criterion: str
    curves: dict[str, CalibrationCurve]
    fallback: CalibrationCurve
    held_out: dict[str, Any]

    def probabilities(self, logits_NC: Float[NDArray, "N C"], names: Sequence[str]) -> Float[NDArray, "N C"]:
        """Computes the probabilities of labels by name."""
        pairs = zip(names, np.asarray(logits_NC, np.float64).T, strict=True)
        return np.stack([self.curve_of(name)(logits_N) for name, logits_N in pairs], axis=1)

    def thresholds(self, names: Sequence[str]) -> Float[NDArray, " C"]:
        return np.array([self.curve_of(name).threshold for name in names])

    def curve_of(self, name: str) -> CalibrationCurve:
        return self.curves.get(name, self.fallback)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def parse(cls, text: str, vocabulary: Vocabulary, where: str) -> Calibration:
        """Reads what `to_json` wrote; raises CheckpointError for other text or another vocabulary."""
        try:
            values = rename_keys(json.loads(text), FIELDS["Calibration"])
            curves = {name: _parse_curve(each) for name, each in values.pop("curves").items()}
            calibration = cls(curves=curves, fallback=_parse_curve(values.pop("fallback")), **values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{where}: not a calibration ({error!r}); run calibrate.py again") from error
        if calibration.vocabulary_hash != vocabulary.hash:
            raise CheckpointError(
                f"{where}: made for vocabulary {calibration.vocabulary_hash[:8]}, the checkpoint has "
                f"{vocabulary.hash[:8]}; run calibrate.py again"
            )
        return calibration


def _parse_curve(values: dict[str, Any]) -> CalibrationCurve:
    return CalibrationCurve(**{**values, "points": tuple((float(x), float(y)) for x, y in values["points"])})


def fit_calibration(
    logits_NC: Float[NDArray, "N C"], states_NC: Int8[NDArray, "N C"], vocabulary: Vocabulary, config: CalibrateConfig
) -> Calibration:
    """Fits a curve per label with enough examples and the fallback to all labels, and chooses thresholds.

    Args:
        logits_NC: vocabulary-independent logits of held-out images.
        states_NC: label states of these images.

    Raises:
        ShardError: there are too few present or absent labels.
    """
    names, logits_NC = vocabulary.names, np.asarray(logits_NC, np.float64)
    halves = np.arange(len(logits_NC)) % 2
    curves, fallback = _fit(logits_NC, states_NC, names, config)
    cross_fitted_NC = np.zeros_like(logits_NC)
    for half in (0, 1):
        fitted, _ = _fit(logits_NC[halves != half], states_NC[halves != half], names, config)
        for c, name in enumerate(names):
            cross_fitted_NC[halves == half, c] = fitted[name](logits_NC[halves == half, c])
    held_out = {
        "images": len(logits_NC),
        "labels_with_their_own_curve": sum(curve.own for curve in curves.values()),
        "ece_before": expected_calibration_error(sigmoid(logits_NC), states_NC),
        "ece_after": expected_calibration_error(cross_fitted_NC, states_NC),
    }
    criterion = config.criterion if config.criterion == "f1" else f"{config.criterion} {config.target:g}"
    return Calibration(
        vocabulary_hash=vocabulary.hash, criterion=criterion, curves=curves, fallback=fallback, held_out=held_out
    )


def _fit(
    logits_NC: NDArray, states_NC: NDArray, names: Sequence[str], config: CalibrateConfig
) -> tuple[dict[str, CalibrationCurve], CalibrationCurve]:
    """Returns a curve per label, each with its own threshold, and the fallback, which labels with few examples use."""
    known_NC, present_NC = states_NC != 0, states_NC > 0
    logits, present = logits_NC[known_NC], present_NC[known_NC]
    if min(present.sum(), (~present).sum()) < config.min_examples:
        raise ShardError(
            f"{config.data}: {int(present.sum())} labels present and {int((~present).sum())} absent among "
            f"{len(logits_NC)} held-out images; calibration needs {config.min_examples} of both in each half of them"
        )
    fallback = _with_threshold(fit_curve(logits, present, config), logits, config)
    curves = {}
    for name, logits_N, known_N, present_N in zip(names, logits_NC.T, known_NC.T, present_NC.T, strict=True):
        enough = min(present_N.sum(), (known_N & ~present_N).sum()) >= config.min_examples
        curve = fit_curve(logits_N[known_N], present_N[known_N], config) if enough else fallback
        curve = dataclasses.replace(curve, own=bool(enough), positives=int(present_N.sum()))
        curves[name] = _with_threshold(curve, logits_N, config)
    return curves, fallback


def _with_threshold(curve: CalibrationCurve, logits_N: NDArray, config: CalibrateConfig) -> CalibrationCurve:
    return dataclasses.replace(curve, threshold=choose_threshold(curve(logits_N), config.criterion, config.target))


def fit_curve(logits: Float[NDArray, " N"], present: Bool[NDArray, " N"], config: CalibrateConfig) -> CalibrationCurve:
    """Platt 1999, or isotonic regression (Zadrozny and Elkan 2002)."""
    from sklearn.isotonic import IsotonicRegression  # slow to import; only fitting uses it
    from sklearn.linear_model import LogisticRegression

    if config.method == "isotonic":
        model = IsotonicRegression(out_of_bounds="clip").fit(logits, present)
        return CalibrationCurve(
            points=tuple(zip(model.X_thresholds_.tolist(), model.y_thresholds_.tolist(), strict=True))
        )
    centre, width = float(logits.mean()), max(float(logits.std()), 1e-9)
    model = LogisticRegression(C=config.platt_strength, max_iter=1000)
    model.fit(((logits - centre) / width)[:, None], present)
    slope = max(float(np.ravel(model.coef_)[0]), 0.0) / width  # a decreasing curve would invert the ranking
    return CalibrationCurve(slope=slope, intercept=float(np.ravel(model.intercept_)[0]) - slope * centre)


def choose_threshold(
    probabilities: Float[NDArray, " N"], criterion: Literal["f1", "precision", "recall"], target: float = 0.9
) -> float:
    """Chooses the smallest probability of a tag from the expected metrics, which the probabilities themselves give.

    The expected number of hits among the k most probable images is the sum of their probabilities; divided by k it is
    the precision, divided by the sum of all the recall. `f1` maximises F1 (Lipton et al. 2014, arXiv 1402.1892);
    `precision` is the lowest threshold that keeps precision `target`, or the highest threshold if none does; `recall`
    is the highest that keeps recall `target`. Counting a label's few positives would fit noise, and unseen labels have
    none.
    """
    ordered = np.sort(probabilities)[::-1]
    hits, tagged, total = np.cumsum(ordered), np.arange(1, len(ordered) + 1), max(float(ordered.sum()), 1e-12)
    if criterion == "f1":
        best = int(np.argmax(2 * hits / (tagged + total)))
    elif criterion == "recall":
        best = int(np.argmax(hits / total >= target - 1e-9))
    else:
        best = max(int((hits / tagged >= target).sum()) - 1, 0)  # precision decreases with every image
    following = ordered[min(best + 1, len(ordered) - 1)]
    return float((ordered[best] + following) / 2)  # the middle between two images


def sigmoid(logits: NDArray) -> NDArray:
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, np.float64)))
